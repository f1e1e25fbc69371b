from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from engine.errors import BadSettings
from engine.execution import Machine
from engine.execution.terms import TERMS, counts
from engine.settings import ExecutorSettings
from sim.config import read
from sim.fidelity.calibrate import (
    Starts,
    door_of,
    foreseen_ns,
    host_costs,
    idle_delays,
    joined,
    residuals,
    starts_of,
    tier_waits,
    turn_costs,
    turns_of,
    waking_ns,
)
from sim.fidelity.device import NEIGHBOURS, Door, HostCosts, Spread, make_inner
from sim.fidelity.fitting import predictions
from sim.fidelity.steplog import Leaving, Reading, Shape, Step, StepLog, shape_of
from sim.fidelity.steps import batch_of, fitted
from sim.world import SimClock

US, MS = 1_000, 1_000_000
BEGINNER = Shape(((0, 0, 64, 64),), ())
DECODING = Shape((), ((100, 8),))


def made_log(
    count=400, step_us=200, begin_us=100, arrive_us=50, leave_us=300, keep_ns=20, scale=1.0, rest_at=()
):
    """A log with these costs between steps of 1 to 3 ms, the times of arrivals, and what is said of the steps.

    Before the steps of `rest_at` the machine rests until somebody comes, and then takes 2 ms more.
    """
    log, now_ns, arrivals, said = StepLog(), 0, [], []
    for number in range(count):
        begins, left, arrives = number % 5 == 0, number % 7 == 0, number % 3 == 0
        if number in rest_at:
            now_ns += 10 * MS
            arrivals.append(now_ns)
            now_ns += 2 * MS + (step_us + begin_us + arrive_us) * US
            asked_ns, shape, took_ns = now_ns, BEGINNER, 2 * MS
        else:
            kept = 32 * left
            now_ns += (step_us + begin_us * begins + leave_us * left) * US + keep_ns * kept
            context = 1_000 + number * 37 % 101 * 10
            shape = Shape(((0, 0, 64, 64),) * begins, ((context, 8), (200, 8)))
            asked_ns, took_ns = now_ns, MS * begins + (context + 202) * US
            log.left += [Leaving(number, kept)] * left
            arrivals += [now_ns + US] * arrives
            now_ns += arrive_us * US * arrives
        log.steps.append(Step("m", asked_ns, asked_ns, now_ns + took_ns, took_ns, shape))
        said.append(took_ns / scale)
        now_ns += took_ns
    return log, np.array(said), np.array(arrivals, dtype=float)


def test_costs_of_turns_are_found_again():
    costs = turn_costs(turns_of(*made_log()))
    assert costs.scale == pytest.approx(1.0, rel=1e-3)
    assert costs.step_ns == pytest.approx(200 * US, rel=1e-3)
    assert costs.begin_ns == pytest.approx(100 * US, rel=1e-3)
    assert costs.arrive_ns == pytest.approx(50 * US, rel=1e-3)
    assert costs.leave_ns + 32 * costs.keep_ns == pytest.approx(300 * US + 32 * 20, rel=1e-3)


def stretched(log, said, arrivals, extra_ns):
    """The same log, in which the turn that ends with a step takes so much longer, by the step's number."""
    shifts = np.cumsum([extra_ns(number) for number in range(len(log.steps))]).tolist()
    steps = [
        step._replace(asked_ns=step.asked_ns + shift, ended_ns=step.ended_ns + shift)
        for step, shift in zip(log.steps, shifts, strict=True)
    ]
    turn = np.searchsorted([step.ended_ns for step in log.steps], arrivals)
    return StepLog(steps, log.left), said, arrivals + np.array([0, *shifts])[turn]


def test_what_a_read_from_files_takes_of_a_turn_is_found():
    log, said, arrivals = stretched(*made_log(), lambda number: 900 * US * (number % 11 == 0))
    reads = np.array([step.ended_ns + 1 for step in log.steps[10::11]], dtype=float)
    costs = turn_costs(turns_of(log, said, arrivals, reads))
    assert costs.read_ns == pytest.approx(900 * US, rel=1e-3)
    assert costs.step_ns == pytest.approx(200 * US, rel=1e-3)
    assert foreseen_ns(turns_of(log, said, arrivals, reads), costs).sum() == pytest.approx(
        log.steps[-1].ended_ns - log.steps[0].ended_ns, rel=0.01
    )
    assert turn_costs(turns_of(*made_log())).read_ns == 0.0


