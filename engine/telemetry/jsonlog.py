"""Events as JSON lines: one object a line, in the order in which they happened."""

import json
from typing import IO

from engine.telemetry.events import Event


class JsonLines:
    """Writes each event to a text file as it comes. The file's owner opens and closes it."""

    def __init__(self, file: IO[str]) -> None:
        self._write = file.write
        self._encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode

    def emit(self, event: Event) -> None:
        self._write(self._encode(event.as_dict()) + "\n")
