"""The server, from the terminal: settings, then both ports, until a signal comes."""

import sys
from collections.abc import Sequence
from pathlib import Path

from engine.server.running import Server, serve
from engine.server.settings_file import Deployment, deployment


def prepared(path: Path | None, overrides: Sequence[str], models_folder: Path) -> Deployment:
    """What is to be served. Raises BadSettings before anything listens."""
    found = deployment(path, overrides, models_folder=models_folder)
    for note in found.notes:
        say(note)
    return found


async def run(found: Deployment) -> None:
    """Serve it. Inside of a running loop. Raises BadSettings for what shows only now."""
    with found.placed():
        await serve(Server(found.engine, found.server), say)


def say(line: str) -> None:
    """To whoever started it; answers and logs go elsewhere."""
    print(line, file=sys.stderr, flush=True)
