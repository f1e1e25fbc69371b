"""Parts of a request's time sum to the whole, whatever became of it."""

import numpy as np
import pandas as pd
import pytest

import sim
from sim.breakdown import MARKS, PHASES, breakdown, by_slowness, means_s


def row(**marks):
    times = {"arrival_ns": 100, **dict.fromkeys(MARKS), "finished_ns": 900, **marks}
    return pd.DataFrame([times]).astype("Int64")


def parts(**marks):
    found = breakdown(row(**marks)).iloc[0]
    return {name: int(found[f"{name}_ns"]) for name in PHASES if found[f"{name}_ns"]}


def test_an_ordinary_request_has_each_part():
    marks = dict(zip(MARKS, (110, 130, 130, 170, 250, 410), strict=True))
    assert parts(**marks) == {
        "load": 10,
        "admit": 20,
        "transfer": 40,
        "queue": 80,
        "prefill": 160,
        "decode": 490,
    }


def test_who_ends_early_spent_the_rest_where_it_ended():
    assert parts() == {"load": 800}
    assert parts(loaded_ns=100) == {"admit": 800}
    marks = {"loaded_ns": 100, "admitted_ns": 150, "tried_ns": 150, "queued_ns": 160}
    assert parts(**marks) == {"admit": 50, "transfer": 10, "queue": 740}


def test_a_mark_that_was_never_set_took_no_time_where_a_later_one_was():
    assert parts(admitted_ns=150, tried_ns=150, queued_ns=150, started_ns=150, first_token_ns=200) == {
        "admit": 50,
        "prefill": 50,
        "decode": 700,
    }


def test_lost_attempts_are_a_part_even_behind_the_first_token():
    marks = dict(zip(MARKS, (100, 100, 500, 500, 550, 300), strict=True))
    assert parts(**marks) == {"retry": 400, "queue": 50, "decode": 350}


def test_no_requests_have_no_parts():
    assert len(breakdown(row().iloc[:0])) == 0


RUNS = {
    "failover": ["failover", "workload.requests=150"],
    "five tiers": ["steady", "tiers=five", "tiers.gpu.gib=0.01", "tiers.ram.gib=0.01", "workload.prefixes=4"],
    "waiting for a quota": ["steady", "quotas.max_concurrent_requests=4", "workload.rate=200"],
    "refused by a quota": [
        "steady", "quotas.max_concurrent_requests=2", "quotas.queue_capacity=3", "workload.rate=200",
    ],
    "cold loads": [
        "steady", "fleet=reference_five", "hardware=a100", "workload.model_zipf=1.0", "workload.rate=4",
        "models.preload=false", "models.weights_gib=60",
    ],
    "a group whose models are lost": [
        "steady", "fleet=reference_five", "hardware=a100", "routing.groups={any: [phi-4, gemma-2-9b-it]}",
        "routing.fallbacks={Llama-3.3-70B-Instruct: [any]}", "quotas.max_wait_s=0.5",
        "quotas.limits=[{model: Llama-3.3-70B-Instruct, requests_per_s: 2.0, burst_requests: 2}]",
        "faults=[{fault: crash, replica: phi, at_s: 0.5}]",
    ],
    "everybody is lost": [
        "steady",
        ("faults=[{fault: crash, replica: a, at_s: 0.5}, {fault: crash, replica: b, at_s: 0.9}, "
         "{fault: crash, replica: c, at_s: 1.0}, {fault: recover, replica: b, at_s: 1.4}]"),
    ],
    "preemption": [
        "steady", "fleet=reference_five", "hardware.memory_bytes=5.0e10", "hardware=a100", "workload=generated",
        "workload.rate=30", "workload.output.median=400",
    ],
    "service times": ["queue", "workload.rate=3.5", "fleet.replicas=4", "scenario.max_errors=1000"],
}  # fmt: skip
QUICK = ("failover", "five tiers", "everybody is lost")


def checked(name, seed, folder):
    """A run of that kind, whose parts are whole."""
    scenario, *more = RUNS[name]
    lines = [] if scenario == "queue" else ["executor=roofline"]
    lines += ["report=tables", "workload.requests=150", f"seed={seed}", f"report.folder={folder}"]
    if scenario == "steady":
        lines.append("scenario.max_not_completed=1000")
    run = sim.run(scenario, [*more, *lines])
    whole = (run.requests["finished_ns"] - run.requests["arrival_ns"]).to_numpy(dtype=np.int64)
    assert (run.parts.sum(axis=1).to_numpy() == whole).all()
    assert (run.parts >= 0).all().all()
    assert run.parts.dtypes.eq(np.int64).all()
    return run


