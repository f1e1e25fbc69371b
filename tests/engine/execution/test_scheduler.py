"""The scheduler: who runs in the next step, and that nobody is forgotten."""

from random import Random

import numpy as np
import pytest

from engine.clock import Signal
from engine.execution import Scheduler, Sequence
from engine.request import Stream


def sequence(number=0, tokens=10, new=4, cached=0):
    return Sequence(number, np.zeros(tokens, dtype=np.int32), new, Stream(), Signal(), cached_tokens=cached)


def make(*sequences, max_batch=4, step_tokens=16, kv_capacity_tokens=1000):
    scheduler = Scheduler(max_batch, step_tokens, kv_capacity_tokens)
    for each in sequences:
        scheduler.add(each)
    return scheduler


def step(scheduler, now_ns=0):
    """One step as a replica does it; the batch as (prefills, decodes) by id, and who left."""
    batch = scheduler.next_batch(now_ns)
    told = (
        [(chunk.sequence.id, chunk.num_tokens) for chunk in batch.chunks],
        [each.id for each in batch.decodes],
    )
    run(batch)
    return *told, [each.id for each in scheduler.settle()]


def run(batch):
    for each in batch.decodes:
        each.computed_tokens += 1
        each.new_tokens.append(0)
    for chunk in batch.chunks:
        if chunk.is_last:
            chunk.sequence.new_tokens.append(0)
        chunk.sequence.computed_tokens += chunk.num_tokens


def test_a_sequence_is_prefilled_then_decoded_until_it_is_finished():
    scheduler = make(sequence(1, tokens=10, new=3))
    assert step(scheduler) == ([(1, 10)], [], [])
    assert step(scheduler) == ([], [1], [])
    assert step(scheduler) == ([], [1], [1])
    assert step(scheduler) == ([], [], [])
    assert scheduler.num_running == scheduler.kv_used_tokens == 0


def test_one_new_token_needs_no_decode():
    assert step(make(sequence(1, new=1))) == ([(1, 10)], [], [1])


def test_a_long_prompt_is_cut_into_chunks_of_the_budget():
    scheduler = make(sequence(1, tokens=40, new=2), step_tokens=16)
    assert [step(scheduler)[0] for _ in range(3)] == [[(1, 16)], [(1, 16)], [(1, 8)]]
    assert step(scheduler) == ([], [1], [1])


def test_decodes_come_out_of_the_budget_first():
    scheduler = make(sequence(1, tokens=4), sequence(2, tokens=40), step_tokens=8)
    assert step(scheduler) == ([(1, 4), (2, 4)], [], [])
    assert step(scheduler) == ([(2, 7)], [1], [])


def test_a_cached_prefix_is_not_prefilled():
    scheduler = make(sequence(1, tokens=10, cached=8))
    assert step(scheduler)[0] == [(1, 2)]


def test_who_comes_joins_the_running_batch():
    scheduler = make(sequence(1, new=9))
    step(scheduler)
    scheduler.add(sequence(2))
    assert step(scheduler) == ([(2, 10)], [1], [])
    assert step(scheduler) == ([], [1, 2], [])


def test_no_more_run_together_than_the_batch_holds():
    scheduler = make(*[sequence(number, tokens=1, new=2) for number in range(5)], max_batch=2)
    assert step(scheduler)[0] == [(0, 1), (1, 1)]
    assert step(scheduler) == ([], [0, 1], [0, 1])
    assert step(scheduler)[0] == [(2, 1), (3, 1)]


def test_a_sequence_joins_as_soon_as_its_prompt_and_some_room_to_grow_are_free():
    scheduler = make(sequence(1, tokens=10, new=500), sequence(2, tokens=10, new=500), kv_capacity_tokens=80)
    assert step(scheduler)[0] == [(1, 10), (2, 6)]  # the longest that the two can become is 1,020
    tight = make(sequence(1, tokens=10, new=40), sequence(2, tokens=10, new=4), kv_capacity_tokens=51)
    assert step(tight)[0] == [(1, 10)]  # 10 + 10 and twice the room to grow are 52


def test_who_began_last_gives_its_kv_back_when_there_is_none_for_the_next_token():
    first, second = sequence(1, tokens=10, new=50), sequence(2, tokens=10, new=50)
    scheduler = make(first, second, step_tokens=32, kv_capacity_tokens=60)
    while True:
        batch = scheduler.next_batch(0)
        if batch.preempted:
            break
        run(batch)
        scheduler.settle()
    assert batch.preempted == [second]
    assert batch.decodes == [first]
    assert list(scheduler.waiting) == [second]
    assert (first.computed_tokens, scheduler.kv_used_tokens) == (30, 31)
    # its prompt and the 21 tokens that it had generated are computed anew; none of them is generated twice
    assert (len(second.tokens), second.computed_tokens, len(second.new_tokens)) == (31, 0, 21)
    assert second.num_tokens == 31


