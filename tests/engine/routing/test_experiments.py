"""A/B: the same unit in the same arm for ever, shares as asked for, and boundaries that move one way."""

import json
import os
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from engine.clock import to_ns
from engine.errors import BadSettings
from engine.request import Request
from engine.routing import Experiments
from engine.settings import ArmSettings, ExperimentSettings, RampStep, RoutingSettings

PROMPT = np.zeros(1, dtype=np.int32)


def split(*weights, **options):
    names = ("control", "treatment", "third")
    arms = [
        ArmSettings(name=name, target=f"m@{place}", weight=weight)
        for place, (name, weight) in enumerate(zip(names, weights, strict=False))
    ]
    return ExperimentSettings(**{"name": "exp", "on": "m", "arms": arms, **options})


def request(number, session=None, tenant="t", model="m"):
    return Request(number, model, PROMPT, 1, 0, tenant=tenant, session=session)


def arms_of(experiments, count=10_000, now_ns=0):
    return [experiments.assign(request(number, f"user-{number}"), now_ns).name for number in range(count)]


def test_ten_thousand_sessions_are_split_as_asked_for_within_a_point():
    shares = Counter(arms_of(Experiments([split(0.7, 0.3)])))
    assert shares["control"] / 10_000 == pytest.approx(0.7, abs=0.01)


def test_the_same_session_is_in_the_same_arm_whatever_came_between():
    experiments = Experiments([split(0.5, 0.5)])
    assert arms_of(experiments) == arms_of(experiments)
    assert arms_of(Experiments([split(0.5, 0.5)])) == arms_of(experiments)


def test_and_in_another_process():
    code = (
        "import sys; sys.path.insert(0, '.');"
        "from tests.engine.routing.test_experiments import *;"
        "print(''.join(name[0] for name in arms_of(Experiments([split(0.5, 0.5)]), 500)))"
    )
    told = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "99")
    ]
    assert told[0] == told[1]
    assert Counter(told[0].strip())["c"] > 200


def test_other_weights_move_only_the_boundary():
    before, after = (arms_of(Experiments([split(*weights)])) for weights in ((0.7, 0.3), (0.5, 0.5)))
    moved = Counter((old, new) for old, new in zip(before, after, strict=True) if old != new)
    assert set(moved) == {("control", "treatment")}
    assert moved.total() == pytest.approx(2000, abs=150)


def test_on_a_ramp_units_go_one_way():
    ramp = [
        RampStep(at_s=at_s, weights=[1 - share, share]) for at_s, share in ((10, 0.1), (20, 0.4), (30, 1.0))
    ]
    experiments = Experiments([split(1.0, 0.0, ramp=ramp)])
    treated = [
        {place for place, name in enumerate(arms_of(experiments, 2000, to_ns(at_s))) if name == "treatment"}
        for at_s in (0, 9.9, 10, 15, 20, 31)
    ]
    assert [len(each) for each in treated] == pytest.approx([0, 0, 200, 200, 800, 2000], abs=70)
    assert all(early <= late for early, late in pairwise(treated))


def test_the_unit_is_a_session_a_tenant_or_a_request():
    by_tenant = Experiments([split(0.5, 0.5, unit="tenant")])
    assert len({by_tenant.assign(request(number, f"s{number}"), 0).name for number in range(100)}) == 1
    by_request = Experiments([split(0.5, 0.5, unit="request")])
    assert len({by_request.assign(request(number, "s"), 0).name for number in range(100)}) == 2
    by_session = Experiments([split(0.5, 0.5)])
    alone = {by_session.assign(request(number, None, "tenant a"), 0).name for number in range(100)}
    assert len(alone) == 1
    assert by_session.assign(request(0, "\ud800"), 0).name in ("control", "treatment")


