"""The torch executor: real KV, sequences that come and go, prefixes that save prefill and change no token."""

import asyncio
import os
import random
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch

from engine.clock import WallClock
from engine.engine import Engine
from engine.errors import BadSettings
from engine.execution import Batch, Chunk, Machine, Replica, Scheduler, Sequence, torch_executor
from engine.execution.decoder import MASKED_TOKENS
from engine.execution.replica import Work
from engine.execution.torch_executor import (
    SHORTEST_ROW_TOKENS,
    Rack,
    TorchExecutor,
    TorchOptions,
    usable_device,
    weights_seed,
)
from engine.request import Request, Stream
from engine.settings import Architecture, HardwareSettings, ModelSettings
from sim.config import read
from sim.faults import crash
from sim.world import SimClock

pytestmark = pytest.mark.torch

SHAPE = Architecture(
    layers=2,
    hidden=32,
    heads=4,
    kv_heads=2,
    head_dim=8,
    ffn=48,
    vocab=97,
    context_tokens=2048,
    rope_theta=500.0,
)
HARDWARE = HardwareSettings(
    name="x", flops=1, memory_bytes=1, memory_bytes_per_s=1, link_bytes_per_s=1, source="none"
)


def machine(clock, loaded=None, *, seed=1, **changes):
    model = ModelSettings(**{"name": "tiny", "architecture": SHAPE, "stand_in": SHAPE, **changes})
    return Machine(model, HARDWARE, clock, 32, seed, {} if loaded is None else loaded)


@pytest.fixture
def clock():
    clock = SimClock()
    yield clock
    clock.close()


@pytest.fixture
def executor(clock):
    return TorchExecutor(machine(clock), TorchOptions())


def prompt(length, seed=0):
    return np.random.default_rng(seed).integers(97, size=length, dtype=np.int32)


def sequence(clock, number, tokens, new_tokens, prefix=(), block_tokens=16):
    cached = len(prefix) * block_tokens
    return Sequence(
        number, tokens, new_tokens, Stream(), clock.signal(), list(prefix), cached, computed_tokens=cached
    )


def run(clock, work):
    """Run a coroutine of the executor to its end on the virtual clock; its result."""
    results = []

    async def keep():
        results.append(await work)

    clock.env.run(until=clock.spawn(keep()))
    return results[0]


def step(clock, executor, chunks=(), decodes=()):
    """One step, its results applied as a replica would."""
    batch = Batch([Chunk(each, count) for each, count in chunks], list(decodes))
    result = run(clock, executor.step(batch))
    for each, token in zip(decodes, result.decode_tokens, strict=True):
        each.computed_tokens += 1
        each.accept(token, 0)
    for chunk, token in zip(batch.chunks, result.chunk_tokens, strict=True):
        chunk.sequence.computed_tokens += chunk.num_tokens
        if token is not None:
            chunk.sequence.accept(token, 0)
    return result


def generate(clock, executor, each, chunk_tokens=10_000):
    """Run one sequence alone to its end; its new tokens. Not retired."""
    while not each.is_prefilled:
        left = len(each.tokens) - each.computed_tokens
        step(clock, executor, chunks=[(each, min(left, chunk_tokens))])
    while not each.is_finished:
        step(clock, executor, decodes=[each])
    return each.new_tokens


def test_greedy_tokens_follow_the_prompt(clock, executor):
    one = generate(clock, executor, sequence(clock, 1, prompt(20, seed=1), 40))
    two = generate(clock, executor, sequence(clock, 2, prompt(20, seed=2), 40))
    assert len(set(one)) > 8
    assert one != two


@pytest.mark.parametrize("length", [1, 40, SHORTEST_ROW_TOKENS - 6])
def test_each_token_is_what_a_prefill_of_everything_before_it_gives(clock, executor, length):
    tokens = generate(clock, executor, sequence(clock, 1, prompt(length), 16))
    for count, token in enumerate(tokens):
        before = np.concatenate([prompt(length), np.array(tokens[:count], dtype=np.int32)])
        assert generate(clock, executor, sequence(clock, 2 + count, before, 1)) == [token]


