"""What loading takes in simulation: cold once, then warm, the same for every strategy."""

import json
import subprocess
import sys

import numpy as np
import pytest

import sim
from engine.errors import BadSettings
from engine.settings import LoadingSettings
from sim.config import read
from sim.loading import drawn_load_times
from sim.traffic import draw

S = 1_000_000_000
FIVE = [
    "executor=roofline", "hardware=a100", "fleet=reference_five", "workload.model_zipf=1.0", "workload.requests=60",
    "workload.rate=2", "models.preload=false", "models.weights_gib=60", "report=tables",
]  # fmt: skip


def test_first_loads_are_log_normal_with_the_median_and_percentile_that_were_set():
    load_ns = drawn_load_times(LoadingSettings(), 1)
    drawn = np.array([load_ns(f"m{number}", 0) for number in range(4000)]) / S
    # 4 standard errors of a quantile of 4,000 draws of a log-normal with sigma .5046
    assert np.median(drawn) == pytest.approx(22, rel=0.04)
    assert np.percentile(drawn, 90) == pytest.approx(42, rel=0.06)


def test_later_loads_come_from_local_disk():
    load_ns = drawn_load_times(LoadingSettings(warm_s=2.6), 1)
    assert {load_ns("m", number) for number in range(1, 9)} == {2_600_000_000}


def test_a_draw_depends_on_the_model_and_the_seed_alone():
    one, two = (drawn_load_times(LoadingSettings(), 1) for _ in range(2))
    names = ["a", "b", "c"]
    assert [one(name, 0) for name in names] == [two(name, 0) for name in reversed(names)][::-1]
    assert one("a", 0) != one("b", 0)
    assert one("a", 0) != drawn_load_times(LoadingSettings(), 2)("a", 0)


@pytest.mark.parametrize("zipf", [0.4, 1.0, 1.5])
def test_requests_are_spread_over_models_by_zipf_s_law(zipf):
    settings = read(["scenario=steady", "workload.requests=20000", f"workload.model_zipf={zipf}"])
    trace = draw(settings.workload, 1, ["a", "b", "c", "d", "e"])
    shares = np.arange(1, 6) ** -zipf / (np.arange(1, 6) ** -zipf).sum()
    counts = np.bincount(trace.model_of, minlength=5)
    assert (abs(counts - 20_000 * shares) < 4 * np.sqrt(20_000 * shares * (1 - shares))).all()
    assert trace.request(0).model == "abcde"[trace.model_of[0]]


def test_popularity_moves_no_other_column():
    plain, spread = (
        draw(read(["scenario=steady", *lines]).workload, 1, ["a", "b"])
        for lines in ([], ["workload.model_zipf=1"])
    )
    for column in ("arrival_ns", "prompt_tokens", "output_tokens", "prefix"):
        assert (getattr(plain, column) == getattr(spread, column)).all()


def test_five_models_come_and_go_within_their_memory(tmp_path):
    run = sim.run("steady", [*FIVE, f"report.folder={tmp_path}"])
    assert run.verdict == "pass"
    assert run.requests["model"].nunique() == 5
    events = [json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines()]
    moves = [(event["model"], event["after"]) for event in events if event["event"] == "model_state_changed"]
    assert {model for model, after in moves if after == "healthy"} == set(run.requests["model"])
    assert "unloaded" in {after for _, after in moves}
    series = run.timeseries
    held = series[(series["subject"] == "models") & (series["metric"] == "weights_bytes")]["value"]
    assert 0 < held.max() <= 60 * 2**30


@pytest.mark.slow
def test_another_process_gives_the_same_digest(tmp_path):
    lines = [*FIVE, f"report.folder={tmp_path}"]
    here = sim.run("steady", lines).manifest["digest"]
    done = subprocess.run(
        [sys.executable, "-m", "sim", "scenario=steady", *lines],
        capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "4711", "PATH": ""},
    )  # fmt: skip
    assert here in next(line for line in done.stdout.splitlines() if line.startswith("digest"))


def test_a_model_that_is_larger_than_the_memory_is_refused_when_it_is_asked_for(tmp_path):
    run = sim.run("steady", [*FIVE, f"report.folder={tmp_path}", "models.weights_gib=20"])
    reasons = run.requests.groupby("model")["reason"].unique()
    assert list(reasons["Llama-3.3-70B-Instruct@1.0.0"]) == ["load_failed"]
    assert run.requests[run.requests["model"] == "phi-4@1.0.0"]["outcome"].eq("completed").all()


def test_models_from_the_start_have_to_fit(tmp_path):
    lines = [*FIVE, f"report.folder={tmp_path}", "models.preload=true", "models.weights_gib=60"]
    with pytest.raises(BadSettings, match=r"needs .* GiB for its weights"):
        sim.run("steady", lines)
    assert not list(tmp_path.iterdir())
