"""The bare system: its checks see what theory says, and what it does not."""

import numpy as np
import pytest

import sim
from engine.errors import BadSettings
from engine.execution import Scheduler
from engine.execution.law import LawExecutor
from scenarios.queue import asymptotic_error, batch_error, held_against, theories
from sim import queueing
from sim.config import read

LINES = ["workload.requests=3000", "report=tables"]
SPARSE = ("workload.rate=0.001", "report.sample_every_s=10000")
FORMULA = "standard errors from theory"


def play(tmp_path, *lines):
    return sim.run("queue", [*LINES, f"report.folder={tmp_path}", *lines])


def verdicts(run):
    return {check.name: check.verdict for check in run.checks}


@pytest.mark.parametrize(
    "lines",
    [
        ("executor.law=exponential",),
        ("executor.law=deterministic",),
        ("executor.law=lognormal", "executor.scv=2"),
    ],
)
def test_one_server_is_as_slow_as_theory_says(tmp_path, lines):
    assert verdicts(play(tmp_path, *lines)) == {"requests that did not complete": "pass", FORMULA: "pass"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (("fleet.max_batch=2", "workload.rate=1.2"), "theory: mean wait 0.5625"),
        (("fleet.queue_capacity=9", "workload.rate=1.2"), "theory: mean refused 0.1926"),
        (("fleet.queue_capacity=0", "workload.rate=1", "executor.law=erlang2"), "theory: mean refused 0.5"),
        (
            ("fleet.discipline=ps", "fleet.max_batch=512", "executor.law=uniform"),
            "theory: mean sojourn 3.333",
        ),
        (("workload=closed", "workload.users=20"), "theory: mean sojourn 10.04"),
        (("workload=classes", "workload.rate=0.5", "fleet.discipline=priority"), "theory: mean wait 1.25"),
        (
            ("workload=classes", "workload.rate=0.5", "fleet.discipline=preemptive"),
            "theory: mean sojourn 2.5",
        ),
    ],
)
def test_other_systems_with_a_formula_are_held_against_it(tmp_path, lines, told):
    run = play(tmp_path, "workload.requests=2000", *lines)
    assert told in run.checks[-1].note
    assert run.verdict == "pass"


def test_twin_that_refuses_too_few_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(Scheduler, "takes_more", property(lambda self: len(self.waiting) < 12))
    run = play(tmp_path, "fleet.queue_capacity=3", "workload.rate=1")
    assert verdicts(run)[FORMULA] == "fail"


def test_a_server_that_is_shared_by_one_is_refused(tmp_path):
    with pytest.raises(
        BadSettings, match=r"fleet\.max_batch is 1, but must be at least 2 with discipline ps"
    ):
        play(tmp_path, "fleet.discipline=ps")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("discipline", ["ps", "preemptive"])
def test_what_only_service_times_can_do_is_refused_elsewhere(tmp_path, discipline):
    lines = [
        "executor=roofline",
        "workload.vocab=4096",
        "fleet.max_batch=2",
        f"fleet.discipline={discipline}",
    ]
    with pytest.raises(BadSettings, match="fifo or priority: only service times of executor=law"):
        play(tmp_path, *lines)


def test_twin_that_serves_a_third_slower_is_seen(tmp_path, monkeypatch):
    service_ns = LawExecutor.service_ns
    monkeypatch.setattr(LawExecutor, "service_ns", lambda self, each: round(1.35 * service_ns(self, each)))
    assert verdicts(play(tmp_path))[FORMULA] == "fail"


