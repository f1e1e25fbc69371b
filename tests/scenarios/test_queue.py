"""The bare system: its checks see what theory says, and what it does not."""

import pytest

import sim
from engine.execution.law import LawExecutor

LINES = ["workload.requests=3000", "report=tables"]


def play(tmp_path, *lines):
    return sim.run("queue", [*LINES, f"report.folder={tmp_path}", *lines])


@pytest.mark.parametrize("law", ["exponential", "deterministic"])
def test_one_server_is_as_slow_as_theory_says(tmp_path, law):
    run = play(tmp_path, f"executor.law={law}")
    assert [(check.name, check.verdict) for check in run.checks] == [
        ("requests that did not complete", "pass"),
        ("standard errors from theory", "pass"),
    ]


def test_twin_that_serves_a_third_slower_is_seen(tmp_path, monkeypatch):
    service_ns = LawExecutor.service_ns
    monkeypatch.setattr(LawExecutor, "service_ns", lambda self, each: round(1.35 * service_ns(self, each)))
    assert play(tmp_path).checks[1].verdict == "fail"


def test_several_servers_are_not_held_against_a_formula_that_is_not_theirs(tmp_path):
    run = play(tmp_path, "fleet.replicas=3", "workload.rate=2.1", "strategy=power_of_two")
    assert len(run.checks) == 1
    assert set(run.requests["replica"]) == {"a", "b", "c"}
