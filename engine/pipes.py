"""Standard output into a pipe whose reader may leave early, as `head` does."""

import sys
from io import BufferedWriter, FileIO, TextIOWrapper
from typing import Any


class Pipe(FileIO):
    """A stream for whoever reads it. Once nobody does, what is written is dropped, and the work goes on."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            return memoryview(data).nbytes


def let_readers_leave() -> None:
    """From now on a reader that leaves changes neither what is done nor the exit code. For a process of its own."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if (
            stream is getattr(sys, f"__{name}__")
            and isinstance(stream, TextIOWrapper)
            and not stream.isatty()
        ):
            stream.flush()
            setattr(sys, name, forgiving(stream))


def forgiving(stream: TextIOWrapper) -> TextIOWrapper:
    """The same stream, whose reader may leave. The descriptor stays open when it is closed."""
    return TextIOWrapper(
        BufferedWriter(Pipe(stream.fileno(), "wb", closefd=False)),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
