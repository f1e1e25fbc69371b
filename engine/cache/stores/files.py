"""The file system as a folder of extents needs it: six calls, each of which may fail with OSError."""

import mmap
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from engine.cache.stores.backend import Buffer

MAX_PARTS = 512  # of one call; POSIX systems take 1,024
MADV_POPULATE_READ = 22  # Linux 5.14; the module mmap does not know it before Python 3.13
MAPPED_FROM_BYTES = 256 << 10  # what is smaller is read: two more system calls cost as much as the copy
CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Files:
    """Plain files of the operating system, for all threads.

    `is_mapped`: large reads are mappings, which spares a copy. Pages are brought in before anybody looks at them, so
    that a device that fails is an error here and no signal that ends the process. What remains is that somebody
    else shortens the file in between: not for folders that other machines write to.
    """

    def __init__(self, *, is_mapped: bool = True) -> None:
        self.is_mapped = is_mapped

    def make_folder(self, path: str) -> None:
        """Make it, unless it is there. Raises OSError when something else is."""
        try:
            Path(path).mkdir()
        except FileExistsError:
            if not stat.S_ISDIR(Path(path).lstat().st_mode):
                raise

    def create(self, path: str) -> int:
        """A new file, open for writing; raises OSError if there is one."""
        return os.open(path, CREATE, 0o600)

    def write(self, number: int, parts: Sequence[Buffer]) -> None:
        """Append all parts. Some of it may have been written when it raises."""
        rest = [memoryview(part).cast("B") for part in parts]
        begin = 0
        while begin < len(rest):
            written = os.writev(number, rest[begin : begin + MAX_PARTS])
            while begin < len(rest) and written >= len(rest[begin]):
                written -= len(rest[begin])
                begin += 1
            if written:
                rest[begin] = rest[begin][written:]

    def close(self, number: int) -> None:
        os.close(number)

    def rename(self, path: str, to: str) -> None:
        Path(path).rename(to)

    def delete(self, path: str) -> None:
        """No such file from now on."""
        Path(path).unlink(missing_ok=True)

    def read(self, path: str, offset: int, length: int) -> Buffer | None:
        """That many bytes from there on, fewer where the file ends; None if there is none or it is no plain file."""
        try:
            number = os.open(path, READ)
        except FileNotFoundError:
            return None
        try:
            status = os.fstat(number)
            if not stat.S_ISREG(status.st_mode):
                return None
            length = max(0, min(length, status.st_size - offset))
            if self.is_mapped and length >= MAPPED_FROM_BYTES:
                with suppress(OSError):  # an old kernel, or a device that fails: reading will tell
                    return _mapped(number, offset, length)
            return _read(number, offset, length)
        finally:
            os.close(number)


def _mapped(number: int, offset: int, length: int) -> Buffer:
    """Bytes of a file as they lie in the page cache, all of them brought in. Raises OSError."""
    shift = offset % mmap.ALLOCATIONGRANULARITY
    # a private copy of what is written to: nothing is, but some libraries want buffers that could be
    view = mmap.mmap(number, length + shift, access=mmap.ACCESS_COPY, offset=offset - shift)
    view.madvise(MADV_POPULATE_READ)
    return memoryview(view)[shift:]


def _read(number: int, offset: int, length: int) -> Buffer:
    """Bytes of a file, read into memory of their own. Raises OSError."""
    data = np.empty(length, np.uint8).data  # not set to zero first
    done = 0
    while done < length:
        count = os.preadv(number, [data[done:]], offset + done)
        if not count:
            break
        done += count
    return data[:done]
