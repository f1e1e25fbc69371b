"""A session keeps its model, and forgets it after a long pause; its twins forget too early, too late, or at once."""

import pytest

from engine.errors import BadSettings
from engine.routing.sessions import Table
from tests.scenarios.verdicts import failed, verdicts

FEW = ("workload.parts.chat.requests=120", "workload.parts.chat.rate=0.3", "beside.seeds=0")
KEPT = "turns on one model before the pause", "turns on one model after the pause"
FOUND = "turns that found their session before the pause", "turns that found their session after the pause"
ANEW = "first turns after the pause that found their session"
GAIN = "more of their prompts remembered, share"


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_user_keeps_her_model_on_both_sides_of_a_pause(play, seed):
    run = play(*FEW, f"seed={seed}")
    assert verdicts(run).pop(GAIN) == "inconclusive"
    assert [check.name for check in run.checks if check.verdict != "pass"] == [GAIN]
    assert (run.requests["session"] == "user-123").sum() == 40


@pytest.mark.slow
@pytest.mark.parametrize("lines", [("seed=4", "strategy=round_robin", "fleet=five_alike")])
def test_conversations_are_remembered_better_with_sessions(play, lines):
    run = play(*lines)
    assert run.verdict == "pass"
    assert len(run.beside["no_sessions"]) == 3


@pytest.mark.slow
@pytest.mark.torch
def test_the_same_holds_with_real_passes(play):
    run = play("size=small", "executor=torch", "beside.seeds=0")
    assert failed(run) == []


def test_twin_without_sessions_meets_everybody(play):
    run = play(*FEW, "routing.sessions=false", "beside.seeds=1")
    assert failed(run) == [KEPT[0], FOUND[0], KEPT[1], FOUND[1], GAIN]


def test_twin_that_never_forgets_is_seen(play):
    assert failed(play(*FEW, "routing.session_timeout_s=100000")) == [ANEW]


@pytest.mark.slow
def test_twin_that_forgets_too_early_is_seen(play):
    assert set(FOUND) <= set(failed(play(*FEW, "routing.session_timeout_s=5")))


@pytest.mark.slow
def test_twin_that_forgets_after_ten_turns_is_seen(play, monkeypatch):
    find = Table.find

    def forgetful(self, session, now_ns):
        self_find = find(self, session, now_ns)
        if session == "user-123" and self_find is not None and now_ns > 180e9:
            self.ended(session, now_ns)
            return None
        return self_find

    monkeypatch.setattr(Table, "find", forgetful)
    assert failed(play(*FEW)) == [KEPT[0], FOUND[0], KEPT[1], FOUND[1]]


@pytest.mark.slow
def test_twin_that_turns_people_away_is_seen(play):
    run = play(*FEW, 'quotas.limits=[{tenant: "*", hourly_requests: 20}]')
    assert "requests that did not complete" in failed(run)


@pytest.mark.slow
def test_without_decisions_on_record_nothing_is_known(play):
    run = play(*FEW, "routing.decision_log=0")
    assert [verdicts(run)[name] for name in (*FOUND, ANEW)] == ["inconclusive"] * 3


def test_traffic_without_sessions_is_refused(play):
    with pytest.raises(BadSettings, match="must be traffic with sessions, such as mix_b_auto"):
        play("workload=bare", "workload.requests=3")


def test_a_pause_shorter_than_her_rhythm_is_none(play):
    with pytest.raises(BadSettings, match=r"scenario\.pause_s is 5"):
        play("scenario.pause_s=5")
