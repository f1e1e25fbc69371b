"""`python -m sim -m`: the sweep of `sim.sweep`, played by Hydra's launchers, and what befalls one on its way."""

import os
import resource
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
from sim import multirun
from sim.workers import play_all

ROOT = Path(__file__).parents[2]
LINES = [
    "scenario=steady",
    "executor=roofline",
    "report=tables",
    "workload=chat",
    "workload.requests=40",
    "workload.rate=20",
]
SWEPT = ["strategy=round_robin,random", "seed=range(1,3)"]
TABLES = ("index.csv", "ranking.csv", "comparisons.csv")


@pytest.fixture
def lines(tmp_path):
    return [*LINES, f"report.folder={tmp_path}"]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """What `sim.sweep` makes of the same lines."""
    folder = tmp_path_factory.mktemp("reference")
    return sim.sweep([*LINES, f"report.folder={folder}", *SWEPT], workers=1).path


def quiet():
    return Console(quiet=True)


def command(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "sim", "-m", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


def the_only(folder, pattern):
    (path,) = folder.glob(pattern)
    return path


def assert_alike(one, other):
    """The same bytes; the runs lie in folders of the same names."""
    for name in TABLES:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert len(list((one / "runs").iterdir())) == len(pd.read_csv(one / "index.csv"))


@pytest.mark.slow
def test_it_is_the_sweep_of_sim_sweep_by_another_launcher(lines, tmp_path, reference):
    out = Console(width=180, record=True, file=StringIO())
    assert multirun.main(["-m", "hydra/launcher=basic", *lines, *SWEPT], out) == 0
    assert "2 combinations, 4 runs (2 seeds each), the best by mean_ttft_s first" in out.export_text()
    found = the_only(tmp_path, "*_sweep_steady")
    assert not (found / "launcher").exists()
    assert_alike(found, reference)
    assert [run.config["seed"] for run in map(sim.open_run, sorted((found / "runs").iterdir()))] == [
        1,
        2,
        1,
        2,
    ]


@pytest.mark.slow
def test_a_run_that_fails_its_check_is_kept_and_the_exit_code_says_so(lines, tmp_path):
    given = ["hydra/launcher=basic", *lines, "fleet.max_batch=1", "fleet.queue_capacity=100,0"]
    assert multirun.main(given, quiet()) == 1
    index = pd.read_csv(the_only(tmp_path, "*_sweep_steady") / "index.csv")
    assert list(index["verdict"]) == ["pass", "fail"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["workload.rate=5,0"], "workload.rate is 0.0, but must be above 0"),
        (["hydra/launcher=nobody"], "no hydra/launcher is called 'nobody'; choose from"),
        (["hydra/launcher=joblib,ray"], "hydra/launcher has several values"),
        (["hydra.launcher.n_job=2"], "no setting is called 'hydra.launcher.n_job'"),
        (["hydra.sweep.dir=there"], "'hydra.sweep.dir=there' is not looked at in a sweep"),
        (["hydra/sweeper=basic"], "'hydra/sweeper=basic' is not looked at in a sweep"),
        (["workers=2"], "workers is for python -m sim.sweep; here it is the launcher's"),
        (["--cfg", "job"], "'--cfg' cannot stand beside -m"),
        (["rank=cats"], "rank is 'cats', but must be one of mean_ttft_s"),
        (["pareto=mean_ttft_s"], "pareto is 'mean_ttft_s', but must be two figures"),
        (["pareto=cats,mean_ttft_s"], "pareto is 'cats', but must be one of mean_ttft_s"),
        (["heat=strategy,eviction"], "heat is 'strategy,eviction', but must be two of the settings"),
        (["baseline=eviction=lru"], "baseline is 'eviction=lru', but must name values of what is swept"),
        (["folder="], "folder is '', but must be the path of a folder"),
        (["resume=nowhere.partial"], "must stand alone"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_bad_input_exits_with_2_one_sentence_and_no_folder(given, told, lines, tmp_path, capsys):
    assert multirun.main([*lines, *given], quiet()) == 2
    err = capsys.readouterr().err
    assert told in err
    assert err.startswith("modelyard: ")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("launcher", "package"), [("ray", "modelyard[ray]"), ("submitit_slurm", "modelyard[slurm]")]
)
def test_a_launcher_that_is_not_installed_is_named_with_its_extra(
    launcher, package, lines, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(multirun, "find_spec", lambda _module: None)
    assert multirun.main([*lines, f"hydra/launcher={launcher}"], quiet()) == 2
    assert (
        f"hydra/launcher is '{launcher}', which is not installed: pip install '{package}'"
        in capsys.readouterr().err
    )
    assert list(tmp_path.iterdir()) == []


def test_slurm_is_configured_by_its_own_settings(lines):
    settings = [
        "hydra/launcher=submitit_slurm",
        "hydra.launcher.partition=gpu",
        "hydra.launcher.timeout_min=30",
    ]
    multirun.Launching(settings).check(lines)


@pytest.mark.slow
def test_a_folder_of_that_name_is_gone_on_with_and_no_other_sweep_is(
    lines, tmp_path, monkeypatch, capsys, reference
):
    given = ["hydra/launcher=basic", *lines, *SWEPT, f"folder={tmp_path / 'mine'}"]

    def interrupted(_self, jobs, _told, _note):
        play_all(jobs[:1], 1)
        (jobs[0].folder.parent / "torn.partial").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(multirun.Launching, "play", interrupted)
    assert multirun.main(given, quiet()) == 130
    partial = tmp_path / "mine.partial"
    assert len(pd.read_csv(partial / "index.csv")) == 1
    assert f"go on with: python -m sim -m resume={partial}" in capsys.readouterr().err
    monkeypatch.undo()
    kept = (partial / "runs" / "00000" / "requests.parquet").stat().st_mtime_ns
    assert multirun.main([*given[:-2], "seed=7", given[-1]], quiet()) == 2
    assert "holds something else" in capsys.readouterr().err
    assert multirun.main([*given, "rank=mean_tpot_s"], quiet()) == 0
    assert "1 of 4 runs were played before" in capsys.readouterr().err
    assert (tmp_path / "mine" / "runs" / "00000" / "requests.parquet").stat().st_mtime_ns == kept
    assert not partial.exists()
    assert multirun.main(given, quiet()) == 0
    assert "4 of 4 runs were played before" in capsys.readouterr().err
    assert_alike(tmp_path / "mine", reference)


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_and_gone_on_with_it_is_as_if_nothing_had_happened(lines, tmp_path):
    given = [*lines, "workload.requests=400", "strategy=round_robin,random", "seed=1..3"]
    process = command(*given)
    while not list(tmp_path.glob("*.partial/runs/0000?")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers are sent it too
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    partial = the_only(tmp_path, "*.partial")
    assert err.splitlines() == [
        f"modelyard: go on with: python -m sim -m resume={partial}",
        "modelyard: interrupted; the runs that were whole are kept",
    ]
    whole = sorted(each.name for each in (partial / "runs").glob("0000?"))
    assert 1 <= len(whole) < 6
    before = {name: (partial / "runs" / name / "manifest.json").read_bytes() for name in whole}
    assert multirun.main([f"resume={partial}"], quiet()) == 0
    found = the_only(tmp_path, "*_sweep_steady")
    assert {name: (found / "runs" / name / "manifest.json").read_bytes() for name in whole} == before
    assert_alike(found, sim.sweep(given, workers=1).path)


@pytest.mark.slow
def test_a_worker_that_is_killed_is_told_of_and_its_runs_are_played_again(lines, tmp_path):
    """A module of one's own kills the process that first reads it, as a kernel short of memory does."""
    (tmp_path / "deadly.py").write_text(
        "import os, pathlib, signal\n"
        f"mark = pathlib.Path({str(tmp_path / 'killed')!r})\n"
        "if os.environ.get('LOKY_MARK') and not mark.exists():\n"
        "    mark.touch()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    process = command(
        *lines, *SWEPT, "routing.modules=[deadly]", "+hydra.job.env_set.LOKY_MARK=1", env=environment
    )
    _, err = process.communicate(timeout=120)
    assert (tmp_path / "killed").exists()
    assert process.returncode == 0, err
    assert "the launcher lost a process; what it took along is played again" in err
    assert len(pd.read_csv(the_only(tmp_path, "*_sweep_steady") / "index.csv")) == 4


@pytest.mark.slow
def test_a_full_disk_ends_in_one_sentence_and_what_is_missing_is_played_once_there_is_room(lines, tmp_path):
    """A limit on the size of files stands for a disk: some runs fit, larger ones do not."""
    given = ["hydra/launcher=basic", *lines, "workload.requests=2,60", "seed=1,2"]
    limit = 60_000
    process = command(*given, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    partial = the_only(tmp_path, "*.partial")
    assert "2 of 4 runs could not be played for want of memory or disk" in err
    assert f"go on with: python -m sim -m resume={partial}" in err
    assert "Traceback" not in out + err
    assert "File too large" in out
    index = pd.read_csv(partial / "index.csv", keep_default_na=False)
    assert list(index["verdict"]) == ["pass", "pass", "error", "error"]
    assert sorted(each.name for each in (partial / "runs").iterdir()) == ["00000", "00001"]
    assert multirun.main([f"resume={partial}"], quiet()) == 0
    assert_alike(the_only(tmp_path, "*_sweep_steady"), sim.sweep(given[1:], workers=1).path)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["ray", "submitit_local"])
def test_other_launchers_play_the_same(launcher, lines, tmp_path, reference):
    process = command(f"hydra/launcher={launcher}", *lines, *SWEPT)
    _, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    assert_alike(the_only(tmp_path, "*_sweep_steady"), reference)
