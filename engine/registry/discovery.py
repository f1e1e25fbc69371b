"""What lies in a models folder: every model, and every file that should be one and is no good, with the reason.

A walk lists candidates by name: GGUF files (the parts of a split one are one model), folders with a config.json
and safetensors, and pickles, which are listed to be refused. `open_checkpoint` then reads their headers, never
their weights. Whatever is wrong with one file costs that file and nothing else. A rescan opens only what changed.

Passed over in silence: hidden names, downloads under way (`.part`, `.tmp`, ...), files of other kinds, and
symlinks to folders that the walk meets anyway.
"""

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from engine.errors import BadModel, BadSettings
from engine.formats import Checkpoint, open_checkpoint
from engine.formats.files import opened, pickled

MAX_DEPTH = 16  # folders inside each other, below the models folder
MAX_ENTRIES = 100_000  # names in all folders together
MAX_REASON = 400  # characters; what a hostile file says of itself may be long

UNFINISHED = (".part", ".partial", ".tmp", ".download", ".crdownload", ".incomplete")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
WEIGHTS = (".safetensors", ".safetensors.index.json")
BESIDE_WEIGHTS = (".json", ".jinja", ".model", ".txt")  # config, tokenizer, template: parts of the model
CANDIDATES = (".gguf", ".safetensors", *PICKLES, *BESIDE_WEIGHTS)

SPLIT = re.compile(r"(?is)(?P<stem>.*)-(?P<part>[0-9]{5})-of-(?P<parts>[0-9]{5})(?P<suffix>\.gguf)")
SHOWN_PARTS = 3

GGUF = b"GGUF"
NOT_READ = "has weights of a kind that is not read; convert them to safetensors or GGUF"
NO_CONFIG = "is a safetensors file without a config.json beside it"
WRITTEN = "is still being written: it changed while its header was read"
VANISHED = "vanished while it was looked at"
TOO_MANY = "the models folder has more than {:,} names; this folder and those after it were not looked at"
OUTSIDE = "is a symlink to a path outside the folder"


class FileStamp(NamedTuple):
    """What changes when a file does. The change time sees what keeps size and modification time: chmod, cp -p."""

    name: str
    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int


@dataclass(slots=True)
class Found:
    """A model in the folder, or something that should be one. `reason` says why it cannot be served.

    `path` is relative to the models folder and stays the same from scan to scan: the file, the first part of a
    split file (missing or not), or the folder; "." is the models folder itself. It may hold any character that a
    file name can; `shown` may be printed. A checkpoint with a reason is a good one whose name is taken.
    """

    path: str
    checkpoint: Checkpoint | None = field(default=None, repr=False)
    reason: str | None = None
    stamp: tuple[FileStamp, ...] = field(default=(), repr=False)  # empty: nothing to be remembered

    @property
    def is_healthy(self) -> bool:
        return self.reason is None

    @property
    def shown(self) -> str:
        return printable(self.path)


@dataclass(slots=True)
class Discovery:
    """Everything found in `folder` at one time, sorted by path."""

    folder: Path
    found: tuple[Found, ...] = ()

    @property
    def healthy(self) -> list[Found]:
        return [each for each in self.found if each.is_healthy]

    @property
    def unhealthy(self) -> list[Found]:
        return [each for each in self.found if not each.is_healthy]


@dataclass(slots=True)
class Changes:
    """What differs between two scans. `changed` has the new state; a change of health alone is one too.

    A file that moved is removed and added. `discovery` is the whole new state, to start the next rescan from.
    """

    discovery: Discovery
    added: tuple[Found, ...]
    changed: tuple[Found, ...]
    removed: tuple[Found, ...]
    unchanged: tuple[Found, ...]


def discover(folder: Path, known: Discovery | None = None) -> Discovery:
    """Everything in the models folder. What `known` has under the same path and stamp is not opened again.

    Costs one directory listing a folder, one stat a candidate, and the headers of those that are opened. Raises
    BadSettings when there is no such folder or it cannot be listed.
    """
    root = _existing(folder)
    earlier = {each.path: each for each in known.found} if known else {}
    found = [
        each if isinstance(each, Found) else _looked_at(root, each, earlier.get(each.path))
        for each in list(_candidates(root))
    ]
    found.sort(key=attrgetter("path"))
    return Discovery(folder, tuple(_without_doubles(found)))


