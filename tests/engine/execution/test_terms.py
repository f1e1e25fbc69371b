"""The terms of a step against steps counted by hand, and against the racks of the torch executor itself."""

import numpy as np
import pytest

from engine.execution import Batch, Chunk, Machine, Sequence, executors
from engine.execution.terms import TERMS, counts, counts_ahead, counts_of_prefill, racks_of, row_tokens
from engine.execution.torch_executor import TorchOptions
from engine.request import Stream
from engine.settings import Architecture, HardwareSettings, ModelSettings

SHAPE = Architecture(
    layers=1, hidden=8, heads=2, kv_heads=1, head_dim=4, ffn=8, vocab=16, context_tokens=2048
)


def sequence(prompt, computed=0, cached=0):
    tokens = np.zeros(prompt, dtype=np.int32)
    return Sequence(prompt, tokens, 99, Stream(), None, cached_tokens=cached, computed_tokens=computed)


def units(batch):
    return dict(zip(TERMS, counts(batch), strict=True))


def test_a_prompt_that_begins():
    found = units(Batch([Chunk(sequence(10), 10)]))
    wanted = {"step": 1, "prefill_step": 1, "chunk": 1, "prefill_token": 10, "prefill_pair": 55, "begun": 1}
    assert found == {**dict.fromkeys(TERMS, 0), **wanted, "prefill_first": 10, "chosen": 1}


def test_long_chunks_and_large_batches_have_their_first_and_their_late_ones():
    found = units(Batch([Chunk(sequence(300), 300), Chunk(sequence(70), 70)], [sequence(9, 12)] * 9))
    assert (found["prefill_token"], found["prefill_first"], found["prefill_late"]) == (370, 128, 44)
    assert (found["decode"], found["decode_first"], found["decode_several"]) == (9, 8, 1)


def test_a_prompt_that_goes_on_from_the_cache_and_is_not_over():
    found = units(Batch([Chunk(sequence(20, computed=8, cached=8), 4)]))
    assert (found["prefill_pair"], found["masked_pair"], found["masked_chunk"]) == (
        9 + 10 + 11 + 12,
        4 * 12,
        1,
    )
    assert (found["begun"], found["loaded_token"], found["chosen"]) == (1, 8, 0)


def test_a_later_chunk_begins_nothing():
    found = units(Batch([Chunk(sequence(20, computed=8), 12)]))
    assert (found["begun"], found["loaded_token"], found["chosen"]) == (0, 0, 1)


def test_those_who_decode_are_read_rack_by_rack_up_to_the_longest():
    batch = Batch(decodes=[sequence(90, 100), sequence(90, 200), sequence(90, 300), sequence(400, 400)])
    found = units(batch)
    assert (found["decode"], found["context_token"], found["chosen"]) == (4, 1004, 4)
    assert (found["rack"], found["rack_token"]) == (2, 2 * 201 + 2 * 401)
    assert (found["moved"], found["moved_token"]) == (1, 512)  # the last one decodes for the first time


@pytest.mark.parametrize("seed", range(20))
def test_steps_ahead_are_those_that_come(seed):
    chance = np.random.default_rng(seed)
    decodes = [sequence(int(chance.integers(1, 900))) for _ in range(int(chance.integers(1, 9)))]
    for each in decodes:
        each.computed_tokens = len(each.tokens) + int(chance.integers(0, 3))
    ahead = counts_ahead(decodes, 400)
    for number in range(400):
        assert ahead[:, number].tolist() == counts(Batch(decodes=decodes))
        for each in decodes:
            each.computed_tokens += 1


@pytest.mark.parametrize(("start", "end"), [(0, 1), (0, 300), (16, 20)])
def test_what_prefill_is_said_to_take_is_a_step_with_one_chunk(start, end):
    counted = units(Batch([Chunk(sequence(end, computed=start, cached=start), end - start)]))
    assert dict(zip(TERMS, counts_of_prefill(start, end), strict=True)) == {**counted, "loaded_token": 0}


@pytest.mark.torch
def test_the_racks_are_those_of_torch(clock):
    hardware = HardwareSettings(
        name="cpu", flops=1, memory_bytes=1, memory_bytes_per_s=1, link_bytes_per_s=1, source="none"
    )
    model = ModelSettings(name="tiny", architecture=SHAPE, stand_in=SHAPE)
    executor = executors.make("torch", Machine(model, hardware, clock, 8, 1), TorchOptions())
    decodes = [sequence(prompt) for prompt in (3, 255, 256, 600)]
    result = clock.env.run(
        until=clock.spawn(executor.step(Batch([Chunk(each, len(each.tokens)) for each in decodes])))
    )
    for each, token in zip(decodes, result.chunk_tokens, strict=True):
        each.computed_tokens, each.new_tokens = len(each.tokens), [token]
    for _ in range(3):
        homes = dict(executor._homes)
        moved = units(Batch(decodes=decodes))["moved"]
        result = clock.env.run(until=clock.spawn(executor.step(Batch(decodes=decodes))))
        racks, places = racks_of([each.computed_tokens for each in decodes])
        longest = [
            max(each.computed_tokens for each in rack.sequences) + 1 for rack in executor._racks.values()
        ]
        rows = [len(rack.sequences) for rack in executor._racks.values()]
        assert racks == len(executor._racks)
        assert places == sum(row * length for row, length in zip(rows, longest, strict=True))
        assert moved == sum(homes.get(each.id) != executor._homes[each.id] for each in decodes)
        assert [executor._homes[each.id] for each in decodes] == [
            row_tokens(each.computed_tokens) for each in decodes
        ]
        for each, token in zip(decodes, result.decode_tokens, strict=True):
            each.computed_tokens += 1
            each.new_tokens.append(token)
    executor.release(decodes[2])  # not the last row of its rack: another one takes its place
    assert executor._homes.keys() == {3, 255, 600}
