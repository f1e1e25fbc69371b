"""The virtual clock runs the engine's coroutines; the conformance suite of clocks stands in tests/engine."""

from functools import partial
from random import Random

import pytest

from sim.ties import shuffle
from sim.world import SimClock


def test_measured_work_passes_as_virtual_time():
    clock, seen = SimClock(), []

    async def work():
        result, duration_ns = await clock.compute(lambda: sum(range(1000)))
        seen.extend([result, duration_ns, clock.now_ns()])

    clock.spawn(work())
    clock.env.run()
    assert seen[0] == 499500
    assert seen[1] > 0
    assert seen[2] == seen[1]


def test_virtual_time_stays_an_integer():
    clock = SimClock()

    async def work():
        await clock.sleep(3)
        clock.call_later(4, lambda: None)

    clock.spawn(work())
    clock.env.run()
    assert clock.now_ns() == 7
    assert isinstance(clock.now_ns(), int)


def test_an_error_in_spawned_work_ends_the_run():
    clock = SimClock()

    async def work():
        await clock.sleep(1)
        raise ZeroDivisionError("a defect")

    clock.spawn(work())
    with pytest.raises(ZeroDivisionError, match="a defect"):
        clock.env.run()


def test_close_runs_the_finally_of_what_still_runs_and_of_nothing_else():
    clock, left = SimClock(), []

    async def work(name, delay_ns):
        try:
            await clock.sleep(delay_ns)
        finally:
            left.append(name)

    clock.spawn(work("short", 1))
    clock.spawn(work("long", 100))
    clock.env.run(until=10)
    assert left == ["short"]
    clock.close()
    assert left == ["short", "long"]


def test_a_method_written_in_c_is_a_callback_too():
    clock, told = SimClock(), [1, 2]
    clock.call_later(5, told.clear)
    clock.call_later(7, told.copy)
    clock.env.run(until=6)
    assert told == []
    assert clock.advance(9) >= 1
    assert clock.now_ns() == 7


@pytest.mark.parametrize("by_step", [True, False])
def test_a_late_call_is_past_when_it_is_made_and_not_when_it_was_cancelled(by_step):
    clock, past = SimClock(), []

    def look():
        past.append([clock.is_past(rank) for rank in (0, 1, 2)])

    clock.call_last(5, look, 1)
    clock.call_last(5, look, 2).cancel()
    clock.call_last(5, look, 0)
    clock.call_later(5, look)
    clock.call_later(6, look)
    if by_step:
        clock.env.run()
    else:
        assert clock.advance(9) == 5
    none = [False, False, False]
    assert past == [none, [True, False, False], [True, True, False], none]


def drained(clock, by_step):
    """Until nothing is due any more, in either of the two ways."""
    if by_step:
        clock.env.run()
    else:
        clock.advance(99)


@pytest.mark.parametrize("by_step", [True, False])
def test_whoever_comes_after_what_was_waited_for_goes_on_at_once(by_step):
    clock, gone_on = SimClock(), []
    signal = clock.signal()

    async def wait(name):
        await signal.wait()
        gone_on.append((name, clock.now_ns()))

    clock.launch(wait("before"))
    clock.call_later(5, signal.set)
    drained(clock, by_step)
    clock.launch(wait("after"))
    assert gone_on == [("before", 5), ("after", 5)]


@pytest.mark.parametrize("by_step", [True, False])
def test_what_has_ended_is_not_kept(by_step):
    clock = SimClock()

    async def work(error=None):
        await clock.sleep(3)
        if error is not None:
            raise error

    for begin in (clock.launch, clock.spawn):
        begin(work())
        assert len(clock.running) == 1
        drained(clock, by_step)
        assert not clock.running
    clock.launch(work(ZeroDivisionError("a defect")))
    with pytest.raises(ZeroDivisionError, match="a defect"):
        drained(clock, by_step)
    assert not clock.running


def played(seed, *, is_plain, ties=None, ties_from=0):
    """What happens and when, where calls, sleeps and ties come by chance, and both loops process them by turns.

    `ties`: chance breaks them, from the start or once so many things have happened.
    """
    clock, draw, seen = SimClock(is_plain=is_plain), Random(seed), []  # noqa: S311
    if ties is not None and not ties_from:
        shuffle(clock, ties)

    def note(number):
        seen.append((clock.now_ns(), number))
        for _ in range(draw.choice((0, 0, 1, 2))):
            clock.call_later(draw.randrange(6), partial(note, draw.randrange(1 << 70)))

    async def work(number):
        for _ in range(4):
            await clock.sleep(draw.randrange(9))
            note(-number)

    for number in range(60):
        begin = draw.choice((clock.call_later, partial(clock.call_last, rank=number % 3)))
        begin(draw.randrange(20), partial(note, number))
    for number in range(1, 6):
        draw.choice((clock.spawn, clock.launch))(work(number))
    while len(seen) < 400 and clock.queue:
        assert clock.env.peek() >= clock.now_ns()
        draw.choice((partial(clock.advance, 3), clock.env.step))()
        if 0 < ties_from <= len(seen):
            ties_from = 0
            shuffle(clock, ties)
    assert clock.queue or clock.env.peek() == float("inf")
    return seen


@pytest.mark.parametrize("seed", range(8))
def test_both_queues_keep_the_same_order_and_simpy_sees_either(seed):
    ours = played(seed, is_plain=False)
    assert ours == played(seed, is_plain=True)
    assert len(ours) > 80
    by_chance = played(seed, is_plain=False, ties=7)
    assert by_chance == played(seed, is_plain=True, ties=7) != ours
    later = played(seed, is_plain=False, ties=7, ties_from=20)
    assert later == played(seed, is_plain=True, ties=7, ties_from=20)
    assert later[:20] == ours[:20]
    assert later != ours
