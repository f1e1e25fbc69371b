"""The jobs folder: one process at a time, one SQLite file in it, and beside that the files of batches.

SQLite writes ahead and syncs each transaction, so that a process that is killed leaves the last whole one. Everything
here blocks and is called from worker threads; a lock lets one of them in at a time.
"""

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

from engine.cache.stores.folder import locked
from engine.errors import BadSettings
from engine.server.disk import is_full

APPLICATION_ID = 0x4D594A42  # "MYJB": tells our file from other programs' databases
SCHEMA_VERSION = 1
DATABASE = "jobs.sqlite"
FILES = "files"

SCHEMA = (
    """
    CREATE TABLE jobs (
        id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, arguments TEXT NOT NULL, dedupe TEXT,
        state TEXT NOT NULL, priority INTEGER NOT NULL, attempts INTEGER NOT NULL, max_attempts INTEGER NOT NULL,
        created_ns INTEGER NOT NULL, queued_ns INTEGER NOT NULL, run_at_ns INTEGER NOT NULL,
        started_ns INTEGER, finished_ns INTEGER, heartbeat_ns INTEGER, life INTEGER,
        is_cancelled INTEGER NOT NULL DEFAULT 0, done INTEGER NOT NULL DEFAULT 0, total INTEGER,
        note TEXT NOT NULL DEFAULT '', checkpoint TEXT, result TEXT, error TEXT
    ) STRICT
    """,
    "CREATE INDEX jobs_by_turn ON jobs (state, priority DESC, run_at_ns, id)",
    "CREATE UNIQUE INDEX jobs_once ON jobs (dedupe) WHERE state IN ('queued', 'running')",
    """
    CREATE TABLE schedules (
        name TEXT PRIMARY KEY, kind TEXT NOT NULL, arguments TEXT NOT NULL, every_ns INTEGER NOT NULL,
        is_on INTEGER NOT NULL, is_edited INTEGER NOT NULL, last_ns INTEGER NOT NULL, skipped INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TABLE files (
        number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, tenant TEXT NOT NULL,
        name TEXT NOT NULL, purpose TEXT NOT NULL, num_bytes INTEGER NOT NULL, created_s INTEGER NOT NULL,
        expires_s INTEGER
    ) STRICT
    """,
    "CREATE INDEX files_by_tenant ON files (tenant, number)",
    """
    CREATE TABLE batches (
        number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, tenant TEXT NOT NULL,
        input TEXT NOT NULL, job INTEGER NOT NULL, is_over INTEGER NOT NULL, ended_s INTEGER, record TEXT NOT NULL
    ) STRICT
    """,
    "CREATE INDEX batches_by_tenant ON batches (tenant, number)",
    "CREATE INDEX batches_open ON batches (is_over, input)",
    "CREATE TABLE lives (number INTEGER NOT NULL) STRICT",
    "INSERT INTO lives VALUES (0)",
)


class Database:
    """The folder, locked for this process, and its SQLite file, open. `life` counts the processes that had it."""

    def __init__(self, folder: Path | None) -> None:
        """Without a folder everything is gone with the process. Raises BadSettings, which names the folder."""
        self._temporary = TemporaryDirectory(prefix="modelyard-jobs-") if folder is None else None
        self.folder = Path(self._temporary.name) if self._temporary is not None else Path(str(folder))
        self.files = self.folder / FILES
        self._lock = Lock()
        try:
            self.files.mkdir(parents=True, exist_ok=True)
            self._held = locked(
                self.folder, f"jobs.folder {self.folder} is in use by another server that is running"
            )
        except OSError as error:
            raise BadSettings(
                f"jobs.folder {self.folder} cannot be used: {error.strerror or error}"
            ) from error
        try:
            self._connection = sqlite3.connect(
                self.folder / DATABASE, isolation_level=None, check_same_thread=False
            )
            self._connection.row_factory = sqlite3.Row
            self.life = self._begin()
        except sqlite3.Error as error:
            self._let_go()
            advice = "make room there" if is_full(error) else "move it away to begin anew"
            raise BadSettings(
                f"jobs.folder {self.folder}: {DATABASE} cannot be used: {error}; {advice}"
            ) from error
        except BadSettings:
            self._let_go()
            raise

    def read(self, statement: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """All rows of a query."""
        with self._lock:
            return self._connection.execute(statement, values).fetchall()

    @contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """All that is done in it, or nothing; on disk when it ends."""
        with self._lock:
            run = self._connection.execute
            run("BEGIN IMMEDIATE")
            try:
                yield self._connection
                run("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # SQLite itself goes back where the disk is full
                    run("ROLLBACK")
                raise

    def close(self) -> None:
        """Let another process have the folder. What still runs in a worker thread ends first, or fails."""
        with self._lock:
            self._connection.close()
            self._let_go()

    def _begin(self) -> int:
        run = self._connection.execute
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = FULL")  # who was told that a batch is taken may rely on it
        (application,) = run("PRAGMA application_id").fetchone()
        (version,) = run("PRAGMA user_version").fetchone()
        (tables,) = run("SELECT count(*) FROM sqlite_schema").fetchone()
        if (tables or application) and (application, version) != (APPLICATION_ID, SCHEMA_VERSION):
            raise BadSettings(
                f"jobs.folder {self.folder}: {DATABASE} belongs to another program, or another version of this"
            )
        with self.change() as database:
            if not tables:
                for statement in SCHEMA:
                    database.execute(statement)
                database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            database.execute("UPDATE lives SET number = number + 1")
            (life,) = database.execute("SELECT number FROM lives").fetchone()
        return int(life)

    def _let_go(self) -> None:
        os.close(self._held)
        if self._temporary is not None:
            self._temporary.cleanup()
