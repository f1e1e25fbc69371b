import asyncio
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from engine.clock import stopwatch_ns
from sim.fidelity import bench
from sim.fidelity.calibrate import (
    FEW_RESTS,
    foreseen_ns,
    foreseen_starts_ns,
    starts_of,
    turn_costs,
    turns_of,
    waking_ns,
)
from sim.fidelity.cases import CASES, run_settings
from sim.fidelity.device import Ledger
from sim.fidelity.steplog import Leaving, Reading, Shape, Step, StepLog
from sim.fidelity.track import Track, standard_ns, track_of
from sim.fidelity.yardstick import WARM_UPS, Yardstick

US, MS, S = 1_000, 1_000_000, 1_000_000_000


def readings(took_ms, every_ms=100):
    """A log with one each `every_ms`, which has the machine for twice as long as it takes, and no steps."""
    found = [
        Reading(due, due + MS, due + MS + round(2 * took * MS), round(took * MS))
        for due, took in zip(range(0, len(took_ms) * every_ms * MS, every_ms * MS), took_ms, strict=True)
    ]
    return StepLog(readings=found)


def test_a_machine_that_is_as_fast_as_in_the_calibration_has_a_pace_of_one():
    track = track_of(readings([2.0] * 20), 2.0 * MS)
    assert track.at(-5) == track.at(0.7 * S) == track.at(100 * S) == pytest.approx(1.0)
    assert Track().at(3) == 1.0
    assert Track().over(np.array([1.0, 2.0])).tolist() == [1.0, 1.0]
    assert track_of(StepLog(), 2.0 * MS) == track_of(readings([2.0]), 0.0) == Track()


def test_a_machine_that_becomes_slower_has_another_pace_from_then_on():
    track = track_of(readings([2.0] * 20 + [3.0] * 20), 2.0 * MS)
    assert track.at(1.5 * S) == pytest.approx(1.0)
    assert 1.0 < track.at(2.0 * S) < 1.5
    assert track.at(2.5 * S) == pytest.approx(track.at(9 * S)) == pytest.approx(1.5)
    times = np.array([0.0, 1.5 * S, 1.95 * S, 2.5 * S])
    assert track.over(times).tolist() == [track.at(time_ns) for time_ns in times]


def test_one_take_that_something_stopped_moves_the_pace_by_its_fifth_root():
    track = track_of(readings([2.0] * 10 + [20.0] + [2.0] * 10), 2.0 * MS)
    assert max(track.paces) == pytest.approx(10 ** (1 / 5))
    assert track.at(0.5 * S) == pytest.approx(1.0)


def test_a_standard_is_the_geometric_mean_over_all_runs():
    logs = [readings([1.0, 4.0]), readings([2.0] * 2)]
    assert standard_ns(logs) == pytest.approx(2.0 * MS)
    assert standard_ns([StepLog()]) == 0.0


def test_a_track_knows_when_the_yardstick_had_the_machine_and_for_how_long():
    track = track_of(readings([2.0, 3.0]), 2.0 * MS)  # from 1 to 5 ms, and from 101 to 107
    begins, ends = np.array([0.0, 5.0, 90.0, 107.0]) * MS, np.array([6.0, 90.0, 120.0, 200.0]) * MS
    assert track.count(begins, ends).tolist() == [1.0, 0.0, 1.0, 0.0]
    assert track.taken_ns(begins, ends).tolist() == [4.0 * MS, 0.0, 6.0 * MS, 0.0]
    times = np.array([0.5, 1.0, 4.9, 5.0, 100.0, 106.9, 107.0]) * MS
    assert track.has_at(times).tolist() == [False, True, True, False, False, True, False]
    assert not Track().has_at(times).any()


def test_a_reading_after_a_longer_rest_tells_nothing_of_a_machine_at_work_unless_there_are_no_others():
    log = readings([2.0, 5.0] * 10)
    ended = [
        each.begun_ns - (3 * MS if number % 2 == 0 else 30 * MS) for number, each in enumerate(log.readings)
    ]
    log.steps = [Step("m", at, at, at, 1, Shape((), ())) for at in ended]
    track = track_of(log, 2.0 * MS)
    assert track.paces == pytest.approx([1.0] * 11)
    assert standard_ns([log]) == pytest.approx(2.0 * MS)
    assert track.readings == log.readings  # all of them took the machine
    log.steps = log.steps[1::2]
    assert standard_ns([log]) == pytest.approx(np.sqrt(10.0) * MS)
    assert len(track_of(log, 2.0 * MS).paces) == 21


