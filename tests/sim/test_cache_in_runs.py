"""Runs over several tiers: shared prefixes pay, the books add up, and the same seed gives the same bytes."""

import subprocess
import sys

import pytest

from sim import run
from sim.metrics import TIERS

BASE = ["executor=roofline", "report=tables"]
FIVE = ["tiers=five", "tiers.gpu.gib=0.2", "tiers.ram.gib=0.2", "tiers.ssd.gib=0.3", "tiers.network.gib=0.3"]


@pytest.fixture
def steady(tmp_path):
    return lambda *lines: run("steady", [*BASE, f"report.folder={tmp_path}", *lines])


def test_shared_prefixes_save_a_third_of_the_time_to_first_token(steady):
    mix = ["workload=mix_d", "workload.requests=300", "workload.rate=4"]
    shared, alone = steady(*mix, "tiers=ram", "tiers.ram.gib=8"), steady(*mix, "tiers=off")
    assert shared.summary["token_hit_ratio"] > 0.5
    assert shared.summary["mean_ttft_s"] < 0.7 * alone.summary["mean_ttft_s"]


def test_hits_are_told_by_tier_and_add_up(steady):
    over_five = steady("workload=mix_b", "workload.requests=400", *FIVE)
    by_tier = {tier: over_five.summary[f"cached_tokens_{tier}"] for tier in TIERS}
    assert by_tier["gpu"] > 0
    assert by_tier["ram"] > 0
    assert by_tier["ssd"] > 0
    counted = over_five.manifest["cache"]["all"]["by_tier"]
    assert {tier: row["hit_tokens"] for tier, row in counted.items()} == by_tier
    assert "modelyard:cache_hit_tokens_total" in (over_five.path / "metrics.prom").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("allocation", ["shared", "fair", "proportional", "priority", "dynamic"])
def test_each_allocation_runs_with_each_model_s_share_over_time(steady, allocation):
    fleet = ["fleet=reference_five", "hardware=h100", "workload.model_zipf=1.0", "tiers.ram.gib=3"]
    made = steady("workload=mix_b", "workload.requests=150", *fleet, f"allocation={allocation}")
    series = made.timeseries
    held = series[(series["subject"] == "tier ram") & series["metric"].str.startswith("bytes of ")]
    assert held["metric"].nunique() == 5
    assert held.groupby("at_ns")["value"].sum().max() <= 3 * 2**30


@pytest.mark.slow
def test_another_process_gives_the_same_digest(tmp_path):
    lines = [
        *BASE,
        f"report.folder={tmp_path}",
        "workload=mix_b",
        "workload.requests=200",
        *FIVE,
        "allocation=dynamic",
    ]
    here = run("steady", lines).manifest["digest"]
    done = subprocess.run(
        [sys.executable, "-m", "sim", "scenario=steady", *lines],
        env={"PYTHONHASHSEED": "4711", "PATH": ""}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert here in next(line for line in done.stdout.splitlines() if line.startswith("digest"))
