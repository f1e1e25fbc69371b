"""A disk that is full: who meets it is told so, and what waits for room is not taken for a failure."""

import errno
import sqlite3

from engine.errors import EngineError

FULL = (errno.ENOSPC, errno.EDQUOT)
FULL_OF_SQLITE = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)
"""The latter where a file that several write has no room even for what tells them of each other."""


class DiskFull(EngineError):
    """There is no room on the disk of the server. Nothing of what was asked for is kept."""

    status = 507
    reason = "insufficient_storage"
    code = "insufficient_storage"

    def __init__(self) -> None:
        super().__init__(
            "the server's disk is full, so nothing of this is kept; try again when there is room on it"
        )


def is_full(error: BaseException | None) -> bool:
    """Whether that says so of a disk, or follows from what does."""
    if isinstance(error, OSError):
        return error.errno in FULL
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", None) in FULL_OF_SQLITE
    return isinstance(error, EngineError) and (isinstance(error, DiskFull) or is_full(error.__cause__))
