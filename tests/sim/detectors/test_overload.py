"""A line that grows for as long as requests come is told, and where it is; one that chance makes long is not."""

import pytest

from sim.detectors.overload import detect
from sim.history import History

S = 1_000_000_000


def overloads(run):
    return [finding for finding in run.findings if finding.detector == "overload"]


def served(make_run, every_s, *, count=1000, model="m", reason=None):
    """A request a second, each begun `every_s` after the one before it, or given up when its turn would come."""
    rows = []
    for number in range(count):
        begun_ns = round(max(number, number * every_s) * S)
        row = {"arrival_ns": number * S, "loaded_ns": number * S, "finished_ns": begun_ns, "model": model}
        if reason is None:
            row |= {"outcome": "completed", "admitted_ns": number * S, "queued_ns": number * S}
            row |= {"replica": "a", "started_ns": begun_ns, "first_token_ns": begun_ns}
        else:
            row |= {"outcome": "timed_out", "reason": reason}
        rows.append(row)
    return make_run(rows)


def found(run):
    return detect(run, History(run))


def test_by_hand_a_line_that_grows_is_told_and_who_waited_longest(make_run):
    (finding,) = found(served(make_run, 1.5))
    assert finding.subject == "model m"
    assert (finding.begin_s, finding.end_s) == (499.5, 999)
    assert finding.count == 500
    assert finding.severity == pytest.approx(1 / 3, abs=0.01)
    assert "500 came while 333 began or gave up: those who waited grew from 166 to 333" in finding.says
    assert finding.says.endswith("most of the waiting was at its replicas")
    assert finding.requests[0] == 999
    assert found(served(make_run, 1.0)) == []


def test_by_hand_those_who_give_up_before_a_quota_waited_there(make_run):
    (finding,) = found(served(make_run, 2.0, reason="deadline_passed"))
    assert finding.says.endswith("most of the waiting was before a quota")


def test_no_requests_and_a_single_one_have_no_line(make_run):
    assert found(make_run()) == []
    assert found(served(make_run, 5.0, count=1)) == []


@pytest.mark.slow
def test_twice_the_load_of_a_replica_is_told_and_half_of_it_is_not(bare):
    lines = ["fleet.replicas=1", "workload.requests=1500", "executor.law=exponential"]
    (finding,) = overloads(bare(*lines, "workload.rate=2"))
    assert finding.severity == pytest.approx(0.5, abs=0.06)
    assert overloads(bare(*lines, "workload.rate=0.5")) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 7))
def test_a_long_line_that_chance_made_is_not(bare, seed):
    lines = ["fleet.replicas=1", "workload.requests=2000", "executor.law=exponential", f"seed={seed}"]
    assert overloads(bare(*lines, "workload.rate=0.95")) == []


@pytest.mark.slow
def test_a_quota_that_lets_too_few_in_is_named_as_the_place(steady):
    lines = ["workload=chat", "workload.requests=900", "workload.rate=20"]
    (finding,) = overloads(steady(*lines, "quotas=concurrent", "quotas.max_concurrent_requests=1"))
    assert "before a quota" in finding.says