@pytest.mark.parametrize("chunk_tokens", [1, 7, 49])
def test_chunks_change_no_token(clock, executor, chunk_tokens):
    whole = generate(clock, executor, sequence(clock, 1, prompt(50), 12))
    assert generate(clock, executor, sequence(clock, 2, prompt(50), 12), chunk_tokens) == whole


@pytest.mark.parametrize("seed", range(8))
def test_a_changing_batch_gives_each_sequence_the_tokens_that_it_gets_alone(clock, seed):
    """Random joins, chunks, pauses of decoding and leaves, over several racks.

    Batches round differently, by up to 5e-6; on these prompts the two best tokens are never nearer than 2.7e-4.
    """
    draw = random.Random(seed)  # noqa: S311
    executor = TorchExecutor(machine(clock), TorchOptions())
    shapes = [(draw.choice([1, 5, 40, 250, 300, 700]), draw.randint(1, 30)) for _ in range(10)]
    alone = TorchExecutor(machine(clock), TorchOptions())

    def fresh():
        return [
            sequence(clock, number, prompt(length, seed=300 + number), count)
            for number, (length, count) in enumerate(shapes)
        ]

    expected = [generate(clock, alone, each) for each in fresh()]
    coming = fresh()
    everybody, running = list(coming), []
    while coming or running:
        if coming and draw.random() < 0.4:
            running.append(coming.pop(0))
        chunks = [
            (each, draw.randint(1, len(each.tokens) - each.computed_tokens))
            for each in running
            if not each.is_prefilled and draw.random() < 0.7
        ]
        decodes = [each for each in running if each.is_prefilled and draw.random() < 0.8]
        draw.shuffle(decodes)
        if chunks or decodes:
            step(clock, executor, chunks, decodes)
        for each in [each for each in running if each.is_finished]:
            executor.retire(each, 0, 0, 16)
            running.remove(each)
    assert [each.new_tokens for each in everybody] == expected
    assert executor.held_bytes == 0


def test_a_sequence_that_outgrows_its_row_moves_on_and_keeps_its_tokens(clock, executor):
    """Three rows fill up at different steps; one pauses at the very token that no longer fits."""
    lengths = [SHORTEST_ROW_TOKENS - 8, SHORTEST_ROW_TOKENS - 3, SHORTEST_ROW_TOKENS - 1, 20]
    alone = TorchExecutor(machine(clock), TorchOptions())
    expected = [
        generate(clock, alone, sequence(clock, number, prompt(length, seed=400 + number), 24))
        for number, length in enumerate(lengths)
    ]
    here = [
        sequence(clock, number, prompt(length, seed=400 + number), 24)
        for number, length in enumerate(lengths)
    ]
    step(clock, executor, [(each, len(each.tokens)) for each in here])
    for _ in range(3):
        step(clock, executor, decodes=here)
    paused = here[1]
    assert paused.computed_tokens == SHORTEST_ROW_TOKENS
    while not here[0].is_finished:
        step(clock, executor, decodes=[each for each in here if each is not paused])
    while not paused.is_finished:
        step(clock, executor, decodes=[paused])
    assert [each.new_tokens for each in here] == expected


