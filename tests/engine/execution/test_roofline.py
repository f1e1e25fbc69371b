"""The roofline executor against its formula, computed by hand."""

import numpy as np
import pytest

from engine.errors import BadSettings
from engine.execution import Batch, Chunk, Machine, Sequence, executors
from engine.execution.roofline import RooflineOptions
from engine.request import Stream
from engine.settings import Architecture, HardwareSettings, ModelSettings

# 2 layers, 4 heads of 8: 8,192 weights; a token leaves 2 x 2 x 2 x 8 = 64 numbers of 2 bytes in the KV cache
SHAPE = Architecture(
    layers=2, hidden=32, heads=4, kv_heads=2, head_dim=8, ffn=16, vocab=40, context_tokens=64
)
WEIGHTS = 40 * 32 + 2 * (32 * 8 * 12 + 3 * 32 * 16 + 64) + 32
KV_BYTES = 128
PLAIN = {"compute_efficiency": 1.0, "memory_efficiency": 1.0, "overhead_us": 0.0, "kv_share": 1.0}


def make(clock, flops=1e9, bytes_per_s=1e9, link=1e9, memory=1e6, **options):
    hardware = HardwareSettings(
        name="toy",
        flops=flops,
        memory_bytes=memory,
        memory_bytes_per_s=bytes_per_s,
        link_bytes_per_s=link,
        source="by hand",
    )
    model = ModelSettings(name="tiny", architecture=SHAPE, stand_in=SHAPE)
    machine = Machine(model, hardware, clock, 4, 1, {})
    return executors.make("roofline", machine, RooflineOptions(**{**PLAIN, **options}))


def sequence(tokens=10, computed=0, cached=0, new=()):
    return Sequence(
        1,
        np.arange(tokens, dtype=np.int32),
        9,
        Stream(),
        None,
        cached_tokens=cached,
        computed_tokens=computed,
        new_tokens=list(new),
    )


def prefill(tokens=10, computed=0, cached=0, chunk=None):
    new = sequence(tokens, computed, cached)
    return Batch([Chunk(new, chunk or tokens - computed)])


def decode(*contexts):
    return Batch(decodes=[sequence(context, context, new=[1]) for context in contexts])


def test_the_toy_is_what_the_comments_say(clock):
    assert SHAPE.parameters == WEIGHTS
    assert make(clock).kv_bytes_per_token == KV_BYTES