def test_times_of_readings_are_counted_from_the_start_of_the_load_as_those_of_steps():
    shape = Shape((), ())
    log = StepLog([Step("m", 110, 120, 130, 9, shape)], [Leaving(1, 2)], [Reading(100, 110, 150, 20)])
    moved = log.since(100)
    assert moved.steps == [Step("m", 10, 20, 30, 9, shape)]
    assert (moved.left, moved.readings) == (log.left, [Reading(0, 10, 50, 20)])
    log.clear()
    assert log == StepLog()


def slow_log(yards_ms=4.0, host_us=300, yard_us=200, rest_at=()):
    """Steps of 1 to 3 ms, and what is said of them; in the middle third all takes twice as long.

    The yardstick is taken after each tenth step, and the step after that takes `yard_us` more. Before the steps of
    `rest_at` the machine rests until somebody comes, and then takes 2 ms more.
    """
    log, now_ns, said, comes = StepLog(), 0, [], []
    for number in range(600):
        times = 2 if 200 <= number < 400 else 1
        is_measured = number % 10 == 9
        if is_measured:
            took_ns = round(yards_ms / 2 * MS * times)
            log.readings.append(Reading(now_ns, now_ns, now_ns + 2 * took_ns, took_ns))
            now_ns += 2 * took_ns
        said_ns = (1_000 + number * 37 % 101 * 20) * US
        shape, before_us = Shape((), ((100, 8),)), host_us + yard_us * is_measured
        if number in rest_at:
            now_ns += 5 * MS
            comes.append(now_ns)
            shape, before_us = Shape(((0, 0, 64, 64),), ()), host_us + 2_000
        asked_ns = now_ns + before_us * US * times
        ended_ns = asked_ns + said_ns * times
        log.steps.append(Step("m", asked_ns, asked_ns, ended_ns, said_ns * times, shape))
        said.append(float(said_ns))
        now_ns = ended_ns
    return log, np.array(said), np.array(comes, dtype=float)


def test_what_turns_cost_is_found_whatever_the_pace_was_and_whatever_the_yardstick_took():
    log, said, nobody = slow_log()
    track = track_of(log, 2.0 * MS)
    turns = turns_of(log, said, nobody, track=track)
    assert turns.yards.sum() == len(log.readings) == 60
    costs = turn_costs(turns)
    assert costs.scale == pytest.approx(1.0, rel=0.03)
    assert costs.step_ns == pytest.approx(300 * US, rel=0.2)  # where the pace changes nobody knows it at once
    assert costs.yard_ns == pytest.approx(200 * US, rel=0.2)
    assert foreseen_ns(turns, costs).sum() == pytest.approx(turns.took_ns.sum(), rel=0.01)
    middle = slice(250, 350)
    assert foreseen_ns(turns, costs)[middle].sum() == pytest.approx(turns.took_ns[middle].sum(), rel=0.02)
    untold = turns_of(log, said, nobody)
    assert untold.took_ns.sum() - turns.took_ns.sum() == 320 * MS
    assert foreseen_ns(untold, turn_costs(untold))[middle].sum() < 0.9 * untold.took_ns[middle].sum()


def starts_and_costs(log, said, comes):
    """The starts of such a log, and what its turns cost; starts, which prefill, spread as turns do."""
    track = track_of(log, 2.0 * MS)
    costs = turn_costs(turns_of(log, said, comes, track=track))
    costs.prefill_spread = costs.decode_spread
    return starts_of(log, said, comes, track=track), costs


def test_what_a_start_takes_more_is_found_whatever_the_pace_was():
    rests = range(12, 600, 10)
    log, said, comes = slow_log(rest_at=rests)
    starts, costs = starts_and_costs(log, said, comes)
    assert len(starts.took_ns) == len(rests)
    assert starts.pace.max() == pytest.approx(2.0)
    assert waking_ns([starts], costs) == pytest.approx(2 * MS, rel=0.3)  # few rests are drawn towards 0
    late = StepLog(
        log.steps, log.left, [Reading(int(comes[0]), int(comes[0]) + 1, int(comes[0]) + MS + 1, MS)]
    )
    alone = starts_of(late, said, comes, track=track_of(late, float(MS)))
    assert starts_of(log, said, comes).took_ns[0] - alone.took_ns[0] == MS


def test_a_start_on_a_slow_machine_tells_what_it_would_take_more_at_the_standard():
    rests = range(232, 372, 10)
    log, said, comes = slow_log(rest_at=rests)
    starts, costs = starts_and_costs(log, said, comes)
    assert starts.pace.min() > 1.5
    drawn_to_none = len(rests) / (len(rests) + FEW_RESTS)
    assert waking_ns([starts], costs) == pytest.approx(2 * MS * drawn_to_none, rel=0.15)
    costs.wake_ns = 2 * MS
    assert foreseen_starts_ns(starts, costs) == pytest.approx(starts.took_ns, rel=0.1)


