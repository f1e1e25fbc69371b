"""The file of keys: one line of JSON for each key, with the SHA-256 of it and whose it is. No key is in it.

A slow hash guards passwords, which can be guessed. A key made here is 256 random bits, which cannot be, however fast
a guess is; so one SHA-256 is enough, and no request pays for more. Keys that people think up do not belong here.
"""

import fcntl
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from stat import S_ISREG, S_IWOTH
from typing import NamedTuple

import msgspec

from engine.clock import unix_ns_of
from engine.errors import BadSettings

PREFIX = "my-"
KEY_BYTES = 32
ID_DIGITS = 8  # of the digest: whoever has a key can tell which line is meant
MAX_FILE_BYTES = 16 << 20
MAX_NAME = 256

DIGEST = re.compile(r"[0-9a-f]{64}")
IDENTIFIER = re.compile(r"[A-Za-z0-9._-]{1,64}")


class KeyEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line. `models` null: all of them; `expires` is the first moment at which it is not good any more."""

    id: str
    sha256: str
    tenant: str
    name: str = ""
    admin: bool = False
    models: tuple[str, ...] | None = None
    max_priority: int | None = None
    created: str = ""
    expires: str | None = None
    disabled: bool = False


class Stamp(NamedTuple):
    """What changes when the file does."""

    mtime_ns: int
    size_bytes: int
    inode: int


def digest_of(key: str) -> bytes:
    """The SHA-256 of a key, whatever characters it has."""
    return sha256(key.encode("utf-8", "surrogatepass")).digest()


def stamp_of(path: Path) -> Stamp:
    """Raises OSError."""
    status = path.stat()
    return Stamp(status.st_mtime_ns, status.st_size, status.st_ino)


def read_keys(path: Path) -> list[KeyEntry]:
    """All keys of the file. Raises BadSettings with its line for one that is no good, and for two that are one."""
    found: list[KeyEntry] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(_read(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = msgspec.json.decode(line, type=KeyEntry)
            _check(entry)
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
            raise BadSettings(f"{path}, line {number} is no key: {error}") from error
        for what in (f"id {entry.id!r}", f"sha256 {entry.sha256[:12]}..."):
            first = seen.setdefault(what, number)
            if first != number:
                raise BadSettings(f"{path}, line {number}: its {what} is that of line {first} too")
        found.append(entry)
    return found


def add_key(
    path: Path,
    tenant: str,
    *,
    created: str,
    name: str = "",
    admin: bool = False,
    models: Sequence[str] | None = None,
    max_priority: int | None = None,
    expires: str | None = None,
) -> tuple[str, KeyEntry]:
    """A new key, and its line, which is in the file when this returns; the key itself is nowhere but in the answer.

    The file is made if it is not there. Raises BadSettings for what no key can have.
    """
    # the one source of randomness here that has no seed: whoever knew a seed would know the keys
    key = PREFIX + secrets.token_urlsafe(KEY_BYTES)
    digest = digest_of(key).hex()
    entry = KeyEntry(
        id=digest[:ID_DIGITS],
        sha256=digest,
        tenant=tenant,
        name=name,
        admin=admin,
        models=None if models is None else tuple(dict.fromkeys(models)),
        max_priority=max_priority,
        created=created,
        expires=expires,
    )
    try:
        _check(entry)
    except ValueError as error:
        raise BadSettings(f"no such key can be made: {error}") from error
    with _alone_with(path) as target:
        entries = read_keys(target) if target.exists() else []
        if any(each.id == entry.id for each in entries):  # one in some millions
            entry = msgspec.structs.replace(entry, id=digest[: 2 * ID_DIGITS])
        _write(target, [*entries, entry])
    return key, entry


def revoke_key(path: Path, identifier: str) -> KeyEntry:
    """Let that key open nothing any more; its line stays. Raises BadSettings when there is none of that id."""
    with _alone_with(path) as target:
        entries = read_keys(target)
        for at, entry in enumerate(entries):
            if entry.id == identifier:
                entries[at] = msgspec.structs.replace(entry, disabled=True)
                _write(target, entries)
                return entries[at]
    known = ", ".join(entry.id for entry in entries) or "none"
    raise BadSettings(f"{path} has no key of id {identifier!r}; it has {known}")


def expires_ns(entry: KeyEntry) -> int | None:
    """Nanoseconds from 1970 to its end; None: it has none."""
    return None if entry.expires is None else unix_ns_of(entry.expires)


def _check(entry: KeyEntry) -> None:
    """Raise ValueError for what no key can have."""
    _must(
        "id", entry.id, IDENTIFIER.fullmatch(entry.id), "1 to 64 letters, digits, dots, dashes, underscores"
    )
    _must("sha256", entry.sha256, DIGEST.fullmatch(entry.sha256), "64 digits from 0 to 9 and a to f")
    _must("tenant", entry.tenant, entry.tenant != "" and _is_name(entry.tenant), "a name that can be printed")
    _must("name", entry.name, _is_name(entry.name), "a name that can be printed, or nothing")
    if entry.models is not None:
        is_good = len(entry.models) > 0 and all(each != "" and _is_name(each) for each in entry.models)
        _must("models", list(entry.models), is_good, "names of models, or null for all")
    try:
        expires_ns(entry)
    except ValueError:
        _must(
            "expires", entry.expires, False, "a date like 2027-01-01, a time like 2027-01-01T12:00Z, or null"
        )


def _must(name: str, value: object, holds: object, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {value!r}, but must be {allowed}")


def _is_name(text: str) -> bool:
    return len(text) <= MAX_NAME and text.isprintable()


def _read(path: Path) -> bytes:
    """The whole file. Raises BadSettings when it is none, is too large, or when anybody may write to it."""
    try:
        status = path.stat()
        if not S_ISREG(status.st_mode):
            raise BadSettings(f"the keys file {path} is no file")
        if status.st_mode & S_IWOTH:
            raise BadSettings(f"anybody may write to {path}, and so add a key; chmod 600 it")
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise BadSettings(
            f"the keys file {path} cannot be read: {(error.strerror or 'no idea').lower()}"
        ) from error
    if len(data) > MAX_FILE_BYTES:
        raise BadSettings(f"the keys file {path} is larger than {MAX_FILE_BYTES >> 20} MiB")
    return data


@contextmanager
def _alone_with(path: Path) -> Iterator[Path]:
    """The file itself, behind any link, while nobody else who asks like this changes what is in its folder."""
    target = path.resolve()
    folder = os.open(target.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield target
        os.fsync(folder)
    finally:
        os.close(folder)


def _write(path: Path, entries: Sequence[KeyEntry]) -> None:
    """Put these keys in the place of the file, whole or not at all, for its owner's eyes only."""
    aside = path.with_name(f".{path.name}.partial")
    aside.unlink(missing_ok=True)
    try:
        number = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(number, "wb") as file:  # noqa: PTH123  a number, not a path
            file.writelines(msgspec.json.encode(entry) + b"\n" for entry in entries)
            file.flush()
            os.fsync(number)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
