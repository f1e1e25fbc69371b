"""The story of the failover, and its twins: an engine broken in one way, and the check that sees it."""

import pytest

from engine.engine import Engine
from engine.execution import Replica
from engine.execution.roofline import RooflineExecutor
from engine.routing.strategies import RoundRobin
from tests.scenarios.verdicts import failed, verdicts


@pytest.mark.parametrize(
    ("strategy", "seed"),
    [
        ("round_robin", 1),
        ("least_loaded", 2),
        *(
            pytest.param(name, seed, marks=pytest.mark.slow)
            for name in ("round_robin", "least_loaded")
            for seed in (3, 4, 5)
        ),
    ],
)
def test_callers_do_not_notice(play, strategy, seed):
    run = play(f"strategy={strategy}", f"seed={seed}")
    assert failed(run) == []
    assert run.verdict == "pass"
    assert run.whole.second_tries >= 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_three_models_stand_in_for_each_other(play, seed):
    run = play("size=full", f"seed={seed}")
    assert run.verdict == "pass"
    assert run.requests["model"].nunique() == 3


@pytest.mark.slow
def test_an_outage_of_a_few_requests_shows_too_little(play):
    run = play("workload.requests=100")
    assert verdicts(run)["requests after its death"] == "inconclusive"
    assert failed(run) == []


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["b", "c"])
def test_any_replica_may_be_the_victim(play, victim):
    run = play(f"scenario.victim={victim}")
    assert run.verdict == "pass"
    assert run.mark_s("crash", victim) is not None


@pytest.mark.slow
def test_the_same_holds_for_a_larger_fleet_and_given_times(play):
    lines = [
        "fleet.replicas=5",
        "scenario.dies_at_s=4",
        "scenario.returns_at_s=12",
        "scenario.min_share_after=0.15",
    ]
    run = play(*lines)
    assert run.verdict == "pass"
    assert 4 <= run.mark_s("crash", "a") < 6
    assert run.mark_s("recover", "a") == 12


def test_twin_without_retries_loses_the_requests_in_hand(play):
    run = play("routing.max_attempts=1")
    assert failed(run) == ["requests that did not complete"]
    assert set(run.requests.loc[run.requests["outcome"] == "failed", "reason"]) == {"replica_lost"}


def test_twin_without_marking_sends_a_third_of_the_outage_to_the_dead(play):
    run = play("health.enabled=false")
    assert failed(run) == ["unhealthy after its death, s", "requests that needed a second try"]


def test_twin_that_never_brings_it_back_is_seen(play):
    run = play("health.rise=1000000")
    assert verdicts(run)["its share once it is healthy again"] == "inconclusive"
    assert run.verdict == "inconclusive"


def test_twin_that_marks_it_healthy_but_gives_it_nothing_is_seen(play, monkeypatch):
    changed = Engine._health_changed

    def only_bench(self, change):
        changed(self, change)
        if change.after == "healthy":
            self.router.set_available(change.replica, False, change.at_ns)

    monkeypatch.setattr(Engine, "_health_changed", only_bench)
    assert failed(play()) == [
        "serves again after its return, s",
        "its share once it is healthy again",
    ]


@pytest.mark.slow
def test_twin_that_favours_one_survivor_is_seen(play, monkeypatch):
    monkeypatch.setattr(RoundRobin, "pick", lambda self, request, replicas, now_ns: replicas[0])
    assert "distance of a survivor from an equal share" in failed(play())


@pytest.mark.slow
def test_twin_that_answers_for_the_dead_is_seen(play, monkeypatch):
    def mark_only(self):
        self.crashes = getattr(self, "crashes", 0) + 1

    monkeypatch.setattr(Replica, "crash", mark_only)
    assert "requests of the outage that it served" in failed(play())


@pytest.mark.slow
def test_twin_whose_survivors_grow_slow_breaks_the_bounds_on_p99(play, monkeypatch):
    slowness = [1]
    crash, recover, ticks, ramp = (
        Replica.crash,
        Replica.recover,
        RooflineExecutor.ticks,
        RooflineExecutor.ramp,
    )
    monkeypatch.setattr(Replica, "crash", lambda self: (crash(self), slowness.append(20)))
    monkeypatch.setattr(Replica, "recover", lambda self: (recover(self), slowness.append(1)))
    monkeypatch.setattr(RooflineExecutor, "ticks", lambda *all_: slowness[-1] * ticks(*all_))
    monkeypatch.setattr(
        RooflineExecutor,
        "ramp",
        lambda *all_: (*(slowness[-1] * each for each in ramp(*all_)[:3]), ramp(*all_)[3]),
    )
    run = play("scenario.max_p99_e2e_s=2", "scenario.max_p99_growth=0.5")
    assert failed(run) == ["p99 TTFT in the outage, s", "p99 E2E in the outage, s"]


def test_a_fleet_without_survivors_is_judged_by_what_is_lost(play):
    run = play("fleet.replicas=1")
    assert verdicts(run)["distance of a survivor from an equal share"] == "inconclusive"
    assert "requests that did not complete" in failed(run)


def test_an_idle_fleet_shows_nothing_and_says_so(play):
    run = play("workload.requests=3")
    assert run.verdict == "inconclusive"
    assert failed(run) == []
