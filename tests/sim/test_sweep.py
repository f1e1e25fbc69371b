"""Every combination, side by side, and what the first of them makes of the others."""

from io import StringIO

import pandas as pd
import pytest
from rich.console import Console

import sim
from sim import sweep as command
from sim.workers import play_all

LINES = ["scenario=steady", "executor=roofline", "workload=chat", "workload.requests=50", "workload.rate=20"]


@pytest.fixture
def lines(tmp_path):
    return [*LINES, f"report.folder={tmp_path}"]


@pytest.fixture
def quiet():
    return Console(quiet=True)


def test_each_combination_and_seed_is_a_row_and_all_are_compared_with_the_baseline(lines):
    found = sim.sweep([*lines, "strategy=round_robin,random", "seed=1..2"], workers=1)
    assert list(found.index["strategy"]) == ["round_robin"] * 2 + ["random"] * 2
    assert list(found.index["seed"]) == [1, 2, 1, 2]
    assert list(found.comparisons) == ["strategy=random"]
    assert found.comparisons["strategy=random"][0].difference.count == 2
    assert found.exit_code == 0
    assert not found.effects
    assert len(pd.read_csv(found.path / "index.csv")) == len(list((found.path / "runs").iterdir())) == 4
    assert {"ranking.csv", "comparisons.csv", "pareto.png"} <= {each.name for each in found.path.iterdir()}
    for run in map(sim.open_run, sorted((found.path / "runs").iterdir())):
        assert run.manifest["overrides"][-1] == f"seed={run.manifest['seed']}" or run.manifest["seed"] == 1
        assert run.config["seed"] == run.manifest["seed"]


@pytest.mark.slow
def test_two_workers_write_the_same_bytes_as_one(lines):
    swept = [*lines, "strategy=round_robin,random", "seed=1..2"]
    one, two = (sim.sweep(swept, workers=workers) for workers in (1, 2))
    for name in ("index.csv", "comparisons.csv"):
        assert (one.path / name).read_bytes() == (two.path / name).read_bytes()


def test_one_bad_combination_stops_all_before_anything_is_written(lines, tmp_path, capsys):
    assert command.main([*lines, "strategy=random,nobody"]) == 2
    assert "no strategy is called 'nobody'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_is_wrong_with_every_run_is_told_and_leaves_no_folder(lines, tmp_path, capsys):
    given = [*lines, "strategy=random,round_robin", "routing.fallbacks={nobody: [auto]}", "workers=1"]
    assert command.main(given) == 2
    assert "routing.fallbacks names 'nobody', but no model is called 'nobody'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_in_which_every_run_breaks_off_is_told_as_one(lines, monkeypatch, quiet):
    def broken(_settings):
        raise RuntimeError("something odd")

    monkeypatch.setattr("sim.play.play", broken)
    found = sim.sweep([*lines, "strategy=random,round_robin"], workers=1)
    assert set(found.index["error"]) == {"RuntimeError: something odd"}
    command.show_sweep(found, quiet)


@pytest.mark.slow
def test_what_several_runs_failed_of_is_said_once(tmp_path):
    out = Console(width=130, record=True, file=StringIO())
    lines = [
        *LINES[:2],
        "workload.requests=20",
        "fleet=reference_five",
        "report=tables",
        f"report.folder={tmp_path}",
    ]
    assert command.main([*lines, "hardware=h100,l4,rtx_4090", "seed=1,2", "workers=1"], out) == 2
    text = out.export_text()
    assert text.count("leaves no room for KV in the 24.0 GB of NVIDIA L4") == 1
    assert "2 runs, the first 00002: Llama-3.3-70B-Instruct weighs 42.5 GB" in text


@pytest.mark.slow
def test_the_command_shows_means_and_differences(lines):
    out = Console(width=130, record=True, file=StringIO())
    assert command.main([*lines, "strategy=round_robin,random", "seed=1,2", "workers=1"], out) == 0
    text = out.export_text()
    assert "2 combinations, 4 runs (2 seeds each), the best by mean_ttft_s first" in text
    assert "baseline  strategy=round_robin" in text


@pytest.mark.slow
def test_a_sweep_that_was_interrupted_is_gone_on_with(lines, tmp_path, monkeypatch, capsys):
    def interrupted(jobs, _workers, _told, _note):
        play_all(jobs[:1], 1)
        raise KeyboardInterrupt

    monkeypatch.setattr("sim.sweep.play_all", interrupted)
    assert command.main([*lines, "strategy=round_robin,random", "workers=1"]) == 130
    (partial,) = tmp_path.glob("*.partial")
    assert len(pd.read_csv(partial / "index.csv")) == 1
    assert f"go on with: python -m sim.sweep resume={partial}" in capsys.readouterr().err
    monkeypatch.undo()
    assert command.main([f"resume={partial}"], Console(quiet=True)) == 0
    (whole,) = tmp_path.glob("*_sweep_steady")
    assert list(pd.read_csv(whole / "index.csv")["strategy"]) == ["round_robin", "random"]