def test_one_that_was_preempted_goes_on_where_it_was_and_before_those_who_came_later():
    first, second, third = (sequence(number, tokens=10, new=50) for number in (1, 2, 3))
    scheduler = make(first, second, step_tokens=64, kv_capacity_tokens=60)
    order = []
    while not second.rewound_tokens:
        order += step(scheduler)[2]
    scheduler.add(third)
    while len(order) < 3:
        order += step(scheduler)[2]
    assert order == [1, 2, 3]
    assert [len(each.new_tokens) for each in (first, second, third)] == [50, 50, 50]
    assert scheduler.num_running == scheduler.kv_used_tokens == 0


def test_a_preempted_sequence_takes_its_cached_prefix_again():
    first, second = sequence(1, tokens=10, new=50), sequence(2, tokens=10, new=50, cached=8)
    scheduler = make(first, second, step_tokens=64, kv_capacity_tokens=60)
    while not second.rewound_tokens:
        step(scheduler)
    while not second.is_running:
        step(scheduler)
    assert second.computed_tokens >= 8


def test_a_small_one_does_not_overtake_a_large_one_that_waits_for_kv():
    scheduler = make(
        sequence(1), sequence(2, tokens=90), sequence(3, tokens=1, new=1), kv_capacity_tokens=100
    )
    assert step(scheduler)[0] == [(1, 10)]
    assert [each.id for each in scheduler.waiting] == [2, 3]
    assert [step(scheduler)[2] for _ in range(3)] == [[], [], [1]]
    assert step(scheduler)[0] == [(2, 16)]


def test_first_in_line_comes_before_everybody_who_waits():
    scheduler = make(sequence(1), sequence(2), max_batch=1)
    scheduler.add_first(sequence(3))
    assert step(scheduler)[0] == [(3, 10)]


def test_one_dropped_while_it_waits_never_runs():
    first, second = sequence(1), sequence(2)
    scheduler = make(first, second)
    scheduler.drop(first)
    assert step(scheduler)[0] == [(2, 10)]


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_one_dropped_while_it_runs_leaves_with_the_step_and_frees_its_kv(steps):
    first, second = sequence(1, tokens=20, new=9), sequence(2, tokens=20, new=9)
    scheduler = make(first, second)
    for _ in range(steps):
        step(scheduler)
    scheduler.drop(first)
    assert step(scheduler)[2] == [1]
    assert scheduler.kv_used_tokens == max(20, second.computed_tokens)
    assert scheduler.num_running == 1


def test_clearing_gives_back_everybody():
    sequences = [sequence(number, tokens=12) for number in range(6)]
    scheduler = make(*sequences)
    step(scheduler)
    assert set(map(id, scheduler.clear())) == set(map(id, sequences))
    assert scheduler.num_running == scheduler.kv_used_tokens == len(scheduler.waiting) == 0
    assert step(scheduler) == ([], [], [])


@pytest.mark.parametrize("seed", range(20))
def test_a_random_schedule_keeps_every_promise(seed):
    random = Random(seed)  # noqa: S311  seeded
    scheduler = make(
        max_batch=random.randint(1, 6), step_tokens=random.randint(6, 40), kv_capacity_tokens=200
    )
    alive, started, count = {}, [], 0
    for now in range(600):
        for _ in range(random.randint(0, 2) if now < 400 else 0):
            new = sequence(count, random.randint(1, 120), random.randint(1, 20))
            alive[count], count = new, count + 1
            scheduler.add(new)
        if alive and random.random() < 0.1:
            scheduler.drop(alive.pop(random.choice(list(alive))))
        running = [each.id for each in scheduler.decoding]
        chunks, decodes, left = step(scheduler, now)
        assert decodes == running[: len(decodes)]  # those who began last may have lost their KV
        assert sum(tokens for _, tokens in chunks) + len(decodes) <= scheduler.step_tokens
        assert all(tokens > 0 for _, tokens in chunks)
        assert scheduler.num_running <= scheduler.max_batch
        inside = [*scheduler._prefilling, *scheduler.decoding]
        held = sum(max(len(each.tokens), each.computed_tokens) for each in inside)
        assert scheduler.kv_used_tokens == held <= 200
        started += [number for number, _ in chunks if number not in started]
        for number in left:
            alive.pop(number, None)
    while alive:
        chunks, decodes, left = step(scheduler)
        assert chunks or decodes
        started += [number for number, _ in chunks if number not in started]
        for number in left:
            alive.pop(number, None)
    assert started == sorted(started)
    assert scheduler.num_running == scheduler.kv_used_tokens == 0