def test_two_experiments_assign_independently():
    first, second = split(0.5, 0.5), split(0.5, 0.5, name="other", on="n")
    experiments = Experiments([first, second])
    pairs = Counter(
        (
            experiments.assign(request(number, f"s{number}"), 0).name,
            experiments.assign(request(number, f"s{number}", model="n"), 0).name,
        )
        for number in range(8000)
    )
    assert all(1850 < count < 2150 for count in pairs.values())
    assert experiments.assign(request(1, "s", model="neither"), 0) is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: split(1.0), "routing.experiments.exp.arms is 1, but must be at least two arms"),
        (lambda: split(0.7, 0.2), "exp.arms is [0.7, 0.2], but must be weights from 0 to 1 that sum to 1"),
        (lambda: split(1.5, -0.5), "that sum to 1"),
        (lambda: split(float("nan"), 1.0), "that sum to 1"),
        (
            lambda: split(0.5, 0.5, unit="cookie"),
            "exp.unit is 'cookie', but must be one of session, tenant, request",
        ),
        (lambda: split(0.5, 0.5, alpha=1.0), "exp.alpha is 1.0"),
        (lambda: split(0.5, 0.5, ramp=[RampStep(at_s=1, weights=[1.0])]), "2 weights, one for each arm"),
        (
            lambda: split(
                0.5, 0.5, ramp=[RampStep(at_s=5, weights=[0.5, 0.5]), RampStep(at_s=5, weights=[1.0, 0.0])]
            ),
            "exp.ramp is [5, 5], but must be rising times from 0 on",
        ),
        (
            lambda: split(
                0.5,
                0.5,
                arms=[
                    ArmSettings(name="a", target="m", weight=0.5),
                    ArmSettings(name="a", target="n", weight=0.5),
                ],
            ),
            "arms with names of their own",
        ),
        (
            lambda: RoutingSettings(experiments=[split(0.5, 0.5), split(0.5, 0.5, on="n")]),
            "routing.experiments.name is 'exp', but must be given to one experiment only",
        ),
        (
            lambda: RoutingSettings(experiments=[split(0.5, 0.5), split(0.5, 0.5, name="other")]),
            "routing.experiments.on is 'm', but must be given to one experiment only",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(wrong, message):
    with pytest.raises(BadSettings) as caught:
        wrong()
    assert message in str(caught.value)


def observed(difference, count=3000, seed=1):
    experiments, random = Experiments([split(0.5, 0.5)]), np.random.default_rng(seed)
    for number in range(count):
        arm = experiments.assign(request(number, f"s{number}"), 0)
        ttft_s = random.exponential(0.1) + (difference if arm.name == "treatment" else 0.0)
        completed = random.random() < 0.99
        figures = {"ttft_s": ttft_s, "e2e_s": ttft_s + 1, "hit_ratio": 0.5} if completed else {}
        experiments.observe(arm.label, completed=completed, **figures)
    return experiments.report()["exp"]


def test_the_report_compares_every_metric_and_finds_what_is_there():
    report = observed(0.03)
    compared = report["comparisons"]["treatment against control"]
    assert set(compared) == {"ttft_s", "e2e_s", "hit_ratio", "completed"}
    ttft = compared["ttft_s"]
    assert ttft["low"] < 0.03 < ttft["high"]
    assert ttft["any_time_low"] < ttft["low"] < ttft["high"] < ttft["any_time_high"]
    assert ttft["verdict"] == "control is better"
    assert compared["completed"]["verdict"] == "no decision yet"
    assert report["share_mismatch_p_value"] > 0.001
    assert report["arms"]["control"]["units"] == pytest.approx(1500, rel=0.06)
    assert json.loads(json.dumps(report)) == report


def test_the_report_of_nothing_is_ready_for_json():
    report = Experiments([split(0.5, 0.5)]).report()
    text = json.dumps(report, allow_nan=False)
    assert json.loads(text)["exp"]["comparisons"]["treatment against control"]["ttft_s"]["high"] is None


def test_a_split_that_is_not_the_one_that_was_asked_for_is_noticed():
    experiments = Experiments([split(0.5, 0.5)])
    arms_of(experiments, 4000)
    assert experiments.report()["exp"]["share_mismatch_p_value"] > 0.01
    experiments.set_weights("exp", [0.55, 0.45])
    assert experiments.report()["exp"]["share_mismatch_p_value"] < 1e-6


def test_arms_are_counted_for_a_scrape():
    experiments = Experiments([split(0.7, 0.3)])
    arms_of(experiments, 1000)
    figures = {figure.name: figure.values for figure in experiments.figures()}
    assert sum(figures["modelyard:experiment_requests"].values()) == 1000
    assert figures["modelyard:experiment_weight"] == {("exp", "control"): 0.7, ("exp", "treatment"): 0.3}


def test_sessions_that_come_often_are_one_unit():
    experiments = Experiments([split(0.5, 0.5)])
    for number in range(20_000):
        experiments.assign(request(number, f"s{number % 300}"), 0)
    arms = experiments.report()["exp"]["arms"]
    assert sum(arm["units"] for arm in arms.values()) == pytest.approx(300, abs=6)
    assert sum(arm["requests"] for arm in arms.values()) == 20_000