def test_twin_that_serves_twice_as_fast_is_seen(tmp_path, monkeypatch):
    service_ns = LawExecutor.service_ns
    monkeypatch.setattr(LawExecutor, "service_ns", lambda self, each: service_ns(self, each) // 2)
    assert verdicts(play(tmp_path))[FORMULA] == "fail"


@pytest.mark.parametrize(
    "lines",
    [("workload.requests=1",), ("workload.requests=30",), SPARSE, ("workload.rate=0.97",)],
)
def test_too_few_requests_decide_nothing(tmp_path, lines):
    assert verdicts(play(tmp_path, *lines))[FORMULA] == "inconclusive"


def test_a_short_run_that_happens_to_be_calm_is_not_blamed(tmp_path):
    """Waits hang together over hundreds of requests: short batches see too little of that, 5.8 errors here."""
    assert verdicts(play(tmp_path, "workload.requests=1300", "seed=10"))[FORMULA] == "pass"


def test_several_servers_are_not_held_against_a_formula_that_is_not_theirs(tmp_path):
    run = play(
        tmp_path, "fleet.replicas=3", "workload.requests=300", "workload.rate=2.1", "strategy=power_of_two"
    )
    assert FORMULA not in verdicts(run)
    assert set(run.requests["replica"]) == {"a", "b", "c"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "lines",
    [
        ("fleet.max_batch=2", "executor.law=deterministic"),
        ("workload.rate=1.5",),
        ("workload=closed", "workload.think=fixed"),
        ("fleet.discipline=ps", "fleet.max_batch=2"),
        ("fleet.queue_capacity=3", "executor.law=erlang2"),
        ("health.enabled=true",),
        ("quotas=concurrent",),
        ("executor=roofline", "workload.vocab=4096"),
        ("workload=mix_a", "workload.rate=0.5", "workload.requests=20"),
    ],
)
def test_what_has_no_formula_is_not_held_against_one(tmp_path, lines):
    assert FORMULA not in verdicts(play(tmp_path, "workload.requests=200", *lines))


def known(*lines):
    """What theory says of the first of a system's means."""
    return theories(read(["scenario=queue", *lines]).config, 1)[0]


def test_one_short_wait_where_hardly_anybody_waits_says_nothing():
    """Batches see no more than that wait: by them it is a long way from theory."""
    values = np.zeros(7_200)
    values[3_000] = 1e-5
    check = held_against(known("fleet.max_batch=7", "workload.rate=1.4"), values, 4.0)
    assert check.verdict == "inconclusive"
    assert "too few requests to tell" in check.note


@pytest.mark.parametrize(
    ("lines", "count"),
    [
        (("fleet.max_batch=2", "workload.rate=1.4"), 360),
        (("workload=closed", "workload.users=15", "workload.think_s=3"), 39),
        (("workload=classes", "workload.rate=0.8", "fleet.discipline=preemptive"), 86),
    ],
)
def test_a_short_run_that_looks_calm_is_not_told_from_theory(lines, count):
    assert held_against(known(*lines), np.tile([0.1, 0.2], count // 2), 4.0).verdict == "inconclusive"


def test_errors_are_those_of_means_of_independent_runs():
    """Of M/M/1, where its own formula knows: the number inside, and waits by the same way as those of M/M/c."""
    for load in (0.3, 0.7):
        births, deaths = queueing.rates(1, 300, load)
        spread = queueing.long_run_variance(births, deaths, range(301))
        assert spread == pytest.approx(2 * load * (1 + load) / (1 - load) ** 4)
        exact = asymptotic_error(load, 1.0, 1) ** 2
        assert exact < queueing.spread_of_waits(1, load) < 1.2 * exact
        assert exact < queueing.spread_of_sharing(load) < 3 * exact
    assert queueing.spread_by_class([0.2, 0.5], 1) > queueing.spread_by_class([0.2, 0.5], 0)


def test_a_line_of_any_length_has_chances():
    assert sum(queueing.states(2, 100_000, 3.0)) == pytest.approx(1)
    assert queueing.states(1, 10, 1.2)[-1] == pytest.approx(0.192586, abs=1e-6)


def test_the_asymptotic_errors_are_those_of_the_table():
    """sigma^2 of M/M/1: 29.0, 335.6 and 35,901 at these loads; half the spread is an eighth of that."""
    variances = [100 * asymptotic_error(busy, 1.0, 100) ** 2 for busy in (0.5, 0.7, 0.9)]
    assert variances == pytest.approx([29.0, 335.6, 35_901], rel=1e-3)
    assert 100 * asymptotic_error(0.5, 0.0, 100) ** 2 == pytest.approx(29.0 / 8)


def test_the_error_of_batches_is_that_of_a_mean_where_nothing_hangs_together():
    random = np.random.default_rng(1)
    errors = [batch_error(random.standard_normal(2000)) for _ in range(50)]
    assert np.mean(errors) == pytest.approx(2000**-0.5, rel=0.1)
