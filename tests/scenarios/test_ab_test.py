"""An experiment between two models, and its twins: who is dealt out anew, sent elsewhere, miscounted, or lost."""

import itertools

import pytest

from engine.engine import Engine
from engine.routing import experiments
from engine.routing.experiments import Experiment, Experiments

FEW = (
    "workload.requests=500",
    "workload.rate=8",
    "workload.sessions.think_median_s=5",
    "workload.output.median=20",
)
SPLIT = "distance of the split from that asked for"
UNITS = "sessions: standard errors of the split from that asked for"
STICKY = "sessions in more than one arm"
STRAYS = "requests that the other arm's model served"
REPORT = "engine's report of the arms: distance from a recount"
UNHEALTHY = "times that a replica was unhealthy"
OUTSIDE = "requests outside the experiment"


def failed(run):
    return [check.name for check in run.checks if check.verdict == "fail"]


def verdict(run, name):
    return next(check.verdict for check in run.checks if check.name == name)


def test_few_sessions_cannot_tell_a_split_to_a_point_and_say_so(play):
    run = play(*FEW, "seed=4")
    assert failed(run) == []
    assert run.verdict == "inconclusive"
    assert verdict(run, UNITS) == verdict(run, STICKY) == verdict(run, REPORT) == "pass"


def test_twin_that_deals_out_requests_by_halves(play, monkeypatch):
    places = itertools.cycle((0, experiments.WORD - 1))
    monkeypatch.setattr(experiments, "xxh3_64_intdigest", lambda *_: next(places))
    assert failed(play(*FEW)) == [SPLIT, UNITS, STICKY]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [3])
def test_ten_thousand_requests_are_split_to_a_point(play, seed):
    lines = ("workload.output.median=8", "workload.prompt.median=16", "workload.prefixes.tokens.median=64")
    run = play(*lines, "workload.rate=20", f"seed={seed}")
    assert failed(run) == []
    assert verdict(run, SPLIT) == "pass"
    assert run.whole.count == 10_000


@pytest.mark.slow
def test_another_salt_deals_out_others_as_fairly(play):
    run = play(*FEW, "++routing.experiments.0.salt=another")
    assert failed(run) == []


@pytest.mark.slow
def test_twin_that_asks_the_model_that_was_asked_for_all_the_same(play, monkeypatch):
    arm = Engine._arm
    monkeypatch.setattr(
        Engine, "_arm", lambda self, request, story: (arm(self, request, story), request.model)[1]
    )
    assert failed(play(*FEW)) == [STRAYS]


@pytest.mark.slow
def test_twin_that_leaves_some_out(play, monkeypatch):
    arm = Engine._arm
    monkeypatch.setattr(
        Engine,
        "_arm",
        lambda self, request, story: arm(self, request, story) if request.id % 9 else request.model,
    )
    assert failed(play(*FEW)) == [OUTSIDE]


@pytest.mark.slow
def test_twin_that_counts_only_the_quick_ones(play, monkeypatch):
    def observe(self, label, *, completed, **metrics):
        if metrics.get("e2e_s", 0.0) < 0.6:
            observed(self, label, completed=completed, **metrics)

    observed = Experiments.observe
    monkeypatch.setattr(Experiments, "observe", observe)
    assert failed(play(*FEW)) == [REPORT]


@pytest.mark.slow
def test_twin_with_an_arm_that_dies(play):
    run = play(*FEW, "faults=[{fault: crash, replica: qwen, at_s: 20}]")
    assert failed(run) == ["requests of next_model/next that did not complete", UNHEALTHY]


@pytest.mark.slow
def test_twin_that_hardly_ever_gives_the_second_arm_anything(play, monkeypatch):
    weights = Experiment.set_weights
    monkeypatch.setattr(Experiment, "set_weights", lambda self, _: weights(self, [0.99, 0.01]))
    assert failed(play(*FEW)) == [SPLIT, UNITS]
