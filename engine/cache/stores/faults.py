"""What a store fails with: one sentence for people and one stable word for counters."""

import errno
from typing import Self

KINDS = {
    errno.ENOSPC: "full",
    errno.EDQUOT: "full",
    errno.EFBIG: "full",
    errno.ETIMEDOUT: "timeout",
    errno.EACCES: "denied",
    errno.EPERM: "denied",
    errno.EROFS: "denied",
}


class StoreFault(OSError):
    """A store could not do what it was asked. What was to be written is not visible, and nothing read is wrong.

    `kind` is full, io, timeout, unreachable, denied or taken (somebody else writes there).
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    @classmethod
    def of(cls, error: OSError, where: object) -> Self:
        """The same in our words; `where` is the file or folder."""
        return cls(KINDS.get(error.errno or 0, "io"), f"{where}: {error.strerror or error}")
