"""The lines of a trace file, plain or gzip: one pass, bounded memory, and every way to fail is a BadTrace."""

import gzip
import io
import zlib
from collections.abc import Generator
from pathlib import Path
from typing import cast

from sim.traffic.trace import BadTrace

GZIP_MAGIC = b"\x1f\x8b"
LINE_BYTES = 65_536  # the longest line; a file without line ends must not be read whole
BUFFER_BYTES = 131_072


def lines(path: Path, most: int = LINE_BYTES, key: str = "workload.path") -> Generator[bytes]:
    """Every line with its end, at most `most` bytes long; a gzip file is told by its first bytes, not its name.

    Raises BadTrace for damaged gzip data, for a longer line, and for what cannot be opened or read, which is the
    value of the setting `key`.
    """
    number = 0
    try:
        with path.open("rb") as file:
            if not file.seekable():
                raise BadTrace(f"{path} is a pipe, but must be a file, which can be read more than once")
            plain = _plain(file)
            while line := plain.readline(most + 1):
                number += 1
                if len(line) > most:
                    raise BadTrace(f"{path}, line {number} must be at most {most:,} bytes long")
                yield line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadTrace(f"{path} must be a whole gzip file, but after line {number}: {error}") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        reason = getattr(error, "strerror", None) or error
        raise BadTrace(f"{key} is {str(path)!r}, but must be a readable file: {reason}") from error


def _plain(file: io.BufferedReader) -> io.BufferedReader:
    if not file.peek(len(GZIP_MAGIC)).startswith(GZIP_MAGIC):
        return file
    # GzipFile.readline is Python; a buffer around it makes a line three times cheaper
    return io.BufferedReader(cast("io.RawIOBase", gzip.GzipFile(fileobj=file)), BUFFER_BYTES)
