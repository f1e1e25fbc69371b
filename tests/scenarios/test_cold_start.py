"""Models that come and go, and its twins: the wrong one goes, a busy one, nobody; loads take what they like."""

import pytest

from engine.errors import LoadFailed
from engine.execution import Replica
from engine.fleet import Fleet
from engine.registry import lifecycle
from engine.registry.health import Health
from engine.registry.lifecycle import Lifecycle, Residence
from sim import stage

SERVED = "requests that did not complete"
ROOM = "models in memory beyond what there is room for"
BUSY = "models sent away while they served somebody"
COLD = "cold loads: standard errors from their law"
WARM = "warm loads: seconds by which one was too quick"
WAITED = "median TTFT of who waited for a load, in times of the others'"
THEORY = "memory for {}: standard errors of residency from theory"
FEW = ("workload.requests=600", "beside.seeds=0")
OFTEN = ("workload.requests=400", "workload.rate=0.5", "workload.output_median_tokens=200", "beside.seeds=0")


def failed(run):
    return [check.name for check in run.checks if check.verdict == "fail"]


def test_models_come_as_often_as_theory_says(play):
    run = play(*FEW, "seed=3", "scenario.min_loads=100")
    assert run.verdict == "pass"
    assert run.checks[-1].name == THEORY.format(3)
    assert run.checks[-1].published == "0.692"


def test_twin_that_never_sends_anybody_away(play, monkeypatch):
    monkeypatch.setattr(Lifecycle, "_lacks", lambda *_: False)
    assert failed(play(*FEW)) == [ROOM, THEORY.format(3)]


@pytest.mark.slow
def test_memory_for_more_and_for_less(play):
    run = play("workload.requests=450", "~beside.runs.busy", "seed=2")
    assert failed(run) == []
    assert [check.name for check in run.checks if "residency" in check.name] == [
        THEORY.format(resident) for resident in (1, 2, 3, 5, 10)
    ]


@pytest.mark.slow
def test_twin_that_sends_away_who_was_used_last(play, monkeypatch):
    monkeypatch.setattr(lifecycle, "_by_use", lambda each: (-each.last_used_ns, each.key))
    assert failed(play(*FEW)) == [THEORY.format(3)]


@pytest.mark.slow
def test_twin_that_sends_away_who_is_busy(play, monkeypatch):
    def stop(self):
        (Replica.crash if self.num_in_hand else stopped)(self)

    stopped = Replica.stop
    monkeypatch.setattr(Replica, "stop", stop)
    monkeypatch.setattr(Residence, "is_idle", property(lambda self: self.state is Health.HEALTHY))
    assert BUSY in failed(play(*OFTEN))


@pytest.mark.slow
def test_twin_whose_loads_take_what_they_like(play, monkeypatch):
    monkeypatch.setattr(
        stage, "drawn_load_times", lambda *_: lambda _, number: 1_000_000 if number else 200 * 10**9
    )
    assert failed(play(*FEW, "scenario.min_load_times=4"))[:2] == [COLD, WARM]


@pytest.mark.slow
def test_twin_that_charges_nothing_for_a_load(play):
    quick = ("models.cold_median_s=0.001", "models.cold_p90_s=0.001", "models.warm_s=0.001")
    assert WAITED in failed(play(*FEW, *quick))


@pytest.mark.slow
def test_twin_that_cannot_load_one_of_them(play, monkeypatch):
    async def load(self, key):
        if key.startswith("m02"):
            raise LoadFailed(f"{key} is damaged")
        await loaded(self, key)

    loaded = Fleet.load
    monkeypatch.setattr(Fleet, "load", load)
    assert SERVED in failed(play(*FEW))


@pytest.mark.slow
def test_traffic_that_has_no_theory_is_held_against_none(play):
    run = play(*OFTEN)
    assert failed(run) == []
    assert not [check.name for check in run.checks if "residency" in check.name]


def test_models_that_never_leave_are_as_theory_says(play):
    run = play(*FEW, "fleet=three_small")
    (residency,) = [check for check in run.checks if check.name == THEORY.format(3)]
    assert (residency.verdict, residency.value) == ("pass", 0.0)
