"""What a file holds, as a SHA-256 that is computed once and believed while nothing has touched the file."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO

SETTLED_NS = (
    2 * 10**9
)  # the coarsest clock of a file system: a change so soon might leave the times as they are
MAX_NOTE = 2**16
TMP = ".tmp"

Stamp = list[int]


@dataclass(slots=True)
class Digests:
    """Digests of files, remembered as small notes in `folder`; None: computed each time.

    A note counts while size, times and inode of its file are those in it. A folder that takes no notes is no error.
    """

    folder: Path | None

    def of(self, path: Path) -> str:
        """The SHA-256 of a file, as hex: 40 GB take half a minute, a note nothing. Raises OSError."""
        stamp = stamp_of(path)
        known = self._noted(path)
        if known is not None and known[0] == stamp:
            return known[1]
        digest = computed(path)
        if stamp_of(path) == stamp:
            self._note(path, stamp, digest, settled_only=True)
        return digest

    def of_all(self, paths: Sequence[Path]) -> str:
        """One digest of several files, in that order; of a single file its own."""
        digests = [self.of(path) for path in paths]
        return digests[0] if len(digests) == 1 else sha256("".join(digests).encode()).hexdigest()

    def vouch(self, path: Path, digest: str) -> None:
        """Note the digest of a file that we have just written."""
        try:
            self._note(path, stamp_of(path), digest)
        except OSError:
            return  # it was replaced or removed already

    def vouches_for(self, path: Path) -> bool:
        """Whether a file still holds what it held when its note was made."""
        known = self._noted(path)
        if known is None:
            return False
        stamp = stamp_of(path)
        if known[0] == stamp:
            return True
        if computed(path) != known[1]:
            return False
        self._note(path, stamp, known[1], settled_only=True)
        return True

    def _noted(self, path: Path) -> tuple[Stamp, str] | None:
        if self.folder is None:
            return None
        try:
            with self._place(path).open("rb") as file:
                note = json.loads(file.read(MAX_NOTE))
            return note["stamp"], note["sha256"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def _note(self, path: Path, stamp: Stamp, digest: str, *, settled_only: bool = False) -> None:
        if self.folder is None:
            return
        note = json.dumps({"path": str(path.resolve()), "stamp": stamp, "sha256": digest})
        place = self._place(path)
        try:
            with written_aside(place) as file:
                file.write(note.encode())
            if settled_only and place.stat().st_mtime_ns - stamp[2] < SETTLED_NS:
                place.unlink(missing_ok=True)
        except OSError:
            return  # it is computed again

    def _place(self, path: Path) -> Path:
        assert self.folder is not None
        return self.folder / f"{sha256(os.fsencode(path.resolve())).hexdigest()[:32]}.json"


def stamp_of(path: Path) -> Stamp:
    """Size, times and inode of a file: what changes with its contents, unless somebody takes great pains."""
    about = path.stat()
    return [about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino]


def computed(path: Path) -> str:
    """The SHA-256 of all its bytes."""
    with path.open("rb", buffering=0) as file:
        return file_digest(file, "sha256").hexdigest()


@contextmanager
def written_aside(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` when the block ends well: whole, and on disk. Else nothing remains."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = None
    try:
        with NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name[:64]}-", suffix=TMP, delete=False
        ) as file:
            aside = Path(file.name)
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        _sync(path.parent)
    finally:
        if aside is not None:
            aside.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """A new name is on disk when its folder is."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
