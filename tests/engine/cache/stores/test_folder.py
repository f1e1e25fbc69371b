"""Extents as files: locked, published whole, and nothing left behind by what fails."""

import errno
import mmap
import os
import resource
import subprocess
import sys

import pytest

from engine.cache.stores import ExtentStore, FolderBackend, StoreFault
from engine.cache.stores.files import Files
from engine.cache.stores.folder import LOCK
from engine.errors import BadSettings
from tests.engine.cache.stores.blocks import MODEL, record, same


class FailingFiles(Files):
    """The real file system, in which one call fails from now on."""

    def __init__(self, call, number):
        super().__init__()
        self.call, self.number = call, number

    def _fail(self, call):
        if call == self.call:
            raise OSError(self.number, os.strerror(self.number))

    def make_folder(self, path):
        self._fail("make_folder")
        super().make_folder(path)

    def create(self, path):
        self._fail("create")
        return super().create(path)

    def write(self, number, parts):
        if self.call == "write":
            super().write(number, [memoryview(parts[0])[:100]])
        self._fail("write")
        super().write(number, parts)

    def close(self, number):
        super().close(number)
        self._fail("close")

    def rename(self, path, to):
        self._fail("rename")
        super().rename(path, to)

    def delete(self, path):
        self._fail("delete")
        super().delete(path)

    def read(self, path, offset, length):
        self._fail("read")
        return super().read(path, offset, length)


def files_in(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.name != LOCK)


@pytest.mark.parametrize("call", ["make_folder", "create", "write", "close", "rename"])
@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, "full"), (errno.EIO, "io"), (errno.EACCES, "denied")]
)
def test_write_that_fails_anywhere_leaves_nothing(open_folder, tmp_path, records, call, number, kind):
    files = FailingFiles(None, number)
    store = open_folder(files)
    places = store.write(MODEL, records)
    before = files_in(tmp_path)
    files.call = call
    with pytest.raises(StoreFault, match="kv") as caught:
        store.write("another", [record(9)])
    assert caught.value.kind == kind
    assert files_in(tmp_path) == before
    files.call = None
    assert same(store.read(places[:1], [records[0].key])[0], records[0])
    (place,) = store.write("another", [record(9)])
    assert same(store.read([place], [record(9).key])[0], record(9))
    store.check_integrity()


