"""A file that nobody vouches for: opened only if it is a plain one, read only so far as was agreed.

Devices, pipes, sockets and folders are refused before they are opened. What the operating system refuses stays an
OSError, except for a file that is not there: the next attempt may succeed.
"""

import json
import os
import reprlib
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from engine.errors import BadModel

MAX_SHOWN = 80  # characters of a name or value that a message repeats

REPR = reprlib.Repr()
REPR.maxlevel, REPR.maxstring = 2, MAX_SHOWN

FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)

ZIP = b"PK\x03\x04"
PICKLE = b"\x80"
PICKLE_PROTOCOLS = range(2, 6)  # older ones have no mark at their beginning; torch does not write them
NEVER = "which is never loaded because loading one runs whatever code it holds; convert it to safetensors"


@contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """The plain file at `path` and its size in bytes. Raises BadModel when it is missing or something else."""
    try:
        _require_plain(path, path.stat().st_mode)
        number = os.open(path, FLAGS)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BadModel(path, "there is no such file") from error
    except ValueError as error:  # a NUL in the name
        raise BadModel(shown(str(path)), "no file can be called that") from error
    with os.fdopen(number, "rb", buffering=0) as file:
        status = os.fstat(number)
        _require_plain(path, status.st_mode)  # it may have been exchanged since
        yield file, status.st_size


def read_at_most(path: Path, limit: int) -> bytes:
    """All of a small file. Raises BadModel when it has more than `limit` bytes."""
    with opened(path) as (file, size):
        if size > limit:
            raise BadModel(path, f"has {size:,} bytes, but at most {limit:,} are read")
        return read_exactly(file, path, size)


def read_exactly(file: BinaryIO, path: Path, count: int) -> bytes:
    """The next `count` bytes. Raises BadModel when the file has shrunk since its size was looked at."""
    data = bytearray()
    while len(data) < count:
        more = file.read(count - len(data))
        if not more:
            raise BadModel(path, "became shorter while it was read")
        data += more
    return bytes(data)


def parse_json(path: Path, data: bytes, what: str) -> dict[str, Any]:
    """A JSON object in which no key stands twice and every number is one. Raises BadModel otherwise."""
    try:
        parsed = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise BadModel(path, f"{what} is not UTF-8 (byte {error.start})") from error
    except RecursionError as error:
        raise BadModel(path, f"{what} is nested too deeply") from error
    except ValueError as error:
        raise BadModel(path, f"{what} is no valid JSON: {shown(str(error), quoted=False)}") from error
    if not isinstance(parsed, dict):
        raise BadModel(path, f"{what} is a JSON {type(parsed).__name__}, but must be an object")
    return parsed


def pickled(head: bytes) -> str | None:
    """What kind of archive of code these first bytes begin, if they begin one: a refusal in words."""
    if head.startswith(ZIP):
        return f"this is a zip archive, as torch.save writes it around a pickle, {NEVER}"
    if len(head) > 1 and head.startswith(PICKLE) and head[1] in PICKLE_PROTOCOLS:
        return f"this is a pickle, {NEVER}"
    return None


def shown(value: object, *, quoted: bool = True) -> str:
    """A value out of an untrusted file, fit for a message: short and printable, however deep or long it is."""
    if not isinstance(value, str):
        return REPR.repr(value)[: 2 * MAX_SHOWN]
    cut = value if len(value) <= MAX_SHOWN else f"{value[:MAX_SHOWN]}..."
    return repr(cut) if quoted else "".join(each if each.isprintable() else "?" for each in cut)


def _require_plain(path: Path, mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    raise BadModel(path, f"is {kinds.get(stat.S_IFMT(mode), 'something else')}, but must be a plain file")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {shown(twice)} stands there twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")
