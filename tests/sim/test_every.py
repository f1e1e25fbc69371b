"""All scenarios side by side: one table, one exit code, and what was whole is kept."""

import pandas as pd
import pytest
from rich.console import Console

import sim
from sim import every
from sim.checks import at_least
from sim.config import choices
from sim.every import asked_for, beside_published, main
from sim.workers import Played, worst_exit_code

NAMES = every.TEN
FIRST = every.LONGEST_FIRST
LINES = ["scenario=all", "executor=roofline", "workload.requests=600", "workers=1"]


@pytest.fixture(autouse=True)
def _two(monkeypatch):
    monkeypatch.setattr(every, "TEN", ("steady", "failover"))
    monkeypatch.setattr(every, "LONGEST_FIRST", ("failover",))


def played(tmp_path, *lines):
    with (tmp_path / "told").open("w") as file:
        code = main([*LINES, f"report.folder={tmp_path}/runs", *lines], Console(file=file, width=150))
    return code, (tmp_path / "told").read_text()


@pytest.mark.slow
def test_a_row_each_and_the_worst_exit_code(tmp_path):
    code, told = played(tmp_path)
    assert code == 0
    assert "steady" in told
    assert "failover" in told
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.endswith("_all")
    assert f"runs  {folder}" in told
    index = pd.read_csv(folder / "index.csv")
    assert list(index["scenario"].unique()) == ["steady", "failover"]
    assert sorted(sim.load(folder / "runs" / "*")["scenario"]) == ["failover", "steady"]


@pytest.mark.slow
def test_a_check_that_fails_is_said_and_the_others_go_on(tmp_path):
    code, told = played(tmp_path, "routing.max_attempts=1")
    assert code == 1
    assert "fail  failover: requests that did not complete" in told
    assert "pass" in told.split("steady")[1].split("\n")[0]


def test_bad_settings_stop_all_of_them_and_leave_no_folder(tmp_path, capsys):
    code, _ = played(tmp_path, "strategy=nothing")
    assert code == 2
    assert "no strategy is called 'nothing'" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_what_was_interrupted_is_gone_on_with(tmp_path, monkeypatch, capsys):
    play_all = every.play_all

    def interrupted_after_one(jobs, *others):
        play_all(jobs[:1], *others)
        raise KeyboardInterrupt

    monkeypatch.setattr(every, "play_all", interrupted_after_one)
    assert played(tmp_path)[0] == 130
    (folder,) = (tmp_path / "runs").iterdir()
    assert f"resume={folder}" in capsys.readouterr().err.replace("\n", "")
    digest = sim.open_run(folder / "runs" / "failover").manifest["digest"]
    monkeypatch.setattr(every, "play_all", play_all)
    resumed = [f"resume={folder}"]
    assert asked_for(resumed)
    assert main(resumed, Console(quiet=True)) == 0
    whole = folder.with_suffix("")
    assert sim.open_run(whole / "runs" / "failover").manifest["digest"] == digest
    assert (whole / "runs" / "steady").is_dir()


def test_only_who_asks_for_all_gets_all():
    assert asked_for(["seed=2", "scenario=all"])
    assert not asked_for(["scenario=steady"])
    assert not asked_for(["resume=nowhere"])


def test_the_ten_are_there():
    assert set(NAMES) <= set(choices("scenario"))
    assert set(FIRST) <= set(NAMES)
    assert len(set(NAMES)) == 10


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [
        (["pass", "pass"], 0),
        (["pass", "inconclusive"], 3),
        (["inconclusive", "fail"], 1),
        (["fail", "bad settings"], 2),
        (["pass", "error"], 1),
    ],
)
def test_a_failure_is_worse_than_what_is_undecided(verdicts, code, tmp_path):
    assert (
        worst_exit_code([Played(n, tmp_path, 1, verdict, "", {}) for n, verdict in enumerate(verdicts)])
        == code
    )


def test_ours_stands_before_what_was_published():
    assert beside_published(at_least("share", 0.41, 0.3, published="67 %")) == "share 0.41 (67 %)"