def test_disk_that_is_really_full_is_told(open_folder, tmp_path, records):
    """The kernel refuses what is beyond the limit of a process, in the middle of a write."""
    store = open_folder()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(StoreFault) as caught:
            store.write(MODEL, [record(1, 100_000)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.kind == "full"
    assert files_in(tmp_path) == []
    assert store.counters.faults == {"full": 1}
    assert len(store.write(MODEL, records)) == len(records)


def test_device_that_does_not_read_is_a_fault_and_suspect_after_some(open_folder, records):
    files = FailingFiles(None, errno.EIO)
    store = open_folder(files)
    places = store.write(MODEL, records)
    files.call = "read"
    for number in range(3):
        with pytest.raises(StoreFault, match="Input/output error"):
            store.read(places, [each.key for each in records])
        assert store.is_suspect == (number == 2)
    files.call = None
    assert same(store.read(places[:1], [records[0].key])[0], records[0])
    assert not store.is_suspect
    assert store.counters.faults == {"io": 3}


def test_file_that_cannot_be_deleted_is_deleted_with_the_next(open_folder, tmp_path, records):
    files = FailingFiles(None, errno.EIO)
    store = open_folder(files)
    places, other = store.write(MODEL, records), store.write(MODEL, records)
    files.call = "delete"
    with pytest.raises(StoreFault):
        store.drop(places)
    assert store.read(places, [each.key for each in records]) == [None] * len(records)
    assert len(files_in(tmp_path)) == 2
    files.call = None
    store.drop(other)
    assert files_in(tmp_path) == []


def test_second_process_on_a_folder_is_refused(tmp_path):
    first = FolderBackend(tmp_path)
    script = f"from engine.cache.stores import FolderBackend\nFolderBackend({str(tmp_path)!r})"
    second = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert second.returncode == 1
    assert f"BadSettings: the folder {tmp_path} holds KV blocks of another engine" in second.stderr
    with pytest.raises(BadSettings, match="needs a folder of its own"):
        FolderBackend(tmp_path)
    first.close()
    FolderBackend(tmp_path).close()


def test_folder_that_cannot_be_one_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadSettings, match="cannot hold KV blocks"):
        FolderBackend(tmp_path / "file")


def test_unfinished_files_go_at_the_start_and_strange_ones_stay(open_folder, tmp_path, records):
    store = open_folder()
    store.write(MODEL, records)
    folder = next(path for path in (tmp_path / "kv").iterdir() if path.is_dir())
    (folder / ".0000000000000009.kv.123.0.tmp").write_bytes(b"half")
    (folder / "notes.txt").write_text("mine")
    (tmp_path / "kv" / "0000000000000003.kv").write_text("not in a folder")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "0000000000000004.kv").write_text("x")
    (tmp_path / "kv" / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "0000000000000005.kv").symlink_to(tmp_path / "elsewhere" / "0000000000000004.kv")
    (folder / "0000000000000006.kv").mkdir()
    os.mkfifo(folder / "0000000000000007.kv")
    again = open_folder()
    assert len(list(again.scan())) == len(records)
    assert again.counters.damaged_extents == 0
    assert not list(folder.glob(".*"))
    assert (folder / "notes.txt").read_text() == "mine"
    assert (tmp_path / "elsewhere" / "0000000000000004.kv").exists()


def test_model_folder_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    backend = FolderBackend(tmp_path / "kv")
    (tmp_path / "kv" / "m").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreFault):
        ExtentStore(backend).write("m", [record(1)])
    assert not list((tmp_path / "elsewhere").iterdir())
    backend.close()


def test_extent_of_very_many_parts_is_written_whole(open_folder):
    """More parts than the system takes in one call."""
    many = [record(number, 10) for number in range(700)]
    store = open_folder()
    places = store.write(MODEL, many)
    assert all(
        same(answer, wanted)
        for answer, wanted in zip(store.read(places, [each.key for each in many]), many, strict=True)
    )


@pytest.mark.parametrize("is_shared", [False, True])
def test_large_blocks_come_back_mapped_or_read(tmp_path, is_shared):
    """Also after their file was deleted: what was read stays."""
    large = [record(number, 300_001) for number in range(3)]
    store = ExtentStore(FolderBackend(tmp_path, is_shared=is_shared))
    places = store.write(MODEL, large)
    answers = store.read(places, [each.key for each in large])
    store.drop(places)
    assert isinstance(answers[0].data.obj, mmap.mmap) != is_shared
    assert all(same(answer, wanted) for answer, wanted in zip(answers, large, strict=True))
    assert not any(answer.data.readonly for answer in answers)
    store.close()


def test_kernel_that_cannot_bring_pages_in_costs_speed_only(tmp_path, monkeypatch):
    monkeypatch.setattr("engine.cache.stores.files.MADV_POPULATE_READ", 9_999)
    store = ExtentStore(FolderBackend(tmp_path))
    (place,) = store.write(MODEL, [record(1, 300_001)])
    (answer,) = store.read([place], [record(1).key])
    assert not isinstance(answer.data.obj, mmap.mmap)
    assert same(answer, record(1, 300_001))
    store.close()


def test_large_file_that_was_shortened_is_a_miss(tmp_path):
    store = ExtentStore(FolderBackend(tmp_path))
    large = [record(number, 300_001) for number in range(3)]
    places = store.write(MODEL, large)
    (path,) = tmp_path.rglob("*.kv")
    os.truncate(path, 700_000)
    answers = store.read(places, [each.key for each in large])
    assert [answer is None for answer in answers] == [False, False, True]
    store.close()
