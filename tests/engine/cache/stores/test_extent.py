"""Whatever is done to an extent's bytes, what comes out of them is what went in, or nothing."""

import numpy as np
import pytest

from engine.cache.stores.extent import (
    HEAD,
    START,
    Damaged,
    aligned,
    laid_out,
    model_digest,
    read_block,
    read_index,
    read_start,
)
from tests.engine.cache.stores.blocks import MODEL, record, same

SEQ = 7


@pytest.fixture
def extent(records):
    parts, offsets = laid_out(MODEL, SEQ, records)
    return b"".join(parts), offsets


def blocks_of(data, offsets, records):
    """What a reader gets who knows where blocks should be: a record or None for each."""
    answers = []
    for index, wanted in enumerate(records):
        try:
            answers.append(
                read_block(
                    memoryview(data),
                    offsets[index],
                    offsets[index + 1],
                    wanted.key,
                    model_digest(MODEL),
                    SEQ,
                    index,
                    offsets[index],
                )
            )
        except Damaged:
            answers.append(None)
    return answers


def index_of(data, size):
    """What a reader gets who knows nothing: the heads, or None."""
    try:
        start = read_start(data, SEQ, size)
        return read_index(data[: start.blocks_at], start)
    except Damaged:
        return None


def test_index_tells_what_was_written(extent, records):
    data, offsets = extent
    model, heads = index_of(data, len(data))
    assert model == MODEL
    assert [head.key for head in heads] == [each.key for each in records]
    assert [head.length for head in heads] == [len(each.data) for each in records]
    assert [head.offset for head in heads] == offsets[:-1]
    assert offsets[-1] == len(data)
    assert (START.size, HEAD.size) == (64, 192)


def test_blocks_lie_where_numbers_can_be_used(extent, records):
    data, offsets = extent
    assert all((offset + HEAD.size) % 64 == 0 for offset in offsets[:-1])
    answers = blocks_of(data, offsets, records)
    assert all(same(answer, wanted) for answer, wanted in zip(answers, records, strict=True))


def test_every_cut_is_noticed(extent, records):
    """At every byte of what comes before the blocks, and around the boundaries of sectors and of blocks after it."""
    data, offsets = extent
    size = len(data)
    cuts = {0, 1, 511, 512, 4095, size - 1, *range(offsets[0] + HEAD.size)}
    cuts |= {offset + step for offset in offsets for step in (-1, 0, 1, HEAD.size) if offset + step < size}
    for cut in sorted(cuts):
        torn = data[:cut]
        assert index_of(torn, cut) is None
        for offset, answer, wanted in zip(offsets, blocks_of(torn, offsets, records), records, strict=False):
            assert (answer is not None) == (offset + HEAD.size + len(wanted.data) <= cut)
            assert answer is None or same(answer, wanted)


def test_zeros_where_the_end_should_be_are_noticed(extent, records):
    """A file whose length reached the disk, but not its last sectors."""
    data, offsets = extent
    for cut in range(0, len(data), 512):
        torn = data[:cut] + bytes(len(data) - cut)
        for answer, wanted in zip(blocks_of(torn, offsets, records), records, strict=True):
            assert answer is None or same(answer, wanted)
        assert (index_of(torn, len(torn)) is not None) == (cut >= offsets[0] or torn == data)


def test_every_flipped_bit_of_the_index_is_noticed(extent):
    data, offsets = extent
    for position in range(offsets[0]):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        assert index_of(bytes(damaged), len(damaged)) is None, position


def test_flipped_bit_of_a_block_costs_that_block_and_no_other(extent, records):
    data, offsets = extent
    draw = np.random.default_rng(1)
    for position in draw.integers(offsets[0], len(data), 2_000).tolist():
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        hit = next(index for index in range(len(records)) if position < offsets[index + 1])
        is_filling = position >= offsets[hit] + HEAD.size + len(records[hit].data)
        for index, answer in enumerate(blocks_of(bytes(damaged), offsets, records)):
            assert (answer is None) == (index == hit and not is_filling)
            assert answer is None or same(answer, records[index])


def test_block_of_another_extent_model_place_or_name_is_refused(extent, records):
    data, offsets = extent
    good = {"key": records[1].key, "model": model_digest(MODEL), "seq": SEQ, "index": 1, "offset": offsets[1]}
    part = memoryview(data)
    assert same(read_block(part, offsets[1], offsets[2], **good), records[1])
    others = {"key": records[0].key, "model": model_digest("x"), "seq": SEQ + 1, "index": 0, "offset": 0}
    for name, value in others.items():
        with pytest.raises(Damaged):
            read_block(part, offsets[1], offsets[2], **(good | {name: value}))


@pytest.mark.parametrize("num_bytes", [0, 1, 63, 64, 65])
def test_hostile_start_is_refused_before_it_is_used(num_bytes):
    draw = np.random.default_rng(num_bytes)
    for _ in range(200):
        assert index_of(draw.bytes(num_bytes), num_bytes) is None
    huge = START.pack(b"MYKVEXT\n", 1, 0, (1 << 32) - 1, SEQ, num_bytes, 0, 0)
    assert index_of(huge, num_bytes) is None


def test_blocks_beyond_what_an_extent_holds_are_refused(records):
    with pytest.raises(ValueError, match="number of blocks is 0"):
        laid_out(MODEL, SEQ, [])
    for field, value in (("key", b"short"), ("form", "far-too-long"), ("dtype", "é"), ("shape", (1,) * 9)):
        broken = record(1)
        object.__setattr__(broken, field, value)
        with pytest.raises(ValueError, match=f"a block's {field}"):
            laid_out(MODEL, SEQ, [broken])
    with pytest.raises(ValueError, match="model's name in bytes is 5000"):
        laid_out("m" * 5000, SEQ, records)


def test_filling_is_at_most_63_bytes():
    assert [aligned(size) for size in (0, 1, 64, 65)] == [0, 64, 64, 128]