def test_what_is_left_to_do_in_the_turn_after_one_has_left_is_charged_to_leaving():
    costs = turn_costs(turns_of(*stretched(*made_log(), lambda number: 250 * US * (number % 7 == 1))))
    assert costs.leave_ns + 32 * costs.keep_ns == pytest.approx(550 * US + 32 * 20, rel=1e-3)
    assert costs.step_ns == pytest.approx(200 * US, rel=1e-3)
    assert costs.begin_ns == pytest.approx(100 * US, rel=1e-3)


def test_what_the_first_token_of_a_beginner_takes_of_the_next_turn_is_found():
    log, said, arrivals = stretched(*made_log(), lambda number: 170 * US * (number % 5 == 1))
    turns = turns_of(log, said, arrivals)
    costs = turn_costs(turns)
    assert costs.after_ns == pytest.approx(170 * US, rel=1e-3)
    assert costs.step_ns == pytest.approx(200 * US, rel=1e-3)
    assert foreseen_ns(turns, costs) == pytest.approx(turns.took_ns, rel=0.01)
    assert turn_costs(turns_of(*made_log())).after_ns == pytest.approx(0.0, abs=US)


def test_who_comes_in_a_crowd_tells_nothing_of_what_one_costs_who_comes_alone():
    log, said, arrivals = made_log()
    crowd = np.full(300, log.steps[200].ended_ns + 1, dtype=float)  # it takes no time at all
    costs = turn_costs(turns_of(log, said, np.concatenate([arrivals, crowd])))
    assert costs.arrive_ns == pytest.approx(50 * US, rel=1e-3)


def test_a_cost_model_that_says_half_is_scaled():
    assert turn_costs(turns_of(*made_log(scale=2.0))).scale == pytest.approx(2.0, rel=1e-3)


def test_turns_are_foreseen_to_the_sum_that_they_took():
    turns = turns_of(*made_log())
    turns.took_ns = turns.took_ns * np.random.default_rng(1).gamma(4, 1 / 4, len(turns))
    costs = turn_costs(turns)
    assert foreseen_ns(turns, costs).sum() == pytest.approx(turns.took_ns.sum(), rel=0.03)
    table = residuals(turns, costs, "compared")
    assert set(table["kind"]) == {"prefill", "decode"}
    assert table["batch"].tolist() == [3 if kind == "prefill" else 2 for kind in table["kind"]]


def test_time_in_which_nobody_had_work_is_in_no_turn():
    with_rests, without = turns_of(*made_log(rest_at=(100, 200))), turns_of(*made_log())
    assert len(with_rests) == len(without) - 2
    assert with_rests.took_ns.max() <= without.took_ns.max()


def test_what_a_step_takes_more_after_a_rest_is_found():
    made = made_log(rest_at=range(10, 400, 2))
    costs, starts = turn_costs(turns_of(*made_log())), starts_of(*made)
    assert len(starts.took_ns) == 195
    assert waking_ns([starts], costs) == pytest.approx(2 * MS, rel=0.1)
    reads = np.array([step.asked_ns for step in made[0].steps[10:400:4]], dtype=float)
    assert len(starts_of(*made, reads).took_ns) == 97  # who waited for files tells nothing
    starts.took_ns[::2] += 2 * MS  # the mean, but not of one that something else stopped
    starts.took_ns[0] += 10_000 * MS
    assert waking_ns([starts], costs) == pytest.approx(3 * MS, rel=0.1)
    starts.took_ns -= 100 * MS
    assert waking_ns([starts], costs) == -costs.step_ns - costs.begin_ns
    nobody = np.empty(0)
    assert waking_ns([Starts(took_ns=nobody, pace=nobody, said_ns=nobody, beginners=nobody)], costs) == 0.0


