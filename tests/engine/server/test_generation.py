"""When a stream's news is told: at once, or with what comes within two milliseconds."""

import asyncio
from functools import partial

import pytest

from engine.server import generation
from engine.server.generation import PACE_S, Pacer, Wake


def played(play, tell_at_once=lambda: False):
    async def run():
        async with asyncio.timeout(60):
            return await play(Wake(tell_at_once, Pacer()), asyncio.get_running_loop())

    return asyncio.run(run())


def test_the_first_news_is_told_at_once(monkeypatch):
    monkeypatch.setattr(generation, "PACE_S", 1e6)

    async def play(wake, loop):
        loop.call_soon(wake.set)
        await wake.wait()

    played(play)


@pytest.mark.parametrize("before", [True, False], ids=["while nobody waits", "while somebody waits"])
def test_what_comes_soon_after_is_told_later_and_once(before):
    async def play(wake, loop):
        wake.set()
        await wake.wait()
        begun_s = loop.time()
        for _ in range(3):
            if before:
                wake.set()
            else:
                loop.call_soon(wake.set)
        await wake.wait()
        waited_s = loop.time() - begun_s
        waiting = asyncio.ensure_future(wake.wait())
        await asyncio.sleep(2 * PACE_S)
        is_waiting = not waiting.done()
        waiting.cancel()
        return waited_s, is_waiting

    waited_s, is_waiting = played(play)
    assert waited_s > 0.9 * PACE_S
    assert is_waiting


@pytest.mark.parametrize("before", [True, False], ids=["while nobody waits", "while somebody waits"])
def test_the_end_waits_for_nothing(monkeypatch, before):
    monkeypatch.setattr(generation, "PACE_S", 1e6)

    async def play(wake, loop):
        wake.set()
        await wake.wait()
        loop.call_soon(wake.set)
        if before:
            wake.hurry()
        else:
            loop.call_later(0.001, wake.hurry)
        await wake.wait()

    played(play)


@pytest.mark.parametrize(("streams", "pace_s"), [(1, 0.002), (16, 0.002), (64, 0.008), (1_000, 0.016)])
def test_many_streams_tell_less_often(streams, pace_s):
    async def run():
        pacer = Pacer()
        for _ in range(streams):
            pacer.join()
        many = pacer.pace_s
        for _ in range(streams):
            pacer.leave()
        return many, pacer.pace_s

    assert asyncio.run(run()) == (pace_s, PACE_S)


def test_who_stops_waiting_is_not_told_and_can_wait_again():
    told = []

    async def play(wake, _):
        wake.set()
        await wake.wait()
        wake.set()
        waiting = asyncio.ensure_future(wake.wait())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        await asyncio.sleep(2 * PACE_S)
        before = len(told)
        waiting = asyncio.ensure_future(wake.wait())
        await asyncio.wait([waiting])
        wake.set()
        waiting = asyncio.ensure_future(wake.wait())
        await asyncio.sleep(2 * PACE_S)
        waiting.cancel()
        return before, len(told)

    assert played(play, lambda: told.append(None) is None) == (0, 1)


def test_many_streams_tell_their_news_each_at_its_time_with_one_timer(monkeypatch):
    monkeypatch.setattr(generation, "PACE_S", 0.05)

    async def run():
        loop, pacer, told, timers = asyncio.get_running_loop(), Pacer(), [], []
        later, begun_s = loop.call_later, loop.time()
        monkeypatch.setattr(loop, "call_later", lambda *given: timers.append(given) or later(*given))

        def tell(number):
            told.append((number, loop.time() - begun_s))
            return True

        wakes = [Wake(partial(tell, number), pacer) for number in range(64)]
        waiting = [asyncio.ensure_future(wake.wait()) for wake in wakes]
        await asyncio.sleep(0)
        for wake in wakes[32:]:
            wake.set()
        await asyncio.sleep(0.03)
        for wake in wakes[:32]:
            wake.set()
        await asyncio.sleep(0)
        for wake in wakes:  # whose time comes last are the first to ask
            wake.set()
        at_once = len(told)
        await asyncio.sleep(0.2)
        for each in waiting:
            each.cancel()
        return at_once, told, len(timers)

    at_once, told, num_timers = asyncio.run(run())
    assert at_once == 64
    assert sorted(number for number, _ in told) == sorted(2 * [*range(64)])
    times_s = {number: [at_s for each, at_s in told if each == number] for number in range(64)}
    assert all(second_s - first_s > 0.048 for first_s, second_s in times_s.values())
    assert max(times_s[63]) < max(times_s[0])  # who told first tells first again
    assert num_timers < 120  # one a millisecond, and this test's own


def test_what_is_told_at_once_wakes_nobody():
    told = []

    async def play(wake, _):
        waiting = asyncio.ensure_future(wake.wait())
        for _ in range(3):
            await asyncio.sleep(2 * PACE_S)
            wake.set()
            wake.set()  # the same token's text
        await asyncio.sleep(0)
        is_waiting = not waiting.done()
        wake.hurry()
        await waiting
        return is_waiting

    assert played(play, lambda: told.append(len(told)) is None)
    assert told == [0, 1, 2]


def test_a_defect_in_telling_is_raised_where_somebody_waits():
    async def play(wake, loop):
        loop.call_soon(wake.set)
        with pytest.raises(ZeroDivisionError):
            await wake.wait()

    played(play, lambda: 1 / 0)
