"""Both clocks keep one contract; what differs between them stands at the end."""

import asyncio
import threading

import pytest

from engine.clock import WallClock, to_ns, unix_ns_of, utc_now, utc_text
from sim.world import SimClock

MS = 1_000_000


def on_wall(main):
    async def whole():
        clock = WallClock()
        try:
            return await main(clock)
        finally:
            await clock.close()

    return asyncio.run(whole())


def on_sim(main):
    clock = SimClock()
    try:
        return clock.env.run(until=clock.spawn(main(clock)))
    finally:
        clock.close()


@pytest.fixture(params=[on_wall, on_sim])
def run(request):
    return request.param


def test_sleepers_wake_in_the_order_of_their_times(run):
    async def main(clock):
        woken, last = [], clock.signal()

        async def sleeper(delay_ns):
            await clock.sleep(delay_ns)
            woken.append(delay_ns)
            if len(woken) == 3:
                last.set()

        for delay_ns in (6 * MS, 2 * MS, 4 * MS):
            clock.spawn(sleeper(delay_ns))
        await last.wait()
        return woken

    assert run(main) == [2 * MS, 4 * MS, 6 * MS]


def test_a_sleep_lasts_at_least_as_long_as_it_was_asked_to(run):
    async def main(clock):
        begun_ns = clock.now_ns()
        await clock.sleep(2 * MS)
        return clock.now_ns() - begun_ns

    assert run(main) >= 2 * MS


def test_now_never_goes_back_and_stays_an_integer(run):
    async def main(clock):
        seen = [clock.now_ns()]
        for delay_ns in (0, 1, MS, 0):
            await clock.sleep(delay_ns)
            seen.append(clock.now_ns())
        return seen

    seen = run(main)
    assert seen == sorted(seen)
    assert {type(now_ns) for now_ns in seen} == {int}


def test_waiters_go_on_in_the_order_in_which_they_came(run):
    async def main(clock):
        signal, woken, last = clock.signal(), [], clock.signal()

        async def waiter(name):
            await signal.wait()
            woken.append(name)
            if name == "third":
                last.set()

        for name in ("first", "second", "third"):
            clock.spawn(waiter(name))
        await clock.sleep(0)
        assert woken == []
        signal.set()
        await last.wait()
        return woken

    assert run(main) == ["first", "second", "third"]


