"""Blocks through the SSD store, verified, beside the same bytes in plain files, unverified."""

import mmap
from itertools import count
from time import perf_counter_ns

import numpy as np
import pytest

from engine.cache.stores import ExtentStore, FolderBackend, Record

pytestmark = pytest.mark.benchmark(group="targeted")

EXTENT_BYTES = 16 << 20  # what the cache writes together
ROUNDS = 15
GOAL = 0.7  # printed beside what was reached
LEAST_RATIO = 0.35  # shared machines halve either side now and then: below this it is a defect
KIB = 1 << 10


def timed_ns(operation):
    begun_ns = perf_counter_ns()
    operation()
    return perf_counter_ns() - begun_ns


def beside(ours, theirs):
    """Best times of both, in turns, so that what else the machine does meets both: (our ns, their ns)."""
    for operation in (ours, theirs):
        operation()
    rounds = [(timed_ns(ours), timed_ns(theirs)) for _ in range(ROUNDS)]
    return [min(each) for each in zip(*rounds, strict=True)]


@pytest.fixture
def store(tmp_path):
    store = ExtentStore(FolderBackend(tmp_path / "kv"))
    yield store
    store.close()


@pytest.fixture(params=[64 * KIB, 1024 * KIB], ids=["64KiB", "1MiB"])
def records(request):
    draw = np.random.default_rng(5)
    return [
        Record(
            draw.bytes(16),
            b"p" * 16,
            b"s" * 16,
            "raw",
            "bfloat16",
            (2, 2, 2, 16, 64),
            0.0,
            draw.bytes(request.param),
        )
        for _ in range(EXTENT_BYTES // request.param)
    ]


def test_writing_beside_plain_files(report, store, tmp_path, records):
    """Both sides delete what they wrote, as a full disk makes them do."""
    names = count()

    def plain():
        path = tmp_path / f"plain-{next(names)}"
        with path.open("wb", buffering=0) as file:
            for record in records:
                file.write(record.data)
        path.unlink()

    ours_ns, plain_ns = beside(lambda: store.drop(store.write("model", records)), plain)
    report(gib_per_s=EXTENT_BYTES / 2**30 * 1e9 / ours_ns, ratio_to_plain_files=plain_ns / ours_ns, goal=GOAL)
    assert plain_ns / ours_ns >= LEAST_RATIO


def test_reading_beside_a_mapped_file(report, store, tmp_path, records):
    """Each side looks at every byte once: ours verifies it, the plain one copies it out.

    `ratio_copied_out` has the copy on our side too, so that ours looks twice.
    """
    places, keys = store.write("model", records), [record.key for record in records]
    path = tmp_path / "plain"
    path.write_bytes(b"".join(record.data for record in records))
    size = len(records[0].data)
    out = np.empty((len(records), size), np.uint8)

    def verified():
        return store.read(places, keys)

    def copied_out():
        for index, record in enumerate(store.read(places, keys)):
            out[index] = np.frombuffer(record.data, np.uint8)

    def mapped():
        with path.open("rb") as file:
            view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        for index in range(len(records)):
            out[index] = np.frombuffer(view[index * size : (index + 1) * size], np.uint8)

    ours_ns, mapped_ns = beside(verified, mapped)
    twice_ns, again_ns = beside(copied_out, mapped)
    assert bytes(out[-1].data) == records[-1].data
    report(
        gib_per_s=EXTENT_BYTES / 2**30 * 1e9 / ours_ns,
        ratio_to_mmap=mapped_ns / ours_ns,
        ratio_copied_out=again_ns / twice_ns,
    )
    assert mapped_ns / ours_ns >= LEAST_RATIO


def test_restart_with_a_hundred_thousand_blocks(report, store):
    """What listing them costs, a block; the index alone is read."""
    records = [
        Record(number.to_bytes(16, "little"), b"p" * 16, b"s" * 16, "raw", "bfloat16", (1,), 0.0, b"")
        for number in range(100_000)
    ]
    for start in range(0, len(records), 256):
        store.write("model", records[start : start + 256])
    store.close()
    again = ExtentStore(FolderBackend(store.backend.path))
    begun_ns = perf_counter_ns()
    assert sum(1 for _ in again.scan()) == len(records)
    report(us_a_block=(perf_counter_ns() - begun_ns) / 1e3 / len(records))
    again.close()
