import numpy as np
import pytest

from engine.execution.terms import TERMS
from engine.settings import ExecutorSettings
from sim.config import read
from sim.fidelity.factors import Before, ByCount, Line, ModelFactors, Scales, class_of
from sim.fidelity.fitting import in_line, predictions, step_factors
from sim.fidelity.steplog import Shape, Step, StepLog
from sim.fidelity.track import Track

MS = 1_000_000
BEGINNER = Shape(((0, 0, 64, 64),), ())
DECODING = Shape((), ((100, 8),))


@pytest.fixture
def five():
    """The settings of five models, their names, and cost models that say 1 ms of every step."""
    engine = read(["scenario=steady", "executor=roofline", "fleet=reference_five"]).engine
    names = [model.name for model in engine.fleet.models]
    costs = [1e6] + [0.0] * (len(TERMS) - 1)
    models = {name: ExecutorSettings(name="twin_steps", options={"costs_ns": costs}) for name in names}
    return engine, names, models


def step(model, took_ns, shape):
    return Step(model, 0, 0, 0, round(took_ns), shape)


def prefill(tokens, chunks=1):
    return Shape(((0, 0, 9_999, tokens),) * chunks, ())


def decoding(count):
    return Shape((), ((100, 8),) * count)


def test_each_model_has_a_scale_of_its_own_unless_it_had_few_steps(five):
    engine, (one, other, rare, *_), models = five
    steps = [step(one, 2 * MS, BEGINNER)] * 60 + [step(other, 3 * MS, BEGINNER)] * 60
    steps += [step(rare, 9 * MS, BEGINNER)] * 3
    factors = step_factors([StepLog(steps)], engine, models)
    assert factors[one].scales == pytest.approx((2.0,) * 3)
    assert factors[other].scales == pytest.approx((3.0,) * 3)
    assert factors[rare].scales == pytest.approx(((120 + 180 + 27) / 123,) * 3, rel=0.005)
    assert predictions(steps, engine, models, factors)[[0, 60]] == pytest.approx([2 * MS, 3 * MS])


def test_steps_are_fitted_at_the_pace_that_the_machine_had(five):
    engine, (one, *_), models = five
    steps = [step(one, 2 * MS, BEGINNER)] * 60 + [step(one, 6 * MS, BEGINNER)._replace(begun_ns=100)] * 60
    slow = Track([50], [1.0, 3.0])
    (told, untold) = (step_factors([StepLog(steps)], engine, models, tracks) for tracks in ([slow], ()))
    assert told[one].scales.prefill == pytest.approx(2.0)
    assert untold[one].scales.prefill == pytest.approx(4.0)


def test_steps_that_only_decode_have_another_scale_after_those_of_another_model(five):
    engine, (one, other, *_), models = five
    steps = [step(one, 4 * MS, BEGINNER)] * 60
    for _ in range(60):  # one model's step after its own, after the other's, and the other's after it
        steps += [step(one, took, DECODING) for took in (2 * MS, MS)]
        steps += [step(other, 3 * MS, DECODING)]
    factors = step_factors([StepLog(steps)], engine, models)
    said = predictions(steps, engine, models, factors)
    warm, cold = Before(is_switch=False, decoded=1), Before(is_switch=True, decoded=0)
    assert factors[one].of(BEGINNER, warm) == pytest.approx(4.0)
    assert [factors[one].of(DECODING, each) for each in (warm, cold)] == pytest.approx([1.0, 2.0], rel=0.05)
    assert factors[other].of(DECODING, cold) == pytest.approx(3.0, rel=0.05)
    assert said.sum() == pytest.approx(sum(each.duration_ns for each in steps))


def test_a_line_knows_whose_step_was_before_and_since_when_it_only_decodes():
    log = [("a", BEGINNER), ("a", DECODING), ("a", DECODING), ("b", DECODING), ("b", DECODING)]
    log += [("a", DECODING), ("a", BEGINNER), ("a", DECODING), ("b", BEGINNER), ("b", DECODING)]
    found = in_line([step(model, MS, shape) for model, shape in log])
    assert [number for number, each in enumerate(found) if each.is_switch] == [0, 3, 5, 8]
    assert [number for number, each in enumerate(found) if each.began] == [1, 7, 9]
    assert [each.decoded for each in found] == [0, 0, 1, 0, 1, 0, 1, 0, 0, 0]
    assert Line().step("a", DECODING) == Before(is_switch=True, decoded=0)


