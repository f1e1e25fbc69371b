"""What people do with the engine from a terminal: look at models, make or fetch some, talk to one."""
