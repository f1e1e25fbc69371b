"""A process that ends at any moment, and a disk that keeps any part of what was not synced: misses, never lies."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from engine.cache.stores import ExtentStore, FolderBackend
from engine.cache.stores.files import Files
from tests.engine.cache.stores.blocks import MODEL, record, same

KILLS = 12
BLOCKS = {record(number).key: number for number in range(4_000)}


class Recorder(Files):
    """The real file system, and a log of what was done to it."""

    def __init__(self, root):
        super().__init__()
        self.root, self.log, self.paths = root, [], {}

    def _note(self, call, path, more=None):
        self.log.append((call, os.path.relpath(path, self.root), more))

    def make_folder(self, path):
        super().make_folder(path)
        self._note("make_folder", path)

    def create(self, path):
        number = super().create(path)
        self.paths[number] = path
        self._note("create", path)
        return number

    def write(self, number, parts):
        super().write(number, parts)
        self._note("write", self.paths[number], b"".join(parts))

    def rename(self, path, to):
        super().rename(path, to)
        self._note("rename", path, os.path.relpath(to, self.root))

    def delete(self, path):
        super().delete(path)
        self._note("delete", path)


def replayed(log, root, torn=None):
    """Do again what a log says; `torn` is how many bytes each file that it names got of its write."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    for call, path, more in log:
        target = root / path
        if call == "make_folder":
            target.mkdir(exist_ok=True)
        elif call == "create":
            target.touch()
        elif call == "write":
            target.write_bytes(more[: (torn or {}).get(path, len(more))])
        elif call == "rename":
            target.rename(root / more)
        else:
            target.unlink(missing_ok=True)


def survivors(root, sizes=(1000,)):
    """Open what is there, and look at everything that it claims: the numbers of the blocks that came back."""
    store = ExtentStore(FolderBackend(root))
    try:
        found = list(store.scan())
        answers = store.read([each.place for each in found], [each.key for each in found])
        good = [answer for answer in answers if answer is not None]
        for answer in good:
            assert any(same(answer, record(BLOCKS[answer.key], size)) for size in sizes)
        assert len({each.key for each in found}) == len(found)
        assert not list(root.rglob("*.tmp"))
        on_disk = sum(path.stat().st_size for path in root.rglob("*.kv"))
        assert store.counters.file_bytes == on_disk
        store.check_integrity()
        return {BLOCKS[answer.key] for answer in good}
    finally:
        store.close()


@pytest.fixture
def history(tmp_path):
    """What a store that wrote, dropped and compacted did to its folder, and what it held after each step."""
    root = tmp_path / "first"
    files = Recorder(root)
    store = ExtentStore(FolderBackend(root, files))
    held, steps = set(), [(0, set())]

    def step():
        steps.append((len(files.log), set(held)))

    places = {}
    for start in (0, 10, 20):
        numbers = range(start, start + 4)
        places |= zip(numbers, store.write(f"{MODEL}-{start}", list(map(record, numbers))), strict=True)
        held |= set(numbers)
        step()
    store.drop([places[number] for number in (0, 1, 2, 10, 11, 12, 13)])
    held -= {10, 11, 12, 13}
    step()
    store.drop(list(store.compact()))
    held -= {0, 1, 2}
    step()
    store.close()
    return files.log, steps


def test_every_prefix_of_the_log_opens_to_what_was_published(history, tmp_path):
    log, steps = history
    for length in range(len(log) + 1):
        replayed(log[:length], tmp_path / "again")
        found = survivors(tmp_path / "again")
        assert not list((tmp_path / "again").rglob("*.damaged")), "half of a file stood under its name"
        before = max(step for step in steps if step[0] <= length)
        after = next((step for step in steps if step[0] >= length), before)
        assert found >= before[1] & after[1], length
    assert found == steps[-1][1]


def test_every_torn_write_is_a_miss_published_or_not(history, tmp_path):
    """A rename that reached the disk before the bytes did."""
    log, _ = history
    for at, (call, path, data) in enumerate(log):
        if call != "write":
            continue
        for cut in (0, 1, 63, 64, 511, 512, 1023, 1024, 4095, len(data) - 1):
            replayed(log[: at + 1], tmp_path / "again", {path: cut})
            unpublished = survivors(tmp_path / "again")
            replayed(log[: at + 2], tmp_path / "again", {path: cut})
            published = survivors(tmp_path / "again")
            assert log[at + 1][0] == "rename"
            assert published == unpublished, cut


def test_all_unsynced_bytes_lost_is_an_empty_store(history, tmp_path):
    log, _ = history
    replayed(log, tmp_path / "again", {path: 0 for call, path, _ in log if call == "write"})
    assert survivors(tmp_path / "again") == set()


WRITER = """
import sys
from engine.cache.stores import ExtentStore, FolderBackend
from tests.engine.cache.stores.blocks import record
folder, start = sys.argv[1], int(sys.argv[2])
store = ExtentStore(FolderBackend(folder))
found = list(store.scan())
for number in range(start, start + 60, 3):
    numbers = range(number, number + 3)
    places = store.write(f"model-{number % 2}", [record(each, 300_000) for each in numbers])
    print("written", *numbers, flush=True)
    print("dropping", number, flush=True)
    store.drop(places[:1])
    moved = store.compact(0.3, 1 << 20)
    store.drop(list(moved))
print("done", flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_killed_in_the_middle_again_and_again(tmp_path):
    """Whatever was reported as written is there after each kill, byte for byte, unless it was being dropped."""
    root, draw = tmp_path / "kv", np.random.default_rng(3)
    written, dropping = set(), set()
    for kill in range(KILLS):
        command = [sys.executable, "-c", WRITER, str(root), str(kill * 60)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[4], text=True
        ) as child:
            for _ in range(int(draw.integers(1, 30))):
                verb, *numbers = child.stdout.readline().split()
                {"written": written, "dropping": dropping}[verb].update(map(int, numbers))
            for _ in range(int(draw.integers(0, 200_000))):
                pass  # a while that is no multiple of anything
            child.send_signal(signal.SIGKILL)
            for line in child.stdout:
                verb, *numbers = line.split()
                {"written": written, "dropping": dropping}[verb].update(map(int, numbers))
        assert child.returncode == -signal.SIGKILL
        found = survivors(root, sizes=(300_000,))
        assert found >= written - dropping
    assert len(written) > 3 * KILLS


def test_file_exchanged_while_it_is_read_is_a_miss(open_folder, records, tmp_path):
    """Between two reads the file becomes another: shorter, then longer, then foreign."""
    store = open_folder()
    places = store.write(MODEL, records)
    (path,) = (tmp_path / "kv").rglob("*.kv")
    good = path.read_bytes()
    for bad in (good[:100], good[:1] + good, bytes(len(good))):
        path.write_bytes(bad)
        (answer,) = store.read(places[:1], [records[0].key])
        assert answer is None
        path.write_bytes(good)
    assert same(store.read(places[1:2], [records[1].key])[0], records[1])
