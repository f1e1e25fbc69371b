"""The same run on many seeds: the same table whatever the number of workers, and an end when there is enough."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

import sim
import sim.play
from sim import replicate as command
from sim.workers import Job, play_all

ROOT = Path(__file__).parents[2]
LINES = ["executor=roofline", "report=tables", "workload=chat", "workload.requests=60", "workload.rate=20"]


@pytest.fixture
def lines(tmp_path):
    return [*LINES, f"report.folder={tmp_path}"]


def test_replications_have_seeds_of_their_own_and_an_interval(lines):
    found = sim.replicate("steady", [*lines, "seed=7"], replications=3, workers=1)
    assert list(found.runs["seed"]) == [7, 8, 9]
    assert found.runs["digest"].nunique() == 3
    values = found.runs["mean_ttft_s"]
    assert found.intervals["mean_ttft_s"].mean == pytest.approx(values.mean())
    assert found.intervals["mean_ttft_s"].half_width > 0
    assert found.exit_code == 0
    assert sorted(path.name for path in (found.path / "runs").iterdir()) == ["seed-7", "seed-8", "seed-9"]
    assert len(sim.load(found.path / "runs" / "*")) == 3
    assert json.loads((found.path / "intervals.json").read_text())["intervals"]["mean_ttft_s"]["n"] == 3


@pytest.mark.slow
def test_three_workers_write_the_same_bytes_as_one(lines):
    options = {"replications": 3, "until": {"mean_ttft_s": 0.05}, "most": 4}
    one, three = (sim.replicate("steady", lines, workers=workers, **options) for workers in (1, 3))
    for name in ("replications.csv", "intervals.json"):
        assert (one.path / name).read_bytes() == (three.path / name).read_bytes()
    assert len(list((three.path / "runs").iterdir())) == len(three.runs)


@pytest.mark.slow
def test_enough_is_when_the_half_width_is_small_or_the_cap_is_reached(lines):
    early = sim.replicate("steady", lines, replications=2, workers=1, until={"mean_tpot_s": 0.5})
    assert (len(early.runs), early.stopped_by) == (2, "the half-widths that were asked for")
    late = sim.replicate("steady", lines, replications=2, workers=1, until={"p99_ttft_s": 1e-6}, most=3)
    assert len(late.runs) == 3
    assert "were not reached" in late.stopped_by


@pytest.mark.slow
def test_the_start_of_a_steady_run_is_left_out(lines):
    lines += ["workload.requests=120", "report=tables"]
    found = sim.replicate("steady", lines, replications=10, workers=1, analysis="steady")
    assert 0.1 <= found.warm_up < 0.5
    assert found.intervals["completed"].mean == 120 - int(found.warm_up * 120)
    assert pd.read_csv(found.path / "replications.csv")["completed"].max() < 120


@pytest.mark.slow
def test_a_run_that_only_grows_is_too_short(lines, capsys):
    lines += ["hardware=l4", "workload.rate=2000", "workload.requests=150", "report=tables"]
    own = ["replications=10", "workers=1", "analysis=steady", "scenario.max_not_completed=150"]
    assert command.main(["scenario=steady", *lines, *own], Console(width=110, quiet=True)) == 3
    assert "run too short: after half of its 150 points" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("replications=1", "replications is 1, but must be at least 2"),
        ("replications=ten", "replications is 'ten', but must be a whole number"),
        ("most=3", "most is 3, but must be at least 10"),
        ("workers=100000000000", "workers is 100000000000, but must be at most 100,000"),
        ("most=100001", "most is 100001, but must be at most 100,000"),
        ("analysis=steady", "replications is 9, but must be at least 10 with analysis=steady"),
        ("analysis=wild", "analysis is 'wild', but must be terminating or steady"),
        ("until=cats:2%", "until is 'cats', but must be one of mean_ttft_s"),
        ("until=mean_ttft_s:much", "until is 'mean_ttft_s:much', but must be FIGURE:SHARE"),
        ("until=mean_ttft_s:200%", "until=mean_ttft_s is 2.0, but must be above 0"),
        (
            "until=mean_ttft_s:2%,completed:3%,mean_ttft_s:5%",
            "must be one value for each name, but has mean_ttft_s twice",
        ),
        ("strategy=nobody", "no strategy is called 'nobody'"),
        ("routing.fallbacks={nobody: [auto]}", "routing.fallbacks names 'nobody'"),  # found on the stage only
        ("seed=9223372036854775799", "seed is 9223372036854775799, but must be 9223372036854775798 at most"),
    ],
)
def test_bad_settings_stop_it_before_anything_is_written(line, told, lines, tmp_path, capsys):
    own = ["replications=9"] if line == "analysis=steady" else []
    assert command.main(["scenario=steady", *lines, line, *own]) == 2
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_command_shows_intervals_and_what_stopped_it(lines):
    out = Console(width=110, record=True, file=StringIO())
    assert command.main(["scenario=steady", *lines, "replications=2", "workers=1"], out) == 0
    text = out.export_text()
    assert "2 replications, 95 % intervals" in text
    assert "stopped by  2 replications, as asked" in text


UNGUARDED = """import sim
from engine.errors import BadSettings
try:
    sim.{what}, workers=2)
