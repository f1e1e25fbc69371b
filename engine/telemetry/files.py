"""Lines on their way into a file: taken at once, written in batches off the loop, and never half a line."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import IO, Protocol

from engine.clock import Clock
from engine.errors import BadSettings

MIB = 1 << 20
MAX_WAITING_BYTES = 16 * MIB
"""Of lines that nobody has written yet, because the disk is slow; more are lost, and counted."""
BATCH_BYTES = 64 << 10


class Target(Protocol):
    """Where lines end up. It is called by one thread at a time."""

    def write(self, lines: Sequence[bytes]) -> int:
        """Write whole lines; how many of them could not be written."""

    def reopen(self) -> None:
        """From the next line on, write to whatever bears the file's name by then."""

    def close(self) -> None:
        """No more lines."""


class RotatingFile:
    """A file that becomes FILE.1 before it would grow beyond `max_bytes`, that one FILE.2, and so on; `keep` stay."""

    def __init__(
        self, path: Path, max_bytes: int, keep: int, *, key: str = "file", sync: bool = False
    ) -> None:
        """With `sync`, lines are on disk when `write` returns.

        Raises BadSettings, which calls it `key`, when it cannot be written.
        """
        self.path = path
        self._max_bytes = max_bytes
        self._keep = keep
        self._sync = sync
        self._size = 0
        self._descriptor: int | None = None
        self._is_stale = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._open()
        except OSError as error:
            raise BadSettings(f"{key} is {str(path)!r}, but cannot be written: {error.strerror}") from error

    def write(self, lines: Sequence[bytes]) -> int:
        lost, size = 0, 0
        batch: list[bytes] = []
        if self._is_stale:
            self._is_stale = False
            self.close()
        for line in lines:
            if self._size + size + len(line) > self._max_bytes and self._size + size:
                lost += self._put(batch)
                self._rotate()
                batch, size = [], 0
            batch.append(line)
            size += len(line)
        return lost + self._put(batch)

    def reopen(self) -> None:
        self._is_stale = True

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self) -> None:
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
        self._size = os.fstat(self._descriptor).st_size

    def _put(self, lines: list[bytes]) -> int:
        """Write them all or, where that fails, none; how many were not written."""
        if not lines:
            return 0
        data = memoryview(b"".join(lines))
        try:
            if self._descriptor is None:
                self._open()
            assert self._descriptor is not None
            while data:
                data = data[os.write(self._descriptor, data) :]
            if self._sync:
                os.fdatasync(self._descriptor)
        except OSError:
            if self._descriptor is not None:
                with suppress(OSError):  # half a line is worse than none
                    os.ftruncate(self._descriptor, self._size)
            return len(lines)
        self._size += sum(map(len, lines))
        return 0

    def _rotate(self) -> None:
        """Give its place to a new file. Where the disk does not let us, the old one grows on."""
        with suppress(OSError):
            for number in range(self._keep, 0, -1):
                before = self._numbered(number - 1)
                if before.exists():
                    before.replace(self._numbered(number))
            if not self._keep:
                self.path.unlink(missing_ok=True)
            self.close()

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}") if number else self.path


class OpenStream:
    """A text stream that is somebody else's, like stderr."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, lines: Sequence[bytes]) -> int:
        try:
            self._stream.write(b"".join(lines).decode())
            self._stream.flush()
        except (OSError, ValueError):  # nobody reads it any more, or it was closed
            return len(lines)
        return 0

    def reopen(self) -> None:
        """There is nothing to open."""

    def close(self) -> None:
        """It is its owner's to close."""


class Outbox:
    """Takes lines from any thread without waiting, and writes them in order.

    Once `start`ed it writes every `flush_ns` in a worker thread. Otherwise, as in a simulation, it writes when enough
    have come together, and at `close`.
    """

    def __init__(self, target: Target, clock: Clock) -> None:
        self.num_lost = 0
        self._target = target
        self._clock = clock
        self._is_started = False
        self._lines: list[bytes] = []
        self._waiting_bytes = 0
        self._taking = Lock()
        self._writing = Lock()

    def put(self, line: bytes) -> None:
        """Take a line, its end included."""
        with self._taking:
            if self._waiting_bytes + len(line) > MAX_WAITING_BYTES:
                self.num_lost += 1
                return
            self._lines.append(line)
            self._waiting_bytes += len(line)
        if not self._is_started and self._waiting_bytes >= BATCH_BYTES:
            self.drain()

    def start(self) -> None:
        """From now on somebody calls `flush` now and then."""
        self._is_started = True

    async def flush(self) -> None:
        """Write what is waiting while the loop goes on."""
        if self._lines:
            await self._clock.compute(self.drain)

    def drain(self) -> None:
        """Write what is waiting, behind whoever is writing now."""
        with self._writing:
            with self._taking:
                lines, self._lines, self._waiting_bytes = self._lines, [], 0
            if lines:
                lost = self._target.write(lines)
                with self._taking:
                    self.num_lost += lost

    def reopen(self) -> None:
        """Go on in another file of the same name: somebody has moved this one away."""
        self._target.reopen()

    def close(self) -> None:
        """Write what is waiting, then let go of the file."""
        self.drain()
        with self._writing:
            self._target.close()
