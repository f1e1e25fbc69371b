"""When a stream's news is told: at once, or with what comes within two milliseconds."""

import asyncio

import pytest

from engine.server import generation
from engine.server.generation import PACE_S, _Wake


def played(play, tell_at_once=lambda: False):
    async def run():
        async with asyncio.timeout(60):
            return await play(_Wake(tell_at_once), asyncio.get_running_loop())

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


def test_who_stops_waiting_leaves_no_timer():
    async def play(wake, _):
        wake.set()
        await wake.wait()
        wake.set()
        waiting = asyncio.ensure_future(wake.wait())
        await asyncio.sleep(0)
        timer = wake._timer
        waiting.cancel()
        await asyncio.wait([waiting])
        return timer.cancelled(), wake._timer

    assert played(play) == (True, None)


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
