"""A crowd at its limits, and its twins: modes that are skipped or stay, neighbours who suffer, replicas that die."""

import pytest

from engine.errors import OverQuota
from engine.execution.roofline import RooflineExecutor
from engine.quotas.books import Book

FEW = (
    "workload.requests=2900", "workload.parts.crowd.rate=15", "scenario.day_ends_at_s=20", "quotas.quiet_s=5",
    "workload.parts.crowd.arrivals.flashes=[{at_s: 5, for_s: 12, times: 12}]", "scenario.min_refused=500",
    "scenario.max_back_after_s=12", "workload.parts.others.rate=10",
    "scenario.min_goodput_in_spike=0.7", "scenario.min_goodput_after=0.5",
)  # fmt: skip
LIMIT = "quotas.limits=[{{model: '*', tenant: {}, daily_tokens: 6000, concurrent_requests: {}}}]"
ALONE = (*FEW, LIMIT.format("crowd", 3), "beside.seeds=0")
LOST = "requests neither served nor refused with a reason"
CRASHED = "requests that failed, timed out or were dropped"
UNWELL = "times that a replica was unhealthy"
ORDER = "limits whose modes came out of order"
BACK = "all limits back in normal after the spike, s"
OTHERS = "requests of others that were not served"
LEFT = "other limits that left normal"
TTFT, E2E = "p99 TTFT of others in the spike, s", "p99 E2E of others in the spike, s"
DURING, AFTER = "goodput in the spike, times that before", "goodput after it, times that before"


def failed(run):
    return [check.name for check in run.checks if check.verdict == "fail"]


def seen(run, name):
    return next(check for check in run.checks if check.name == name)


def test_the_crowd_degrades_in_steps_and_comes_back(play):
    run = play(*ALONE)
    assert failed(run) == []
    assert seen(run, "limits of the crowd that were in emergency").value == 5
    assert 0 < seen(run, BACK).value < 12
    assert set(run.requests.loc[run.requests["outcome"] == "rejected", "tenant"]) == {"crowd"}


def test_twin_that_skips_a_mode_and_never_comes_back(play, monkeypatch):
    following = Book._next_mode
    monkeypatch.setattr(Book, "_next_mode", lambda self: following(self) + (following(self) == 2))
    monkeypatch.setattr(Book, "settle_down", lambda *_: None)
    wrong = failed(play(*ALONE))
    assert wrong[:2] == [ORDER, BACK]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2])
def test_others_do_not_notice(play, seed):
    run = play(*FEW, LIMIT.format("crowd", 3), f"seed={seed}")
    assert failed(run) == []
    assert run.verdict == "pass"
    calm = run.beside["calm"][0].requests
    assert set(calm.loc[calm["tenant"] == "crowd", "reason"]) == {"bad_request"}


@pytest.mark.slow
def test_twin_whose_crowd_may_take_all_places(play):
    limits = "quotas.limits=[{model: '*', tenant: crowd, daily_tokens: 10000000}]"
    bounds = ("scenario.max_p99_ttft_s=0.05", "scenario.max_p99_growth=1.05")
    assert {TTFT, E2E} <= set(failed(play(*FEW, limits, *bounds)))


@pytest.mark.slow
def test_twin_that_holds_everybody_to_the_limits_of_the_crowd(play):
    limits = (
        "quotas.limits=[{model: '*', daily_tokens: 6000}, {model: '*', tenant: crowd, daily_tokens: 6000}]"
    )
    wrong = failed(play(*FEW, limits, "beside.seeds=0"))
    assert LEFT in wrong
    assert OTHERS in wrong


@pytest.mark.slow
def test_twin_whose_replica_dies(play):
    wrong = failed(play(*ALONE, "faults=[{fault: crash, replica: phi, at_s: 8}]"))
    assert {LOST, CRASHED, UNWELL} <= set(wrong)


@pytest.mark.slow
def test_twin_that_refuses_without_a_reason(play, monkeypatch):
    monkeypatch.setattr(OverQuota, "reason", None)
    assert LOST in failed(play(*ALONE))


@pytest.mark.slow
def test_twin_that_grows_slow_in_the_spike(play, monkeypatch):
    ticks, ramp = RooflineExecutor.ticks, RooflineExecutor.ramp
    slowness = [1]
    enter = Book._move

    def move(self, mode, *rest):
        slowness.append(60)
        enter(self, mode, *rest)

    monkeypatch.setattr(Book, "_move", move)
    monkeypatch.setattr(RooflineExecutor, "ticks", lambda *each: slowness[-1] * ticks(*each))
    monkeypatch.setattr(
        RooflineExecutor,
        "ramp",
        lambda *each: (*(slowness[-1] * value for value in ramp(*each)[:3]), ramp(*each)[3]),
    )
    assert {DURING, AFTER} <= set(failed(play(*ALONE)))