def test_a_replica_that_waited_for_its_turn_makes_a_turn_of_the_machine():
    log = StepLog([Step("m", 0, 0, 100, 100, BEGINNER), Step("m", 40, 110, 260, 150, BEGINNER)])
    turns = turns_of(log, np.array([100.0, 150.0]), np.empty(0))
    assert turns.took_ns.tolist() == [160.0]


def test_runs_are_calibrated_as_one_and_in_times_of_the_load():
    log, said, arrivals = made_log()
    turns = turns_of(log, said, arrivals)
    assert len(joined([turns, turns])) == 2 * len(turns)
    moved = StepLog([step._replace(ended_ns=step.ended_ns + 5) for step in log.steps]).since(5)
    assert [step.ended_ns for step in moved.steps] == [step.ended_ns for step in log.steps]


def made_run(log, arrivals_ns, intended_ns):
    count = len(arrivals_ns)
    both = pd.DataFrame({"request_id": range(count), "arrival_ns": arrivals_ns, "intended_ns": intended_ns})
    both["first_token_ns"], both["first_ns"] = 10, 17
    both["last_token_ns"], both["last_ns"], both["outcome"] = 20, 31, "completed"
    both["cached_tokens_ssd"], both["tried_ns"], both["queued_ns"] = 0, arrivals_ns, 2
    times = np.asarray(arrivals_ns, dtype=float)
    return SimpleNamespace(log=log, arrivals_ns=times, tried_ns=times, reads_ns=np.empty(0), both=both)


def test_the_way_to_the_engine_is_measured_on_requests_that_find_it_resting():
    steps = [Step("m", at, at, at + 50, 50, BEGINNER) for at in (0, 200, 300)]
    run = made_run(StepLog(steps), [20, 130, 290], [10, 100, 220])
    assert idle_delays(run).tolist() == [30.0]
    busy = made_run(StepLog(steps[:1]), [20, 30], [10, 10])
    assert idle_delays(busy).tolist() == [10.0, 20.0]


def test_who_came_while_the_yardstick_was_taken_tells_nothing_of_the_way_or_the_door():
    steps = [Step("m", at, at, at + 50, 50, BEGINNER) for at in (0, 200, 400)]
    log = StepLog(steps, [], [Reading(95, 95, 125, 15)])
    run = made_run(log, [130, 160, 230], [100, 150, 220])
    run.both["last_ns"] = 200
    assert idle_delays(run).tolist() == [10.0]
    assert len(door_of([run], 2.0).left_ns) == 1
    log.readings = [Reading(205, 205, 225, 10)]
    assert idle_delays(run).tolist() == [30.0, 10.0]
    assert door_of([run], 2.0) == Door()


def test_a_run_without_steps_has_no_turns_and_no_starts():
    nobody = np.empty(0)
    assert len(turns_of(StepLog(), nobody, nobody)) == 0
    assert len(starts_of(StepLog(), nobody, nobody).took_ns) == 0


def test_a_door_remembers_what_was_left_of_the_turn_and_when_each_was_let_in():
    # turns from 0 to 50, to 120 and to 200; the batch of the second is formed at 55; then a rest until 300
    times = ((0, 50), (55, 120), (125, 200), (300, 350))
    shapes = (BEGINNER, DECODING, DECODING, BEGINNER)
    steps = [
        Step("m", asked, asked, ended, 1, shape) for (asked, ended), shape in zip(times, shapes, strict=True)
    ]
    intended = [8, 38, 43, 108, 188, 248, 340]
    let_in = [20, 60, 52, 130, 205, 255, 345]
    run = made_run(StepLog(steps), let_in, intended)
    run.both["last_ns"] = 340
    door = door_of([run], 2.0)
    assert door.left_ns == [5.0, 8.0, 10.0, 10.0, 10.0, 40.0]
    assert door.is_late == [False, False, True, True, True, False]
    assert door.let_in_ns == [5.0, 3.0, 5.0, 10.0, 10.0, 10.0]
    assert door_of([run, run], 2.0).left_ns == sorted(door.left_ns * 2)
    assert door_of([made_run(StepLog(steps), [255], [248])], 2.0) == Door()