def test_counts_are_told_apart_one_by_one_and_then_by_their_digits():
    assert [class_of(count) for count in range(9)] == list(range(9))
    assert [class_of(count) for count in (9, 15, 16, 31, 32, 1_000)] == [9, 9, 10, 10, 11, 15]
    some = ByCount({0: 0.5, 1: 0.7, 4: 0.9})
    found = {count: some.factor(count) for count in (0, 1, 2, 3, 4, 500)}
    assert found == {0: 0.5, 1: 0.7, 2: 0.7, 3: 0.9, 4: 0.9, 500: 0.9}
    assert ByCount().factor(3) == 1.0


def test_a_step_has_the_factors_of_what_it_does():
    factors = ModelFactors(
        Scales(2.0, 3.0, 5.0), ByCount({class_of(64): 7.0}), ByCount({1: 11.0}), ByCount({2: 13.0})
    )
    calm, cold = Before(is_switch=False, decoded=1), Before(is_switch=True, decoded=0)
    assert [factors.of(BEGINNER, each) for each in (calm, cold)] == [14.0, 14.0]
    assert [factors.of(decoding(2), each) for each in (calm, cold)] == [3.0 * 11.0 * 13.0, 5.0 * 13.0]
    assert ModelFactors().of(DECODING, calm) == 1.0
    assert (prefill(64, 2).chunk_tokens, DECODING.chunk_tokens) == (64, 0)


def made_steps(model, count, seed):
    """Steps of a model that has 2 and 3 as scales, its own factors of chunks, ages and crowds, and no chance."""
    random, line, steps = np.random.default_rng(seed), Line(), []
    for _ in range(count):
        small = random.random() < 0.5
        shape = prefill(20 if small else 600, int(random.integers(1, 3)))
        if random.random() < 0.8:
            shape = decoding(int(random.integers(1, 5)))
        before = line.step(model, shape)
        if shape.has_prefill:
            times = 2.0 * (1.5 if small else 0.75)
        else:
            times = 3.0 * (1.4 if before.decoded == 0 else 1.0) * (1 + len(shape.decodes) / 10)
        steps.append(step(model, times * MS, shape))
    return steps


def test_factors_of_chunks_ages_and_crowds_are_found_again(five):
    engine, (one, *_), models = five
    steps = made_steps(one, 4_000, 1)
    found = step_factors([StepLog(steps[:2_000]), StepLog(steps[2_000:])], engine, models)
    sizes, ages, crowds = found[one].prefill_sizes, found[one].decode_ages, found[one].decode_crowds
    assert sizes.factor(20) / sizes.factor(600) == pytest.approx(2.0, rel=1e-6)
    assert ages.factor(0) / ages.factor(3) == pytest.approx(1.4, rel=1e-3)
    assert crowds.factor(4) / crowds.factor(1) == pytest.approx(1.4 / 1.1, rel=1e-3)
    took_ns = [each.duration_ns for each in steps[1:]]  # nobody knows what was before the first one
    assert predictions(steps, engine, models, found)[1:] == pytest.approx(took_ns, rel=0.01)


def test_a_model_of_which_few_steps_are_alike_has_there_what_all_have_together(five):
    engine, (one, other, *_), models = five
    steps = (
        made_steps(one, 4_000, 1)
        + [step(other, 4 * MS, prefill(20))] * 60
        + [step(other, 9 * MS, prefill(600))] * 5
    )
    found = step_factors([StepLog(steps)], engine, models)
    ours, theirs = found[one].prefill_sizes, found[other].prefill_sizes
    few = class_of(600)
    assert theirs.factors[few] == pytest.approx(ours.factors[few], rel=0.05)
    assert found[other].of(prefill(20), Before(is_switch=False, decoded=0)) == pytest.approx(4.0, rel=0.05)
    assert theirs.factors.keys() == ours.factors.keys()


def test_models_of_which_many_steps_are_alike_have_factors_of_their_own(five):
    engine, (one, other, *_), models = five
    took_ms = {one: (3.0, 1.0), other: (4.0, 8.0)}  # of short chunks and of long ones
    steps = [
        step(name, took * MS, prefill(tokens))
        for name, both in took_ms.items()
        for took, tokens in zip(both, (20, 600), strict=True)
        for _ in range(100)
    ]
    found = step_factors([StepLog(steps)], engine, models)
    cold = Before(is_switch=True, decoded=0)
    for name, both in took_ms.items():
        times = [found[name].of(prefill(tokens), cold) for tokens in (20, 600)]
        assert times == pytest.approx(both, rel=1e-6)


def test_no_steps_leave_everything_as_it_is_said(five):
    engine, names, models = five
    found = step_factors([StepLog()], engine, models)
    assert list(found) == names
    assert {each.of(BEGINNER, Before(is_switch=True, decoded=0)) for each in found.values()} == {1.0}
