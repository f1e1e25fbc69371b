"""What outlives a restart: how often models were used, and what operators have changed. One SQLite file.

SQLite writes ahead, so that a crash at any moment leaves the last whole write. A file that is damaged is put aside,
not thrown away, and a new one is begun: counts are not worth refusing to start.
"""

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from engine.errors import BadSettings

SCHEMA_VERSION = 1
BUSY_TIMEOUT_MS = 2_000

SCHEMA = """
CREATE TABLE IF NOT EXISTS models (
    key TEXT PRIMARY KEY, use_count INTEGER NOT NULL, last_used_at TEXT, is_edited INTEGER NOT NULL,
    tags TEXT NOT NULL, aliases TEXT NOT NULL, is_pinned INTEGER NOT NULL
) WITHOUT ROWID
"""


@dataclass(slots=True, frozen=True)
class Remembered:
    """What is known of a model from earlier lives."""

    use_count: int = 0
    last_used_at: str | None = None
    is_edited: bool = False
    tags: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    is_pinned: bool = False


class Store:
    """The file. Opened for each use, so that two processes may share it and nothing is held over a fork."""

    def __init__(self, path: Path) -> None:
        """Raises BadSettings for a file of a newer version, or one that cannot be made."""
        self.path = path
        self.put_aside: Path | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._prepare()
        except sqlite3.DatabaseError as error:
            if isinstance(
                error, sqlite3.OperationalError
            ):  # locked, or no such folder: the file is not to blame
                raise BadSettings(f"{path}: the registry's file cannot be opened: {error}") from error
            self._begin_anew()
        except OSError as error:
            raise BadSettings(f"{path}: the registry's file cannot be made: {error}") from error

    def load(self) -> dict[str, Remembered]:
        """Everything that is known, by key."""
        with self._open() as database:
            rows = database.execute(
                "SELECT key, use_count, last_used_at, is_edited, tags, aliases, is_pinned FROM models"
            )
            return {
                key: Remembered(
                    count,
                    used,
                    bool(edited),
                    tuple(json.loads(tags)),
                    tuple(json.loads(aliases)),
                    bool(pinned),
                )
                for key, count, used, edited, tags, aliases, pinned in rows
            }

    def write(self, models: Mapping[str, Remembered]) -> None:
        """All of them or none; on disk when this returns. Raises BadSettings when another process holds the file."""
        rows = [
            (key, each.use_count, each.last_used_at, each.is_edited, json.dumps(each.tags),
             json.dumps(each.aliases), each.is_pinned)
            for key, each in models.items()
        ]  # fmt: skip
        try:
            with self._open() as database, database:
                database.executemany("INSERT OR REPLACE INTO models VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        except sqlite3.OperationalError as error:
            raise BadSettings(f"{self.path}: the registry's file cannot be written: {error}") from error

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_MS / 1000)) as database:
            database.execute("PRAGMA synchronous = FULL")  # an operator's edit is worth a sync
            yield database

    def _prepare(self) -> None:
        with self._open() as database:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version > SCHEMA_VERSION:
                raise BadSettings(
                    f"{self.path}: the registry's file has version {version}, but this engine knows up to "
                    f"{SCHEMA_VERSION}"
                )
            (whole,) = database.execute("PRAGMA quick_check").fetchone()
            if whole != "ok":
                raise sqlite3.DatabaseError(whole)
            database.execute("PRAGMA journal_mode = WAL")
            with database:
                database.execute(SCHEMA)
                database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            database.execute(
                "SELECT key, use_count, last_used_at, is_edited, tags, aliases, is_pinned FROM models"
            )

    def _begin_anew(self) -> None:
        self.put_aside = self.path.with_name(self.path.name + ".damaged")
        self.path.replace(self.put_aside)
        for suffix in ("-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        self._prepare()
