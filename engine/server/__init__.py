"""The engine behind HTTP: OpenAI's routes for clients, a port of their own for operators, jobs beside."""