def test_who_stops_waiting_is_forgotten_and_the_others_go_on():
    async def play():
        signal = WallClock().signal()
        waiting = [asyncio.ensure_future(signal.wait()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[1].cancel()
        await asyncio.wait([waiting[1]])
        num_left = len(signal._waiters)
        signal.set()
        await asyncio.gather(waiting[0], waiting[2])
        return num_left, signal.is_set

    assert asyncio.run(play()) == (2, True)


def test_a_signal_happens_once_and_stays_so(run):
    async def main(clock):
        signal = clock.signal()
        before = signal.is_set
        signal.set()
        signal.set()
        await signal.wait()
        await clock.sleep(0)
        await signal.wait()
        return before, signal.is_set

    assert run(main) == (False, True)


def test_a_timer_calls_once_unless_it_is_cancelled_before(run):
    async def main(clock):
        called = []
        kept = clock.call_later(MS, lambda: called.append("kept"))
        cancelled = clock.call_later(MS, lambda: called.append("cancelled"))
        cancelled.cancel()
        await clock.sleep(3 * MS)
        kept.cancel()
        cancelled.cancel()
        return called

    assert run(main) == ["kept"]


@pytest.mark.parametrize(("how", "pause_ns"), [("spawn", 0), ("launch", MS)])
def test_work_runs_beside_the_caller(run, how, pause_ns):
    """What is launched may begin at once, and goes on beside; what is spawned begins later."""

    async def main(clock):
        steps, done = [], clock.signal()

        async def beside():
            if pause_ns:
                await clock.sleep(pause_ns)
            steps.append("beside")
            done.set()

        getattr(clock, how)(beside())
        steps.append("caller")
        await done.wait()
        return steps

    assert run(main) == ["caller", "beside"]


def test_closing_runs_the_finally_of_what_still_runs(run):
    left = []

    async def main(clock):
        async def beside(name, delay_ns):
            try:
                await clock.sleep(delay_ns)
            finally:
                left.append(name)

        clock.spawn(beside("short", 0))
        clock.spawn(beside("long", 3_600_000 * MS))
        await clock.sleep(MS)
        assert left == ["short"]

    run(main)
    assert left == ["short", "long"]


def test_work_is_computed_and_measured(run):
    async def main(clock):
        begun_ns = clock.now_ns()
        result, took_ns = await clock.compute(lambda: sum(range(10_000)))
        return result, type(took_ns), 0 < took_ns <= clock.now_ns() - begun_ns

    assert run(main) == (49_995_000, int, True)


def test_an_error_of_computed_work_reaches_who_asked_for_it(run):
    async def main(clock):
        with pytest.raises(ZeroDivisionError):
            await clock.compute(lambda: 1 // 0)
        return "went on"

    assert run(main) == "went on"


def test_the_loop_stays_free_while_a_thread_computes():
    async def main(clock):
        released = threading.Event()
        clock.call_later(0, released.set)  # by the loop itself, while the thread waits for it
        return await clock.compute(lambda: released.wait(30))

    result, _ = on_wall(main)
    assert result


def test_an_error_in_spawned_work_reaches_the_loop():
    told = []

    async def main(clock):
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))

        async def broken():
            raise ZeroDivisionError("a defect")

        clock.spawn(broken())
        await clock.sleep(MS)

    on_wall(main)
    assert [str(context["exception"]) for context in told] == ["a defect"]


def test_an_error_in_spawned_work_ends_the_virtual_world():
    async def main(clock):
        async def broken():
            raise ZeroDivisionError("a defect")

        clock.spawn(broken())
        await clock.sleep(MS)

    with pytest.raises(ZeroDivisionError, match="a defect"):
        on_sim(main)


@pytest.mark.parametrize(("seconds", "ns"), [(0, 0), (1, 10**9), (1e-9, 1), (0.1, 10**8), (2.5e-9, 2)])
def test_seconds_become_the_nearest_nanosecond(seconds, ns):
    assert to_ns(seconds) == ns
    assert isinstance(to_ns(seconds), int)


def test_the_date_knows_its_zone():
    assert utc_now().utcoffset().total_seconds() == 0


@pytest.mark.parametrize(
    ("unix_ns", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1_798_761_600_123_999_999, "2027-01-01T00:00:00.123Z"),
        (951_782_400_000_000_000, "2000-02-29T00:00:00.000Z"),
    ],
)
def test_times_of_the_calendar_are_told_in_utc_and_read_back(unix_ns, text):
    assert utc_text(unix_ns) == text
    assert unix_ns_of(text) == unix_ns // 10**6 * 10**6


@pytest.mark.parametrize("text", ["2027-01-01", "2027-01-01T00:00", "2027-01-01T01:00+01:00"])
def test_a_date_without_a_zone_is_one_of_utc(text):
    assert utc_text(unix_ns_of(text)) == "2027-01-01T00:00:00.000Z"


@pytest.mark.parametrize("text", ["", "tomorrow", "2027-02-30", "1e9"])
def test_what_is_no_date_is_refused(text):
    with pytest.raises(ValueError, match=r"isoformat|day is out of range"):
        unix_ns_of(text)


def test_nothing_begins_after_the_wall_clock_was_closed():
    told = []

    async def work():
        told.append("spawned")

    async def main():
        clock = WallClock()
        clock.call_later(1_000_000, lambda: told.append("called"))
        clock.call_later(1_000_000, lambda: clock.spawn(work()))
        await clock.close()
        clock.spawn(work())
        await asyncio.sleep(0.02)

    asyncio.run(main())
    assert told == []
