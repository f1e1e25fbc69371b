"""Extents as files in a folder of each model: on an SSD, or on whatever is mounted there.

A file is written aside and renamed when it is whole, so that its name never stands for half of it. Nothing is
synced: after a power cut a file may be torn or gone, which reading it tells. One process owns the folder.
"""

import fcntl
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path

from engine.cache.stores.backend import Buffer
from engine.cache.stores.faults import StoreFault
from engine.cache.stores.files import Files
from engine.errors import BadSettings

LOCK = ".modelyard-lock"
ASIDE = ".damaged"
FILE = re.compile(r"[0-9a-f]{16}\.kv")
UNFINISHED = re.compile(r"\.[0-9a-f]{16}\.kv\.[0-9]+\.[0-9]+\.tmp")


class FolderBackend:
    """A folder that this process has locked. Links and files with other names in it are left alone."""

    def __init__(self, path: Path | str, files: Files | None = None, *, is_shared: bool = False) -> None:
        """Make the folder if need be, lock it, and remove what earlier processes did not finish.

        `is_shared`: other machines can get at the files, which may shrink while they are read. Raises BadSettings,
        which names the folder, when another process uses it or it cannot be used at all.
        """
        self.path = Path(path)
        self._root = str(path)
        self._files = files or Files(is_mapped=not is_shared)
        self._counter = count()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = locked(
                self.path, f"the folder {self.path} holds KV blocks of another engine that is running"
            )
        except OSError as error:
            raise BadSettings(
                f"the folder {self.path} cannot hold KV blocks: {error.strerror or error}"
            ) from error
        self._tidy()

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        folder, _, file = name.partition("/")
        path = self._path(name)
        aside = f"{self._root}/{folder}/.{file}.{os.getpid()}.{next(self._counter)}.tmp"
        try:
            self._files.make_folder(f"{self._root}/{folder}")
            self._publish(aside, path, parts)
        except OSError as error:
            raise StoreFault.of(error, path) from error

    def get(self, name: str, offset: int, length: int) -> Buffer | None:
        path = self._path(name)
        try:
            return self._files.read(path, offset, length)
        except OSError as error:
            raise StoreFault.of(error, path) from error

    def delete(self, name: str) -> None:
        path = self._path(name)
        try:
            self._files.delete(path)
        except OSError as error:
            raise StoreFault.of(error, path) from error

    def set_aside(self, name: str) -> None:
        path = self._path(name)
        try:
            self._files.rename(path, path + ASIDE)
        except FileNotFoundError:
            return
        except OSError as error:
            raise StoreFault.of(error, path) from error

    def names(self) -> Iterator[tuple[str, int]]:
        try:
            found = [
                (f"{entry.path.rsplit('/', 2)[-2]}/{entry.name}", entry.stat(follow_symlinks=False).st_size)
                for entry in self._files_of_models()
                if FILE.fullmatch(entry.name)
            ]
        except OSError as error:
            raise StoreFault.of(error, self.path) from error
        return iter(sorted(found))

    def close(self) -> None:
        """Let another process use the folder."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _tidy(self) -> None:
        """Remove what earlier processes left unfinished, and folders of models that have nothing any more."""
        with suppress(OSError):  # what cannot be removed does no harm
            for entry in self._files_of_models():
                if UNFINISHED.fullmatch(entry.name):
                    self._files.delete(entry.path)
        with suppress(OSError), os.scandir(self._root) as folders:
            for folder in folders:
                if folder.is_dir(follow_symlinks=False):
                    with suppress(OSError):
                        Path(folder.path).rmdir()

    def _publish(self, aside: str, path: str, parts: Sequence[Buffer]) -> None:
        try:
            number = self._files.create(aside)
            try:
                self._files.write(number, parts)
            finally:
                self._files.close(number)  # some file systems tell only here that the disk is full
            self._files.rename(aside, path)
        except BaseException:
            with suppress(OSError):
                self._files.delete(aside)
            raise

    def _files_of_models(self) -> Iterator["os.DirEntry[str]"]:
        """Plain files in plain folders, one level down."""
        with os.scandir(self._root) as folders:
            for folder in folders:
                if folder.is_dir(follow_symlinks=False):
                    with os.scandir(folder.path) as entries:
                        yield from (entry for entry in entries if entry.is_file(follow_symlinks=False))


def locked(folder: Path, complaint: str) -> int:
    """Lock the folder for this process, until the number is closed or the process ends, however it ends.

    Raises BadSettings with that complaint where another process has it.
    """
    number = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(number)
        raise BadSettings(f"{complaint}; each needs a folder of its own") from error
    except OSError:
        os.close(number)
        raise
    return number