@pytest.mark.parametrize("block_tokens", [4, 16, 64])
def test_a_cached_prefix_saves_prefill_and_changes_no_token(clock, executor, monkeypatch, block_tokens):
    tokens = prompt(200)
    first = sequence(clock, 1, tokens, 10)
    expected = generate(clock, executor, first)
    blocks = executor.retire(first, 0, first.computed_tokens // block_tokens, block_tokens)
    usable = blocks[: 199 // block_tokens]
    again = sequence(clock, 2, tokens, 10, usable, block_tokens)
    counts, prefill = [], executor._model.prefill

    def counting(chunk, kv, start):
        counts.append(len(chunk))
        return prefill(chunk, kv, start)

    monkeypatch.setattr(executor._model, "prefill", counting)
    assert generate(clock, executor, again) == expected
    assert sum(counts) == 200 - len(usable) * block_tokens
    assert sum(counts) < 100


@pytest.mark.parametrize(("block_tokens", "num_blocks"), [(1, 119), (5, 3), (16, 6), (96, 1)])
def test_a_resumed_sequence_has_the_logits_of_a_full_prefill(clock, executor, block_tokens, num_blocks):
    tokens, cached = prompt(120), block_tokens * num_blocks
    first = sequence(clock, 1, tokens, 1)
    generate(clock, executor, first)
    blocks = executor.retire(first, 0, num_blocks, block_tokens)
    again = sequence(clock, 2, tokens, 1, blocks, block_tokens)
    with torch.inference_mode():
        whole, resumed = executor._empty(120), executor._new_buffer(again)
        full = executor._model.prefill(torch.from_numpy(tokens), whole, 0)
        rest = executor._model.prefill(torch.from_numpy(tokens[cached:]), resumed, cached)
        assert (executor._model.logits(full[cached:]) - executor._model.logits(rest)).abs().max() < 1e-5


def test_a_long_rest_after_a_prefix_goes_in_passes_whose_masks_stay_small(clock, executor, monkeypatch):
    tokens = prompt(1_500)
    first = sequence(clock, 1, tokens, 5)
    expected = generate(clock, executor, first)
    blocks = executor.retire(first, 0, 1, 16)
    masks, full = [], torch.full

    def counting(size, *arguments, **options):
        masks.append(size)
        return full(size, *arguments, **options)

    monkeypatch.setattr(torch, "full", counting)
    assert generate(clock, executor, sequence(clock, 2, tokens, 5, blocks)) == expected
    assert masks == [(MASKED_TOKENS, 528), (MASKED_TOKENS, 1_040), (460, 1_500)]


def test_blocks_of_another_replica_of_the_model_are_as_good(clock):
    loaded = {}
    one, two = (TorchExecutor(machine(clock, loaded), TorchOptions()) for _ in range(2))
    first = sequence(clock, 1, prompt(100), 8)
    expected = generate(clock, one, first)
    blocks = one.retire(first, 0, 6, 16)
    assert generate(clock, two, sequence(clock, 1, prompt(100), 8, blocks)) == expected


def test_retired_blocks_are_copies_of_their_own(clock, executor):
    first = sequence(clock, 1, prompt(40), 3)
    generate(clock, executor, first)
    blocks = executor.retire(first, 1, 2, 16)
    assert [block.shape for block in blocks] == [(2, 2, 2, 16, 8)]
    assert blocks[0].is_contiguous()
    before = blocks[0].clone()
    generate(clock, executor, sequence(clock, 2, prompt(40, seed=9), 30))
    assert torch.equal(blocks[0], before)


def test_a_block_as_long_as_a_row_is_a_copy_too(clock, executor):
    filling, staying = (
        sequence(clock, number, prompt(SHORTEST_ROW_TOKENS - 9, number), 10) for number in (1, 2)
    )
    step(clock, executor, [(filling, len(filling.tokens)), (staying, len(staying.tokens))])
    while not filling.is_finished:
        step(clock, executor, decodes=[filling, staying])
    assert filling.computed_tokens == SHORTEST_ROW_TOKENS
    kv = executor._kv(filling).clone()
    (block,) = executor.retire(filling, 0, 1, SHORTEST_ROW_TOKENS)
    assert torch.equal(block, kv)


def test_a_sequence_that_never_ran_leaves_nothing_and_one_that_prefills_leaves_what_it_has(clock, executor):
    waiting, begun = sequence(clock, 1, prompt(40), 3), sequence(clock, 2, prompt(40), 3)
    assert executor.retire(waiting, 0, 0, 16) == []
    step(clock, executor, chunks=[(begun, 20)])
    assert len(executor.retire(begun, 0, 1, 16)) == 1
    assert executor.held_bytes == 0


def test_memory_comes_back_and_follows_what_is_in_use(clock, executor):
    many = [sequence(clock, number, prompt(30, seed=number), 200) for number in range(20)]
    step(clock, executor, chunks=[(each, 30) for each in many])
    step(clock, executor, decodes=many)
    full = executor.held_bytes
    rows = SHORTEST_ROW_TOKENS * executor.kv_bytes_per_token
    assert 20 * rows <= full <= 30 * rows
    for each in many[2:]:
        executor.retire(each, 0, 0, 16)
    assert executor.held_bytes < full / 2
    step(clock, executor, decodes=many[:2])
    for each in many[:2]:
        executor.retire(each, 0, 0, 16)
    assert executor.held_bytes == 0


def test_memory_follows_the_tokens_that_are_there_and_not_those_that_may_come(clock, executor):
    """The worst mix: one long sequence among short ones, all with room for 1,500 more."""
    lengths = [513, *[20] * 7]
    many = [
        sequence(clock, number, prompt(length, seed=number), 1_500) for number, length in enumerate(lengths)
    ]
    step(clock, executor, [(each, len(each.tokens)) for each in many])
    step(clock, executor, decodes=many)
    in_use = sum(max(each.computed_tokens, SHORTEST_ROW_TOKENS) for each in many)
    assert executor.held_bytes <= 2 * in_use * executor.kv_bytes_per_token
    assert (
        executor.held_bytes
        < sum((len(each.tokens) + each.max_new_tokens) for each in many) * executor.kv_bytes_per_token / 2
    )


def test_reset_forgets_everything(clock, executor):
    decoding, prefilling = sequence(clock, 1, prompt(30, seed=5), 9), sequence(clock, 2, prompt(30), 9)
    step(clock, executor, chunks=[(decoding, 30)])
    step(clock, executor, chunks=[(prefilling, 20)], decodes=[decoding])
    executor.reset()
    assert executor.held_bytes == 0
    expected = generate(clock, executor, sequence(clock, 7, prompt(30), 9))
    assert expected == generate(clock, executor, sequence(clock, 1, prompt(30), 9))
    assert expected == generate(clock, executor, sequence(clock, 2, prompt(30), 9))


def test_reset_forgets_what_copies_were_owed(clock, executor):
    each = sequence(clock, 1, prompt(64), 4)
    generate(clock, executor, each)
    executor.retire(each, 0, 4, 16)
    assert executor._owed_ns > 0
    executor.reset()
    assert executor._owed_ns == 0


def test_a_rack_keeps_every_row_through_growing_gaps_and_shrinking(clock):
    rack, draw, held = Rack(torch.zeros(1, 1, 2, 1, 8, 2)), random.Random(1), {}  # noqa: S311
    for number in range(400):
        if held and draw.random() < (0.3 if number < 200 else 0.7):
            row = draw.randrange(len(rack.sequences))
            del held[rack.sequences[row].id]
            rack.remove(row)
        else:
            each = sequence(clock, number, prompt(3), 1)
            rack.add(each, torch.full((1, 2, 1, 5, 2), float(number)))
            held[number] = each
        assert sorted(each.id for each in rack.sequences) == sorted(held)
        for row, each in enumerate(rack.sequences):
            assert (rack.kv[row, ..., :5, :] == each.id).all()
        assert len(rack.kv) <= max(1, 2 * len(rack.sequences))


def test_replicas_of_a_model_share_weights_and_other_models_have_others(clock):
    loaded = {}
    one, two = (TorchExecutor(machine(clock, loaded), TorchOptions()) for _ in range(2))
    other = TorchExecutor(machine(clock, loaded, name="other"), TorchOptions())
    assert one._model.weights.embedding.data_ptr() == two._model.weights.embedding.data_ptr()
    assert not torch.equal(one._model.weights.embedding, other._model.weights.embedding)
    seeds = {
        weights_seed(machine(clock, name=name, version=version).model, seed)
        for name in ("a", "b")
        for version in ("1.0.0", "1.0.1")
        for seed in (1, 2)
    }
    assert len(seeds) == 8


@pytest.mark.slow
def test_the_same_seed_gives_the_same_tokens_in_another_process(clock, executor):
    code = (
        f"import runpy; m = runpy.run_path({__file__!r}); clock = m['SimClock']();"
        "e = m['TorchExecutor'](m['machine'](clock), m['TorchOptions']());"
        "print(m['generate'](clock, e, m['sequence'](clock, 1, m['prompt'](30), 20)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "77"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(generate(clock, executor, sequence(clock, 1, prompt(30), 20)))


def test_measured_time_passes_on_the_clock_and_copies_are_owed_once(clock, executor):
    each = sequence(clock, 1, prompt(64), 4)
    result = step(clock, executor, chunks=[(each, 64)])
    assert clock.now_ns() == result.duration_ns > 0
    generate(clock, executor, each)
    executor.retire(each, 0, 4, 16)
    owed_ns = executor._owed_ns
    assert owed_ns > 0
    executor.retire(sequence(clock, 9, prompt(8), 1), 0, 0, 16)
    assert executor._owed_ns > owed_ns
    owed_ns = executor._owed_ns
    before_ns = clock.now_ns()
    result = step(clock, executor, chunks=[(sequence(clock, 2, prompt(8), 1), 8)])
    assert clock.now_ns() - before_ns == result.duration_ns > owed_ns
    assert executor._owed_ns == 0


def test_on_a_wall_clock_nothing_is_owed_since_the_copies_have_taken_their_time_already(monkeypatch):
    monkeypatch.setattr(torch_executor, "stopwatch_ns", iter([0, 700]).__next__)

    class Wall:
        now_ns = iter([0, 700]).__next__

    executor = TorchExecutor(machine(Wall()), TorchOptions())
    executor.retire(sequence(SimClock(), 1, prompt(40), 3), 0, 0, 16)
    assert executor._owed_ns == 0


def test_a_step_on_the_wall_clock_gives_the_tokens_of_the_virtual_one(clock, executor):
    expected = generate(clock, executor, sequence(clock, 1, prompt(40), 6))

    async def serve():
        wall = WallClock()
        on_wall = TorchExecutor(machine(wall), TorchOptions())
        replica = Replica("a", "tiny", on_wall, Scheduler(4, 48, 4_096), wall, 16)
        replica.start()
        stream = Stream()
        answer = await replica.generate(Work(prompt(40), 6, []), stream)
        again = Stream()
        await replica.generate(Work(prompt(40), 6, answer.blocks[:2], 32), again)
        await wall.close()
        return [stream.tokens, again.tokens, on_wall.held_bytes]

    assert asyncio.run(serve()) == [expected, expected, 0]


def test_a_prompt_that_may_not_be_written_to_is_read(clock, executor):
    tokens = prompt(30)
    expected = generate(clock, executor, sequence(clock, 1, tokens, 5))
    tokens.flags.writeable = False
    assert generate(clock, executor, sequence(clock, 2, tokens, 5)) == expected


def test_what_lies_in_fresh_memory_is_never_read(clock, executor, monkeypatch):
    expected = generate(clock, executor, sequence(clock, 1, prompt(40), 30), chunk_tokens=7)
    monkeypatch.setattr(torch, "empty", partial(torch.full, fill_value=float("nan")))
    dirty = TorchExecutor(machine(clock), TorchOptions())
    assert generate(clock, dirty, sequence(clock, 1, prompt(40), 30), chunk_tokens=7) == expected


def test_rows_that_others_have_left_are_used_again(clock, executor):
    expected = generate(clock, executor, sequence(clock, 1, prompt(40), 20))
    long = [sequence(clock, 10 + number, prompt(200, seed=number), 20) for number in range(4)]
    step(clock, executor, [(each, 200) for each in long])
    step(clock, executor, decodes=long)
    full = executor.held_bytes
    executor.retire(long[1], 0, 0, 16)
    here = sequence(clock, 20, prompt(40), 20)
    step(clock, executor, [(here, 40)])
    while not here.is_finished:
        step(clock, executor, decodes=[long[0], here, *long[2:]])
        assert executor.held_bytes == full
    assert here.new_tokens == expected


def test_a_lone_sequence_holds_a_small_multiple_of_what_it_needs(clock, executor):
    for length in (1, 255, 256, 257, 900):
        each = sequence(clock, length, prompt(length), 2)
        generate(clock, executor, each)
        needed = (
            max((len(each.tokens) + each.max_new_tokens), SHORTEST_ROW_TOKENS) * executor.kv_bytes_per_token
        )
        assert executor.held_bytes <= 2 * needed
        executor.retire(each, 0, 0, 16)
        assert executor.held_bytes == 0


def test_no_global_random_state_is_touched(clock):
    before = torch.get_rng_state()
    generate(clock, TorchExecutor(machine(clock), TorchOptions()), sequence(clock, 1, prompt(30), 5))
    assert torch.equal(before, torch.get_rng_state())


def test_staggered_requests_through_a_replica_get_the_tokens_that_they_get_alone(clock):
    executor = TorchExecutor(machine(clock), TorchOptions())
    replica = Replica("a", "tiny", executor, Scheduler(4, 48, 4_096), clock, 16)
    replica.start()
    shapes = [(1 + 37 * number % 150, 1 + number % 9) for number in range(12)]
    streams = [Stream() for _ in shapes]

    async def ask(number):
        await clock.sleep(number * 300_000)
        length, count = shapes[number]
        await replica.generate(Work(prompt(length, seed=number), count, []), streams[number])

    asked = [clock.spawn(ask(number)) for number in range(len(shapes))]
    clock.env.run(until=clock.env.all_of(asked))
    alone = TorchExecutor(machine(clock), TorchOptions())
    for number, (length, count) in enumerate(shapes):
        expected = generate(clock, alone, sequence(clock, 1_000 + number, prompt(length, seed=number), count))
        assert streams[number].tokens == expected
    assert executor.held_bytes == 0


def answers(*, cached, dies=False):
    """The tokens of two waves of 6 requests through an engine of three replicas; one may die with work in hand."""
    clock = SimClock()
    settings = read(["scenario=steady", "executor=torch", f"tiers.enabled={cached}"]).engine
    engine = Engine(settings, clock)
    engine.start()
    streams, ends = [Stream() for _ in range(12)], []

    async def ask(number):
        request = Request(number, "llama-3.2-1b", prompt(100, seed=number % 3), 60, clock.now_ns())
        ends.append(await engine.serve(request, streams[number]))

    if dies:
        clock.spawn(crash("b", holding=1, patience_s=60).strike(engine))
    for wave in (range(6), range(6, 12)):
        clock.env.run(until=clock.env.all_of([clock.spawn(ask(number)) for number in wave]))
    clock.close()
    return [stream.tokens for stream in streams], ends


@pytest.mark.slow
def test_neither_a_cached_prefix_nor_a_lost_replica_changes_an_answer():
    expected, _ = answers(cached=False)
    assert len({tuple(tokens) for tokens in expected}) == 3
    with_cache, ends = answers(cached=True)
    assert with_cache == expected
    assert [end.usage.cached_tokens for end in ends[6:]] == [96] * 6
    with_loss, ends = answers(cached=True, dies=True)
    assert with_loss == expected
    assert max(end.attempts for end in ends) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "executor.threads is 0"),
        ({"kv_capacity_tokens": 0}, "executor.kv_capacity_tokens is 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(BadSettings, match=message):
        TorchOptions(**options)


@pytest.mark.parametrize("name", ["nowhere", "cpu:x", "", "cuda:99", "meta", "hpu"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(BadSettings, match=f"executor.device is '{name}'"):
        usable_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_is_refused_on_a_machine_without_it_before_anything_runs(clock):
    with pytest.raises(BadSettings, match=r"executor\.device is 'cuda'"):
        TorchExecutor(machine(clock), TorchOptions(device="cuda"))


def test_a_device_that_works_behind_our_back_is_waited_for(clock, executor, monkeypatch):
    waited = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    each = sequence(clock, 1, prompt(30), 2)
    step(clock, executor, [(each, 10)])
    assert waited == []
    executor._device = torch.device("cuda")
    executor.retire(each, 0, 0, 16)
    assert waited == [torch.device("cuda")]


def test_threads_are_set_only_when_they_differ(clock):
    before = torch.get_num_threads()
    try:
        TorchExecutor(machine(clock), TorchOptions(threads=2))
        assert torch.get_num_threads() == 2
        TorchExecutor(machine(clock), TorchOptions(threads=1))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.gpu
def test_a_gpu_gives_the_tokens_of_the_cpu(clock, executor):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    on_gpu = TorchExecutor(machine(clock), TorchOptions(device="cuda"))
    expected = generate(clock, executor, sequence(clock, 1, prompt(80), 24))
    first = sequence(clock, 1, prompt(80), 24)
    assert generate(clock, on_gpu, first, chunk_tokens=33) == expected
    blocks = on_gpu.retire(first, 0, 4, 16)
    assert generate(clock, on_gpu, sequence(clock, 2, prompt(80), 24, blocks)) == expected