def test_steps_are_as_long_as_they_would_have_been_at_the_standard():
    steps = [Step("m", at, at, at + 90, 90, Shape((), ())) for at in (0, 100)]
    found = bench.steps_at_standard(SimpleNamespace(log=StepLog(steps)), Track([50], [1.0, 3.0]))
    assert [step.duration_ns for step in found] == [90, 30]


def test_costs_are_found_by_the_tracks_of_the_calibrations_and_simulations_by_the_runs_own(monkeypatch):
    monkeypatch.setattr(bench, "host_costs", lambda around, engine, models, tracks: (around, tracks))
    monkeypatch.setattr(bench, "simulate", lambda *given: given[-3:])
    own, *beside = tracks = [Track([], [pace]) for pace in (1.0, 2.0, 3.0)]
    play = bench.Play(None, None, [], {"m": None}, [3, 4])
    host = ("before and after", beside)
    assert play.simulated("before and after", tracks)[1:] == (host, [(host, 3, own), (host, 4, own)])


def test_who_is_not_told_knows_when_the_yardstick_was_taken_and_not_what_it_said():
    runs = [SimpleNamespace(log=readings([took_ms] * 20)) for took_ms in (2.0, 3.0, 4.0)]
    play = SimpleNamespace(simulated=lambda _, tracks: (None, None, tracks))
    assert bench.untold(play, runs[0], runs[1:]) == [Track([], [1.0], run.log.readings) for run in runs]
    assert bench.untold(play, SimpleNamespace(log=StepLog()), runs[1:]) == []


def test_who_asks_first_has_the_device_first_and_the_yardstick_is_one_of_them():
    ledger = Ledger(yards=[(100, 20), (5, 4)])
    first, second = ledger.turn(0, 10), ledger.turn(1, 10)
    assert (first.ends_ns, second.ends_ns) == (10, 20)
    assert ledger.turn(6, 10).ends_ns == 34  # the yardstick was due before
    assert [ledger.yard_ends_ns(at) for at in (19, 20, 23, 24)] == [None, 24, 24, None]
    assert ledger.worked_ns == 34
    assert ledger.begins_ns(103) == 120
    assert (ledger.worked_ns, ledger.free_ns) == (34, 120)  # it rests, but for the yardstick
    assert ledger.turn(110, 5).ends_ns == 125


def test_a_turn_that_is_lengthened_moves_the_yardstick_behind_it():
    ledger = Ledger(yards=[(5, 4)])
    ledger.turn(0, 10)
    ledger.lengthen(6, 3)
    assert (ledger.worked_ns, ledger.free_ns) == (13, 17)
    assert ledger.turn(7, 1).ends_ns == 18
    assert ledger.worked_ns == 18


@pytest.fixture
def yardstick():
    return Yardstick(run_settings(CASES["five"], 1, []).engine, 20 * MS)


@pytest.mark.torch
def test_the_smallest_model_of_a_fleet_is_its_yardstick_and_takes_about_as_long_each_time(yardstick):
    assert yardstick.model == "gemma-2-9b-it"
    took = [yardstick.take() for _ in range(50)]
    assert min(took) > 0
    assert np.median(took) < 3 * min(took)


@pytest.mark.torch
def test_a_yardstick_that_takes_long_is_taken_less_often(yardstick, monkeypatch):
    assert yardstick.every_ns >= 20 * MS
    takes = iter([90 * MS] * (WARM_UPS - 1) + [30 * MS])  # the first ones warm it up
    monkeypatch.setattr(Yardstick, "take", lambda _: next(takes))
    assert Yardstick(run_settings(CASES["five"], 1, []).engine, 20 * MS).every_ns == 300 * MS


@pytest.mark.torch
def test_the_yardstick_has_its_turn_at_its_times_until_the_run_is_over(yardstick):
    found, spans = [], []

    async def live():
        turns, over = asyncio.Lock(), asyncio.Event()
        start_ns = stopwatch_ns()

        async def work():
            for _ in range(50):
                async with turns:
                    begun_ns = stopwatch_ns()
                    await asyncio.sleep(0.004)
                    spans.append((begun_ns, stopwatch_ns()))
            over.set()

        await asyncio.gather(yardstick.note(found, start_ns, turns, over), work())
        return start_ns

    start_ns = asyncio.run(live())
    assert len(found) > 3
    assert all((each.due_ns - start_ns) % yardstick.every_ns == 0 for each in found)
    assert all(one.due_ns < other.due_ns for one, other in pairwise(found))
    for each in found:
        assert each.due_ns <= each.begun_ns < each.begun_ns + each.took_ns <= each.ended_ns
        assert all(ended <= each.begun_ns or begun >= each.ended_ns for begun, ended in spans)
