"""Work that is done again is told: blocks, loads and preemptions; a first time is not."""

import pytest

SESSIONS = [
    "tiers=ram", "workload=generated", "workload.requests=250", "workload.sessions.mean_turns=6",
    "workload.sessions.think_median_s=5", "workload.rate=8",
]  # fmt: skip
FIVE = ["fleet=reference_five", "hardware=a100", "models.preload=false", "tiers=off"]


def thrashed(run):
    return {finding.subject: finding for finding in run.findings if finding.detector == "thrashing"}


def test_a_cache_that_is_far_too_small_thrashes_and_a_large_one_does_not(steady):
    assert thrashed(steady(*SESSIONS, "tiers.ram.gib=4")) == {}
    run = steady(*SESSIONS, "tiers.ram.gib=0.05")
    finding = thrashed(run)["cache"]
    assert finding.severity > 0.5
    assert "too small" in finding.says
    rows = run.requests.set_index("request_id").loc[list(finding.requests)]
    assert (rows["session"].value_counts() >= 1).all()
    for request_id, row in rows.iterrows():  # each followed a turn whose tokens it did not find again
        before = run.requests[
            (run.requests["session"] == row["session"]) & (run.requests["arrival_ns"] < row["arrival_ns"])
        ]
        assert len(before), request_id
        assert row["cached_tokens_ram"] < before["prompt_tokens"].max()


@pytest.mark.slow
def test_models_that_push_each_other_out_are_told_and_first_loads_are_not(steady):
    lines = [*FIVE, "workload.requests=200", "workload.model_zipf=0.0", "workload.rate=1"]
    run = steady(*lines, "models.weights_gib=60")
    finding = thrashed(run)["models"]
    assert "Llama-3.3-70B-Instruct@1.0.0" in finding.says
    waits = run.parts["load_ns"][run.requests["request_id"].isin(finding.requests)]
    assert (waits > 0).all()
    roomy = steady(*lines, "models.weights_gib=200")
    assert (roomy.facts["detail"] == "loading").sum() == 5
    assert thrashed(roomy) == {}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_preemptions_by_the_dozen_are_a_storm(steady, seed):
    lines = [
        "fleet=reference_five", "hardware=a100", "hardware.memory_bytes=5.0e10", "workload=generated",
        "workload.requests=150", f"seed={seed}", "tiers=off",
    ]  # fmt: skip
    run = steady(*lines, "workload.rate=30", "workload.output.median=400")
    finding = thrashed(run)["preemptions at replica llama"]
    preempted = run.facts[run.facts["kind"] == "request_preempted"]
    assert finding.count == preempted["request_id"].nunique()
    assert set(finding.requests) <= set(preempted["request_id"])
    calm = steady(*lines, "workload.rate=0.1", "workload.output.median=100")
    assert not (calm.facts["kind"] == "request_preempted").any()
    assert thrashed(calm) == {}


@pytest.mark.slow
def test_everybody_at_once_misses_a_prefix_that_is_still_computed_without_thrashing(steady):
    run = steady(
        "tiers=ram", "tiers.ram.gib=8", "workload=chat", "workload.requests=400", "workload.rate=5000",
        "workload.prefixes=1", "quotas=off",
    )  # fmt: skip
    regret = run.manifest["cache"]["regret"]
    assert regret["endless"] - regret["ours"] > 0.25
    assert thrashed(run) == {}
