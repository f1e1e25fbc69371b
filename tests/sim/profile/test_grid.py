"""The grid: what it spans, that its steps are possible, and that a seed makes it."""

from dataclasses import replace

import pytest

from engine.errors import BadSettings
from engine.execution.terms import fills_row
from sim.profile.grid import Limits, grid

LIMITS = Limits(step_tokens=512, max_batch=32, context_tokens=4096, kv_tokens=131_072)
CELLS = grid(LIMITS, 1)


def test_it_spans_prefill_context_and_batch():
    assert {cell.prefill_tokens for cell in CELLS} >= {0, 16, 64, 256}
    assert max(cell.prefill_tokens for cell in CELLS) == 512
    assert {cell.context_tokens for cell in CELLS} == {32, 64, 128, 256, 512, 1024, 2048, 4096}
    assert {cell.batch for cell in CELLS} >= {0, 1, 2, 3, 4, 6, 8, 16, 24, 32}
    assert len(set(CELLS)) == len(CELLS)


def test_steps_without_prefill_lie_closest_together():
    assert sum(cell.prefill_tokens == 0 for cell in CELLS) > len(CELLS) / 4


def test_every_step_is_one_that_a_replica_could_take():
    for cell in CELLS:
        tokens = sum(part.new for part in cell.parts)
        assert tokens == cell.prefill_tokens
        assert tokens + cell.batch <= LIMITS.step_tokens
        assert len(cell.contexts) == cell.batch
        assert cell.moving <= cell.batch
        assert sum(cell.contexts) <= LIMITS.kv_tokens
        for part in cell.parts:
            assert part.new > 0
            assert part.before % LIMITS.block_tokens == 0
            assert part.before + part.new <= LIMITS.context_tokens
            assert (part.before == 0) == (part.kind == "fresh")
        for context in cell.contexts:
            assert 7 <= context < LIMITS.context_tokens
            assert not fills_row(context)


def test_every_kind_of_chunk_and_of_batch_is_there():
    parts = [part for cell in CELLS for part in cell.parts]
    assert {part.kind for part in parts} == {"fresh", "cached", "later"}
    assert {part.is_last for part in parts} == {True, False}
    assert {len(cell.parts) for cell in CELLS} == {0, 1, 2, 4}
    assert {cell.moving for cell in CELLS} == {0, 1, 2}


def test_a_seed_makes_it():
    assert grid(LIMITS, 1) == CELLS
    assert grid(LIMITS, 2) != CELLS


def test_little_memory_leaves_out_what_does_not_fit():
    small = grid(replace(LIMITS, context_tokens=256, kv_tokens=300), 1)
    assert all(sum(cell.contexts) <= 300 for cell in small)
    with pytest.raises(BadSettings, match="kv_tokens is 100, but must be at least context_tokens"):
        replace(LIMITS, kv_tokens=100)
    with pytest.raises(BadSettings, match="context_tokens is 16, but must be at least 32"):
        replace(LIMITS, context_tokens=16)