except BadSettings as error:
    print(error)
"""


@pytest.mark.parametrize(
    "what", ["replicate('steady', {0}, replications=2", "sweep(['scenario=steady', 'seed=1..2', *{0}]"]
)
def test_a_script_that_workers_would_begin_anew_is_told_so_once(what, lines, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED.format(what=what.format(lines)), encoding="utf-8")
    run = [sys.executable, "-W", "error", str(script)]
    done = subprocess.run(
        run, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("workers import the script that has started them: ")
    assert "if __name__ == '__main__'" in done.stdout
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == [script]


def test_a_job_that_fails_stops_nobody(tmp_path, lines):
    good = ("scenario=steady", *lines)
    jobs = [Job(0, (*good, "strategy=nobody"), tmp_path / "a"), Job(1, good, tmp_path / "b")]
    played = play_all(jobs, 1)
    assert [each.verdict for each in played] == ["bad settings", "pass"]
    assert "no strategy is called 'nobody'" in played[0].error
    assert played[1].folder.is_dir()


@pytest.mark.slow
def test_what_was_whole_is_kept_when_interrupted_and_gone_on_with(lines, tmp_path, monkeypatch, capsys):
    ended = []

    def interrupted(jobs, _workers, told, _note):
        told(play_all(jobs[:1], 1)[0])
        ended.append(jobs[0].number)
        raise KeyboardInterrupt

    monkeypatch.setattr("sim.replicate.play_all", interrupted)
    assert command.main(["scenario=steady", *lines, "replications=2"]) == 130
    (partial,) = tmp_path.glob("*.partial")
    assert len(pd.read_csv(partial / "replications.csv")) == len(ended) == 1
    assert f"go on with: python -m sim.replicate resume={partial}" in capsys.readouterr().err
    monkeypatch.undo()
    kept = (partial / "runs" / "seed-1" / "requests.parquet").stat().st_mtime_ns
    (partial / "runs" / "torn.partial").mkdir()
    assert command.main([f"resume={partial}"]) == 0
    (whole,) = tmp_path.glob("*_replicate_steady")
    assert (whole / "runs" / "seed-1" / "requests.parquet").stat().st_mtime_ns == kept
    assert sorted(each.name for each in (whole / "runs").iterdir()) == ["seed-1", "seed-2"]
    anew = sim.replicate("steady", lines, replications=2, workers=1)
    for name in ("replications.csv", "intervals.json"):
        assert (whole / name).read_bytes() == (anew.path / name).read_bytes()


def test_what_is_interrupted_before_a_run_is_whole_is_gone_on_with(lines, tmp_path, monkeypatch, capsys):
    def interrupted(*_given):
        raise KeyboardInterrupt

    monkeypatch.setattr("sim.replicate.play_all", interrupted)
    assert command.main(["scenario=steady", *lines, "replications=2"]) == 130
    (partial,) = tmp_path.glob("*.partial")
    assert pd.read_csv(partial / "replications.csv").empty
    assert f"go on with: python -m sim.replicate resume={partial}" in capsys.readouterr().err


@pytest.mark.parametrize("until", [[], ["until=mean_ttft_s:99%", "most=9"]])
def test_what_could_not_be_played_for_want_of_disk_is_gone_on_with(
    lines, tmp_path, monkeypatch, capsys, until
):
    full, good = OSError(errno.ENOSPC, "No space left on device"), sim.play.play

    def only_the_first(settings, *given):
        if settings.seed > 1:
            raise full
        return good(settings, *given)

    monkeypatch.setattr("sim.play.play", only_the_first)
    given = ["scenario=steady", *lines, "replications=2", "workers=1", *until]
    assert command.main(given, Console(quiet=True)) == 1
    (partial,) = tmp_path.iterdir()
    assert f"go on with: python -m sim.replicate resume={partial}" in capsys.readouterr().err
    assert partial.name.endswith(".partial")
    monkeypatch.undo()
    assert command.main([f"resume={partial}"], Console(quiet=True)) == 0
    (whole,) = tmp_path.iterdir()
    assert pd.read_csv(whole / "replications.csv")["error"].isna().all()


def test_a_table_that_finds_no_place_on_the_disk_is_told_of(lines, tmp_path, monkeypatch, capsys):
    def full(*_given):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sim.experiments.Folder.write_table", full)
    given = ["scenario=steady", *lines, "replications=2", "workers=1"]
    assert command.main(given, Console(quiet=True)) == 1
    (partial,) = tmp_path.iterdir()
    told = capsys.readouterr().err
    assert f"nothing more can be written to {partial}: No space left on device" in told
    assert f"go on with: python -m sim.replicate resume={partial}" in told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["resume=nowhere.partial"], "must be the .partial folder of what was interrupted"),
        (["resume=a.partial", "seed=3"], "must stand alone"),
    ],
)
def test_only_what_was_interrupted_can_be_gone_on_with(arguments, told, capsys):
    assert command.main(arguments) == 2
    assert told in capsys.readouterr().err


@pytest.mark.slow
def test_a_worker_that_is_killed_is_told_of_and_its_runs_are_played_again(tmp_path, lines):
    jobs = [
        Job(number, ("scenario=steady", *lines, f"seed={number}"), tmp_path / str(number))
        for number in range(1, 5)
    ]
    told, notes = [], []

    def kill_one(played):
        told.append(played.number)
        if len(told) == 1:
            for worker in multiprocessing.active_children():  # one of them has nothing to do, perhaps
                os.kill(worker.pid, signal.SIGKILL)

    played = play_all(jobs, 2, kill_one, notes.append)
    assert [each.verdict for each in played] == ["pass"] * 4
    assert sorted(told) == [1, 2, 3, 4]
    assert len(notes) == 1
    assert "a worker was killed" in notes[0]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["1", "2", "3", "4"]


@pytest.mark.slow
def test_the_run_that_no_worker_survives_is_known_and_the_others_are_played(tmp_path, lines, monkeypatch):
    """A module of one's own that ends the process stands for a run that needs more memory than there is."""
    (tmp_path / "deadly.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    monkeypatch.syspath_prepend(tmp_path)
    deadly = ["routing.modules=[deadly]"]
    jobs = [
        Job(number, ("scenario=steady", *lines, *(deadly if number == 1 else ())), tmp_path / str(number))
        for number in range(3)
    ]
    played = play_all(jobs, 2)
    assert [each.verdict for each in played] == ["pass", "error", "pass"]
    assert "its worker was killed" in played[1].error


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_whole_and_resume_goes_on(tmp_path, lines):
    """As a user does it: the signal goes to the process group, as a terminal sends it."""
    given = ["scenario=steady", *lines, "workload.requests=400", "replications=12", "workers=2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "sim.replicate", *given],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    while not list(tmp_path.glob("*.partial/runs/seed-?")):
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, complaint = process.communicate(timeout=180)
    assert b"go on with: python -m sim.replicate resume=" in complaint
    assert b"Traceback" not in complaint, complaint.decode()
    assert process.returncode == 130
    (partial,) = tmp_path.glob("*.partial")
    before = sorted(each.name for each in (partial / "runs").glob("seed-?"))
    assert 1 <= len(before) < 12
    assert command.main([f"resume={partial}"], Console(quiet=True)) == 0
    (whole,) = tmp_path.glob("*_replicate_steady")
    assert len(list((whole / "runs").iterdir())) == 12
