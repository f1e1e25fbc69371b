"""What outlives a restart: how much of each window is spent. One SQLite file.

Written ahead: before a total passes the mark that is on the disk, a higher one is put there. A process that is killed
leaves marks that nobody has passed, so no window is granted twice; one that closes leaves exact figures, and says so.
"""

import sqlite3
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from engine.errors import BadSettings

APPLICATION_ID = 0x4D595154  # "MYQT": tells our file from other programs' databases
SCHEMA_VERSION = 1
BUSY_TIMEOUT_MS = 2_000
EVERYBODY = ""  # in the place of a name that is None
LIFE = "life"  # the row that says whether a process has the file in use, or had when it was cut off
LONGEST_PARTS = 61  # that a window can count for
DAY_NS = 86_400 * 10**9  # by so much less than a day do windows begin before or after those of UTC

SCHEMA = """
CREATE TABLE windows (
    model TEXT NOT NULL, tenant TEXT NOT NULL, what TEXT NOT NULL,
    part INTEGER NOT NULL, part_ns INTEGER NOT NULL, used INTEGER NOT NULL,
    PRIMARY KEY (model, tenant, what)
) STRICT, WITHOUT ROWID
"""

PUT = """
INSERT INTO windows (model, tenant, what, part, part_ns, used) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (model, tenant, what) DO UPDATE SET
    part = excluded.part, part_ns = excluded.part_ns, used = excluded.used
"""


FORGET = "DELETE FROM windows WHERE what <> ? AND (part + ?) * part_ns < ?"
SELECT = "SELECT * FROM windows WHERE what <> ?"


@dataclass(slots=True)
class Spent:
    """What was used of a window: `part` is its place in time, in parts of `part_ns` since 1970.

    Of a burst limit, the part is the theoretical arrival time.
    """

    model: str | None
    tenant: str | None
    what: str
    part: int
    part_ns: int
    used: int

    @property
    def row(self) -> tuple[str, str, str, int, int, int]:
        names = (self.model or EVERYBODY, self.tenant or EVERYBODY)
        return (*names, self.what, self.part, self.part_ns, self.used)


class SpentFile:
    """The file, held open while the process lives. Raises BadSettings for one that is not ours or is damaged.

    `was_cut`: the process before this one has not ended well.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.was_cut = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                path, timeout=BUSY_TIMEOUT_MS / 1000, isolation_level=None, check_same_thread=False
            )
            self._begin()
        except (sqlite3.Error, OSError) as error:
            raise BadSettings(f"quotas.state_file {path} cannot be used: {error}") from error

    def _begin(self) -> None:
        run = self._connection.execute
        (found,) = run("PRAGMA application_id").fetchone()
        (version,) = run("PRAGMA user_version").fetchone()
        (tables,) = run("SELECT count(*) FROM sqlite_schema").fetchone()
        if not tables and not found:
            run("PRAGMA journal_mode = WAL")
            run(SCHEMA)
            run(f"PRAGMA application_id = {APPLICATION_ID}")
            run(f"PRAGMA user_version = {SCHEMA_VERSION}")
        elif found != APPLICATION_ID or version != SCHEMA_VERSION:
            raise BadSettings(
                f"quotas.state_file {self._path} belongs to another program, or a newer version of this"
            )
        run(
            "PRAGMA synchronous = NORMAL"
        )  # a process that is killed loses nothing; syncing would hold up requests
        self.was_cut = run("SELECT used FROM windows WHERE what = ?", (LIFE,)).fetchone() == (1,)
        self.put([Spent(None, None, LIFE, 0, 1, 1)])

    def load(self, now_ns: int) -> list[Spent]:
        """Everything that counts still, at a time since 1970. Raises BadSettings for a damaged file."""
        try:
            self._connection.execute(FORGET, (LIFE, LONGEST_PARTS, now_ns - DAY_NS))
            with closing(self._connection.execute(SELECT, (LIFE,))) as rows:
                return [Spent(row[0] or None, row[1] or None, *row[2:]) for row in rows]
        except sqlite3.Error as error:
            raise BadSettings(f"quotas.state_file {self._path} is damaged: {error}") from error

    def put(self, several: list[Spent]) -> None:
        """Remember these, all or none."""
        run = self._connection.execute
        run("BEGIN IMMEDIATE")
        try:
            self._connection.executemany(PUT, [spent.row for spent in several])
            run("COMMIT")
        except BaseException:
            if self._connection.in_transaction:  # SQLite itself goes back where the disk is full
                run("ROLLBACK")
            raise

    def finish(self) -> None:
        """Say that this process has ended well: what is written is exact. And close.

        Where that cannot be written down, the next one takes it for cut off: bursts begin spent.
        """
        with suppress(sqlite3.Error):
            self.put([Spent(None, None, LIFE, 0, 1, 0)])
        self.close()

    def close(self) -> None:
        self._connection.close()
