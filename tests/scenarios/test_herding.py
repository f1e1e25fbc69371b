"""Old loads make herds, and its twins: an engine that herds by its own counts, never looks away, or sees no herd."""

import pytest

from engine.routing.router import Router
from engine.routing.strategies import LeastLoaded
from sim.detectors import herding

OWN = "mean sojourn by own counts, times that of one line for all"
QUIET = "herds told where own counts decide"
KNOWN = "loads of age {}: standard errors from what is known"
BLIND = "loads of age {}: mean sojourn above that of blind choices"
TOLD = "runs in which a herd is told, loads of age {}"
ALONE = ("executor=law", "beside.seeds=0", "workload.requests=1200")
FEW = ("executor=law", "beside.seeds=2", "~beside.runs.tenth", "~beside.runs.five", "workload.requests=1500")


def failed(run):
    return [check.name for check in run.checks if check.verdict == "fail"]


def test_own_counts_do_not_herd(play):
    run = play(*ALONE)
    assert run.verdict == "pass"
    assert [check.name for check in run.checks] == ["requests that did not complete", OWN, QUIET]


def test_twin_that_sends_several_to_one_before_it_looks_again(play, monkeypatch):
    monkeypatch.setattr(
        LeastLoaded, "pick", lambda _, request, seats, *__: seats[request.id // 16 % len(seats)]
    )
    assert failed(play(*ALONE)) == [OWN, QUIET]


@pytest.mark.slow
def test_twin_with_no_room_in_line_turns_requests_away(play):
    assert "requests that did not complete" in failed(play(*ALONE, "fleet.queue_capacity=1"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [4])
def test_old_loads_cost_what_is_known_and_are_told(play, seed):
    run = play(*FEW, f"seed={seed}")
    assert failed(run) == []
    verdicts = {check.name: check.verdict for check in run.checks}
    assert verdicts[KNOWN.format(20)] == verdicts[TOLD.format(20)] == "pass"


@pytest.mark.slow
def test_twin_whose_loads_never_get_old(play, monkeypatch):
    def always(self, now_ns):
        self._refreshed_ns = -(1 << 60)
        refresh(self, now_ns)

    refresh = Router._refresh
    monkeypatch.setattr(Router, "_refresh", always)
    wrong = failed(play(*FEW, "scenario.max_errors=3"))
    assert wrong == [KNOWN.format(20), BLIND.format(20), TOLD.format(20)]


@pytest.mark.slow
def test_twin_whose_detector_is_blind(play, monkeypatch):
    monkeypatch.setattr(herding, "detect", lambda *_: [])
    assert failed(play(*FEW, "~beside.runs.one")) == [TOLD.format(20)]


@pytest.mark.slow
def test_other_systems_are_not_held_against_figures_of_this_one(play):
    run = play(*FEW, "beside.seeds=1", "workload.rate=2.0", "workload.requests=400")
    assert not [check.name for check in run.checks if "what is known" in check.name]
