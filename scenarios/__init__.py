"""One short file each: a story and what must hold. The numbers stand in conf/scenario."""