def test_a_prefill_bound_by_compute(clock):
    executor = make(clock, flops=1e9, bytes_per_s=1e15)
    operations = 2 * WEIGHTS * 10 + 4 * 2 * 4 * 8 * (10 * 11 // 2)
    assert executor.duration_ns(prefill(10)) == operations


def test_a_prefill_bound_by_memory(clock):
    executor = make(clock, flops=1e15, bytes_per_s=1e9)
    assert executor.duration_ns(prefill(10)) == 2 * WEIGHTS + 10 * KV_BYTES


def test_a_later_chunk_looks_back_on_all_before_it(clock):
    executor = make(clock, flops=1e9, bytes_per_s=1e15)
    pairs = 7 + 8 + 9  # the 7th, 8th and 9th token
    assert executor.duration_ns(prefill(12, computed=6, chunk=3)) == 2 * WEIGHTS * 3 + 256 * pairs


def test_chunks_add_up_to_the_whole_where_compute_is_the_bound(clock):
    executor = make(clock, flops=1e9, bytes_per_s=1e15)
    parts = [prefill(12, computed=start, chunk=4) for start in (0, 4, 8)]
    assert sum(map(executor.duration_ns, parts)) == executor.duration_ns(prefill(12))


@pytest.mark.parametrize(
    ("speeds", "expected"),
    [
        ({"flops": 1e9, "bytes_per_s": 1e15}, 2 * WEIGHTS * 2 + 256 * (6 + 21)),
        ({"flops": 1e15, "bytes_per_s": 1e9}, 2 * WEIGHTS + KV_BYTES * (6 + 21)),
    ],
)
def test_a_decode_batch(clock, speeds, expected):
    assert make(clock, **speeds).duration_ns(decode(5, 20)) == expected


def test_efficiency_and_overhead_are_counted(clock):
    plain = make(clock, flops=1e15).duration_ns(prefill(10))
    slow = make(clock, flops=1e15, memory_efficiency=0.5, overhead_us=3.0).duration_ns(prefill(10))
    assert slow == 2 * plain + 3000
    plain = make(clock, bytes_per_s=1e15).duration_ns(prefill(10))
    assert make(clock, bytes_per_s=1e15, compute_efficiency=0.25).duration_ns(prefill(10)) == 4 * plain


def test_a_cached_prefix_crosses_the_link_once_and_is_cheaper_than_prefill(clock):
    executor = make(clock, flops=1e9, bytes_per_s=1e15, link=1e9)
    loaded = executor.duration_ns(prefill(12, computed=8, cached=8, chunk=2))
    assert loaded == 2 * WEIGHTS * 2 + 256 * (9 + 10) + 8 * KV_BYTES
    assert executor.duration_ns(prefill(12, computed=10, cached=8)) == 2 * WEIGHTS * 2 + 256 * (11 + 12)
    assert executor.duration_ns(prefill(12, computed=8, cached=8)) < executor.duration_ns(prefill(12))


def step(executor, clock, batch):
    return clock.env.run(until=clock.spawn(executor.step(batch)))


def test_a_step_takes_as_long_as_it_says(clock):
    executor = make(clock)
    result = step(executor, clock, prefill(10))
    assert clock.now_ns() == result.duration_ns == executor.duration_ns(prefill(10))


def test_what_retiring_takes_is_charged_to_the_next_step_and_only_to_it(clock):
    executor = make(clock)
    plain_ns = step(executor, clock, prefill(10)).duration_ns
    assert executor.retire(sequence(20, 20), 1, 4, 5) == [None, None, None]
    assert step(executor, clock, prefill(10)).duration_ns == plain_ns + 15 * KV_BYTES
    assert step(executor, clock, prefill(10)).duration_ns == plain_ns
    executor.retire(sequence(20, 20), 0, 4, 5)
    executor.reset()
    assert step(executor, clock, prefill(10)).duration_ns == plain_ns


def test_only_the_last_chunk_yields_a_token(clock):
    executor = make(clock)
    assert step(executor, clock, prefill(10, chunk=9)).chunk_tokens == [None]
    (token,) = step(executor, clock, prefill(10, computed=9)).chunk_tokens
    assert 0 <= token < SHAPE.vocab


def generate(executor, clock, tokens, count):
    """`count` tokens after `tokens`, as a replica asks for them."""
    alone = Sequence(1, np.array(tokens, dtype=np.int32), count, Stream(), None)
    result = step(executor, clock, Batch([Chunk(alone, len(tokens))]))
    alone.computed_tokens = len(tokens)
    alone.new_tokens += result.chunk_tokens
    while not alone.is_finished:
        alone.new_tokens += step(executor, clock, Batch(decodes=[alone])).decode_tokens
        alone.computed_tokens += 1
    return alone.new_tokens


@pytest.mark.parametrize("resumed_after", range(1, 12))
def test_a_resumed_sequence_goes_on_with_the_same_tokens(clock, resumed_after):
    prompt, executor = [3, 1, 4, 1, 5], make(clock)
    whole = generate(executor, clock, prompt, 12)
    begun = whole[:resumed_after]
    assert begun + generate(make(clock), clock, prompt + begun, 12 - resumed_after) == whole


def test_the_capacity_is_what_the_weights_leave(clock):
    assert make(clock, memory=2 * WEIGHTS + 10 * KV_BYTES).kv_capacity_tokens == 10
    assert make(clock, memory=2 * WEIGHTS + 10 * KV_BYTES, kv_share=0.55).kv_capacity_tokens == 5


@pytest.mark.parametrize("memory", [1.0, 2 * WEIGHTS, 2 * WEIGHTS + KV_BYTES - 1])
def test_a_model_that_leaves_no_room_for_kv_is_refused(clock, memory):
    with pytest.raises(BadSettings, match=r"tiny weighs 0.0 GB and leaves no room for KV in the .* of toy"):
        make(clock, memory=memory)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        *[(name, 0, "above 0") for name in ("compute_efficiency", "memory_efficiency", "kv_share")],
        *[(name, 1.01, "at most 1") for name in ("compute_efficiency", "memory_efficiency", "kv_share")],
        ("overhead_us", -1, "at least 0"),
    ],
)
def test_an_option_out_of_bounds_is_named(name, value, allowed):
    with pytest.raises(BadSettings, match=f"executor.{name} is {value}, but must be .*{allowed}"):
        RooflineOptions(**{name: value})


@pytest.mark.parametrize(("flops", "bytes_per_s"), [(1e9, 1e15), (1e15, 1e9), (2.2e9, 1e9), (8.1e9, 1e9)])
def test_a_ramp_is_what_the_steps_take_one_by_one_to_the_tick(clock, flops, bytes_per_s):
    """Also where compute is the longer line at first and memory later, or the other way round."""
    executor = make(clock, flops=flops, bytes_per_s=bytes_per_s, overhead_us=0.3)
    batch = decode(3, 700, 1500)
    several, told = [], 0
    while len(several) < 400:
        before, first, growth, steps = executor.ramp(batch)
        assert steps >= 1
        assert growth >= 0
        told += 1
        for number in range(min(steps, 400 - len(several))):
            several.append(before + first + number * growth)
            assert executor.ticks(batch) == several[-1]
            for each in batch.decodes:
                each.computed_tokens += 1
    assert told <= 2
    assert executor.decode_ns(decode(3, 700, 1500), 400).tolist() == [each >> 24 for each in several]


def test_what_is_owed_for_kept_blocks_goes_before_the_first_step_and_no_other(clock):
    executor = make(clock)
    done = sequence(32, 32)
    executor.retire(done, 0, 2, 16)
    before, first, _, _ = executor.ramp(decode(5))
    assert before >> 24 == 2 * 16 * KV_BYTES
    assert executor.ticks(decode(5)) == before + first
    executor.stepped(1)
    assert executor.ramp(decode(5))[0] == 0
