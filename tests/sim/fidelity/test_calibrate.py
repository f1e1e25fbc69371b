import numpy as np
import pytest

from engine.errors import BadSettings
from engine.execution import Machine
from engine.settings import ExecutorSettings
from sim.config import read
from sim.fidelity.calibrate import batch_of, gap_costs, host_costs, predictions
from sim.fidelity.device import Shape, Step, StepLog, make_inner, shape_of
from sim.fidelity.steps import TERMS, fitted, non_negative, terms
from sim.world import SimClock

US = 1_000


def made_log(count=400, step_us=200, begin_us=100, retire_us=300, duration_us=1_000):
    """A log of a replica that is never idle, with these costs between its steps."""
    log, now_ns = StepLog(), 0
    for number in range(count):
        begins, left = number % 5 == 0, number % 7 == 0
        chunks = ((0, 0, 64, 64),) * begins
        now_ns += (step_us + begin_us * begins + retire_us * left) * US
        took_ns = duration_us * US * (2 if begins else 1)
        log.retired += [number] * left
        log.steps.append(Step("m", now_ns, now_ns, now_ns + took_ns, took_ns, Shape(chunks, (100, 200))))
        now_ns += took_ns
    return log


def test_costs_between_steps_are_found_again():
    assert gap_costs(made_log()) == pytest.approx((200 * US, 100 * US, 300 * US), rel=1e-6)


def test_time_in_which_nobody_had_work_is_no_cost():
    log = made_log()
    beginner = Shape(((0, 0, 64, 64),), ())
    last = log.steps[-1]
    late_ns = last.ended_ns + 10**9
    log.steps.append(Step("m", late_ns, late_ns, late_ns + 10**6, 10**6, beginner))
    assert gap_costs(log) == pytest.approx((200 * US, 100 * US, 300 * US), rel=1e-6)


def test_a_cost_model_that_says_half_is_scaled_and_the_spread_is_kept():
    log = made_log()
    durations = np.array([step.duration_ns for step in log.steps], dtype=float)
    costs = host_costs(log, durations / 2, 5_000.0)
    assert costs.scale == pytest.approx(2.0)
    assert costs.decode_ratios == pytest.approx(1.0)
    assert len(costs.decode_ratios) + len(costs.prefill_ratios) == len(log.steps)
    assert costs.answer_ns == 5_000.0


def test_a_calibration_run_of_a_few_steps_is_refused():
    with pytest.raises(BadSettings, match="had 20 steps, but needs at least 50"):
        host_costs(made_log(20), np.ones(20), 0.0)


def test_no_cost_is_negative():
    rows = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]])
    assert non_negative(rows, np.array([3.0, 2.0, 1.0])).tolist() == [pytest.approx(2.0), 0.0]


def test_a_batch_made_of_a_shape_has_that_shape():
    shape = Shape(((32, 16, 100, 20), (0, 0, 8, 8)), (5, 70))
    assert shape_of(batch_of(shape)) == shape
    assert (shape.has_prefill, shape.beginners) == (True, 1)


def test_predictions_are_those_of_the_cost_model_step_by_step():
    engine = read(["scenario=steady", "executor=roofline", "fleet=three_small"]).engine
    name = engine.fleet.models[0].name
    short, long = Shape((), (10,)), Shape((), (100_000,) * 8)
    steps = [Step(name, 0, 0, 0, 0, shape) for shape in (short, long, short)]
    found = predictions(steps, engine, {name: ExecutorSettings(name="roofline")})
    assert found[0] == found[2] < found[1]


def test_costs_of_steps_that_are_sums_of_their_terms_are_found_again():
    engine = read(["scenario=steady", "executor=roofline", "fleet=three_small"]).engine
    name, random = engine.fleet.models[0].name, np.random.default_rng(1)
    costs = np.array([100_000, 50_000, 20_000, 800, 0.5, 60_000, 9_000, 12])
    steps = []
    for _ in range(400):
        chunks = tuple(
            (16 * int(c), 16 * int(c), 999, int(n))
            for c, n in random.integers(1, 90, (random.integers(3), 2))
        )
        decodes = (
            tuple(random.integers(1, 900, random.integers(1, 9)).tolist()) if random.random() < 0.8 else ()
        )
        shape = Shape(chunks, decodes)
        steps.append(Step(name, 0, 0, 0, round(float(costs @ terms(shape))), shape))
    models = fitted(steps, [name])
    found = predictions(steps, engine, models)
    assert len(models[name].options["costs_ns"]) == len(TERMS)
    assert found == pytest.approx([step.duration_ns for step in steps], rel=0.01)


def test_steps_are_foreseen_as_they_come_one_by_one():
    engine = read(["scenario=steady", "executor=roofline", "fleet=three_small"]).engine
    name = engine.fleet.models[0].name
    settings = ExecutorSettings(name="twin_steps", options={"costs_ns": [1e5, 0, 0, 0, 0, 0, 1e3, 7.0]})
    model = make_inner(settings, Machine(engine.fleet.models[0], engine.hardware, SimClock(), 8, 1))
    ahead = model.decode_ns(batch_of(Shape((), (10, 500))), 4).tolist()
    assert ahead == [model.duration_ns(batch_of(Shape((), (10 + n, 500 + n)))) for n in range(4)]
    assert fitted([], [name])[name].options["costs_ns"] == [0.0] * len(TERMS)
