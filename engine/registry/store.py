"""What outlives a restart: how often models were used, and what operators have changed. One SQLite file.

SQLite writes ahead and syncs each write, so that a crash at any moment leaves the last whole one. A damaged file,
and one that is no database, is put aside, not thrown away, and a new one is begun: counts are not worth refusing to
start. The healthy database of another program is refused instead, for somebody still needs it where it is.
"""

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from engine.errors import BadSettings

APPLICATION_ID = 0x4D594152  # "MYAR": tells our file from other programs' databases
SCHEMA_VERSION = 1
BUSY_TIMEOUT_MS = 2_000

SCHEMA = """
CREATE TABLE models (
    key TEXT PRIMARY KEY,
    use_count INTEGER NOT NULL DEFAULT 0,
    last_used_at TEXT,
    is_edited INTEGER NOT NULL DEFAULT 0,
    tags TEXT NOT NULL DEFAULT '[]',
    aliases TEXT NOT NULL DEFAULT '[]',
    is_pinned INTEGER NOT NULL DEFAULT 0,
    note TEXT NOT NULL DEFAULT ''
) STRICT, WITHOUT ROWID
"""

SELECT = "SELECT key, use_count, last_used_at, is_edited, tags, aliases, is_pinned, note FROM models"

# counts and edits are written apart: a flush in one process must not undo an edit in another
COUNT = """
INSERT INTO models (key, use_count, last_used_at) VALUES (?, ?, ?)
ON CONFLICT (key) DO UPDATE SET use_count = excluded.use_count, last_used_at = excluded.last_used_at
"""

EDIT = """
INSERT INTO models (key, is_edited, tags, aliases, is_pinned, note) VALUES (?, 1, ?, ?, ?, ?)
ON CONFLICT (key) DO UPDATE SET
    is_edited = 1, tags = excluded.tags, aliases = excluded.aliases, is_pinned = excluded.is_pinned,
    note = excluded.note
"""


@dataclass(slots=True, kw_only=True)
class Edits:
    """What an operator says of a model."""

    tags: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    is_pinned: bool = False
    note: str = ""


@dataclass(slots=True, kw_only=True)
class Remembered:
    """What is known of a model from earlier lives. `edits` is None where nobody has said anything."""

    use_count: int = 0
    last_used_at: str | None = None
    edits: Edits | None = None


class Store:
    """The file. Opened for each use, so that two processes may share it and nothing is held over a fork.

    A call waits up to two seconds for another process that writes. Raises BadSettings, which names the file, when
    that is not enough or the disk fails.
    """

    def __init__(self, path: Path) -> None:
        """`put_aside` is where a damaged file went, `why_put_aside` what was wrong with it; None: it was good.

        Raises BadSettings for the file of a newer version or of another program, or one that cannot be made.
        """
        self.path = path
        self.put_aside: Path | None = None
        self.why_put_aside: str | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._prepare()
        except sqlite3.OperationalError as error:  # locked, or no such folder: the file is not to blame
            raise self._failed("opened", error) from error
        except sqlite3.DatabaseError as error:
            self._begin_anew(str(error))
        except OSError as error:
            raise self._failed("made", error) from error

    def load(self) -> dict[str, Remembered]:
        """Everything that is known, by key."""
        try:
            with self._open() as database:
                rows = database.execute(SELECT).fetchall()
            return {key: _remembered(*row) for key, *row in rows}
        except (sqlite3.DatabaseError, ValueError) as error:
            raise self._failed("read", error) from error

    def edit(self, key: str, edits: Edits) -> None:
        """Keep what an operator says of a model. On disk when this returns."""
        row = (key, json.dumps(edits.tags), json.dumps(edits.aliases), edits.is_pinned, edits.note)
        self._write(EDIT, [row])

    def flush(self, counts: Mapping[str, tuple[int, str | None]]) -> None:
        """Keep use counts and when each model was last used: all of them or none. On disk when this returns."""
        if counts:
            self._write(COUNT, [(key, count, used) for key, (count, used) in counts.items()])

    def _write(self, statement: str, rows: list[tuple[str | int | None, ...]]) -> None:
        try:
            with self._open() as database, _transaction(database):
                database.executemany(statement, rows)
        except sqlite3.DatabaseError as error:
            raise self._failed("written", error) from error

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        timeout_s = BUSY_TIMEOUT_MS / 1000
        with closing(sqlite3.connect(self.path, timeout=timeout_s, isolation_level=None)) as database:
            database.execute("PRAGMA synchronous = FULL")  # an operator's edit is worth a sync
            yield database

    def _prepare(self) -> None:
        with self._open() as database:
            (whole,) = database.execute("PRAGMA quick_check(1)").fetchone()
            if whole != "ok":
                raise sqlite3.DatabaseError(whole)
            with _transaction(database):  # of two that begin together, one makes the file
                self._make_or_check(database)
            self._write_ahead(database)
            database.execute(SELECT)

    def _write_ahead(self, database: sqlite3.Connection) -> None:
        """Let those who read not wait for one who writes. The file remembers it.

        SQLite does not wait for its turn here. Whoever is in the way has opened the file too and does the same; if
        both fail, the next one does it, and until then the file is as safe, only slower.
        """
        try:
            database.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise

    def _make_or_check(self, database: sqlite3.Connection) -> None:
        (application,) = database.execute("PRAGMA application_id").fetchone()
        (version,) = database.execute("PRAGMA user_version").fetchone()
        (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if not (application or version or tables):
            database.execute(SCHEMA)
            database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        elif application != APPLICATION_ID:
            raise BadSettings(f"{self.path} is the database of another program; choose another file")
        elif version != SCHEMA_VERSION:
            raise BadSettings(
                f"{self.path}: the registry's file has version {version}, but this engine reads {SCHEMA_VERSION}"
            )

    def _begin_anew(self, why: str) -> None:
        """Rename the file, and what SQLite keeps beside it, to the first free name of its kind."""
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.damaged-{number}")).exists():
            number += 1
        self.put_aside, self.why_put_aside = aside, why
        try:
            for suffix in ("-wal", "-shm", ""):
                beside = self.path.with_name(self.path.name + suffix)
                if beside.exists():
                    beside.replace(aside.with_name(aside.name + suffix))
            self._prepare()
        except (OSError, sqlite3.DatabaseError) as error:
            raise self._failed("made anew", error) from error

    def _failed(self, done: str, error: Exception) -> BadSettings:
        return BadSettings(f"{self.path}: the registry's file cannot be {done}: {error}")


@contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    """All or nothing, and alone from the beginning: a transaction that reads first could not wait for its turn."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:  # SQLite itself goes back where the disk is full
            database.execute("ROLLBACK")
        raise


def _remembered(
    use_count: int,
    last_used_at: str | None,
    is_edited: int,
    tags: str,
    aliases: str,
    is_pinned: int,
    note: str,
) -> Remembered:
    edits = None
    if is_edited:
        edits = Edits(
            tags=tuple(json.loads(tags)),
            aliases=tuple(json.loads(aliases)),
            is_pinned=bool(is_pinned),
            note=note,
        )
    return Remembered(use_count=use_count, last_used_at=last_used_at, edits=edits)