@pytest.mark.parametrize(
    ("name", "seed"),
    [
        pytest.param(name, seed, marks=[] if name in QUICK and seed == 1 else pytest.mark.slow)
        for name in RUNS
        for seed in (1, 2)
    ],
)
def test_parts_sum_to_the_whole_in_every_run(name, seed, tmp_path):
    run = checked(name, seed, tmp_path)
    seconds = run.parts.sum() / 1e9
    due = {
        "failover": "retry",
        "five tiers": "transfer",
        "waiting for a quota": "admit",
        "refused by a quota": "admit",
        "cold loads": "load",
        "a group whose models are lost": "route",
        "everybody is lost": "retry",
        "preemption": "queue",
        "service times": "queue",
    }
    assert seconds[f"{due[name]}_ns"] > 0
    outcomes = set(run.requests["outcome"])
    if name == "refused by a quota":
        assert "rejected" in outcomes
    if name == "everybody is lost":
        assert "failed" in outcomes
    if name == "preemption":
        assert (run.facts["kind"] == "request_preempted").any()
    if name == "failover":
        again = (
            run.parts["retry_ns"] > 0
        )  # some lose their first replica at the very moment at which they come
        assert (run.requests.loc[again, "attempts"] > 1).all()
        lost = run.facts[run.facts["kind"] == "attempt_lost"]["request_id"]
        assert set(run.requests.loc[again, "request_id"]) <= set(lost)


def test_what_a_name_took_that_could_not_serve_is_route(tmp_path):
    run = checked("a group whose models are lost", 1, tmp_path)
    fell = run.facts[run.facts["kind"] == "request_fell_back"]
    assert (fell["subject"] == "any").all()
    turned = fell.groupby("request_id")["at_ns"].max()
    requests = run.requests.set_index("request_id").loc[turned.index]
    parts = run.parts.set_index(run.requests["request_id"]).loc[turned.index]
    assert (parts["route_ns"].to_numpy() >= (turned - requests["arrival_ns"]).to_numpy(dtype=np.int64)).all()
    assert (parts["route_ns"] > 0).any()
    others = run.parts[
        ~run.requests["request_id"].isin(run.decisions["request_id"][run.decisions["pool"] == "any"])
    ]
    assert (others["route_ns"] == 0).all()


def test_marks_of_a_model_before_do_not_count_for_the_one_that_was_turned_to():
    rows = row(loaded_ns=110, admitted_ns=150, tried_ns=160, queued_ns=160)
    found = breakdown(rows, np.array([400])).iloc[0]
    assert {name: int(found[f"{name}_ns"]) for name in PHASES if found[f"{name}_ns"]} == {
        "route": 300,
        "load": 500,
    }


def test_the_slowest_percent_stands_apart_with_what_it_waited_for():
    slow, quick = [900_000 * number for number in (3, 1)], [1_000] * 198
    ends = [*slow, *quick]
    rows = pd.DataFrame({"arrival_ns": 0, **dict.fromkeys(MARKS[:4], 0), "finished_ns": ends})
    rows["started_ns"] = [*[end - 500 for end in slow], *[500] * 198]
    rows["first_token_ns"] = rows["started_ns"]
    buckets = by_slowness(breakdown(rows.astype("Int64")))
    assert list(buckets["count"]) == [50, 50, 50, 30, 18, 2]
    assert buckets.index[-1] == "slowest 1 %"
    assert buckets.loc["slowest 1 %", "queue_s"] == pytest.approx((np.mean(slow) - 500) / 1e9)
    assert buckets.loc["p0 to p25", "queue_s"] == pytest.approx(500 / 1e9)


def test_random_marks_in_any_order_sum_up_all_the_same():
    chance = np.random.default_rng(4)
    size = 5_000
    arrival = chance.integers(0, 1_000, size)
    finished = arrival + chance.integers(0, 1_000, size)
    marks = {}
    for name in MARKS:
        times = chance.integers(0, 2_500, size)
        marks[name] = pd.array(np.where(chance.random(size) < 0.3, -1, times), dtype="Int64")
        marks[name][marks[name] == -1] = pd.NA
    rows = pd.DataFrame({"arrival_ns": arrival, **marks, "finished_ns": finished})
    for routed in (None, chance.integers(0, 2_500, size)):
        found = breakdown(rows, routed)
        assert (found.sum(axis=1).to_numpy() == finished - arrival).all()
        assert (found >= 0).all().all()


def test_means_by_replica_weigh_up_to_the_mean_of_all(tmp_path):
    lines = ["executor=roofline", "report=tables", "workload=chat", "workload.requests=90"]
    run = sim.run("steady", [*lines, f"report.folder={tmp_path}"])
    each, whole = means_s(run.parts, run.requests["replica"]), means_s(run.parts)
    assert list(each.index) == ["a", "b", "c"]
    counts = run.requests["replica"].value_counts().sort_index().to_numpy()
    assert np.average(each["decode_s"], weights=counts) == pytest.approx(whole["decode_s"].iloc[0])
    assert run.summary["mean_phase_decode_s"] == pytest.approx(whole["decode_s"].iloc[0])
    assert sum(run.summary[f"mean_phase_{name}_s"] for name in PHASES) == pytest.approx(
        run.summary["mean_e2e_s"]
    )