def rescan(previous: Discovery) -> Changes:
    """Look at the folder again and tell what changed. Files whose stamp is the same are not opened."""
    now = discover(previous.folder, previous)
    before = {each.path: each for each in previous.found}
    paths = {each.path for each in now.found}
    same = {each.path for each in now.found if each.path in before and _same(before[each.path], each)}
    return Changes(
        discovery=now,
        added=tuple(each for each in now.found if each.path not in before),
        changed=tuple(each for each in now.found if each.path in before and each.path not in same),
        removed=tuple(each for each in previous.found if each.path not in paths),
        unchanged=tuple(each for each in now.found if each.path in same),
    )


def printable(text: str) -> str:
    """The text with everything escaped that is not printed as itself: newlines, ANSI codes, undecodable bytes."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape", "surrogatepass").decode()
        for each in text
    )


def is_passed_over(name: str) -> bool:
    """Whether a scan looks away: hidden, or a download under way."""
    return name.startswith(".") or name.lower().endswith(UNFINISHED)


@dataclass(slots=True)
class _File:
    """A file by whose name something may be found. `refusal` says why it must not be opened."""

    name: str
    stamp: FileStamp | None = None
    refusal: str | None = None


@dataclass(slots=True)
class _Candidate:
    """What may be a model: `opens` is the name to open, "" the folder itself, and `files` are all its files."""

    folder: str
    opens: str
    files: list[_File]
    is_model: bool = True

    @property
    def path(self) -> str:
        return _joined(self.folder, self.opens) or "."

    @property
    def stamp(self) -> tuple[FileStamp, ...]:
        return tuple(each.stamp for each in self.files if each.stamp)


def _existing(folder: Path) -> str:
    if not folder.is_dir():
        raise BadSettings(f"models folder is {str(folder)!r}, but must be a folder that exists")
    return os.path.realpath(folder)


def _same(before: Found, now: Found) -> bool:
    return before.stamp == now.stamp and before.reason == now.reason


def _candidates(root: str) -> Iterator[Found | _Candidate]:
    """Walk the folders in the order of their names, whatever order the file system has."""
    names_left = MAX_ENTRIES
    waiting = [("", 0)]
    while waiting:
        folder, depth = waiting.pop()
        if depth > MAX_DEPTH:
            yield Found(
                folder, reason=f"is nested deeper than {MAX_DEPTH} folders; nothing in it was looked at"
            )
            continue
        try:
            entries = _listed(_joined(root, folder), names_left)
        except OSError as error:
            if not folder:
                raise BadSettings(f"models folder {root!r} cannot be listed: {error.strerror}") from None
            yield Found(folder, reason=_unreadable(error))
            continue
        if entries is None:
            yield Found(folder or ".", reason=TOO_MANY.format(MAX_ENTRIES))
            return
        names_left -= len(entries)
        kept = [entry for entry in entries if not is_passed_over(entry.name)]
        files = [file for entry in kept if (file := _file(root, entry)) is not None]
        yield from _grouped(folder, files)
        folders = [entry.name for entry in kept if _is_folder(entry)]
        waiting.extend((_joined(folder, name), depth + 1) for name in reversed(folders))


def _listed(folder: str, limit: int) -> list[os.DirEntry[str]] | None:
    """The names in a folder, sorted; None where there are more than `limit`."""
    entries: list[os.DirEntry[str]] = []
    with os.scandir(folder) as listing:
        for entry in listing:
            if len(entries) == limit:
                return None
            entries.append(entry)
    entries.sort(key=attrgetter("name"))
    return entries


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False  # `_file` meets the same error, and tells it


def _file(root: str, entry: os.DirEntry[str]) -> _File | None:
    """The entry as a file to be looked at; None for a folder and for what no model is made of."""
    try:
        if entry.is_symlink():
            return _through_symlink(root, entry)
        if entry.is_dir(follow_symlinks=False) or not entry.name.lower().endswith(CANDIDATES):
            return None
        return _stamped(entry.name, entry.stat(follow_symlinks=False))
    except FileNotFoundError:
        return None  # it went between the listing and this look: as if it had gone a moment before
    except OSError as error:
        return _File(entry.name, refusal=_unreadable(error))


def _through_symlink(root: str, entry: os.DirEntry[str]) -> _File | None:
    """A symlink's target, if it lies in the models folder; every other symlink is refused, whatever its name."""
    try:
        target = os.path.realpath(entry.path, strict=True)
    except FileNotFoundError:
        return _File(entry.name, refusal="is a broken symlink: what it points to does not exist")
    except OSError as error:
        return _File(entry.name, refusal=f"is a symlink that leads nowhere: {_unreadable(error)}")
    if not _is_inside(target, root):
        return _File(entry.name, refusal=OUTSIDE)
    if _is_inside(entry.path, target):
        return _File(entry.name, refusal="is a symlink loop: it leads back to a folder that it lies in")
    status = Path(target).stat()
    if stat.S_ISDIR(status.st_mode) or not entry.name.lower().endswith(CANDIDATES):
        return None
    return _stamped(entry.name, status)


