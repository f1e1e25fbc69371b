"""`python -m engine dashboards FOLDER`: the dashboard, the alert rules and how to scrape, as files."""

from pathlib import Path

from engine.errors import EngineError
from engine.telemetry.boards import NAMES, board


class NotOurs(EngineError):
    """A file of that name is there already, and says something else."""

    reason = "not_ours"


def write_boards(folder: Path, *, force: bool = False) -> list[Path]:
    """Write them into a folder, which is made if need be; where they are.

    Raises NotOurs, before anything is written, for a file that somebody has changed, unless `force` is given.
    """
    texts = {folder / name: board(name) for name in NAMES}
    for path, text in texts.items():
        if not force and path.exists() and path.read_text(encoding="utf-8") != text:
            raise NotOurs(f"{path} is there already and has been changed; give --force to overwrite it")
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    return list(texts)