def test_waits_for_files_are_those_of_calm_requests_if_there_are_any():
    run = made_run(StepLog(), [0, 0, 0, 40], [0, 0, 0, 40])
    run.both["last_ns"] = [31, 31, 31, 99]  # the last one is still there when nobody comes any more
    run.both["cached_tokens_ssd"], run.both["queued_ns"] = [0, 16, 32, 16], [2, 5, 9, 50]
    assert tier_waits([run, run]).tolist() == [5.0, 9.0] * 2
    run.both["tried_ns"] += 1  # let in later: the door is asked for that
    assert tier_waits([run]).tolist() == [4.0, 8.0]
    run.both["tried_ns"] -= 1
    run.both["cached_tokens_ssd"] = [0, 0, 0, 16]
    assert tier_waits([run]).tolist() == [10.0]
    run.both["cached_tokens_ssd"] = 0
    assert tier_waits([run]).tolist() == []


def test_a_calibration_run_of_a_few_steps_is_refused():
    engine = read(["scenario=steady", "executor=roofline", "fleet=three_small"]).engine
    log, _, arrivals = made_log(20)
    with pytest.raises(BadSettings, match="saw 20 steps, but needs at least 50"):
        host_costs([made_run(log, arrivals, arrivals)], engine, {})


def test_what_a_step_after_another_models_takes_more_is_found():
    log, said, arrivals = made_log()
    names = ["m" if number % 4 < 2 else "n" for number in range(len(log.steps))]
    log.steps = [step._replace(model=name) for step, name in zip(log.steps, names, strict=True)]
    same = turn_costs(turns_of(log, said, arrivals))
    assert same.switch_ns == pytest.approx(0.0, abs=5 * US)
    log, said, arrivals = stretched(log, said, arrivals, lambda number: 120 * US * (number % 2 == 0))
    costs = turn_costs(turns_of(log, said, arrivals))
    assert costs.switch_ns == pytest.approx(120 * US, rel=0.02)
    assert costs.step_ns == pytest.approx(200 * US, rel=0.02)
    turns = turns_of(log, said, arrivals)
    assert turns.switches.mean() == pytest.approx(0.5, abs=0.01)
    assert foreseen_ns(turns, costs).sum() == pytest.approx(turns.took_ns.sum(), rel=0.01)


def test_the_host_is_calibrated_from_whole_runs():
    engine = read(["scenario=steady", "executor=roofline", "fleet=three_small"]).engine
    name = engine.fleet.models[0].name
    log, _, arrivals = made_log()
    log.steps = [step._replace(model=name) for step in log.steps]
    costs = host_costs([made_run(log, arrivals, arrivals - 3)] * 2, engine, fitted(log.steps, [name]))
    assert costs.first_ns.tolist() == [7.0] * 2 * len(arrivals)
    assert costs.end_ns.tolist() == [11.0] * 2 * len(arrivals)
    assert set(costs.in_ns.tolist()) == {3.0}
    assert costs.scale == pytest.approx(1.0, rel=0.05)