def _joined(*parts: str) -> str:
    """The parts as one path; empty ones add nothing. Plain text: a Path a name would double what a rescan costs."""
    return "/".join(part for part in parts if part)


def _is_inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


def _stamped(name: str, status: os.stat_result) -> _File:
    if not stat.S_ISREG(status.st_mode):
        return _File(name, refusal=f"is {_kind(status.st_mode)}, not a file")
    if status.st_size == 0 and not name.lower().endswith(BESIDE_WEIGHTS):
        return _File(name, refusal="is empty")
    return _File(name, _stamp(name, status))


def _stamp(name: str, status: os.stat_result) -> FileStamp:
    return FileStamp(name, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def _kind(mode: int) -> str:
    kinds = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def _unreadable(error: OSError) -> str:
    return f"cannot be read: {(error.strerror or 'input or output failed').lower()}"


def _grouped(folder: str, files: list[_File]) -> Iterator[Found | _Candidate]:
    """The candidates among one folder's files, each file in one of them."""
    ggufs = [file for file in files if file.name.lower().endswith(".gguf")]
    yield from _ggufs(folder, ggufs)
    others = [file for file in files if not file.name.lower().endswith(".gguf")]
    config = next((file for file in others if file.name == "config.json"), None)
    has_weights = any(file.name.lower().endswith(WEIGHTS) for file in others)
    if config is not None and has_weights:
        model = [file for file in others if file.name.lower().endswith((".safetensors", *BESIDE_WEIGHTS))]
        yield _checked(_Candidate(folder, "", model))
        others = [file for file in others if file not in model]
    elif config is not None and not ggufs:
        why = config.refusal or "has a config.json without weights: no .safetensors file lies beside it"
        yield Found(folder or ".", reason=why, stamp=_Candidate(folder, "", [config]).stamp)
    for file in others:
        if file.name.lower().endswith((*PICKLES, ".safetensors")):
            yield _checked(_Candidate(folder, file.name, [file], is_model=False))
        elif file.refusal and file is not config:
            yield Found(_joined(folder, file.name), reason=file.refusal)


def _ggufs(folder: str, files: list[_File]) -> Iterator[Found | _Candidate]:
    """Single files as they are, and the parts of split ones put together."""
    splits: dict[str, dict[int, _File]] = {}
    counts: dict[str, int] = {}
    for file in files:
        match = SPLIT.fullmatch(file.name)
        if match is None:
            yield _checked(_Candidate(folder, file.name, [file]))
            continue
        first = f"{match['stem']}-00001-of-{match['parts']}{match['suffix']}"
        splits.setdefault(first, {})[int(match["part"])] = file
        counts[first] = int(match["parts"])
    for first, parts in splits.items():
        candidate = _Candidate(folder, first, list(parts.values()))
        why = _incomplete(set(parts), counts[first])
        yield Found(candidate.path, reason=why, stamp=candidate.stamp) if why else _checked(candidate)


def _incomplete(parts: set[int], count: int) -> str | None:
    """What is wrong with the numbers of a split file's parts."""
    beyond = sorted(part for part in parts if not 1 <= part <= count)
    if beyond:
        return f"is a split file with a part {beyond[0]} of {count}"
    missing = [part for part in range(1, count + 1) if part not in parts]
    if not missing:
        return None
    shown = ", ".join(map(str, missing[:SHOWN_PARTS]))
    more = f" and {len(missing) - SHOWN_PARTS} more" if len(missing) > SHOWN_PARTS else ""
    noun = "part" if len(missing) == 1 else "parts"
    return f"is an incomplete split file of {count}: {noun} {shown}{more} missing"


def _checked(candidate: _Candidate) -> Found | _Candidate:
    """The candidate, unless one of its files must not be opened: then none of them is."""
    for file in candidate.files:
        if file.refusal:
            is_alone = file.name == candidate.opens
            why = file.refusal if is_alone else f"{printable(file.name)}: {file.refusal}"
            return Found(candidate.path, reason=why)
    return candidate


def _looked_at(root: str, candidate: _Candidate, earlier: Found | None) -> Found:
    stamp = candidate.stamp
    if earlier is not None and earlier.stamp == stamp:
        return earlier
    path = Path(_joined(root, candidate.folder, candidate.opens))
    checkpoint, reason = None, None
    try:
        if candidate.is_model:
            checkpoint = open_checkpoint(path)
        else:
            reason = _why_never_a_model(path)
    except BadModel as error:
        reason = str(error)
        for prefix in (f"{path}: ", f"{path}/", f"{root}/"):
            reason = reason.removeprefix(prefix)
    except OSError as error:  # may be over the next time: without a stamp it is looked at again
        return Found(candidate.path, reason=_unreadable(error))
    except Exception as error:  # noqa: BLE001 - a fault of a reader costs this file, not the scan
        return Found(candidate.path, reason=_told(f"could not be read ({type(error).__name__}: {error})"))
    changed = _changed(root, candidate)
    if changed:
        return Found(candidate.path, reason=changed)
    return Found(candidate.path, checkpoint, reason and _told(reason), stamp)


def _told(reason: str) -> str:
    return printable(reason[:MAX_REASON])[:MAX_REASON]


def _why_never_a_model(path: Path) -> str:
    """Weights whose header is not read; the first bytes tell whether they are a pickle, whatever the name."""
    with opened(path) as (file, _):
        head = file.read(len(GGUF))
    refusal = pickled(head)
    if refusal:
        return refusal
    if head == GGUF:
        return "is a GGUF file, but its name does not end in .gguf"
    return NO_CONFIG if path.name.lower().endswith(".safetensors") else NOT_READ


def _changed(root: str, candidate: _Candidate) -> str | None:
    """What happened to a candidate's files since they were listed."""
    folder = _joined(root, candidate.folder)
    for file in candidate.files:
        try:
            status = Path(folder, file.name).stat()
        except OSError:
            return VANISHED
        if _stamp(file.name, status) != file.stamp:
            return WRITTEN
    return None


def _without_doubles(found: list[Found]) -> Iterator[Found]:
    """Of two models with one name and version, the first in the order of paths has it.

    Another quantisation of the same model is a version of it with that as its build: 1.0.0+Q8-0. The bare version
    means the first.
    """
    owners: dict[str, tuple[str, str]] = {}
    for each in found:
        if each.checkpoint is None:
            yield each
            continue
        build = "+" + re.sub(r"[^0-9A-Za-z-]", "-", each.checkpoint.quantisation)
        name, version = each.checkpoint.name, each.checkpoint.version.removesuffix(build)
        owner, kind = owners.setdefault(f"{name}@{version}", (each.path, build))
        if kind != build and "+" not in version:
            version += build
            owner, _ = owners.setdefault(f"{name}@{version}", (each.path, build))
        is_free = owner == each.path
        why = None if is_free else _told(f"{owner} is called {name}@{version} too, and comes first")
        if each.reason != why or each.checkpoint.version != version:
            each = replace(each, reason=why, checkpoint=replace(each.checkpoint, version=version))  # noqa: PLW2901
        yield each
