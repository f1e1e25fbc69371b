"""Files of lines: read some at a time, however many there are, and appended to so that a torn end can be repaired."""

import os
from codecs import BOM_UTF8
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import NamedTuple

READ_LINES = 256
READ_BYTES = 1 << 20
APPEND = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class Line(NamedTuple):
    """A line of a file, counted from 1, without its end; None where it is longer than is read."""

    number: int
    data: bytes | None


def lines_of(path: Path, max_line_bytes: int) -> Iterator[Line]:
    """All lines that are not blank, in order, without a mark of UTF-8 before the first.

    No more than one of them is in memory at a time.
    """
    with path.open("rb") as file:
        if file.read(len(BOM_UTF8)) != BOM_UTF8:
            file.seek(0)
        number = 0
        while data := file.readline(max_line_bytes + 1):
            number += 1
            is_whole = len(data) <= max_line_bytes or data.endswith(b"\n")
            if not is_whole:
                while (rest := file.readline(READ_BYTES)) and not rest.endswith(b"\n"):
                    pass
                yield Line(number, None)
            elif data.strip():
                yield Line(number, data.strip())


@dataclass(slots=True)
class Reader:
    """The same for somebody who comes again and again: some lines at a time, of about a mebibyte."""

    lines: Iterator[Line]
    is_over: bool = False

    def next(self) -> list[Line]:
        """The next lines; none at the end."""
        found: list[Line] = []
        total = 0
        while not self.is_over and len(found) < READ_LINES and total < READ_BYTES:
            line = next(self.lines, None)
            if line is None:
                self.is_over = True
                break
            found.append(line)
            total += len(line.data or b"")
        return found


class Appender:
    """A file that lines are appended to, each of them whole or not at all. Called from several worker threads."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self.path = path
        self._lock = Lock()
        self._number = os.open(path, APPEND, 0o600)
        self._end = os.lseek(self._number, 0, os.SEEK_END)

    @property
    def num_bytes(self) -> int:
        return self._end

    def append(self, line: bytes) -> None:
        """Raises OSError, and the file is as it was then."""
        data = memoryview(line + b"\n")
        with self._lock:
            done = 0
            try:
                while done < len(data):
                    done += os.pwrite(self._number, data[done:], self._end + done)
            except OSError:
                os.ftruncate(self._number, self._end)
                raise
            self._end += len(data)

    def cut(self, num_bytes: int) -> None:
        """Go on after so many bytes: what is behind them is no good."""
        with self._lock:
            os.ftruncate(self._number, num_bytes)
            self._end = num_bytes

    def sync(self) -> None:
        """On disk when this returns."""
        os.fsync(self._number)

    def close(self) -> None:
        """A second call changes nothing."""
        if self._number >= 0:
            os.close(self._number)
            self._number = -1