def test_a_ratio_is_drawn_among_steps_of_about_the_same_size():
    said = [float(each) for each in range(1_000)]
    spread = Spread(said, [1.0] * 500 + [3.0] * 500)
    chances = np.linspace(0, 0.999, 50)
    assert {spread.ratio(100.0, chance) for chance in chances} == {1.0}
    assert {spread.ratio(9_999.0, chance) for chance in chances} == {3.0}
    assert {spread.ratio(500.0, chance) for chance in chances} == {1.0, 3.0}
    assert spread.mean(-5.0) == 1.0
    assert spread.mean(500.0) == pytest.approx(1.0 + 2.0 * (NEIGHBOURS - NEIGHBOURS // 2) / NEIGHBOURS)


def test_the_rank_of_a_ratio_leads_back_to_it():
    random = np.random.default_rng(1)
    said, ratios = np.sort(random.gamma(2, 1_000, 500)), random.gamma(9, 1 / 9, 500)
    spread = Spread(said.tolist(), ratios.tolist())
    ranks = [spread.rank(*each) for each in zip(said, ratios, strict=True)]
    assert [spread.ratio(*each) for each in zip(said, ranks, strict=True)] == ratios.tolist()
    assert np.mean(ranks) == pytest.approx(0.5, abs=0.01)
    few = Spread([5.0], [2.0])
    assert few.ratio(9.0, few.rank(9.0, 2.0)) == few.ratio(0.0, 0.999) == 2.0
    assert 0 <= few.rank(9.0, 1.0) < few.rank(9.0, 3.0) < 1


def test_turns_have_their_ranks_in_the_order_in_which_they_came():
    turns = turns_of(*made_log())
    slow = np.arange(len(turns)) // 50 % 2 == 1
    turns.took_ns = turns.took_ns * np.where(slow, 1.3, 0.7)
    ranks = np.array(turn_costs(turns).ranks)
    assert len(ranks) == len(turns)
    assert ranks[slow].min() > 0.45
    assert ranks[~slow].max() < 0.55
    assert ranks[slow].mean() - ranks[~slow].mean() == pytest.approx(0.5, abs=0.02)


def test_without_a_spread_steps_take_what_is_said():
    assert HostCosts().decode_spread.ratio(5.0, 0.5) == HostCosts().decode_spread.mean(5.0) == 1.0


def test_a_batch_made_of_a_shape_has_that_shape():
    shape = Shape(((32, 16, 100, 20), (0, 0, 8, 8)), ((5, 3), (70, 70)))
    assert shape_of(batch_of(shape)) == shape
    assert (shape.has_prefill, shape.beginners) == (True, 1)


def test_predictions_are_those_of_the_cost_model_step_by_step():
    engine = read(["scenario=steady", "executor=roofline", "fleet=three_small"]).engine
    name = engine.fleet.models[0].name
    short, long = Shape((), ((10, 5),)), Shape((), ((100_000, 5),) * 8)
    steps = [Step(name, 0, 0, 0, 0, shape) for shape in (short, long, short)]
    found = predictions(steps, engine, {name: ExecutorSettings(name="roofline")})
    assert found[0] == found[2] < found[1]


def test_costs_of_steps_that_are_sums_of_their_terms_are_found_again():
    engine = read(["scenario=steady", "executor=roofline", "fleet=three_small"]).engine
    name, random = engine.fleet.models[0].name, np.random.default_rng(1)
    costs = random.gamma(4, 1_000, len(TERMS))
    steps = []
    for _ in range(400):
        chunks = tuple(
            (16 * int(c), 16 * int(c), 999, int(n))
            for c, n in random.integers(1, 90, (random.integers(3), 2))
        )
        some = random.integers(1, 900, random.integers(1, 9)).tolist() if random.random() < 0.8 else []
        shape = Shape(chunks, tuple((each, 1) for each in some))
        steps.append(Step(name, 0, 0, 0, round(float(costs @ counts(batch_of(shape)))), shape))
    models = fitted(steps, [name])
    found = predictions(steps, engine, models)
    assert len(models[name].options["costs_ns"]) == len(TERMS)
    assert found == pytest.approx([step.duration_ns for step in steps], rel=0.01)


def test_steps_are_foreseen_as_they_come_one_by_one():
    engine = read(["scenario=steady", "executor=roofline", "fleet=three_small"]).engine
    name = engine.fleet.models[0].name
    costs = [1e3 * (number + 1) for number in range(len(TERMS))]
    settings = ExecutorSettings(name="twin_steps", options={"costs_ns": costs})
    model = make_inner(settings, Machine(engine.fleet.models[0], engine.hardware, SimClock(), 8, 1))
    ahead = model.decode_ns(batch_of(Shape((), ((10, 10), (510, 2)))), 4).tolist()
    expected = [model.duration_ns(batch_of(Shape((), ((10 + n, 10), (510 + n, 2))))) for n in range(4)]
    assert ahead == expected
    assert fitted([], [name])[name].options["costs_ns"] == [0.0] * len(TERMS)
