"""The command line, as a user types it: another process, an empty folder, exit codes, one sentence."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

import sim
from engine.errors import BadSettings
from sim.config import choices
from sim.traffic.sample import write_sample

ROOFLINE = ("scenario=failover", "executor=roofline", "report=tables")


def command(folder, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "sim", *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def only_run(folder):
    (path,) = (folder / "runs").iterdir()
    return path


def test_a_run_leaves_its_folder_and_its_verdict(tmp_path):
    done = command(tmp_path, "scenario=failover", "executor=roofline")
    assert done.returncode == 0, done.stderr
    assert "PASS  failover  round_robin on roofline, seed 1: 1200 of 1200 requests completed" in done.stdout
    path = only_run(tmp_path)
    assert str(path.relative_to(tmp_path)) in done.stdout
    names = {each.name for each in path.iterdir()}
    assert names == {
        "config.yaml",
        "overrides.yaml",
        "manifest.json",
        "requests.parquet",
        "timeseries.parquet",
        "decisions.parquet",
        "events.jsonl",
        "summary.json",
        "checks.json",
        "facts.parquet",
        "findings.json",
        "metrics.prom",
        "trace.json.gz",
        "plots",
        "report.html",
        "report.md",
    }
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["digest"] in done.stdout
    assert yaml.safe_load((path / "overrides.yaml").read_text()) == ["scenario=failover", "executor=roofline"]
    assert len(pd.read_parquet(path / "requests.parquet")) == 1200
    assert len(json.loads(gzip.decompress((path / "trace.json.gz").read_bytes()))["traceEvents"]) > 1200


@pytest.mark.slow
def test_the_same_config_and_seed_give_the_same_bytes_in_another_process(tmp_path):
    assert command(tmp_path, *ROOFLINE, PYTHONHASHSEED="4711").returncode == 0
    here = sim.run(ROOFLINE[0].partition("=")[2], [*ROOFLINE[1:], f"report.folder={tmp_path / 'here'}"])
    there = only_run(tmp_path)
    for name in ("requests.parquet", "events.jsonl", "timeseries.parquet"):
        assert (there / name).read_bytes() == (here.path / name).read_bytes()
    assert json.loads((there / "manifest.json").read_text())["digest"] == here.manifest["digest"]


@pytest.mark.slow
def test_another_seed_gives_another_digest(tmp_path):
    one, two = (
        sim.run("failover", [*ROOFLINE[1:], f"seed={seed}", f"report.folder={tmp_path}"]) for seed in (1, 2)
    )
    assert one.manifest["digest"] != two.manifest["digest"]


def test_help_shows_what_there_is_to_choose_from(tmp_path):
    done = command(tmp_path, "--help")
    assert done.returncode == 0
    assert "scenario=" + "|".join(choices("scenario")) in done.stdout
    assert "executor=law|profile|roofline|torch" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_failed_check_exits_with_1_and_keeps_the_run(tmp_path):
    done = command(tmp_path, *ROOFLINE, "routing.max_attempts=1")
    assert done.returncode == 1
    assert "fail  requests that did not complete" in done.stdout
    assert (only_run(tmp_path) / "checks.json").is_file()


@pytest.mark.slow
def test_an_undecided_check_exits_with_3(tmp_path):
    done = command(tmp_path, *ROOFLINE, "workload.requests=3")
    assert done.returncode == 3
    assert "INCONCLUSIVE" in done.stdout


def trace(tmp_path, text):
    (tmp_path / "trace.csv").write_text(text)


HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
GOOD_ROW = "2023-11-16 18:15:46.6805900,374,44\n"
BAD = [
    ((), None, "no scenario is given"),
    (("scenario=nope",), None, "no scenario is called 'nope'; choose from ab_test, affinity, cache_aware, "),
    (("strategy=nope",), None, "no strategy is called 'nope'; choose from affinity, blend, cache_aware"),
    (("strategy=null",), None, "strategy is None, but must be one of affinity, blend, cache_aware"),
    (("workload=diverse",), None, "the workload asks for 'Llama-3.3-70B-Instruct', but no model is called "),
    (("executor=nope",), None, "no executor is called 'nope'; choose from law, profile, roofline, torch"),
    (("workload.speed=2",), None, "no setting is called 'workload.speed'; the settings of workload are kind"),
    (("workload.requests=0",), None, "workload.requests is 0"),
    (("workload.rate=0",), None, "workload.rate is 0.0, but must be above 0"),
    (("workload.rate=-1",), None, "workload.rate is -1.0, but must be above 0"),
    (("scenario.victim=z",), None, "scenario.victim is 'z', but must be a replica of the fleet: a, b, c"),
    (("faults=[{fault: crash, replica: q, at_s: 1}]",), None, "faults[0].replica is 'q'"),
    (
        ("scenario.dies_at_s=9", "scenario.returns_at_s=8"),
        None,
        "scenario.returns_at_s is 8.0, but must be after",
    ),
    (("workload=azure", "workload.path=nowhere.csv"), None, "nowhere.csv"),
    (("workload=azure", "workload.path=trace.csv"), "", "empty"),
    (("workload=azure", "workload.path=trace.csv"), HEADER, "trace.csv"),
    (
        ("workload=azure", "workload.path=trace.csv"),
        "a,b,c\n" + GOOD_ROW,
        "TIMESTAMP,ContextTokens,GeneratedTokens",
    ),
    (
        ("workload=azure", "workload.path=trace.csv"),
        HEADER + GOOD_ROW + "2023-11-16 18:15:47,-5,44\n",
        "line 3",
    ),
    (
        ("workload=azure", "workload.path=trace.csv"),
        HEADER + GOOD_ROW + "2023-11-16 18:15:47,many,44\n",
        "line 3",
    ),
    (("workload=azure", "workload.path=trace.csv"), HEADER + GOOD_ROW + "2023-11-16 18:15", "line 3"),
]


@pytest.mark.parametrize(("lines", "text", "sentence"), BAD, ids=lambda value: str(value)[:50])
def test_bad_input_exits_with_2_one_sentence_and_no_run_folder(
    tmp_path, monkeypatch, capsys, lines, text, sentence
):
    from sim.__main__ import main  # noqa: PLC0415  the process of every other test should not have loaded it

    if text is not None:
        trace(tmp_path, text)
    first = [] if any(line.startswith("scenario=") for line in lines) or not lines else ["scenario=failover"]
    executor = (
        [] if any(line.startswith("executor=") for line in lines) or not lines else ["executor=roofline"]
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sim", *first, *executor, *lines])
    with pytest.raises(SystemExit) as exited:
        main()
    out, err = capsys.readouterr()
    assert exited.value.code == 2
    assert sentence in err
    assert err.startswith("modelyard: ")
    assert err.count("\n") == 1
    assert out == ""
    assert not (tmp_path / "runs").exists()


def test_bad_input_leaves_no_traceback_in_a_process_of_its_own(tmp_path):
    done = command(tmp_path, "scenario=failover", "executor=roofline", "workload.rate=0")
    assert done.returncode == 2
    assert done.stderr == "modelyard: workload.rate is 0.0, but must be above 0\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_gzip_cut_short_is_refused_even_when_the_wanted_rows_are_whole(tmp_path):
    write_sample(tmp_path / "trace.csv.gz", 5_000, 5.5, 1)
    whole = (tmp_path / "trace.csv.gz").read_bytes()
    (tmp_path / "trace.csv.gz").write_bytes(whole[: len(whole) // 2])
    done = command(
        tmp_path, *ROOFLINE, "workload=azure", "workload.path=trace.csv.gz", "workload.requests=10"
    )
    assert done.returncode == 2
    assert "trace.csv.gz" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_trace_file_drives_the_scenario(tmp_path):
    write_sample(tmp_path / "trace.csv", 300, 5.5, 1)
    done = command(tmp_path, *ROOFLINE, "workload=azure", "workload.path=trace.csv")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "200 of 200 requests completed" in done.stdout


@pytest.mark.slow
def test_the_published_trace_drives_the_scenario_whole(tmp_path):
    path = Path(__file__).parents[3] / "shared" / "traces" / "azure_llm_2023_conv_first30min.csv.gz"
    if not path.is_file():
        pytest.skip("the published trace is not beside this tree")
    done = command(tmp_path, *ROOFLINE, "workload=azure", f"workload.path={path}", "workload.requests=null")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10108 of 10108 requests completed" in done.stdout


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("fleet=null", "fleet is None, but must be one of five_alike, reference_five"),
        ("tiers=[ram, 7]", "tiers is ['ram', 7], but must be one of five, gpu_ram"),
        ("hydra/launcher=7", "hydra/launcher is 7, but must be the name of a choice"),
        ("=3", "'=3' is no setting: write KEY=VALUE"),
    ],
)
def test_a_choice_that_is_no_name_is_refused_where_only_the_settings_are_asked_for_too(line, said, tmp_path):
    done = command(tmp_path, "--cfg", "job", "scenario=steady", line)
    assert done.returncode == 2
    assert done.stderr.startswith(f"modelyard: {said}")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


HOOK = """import builtins, os, signal
importing = builtins.__import__
def interrupted(name, *given, **named):
    if name.startswith("hydra"):
        os.kill(os.getpid(), signal.SIGINT)
    return importing(name, *given, **named)
builtins.__import__ = interrupted
"""


@pytest.mark.parametrize("module", ["sim", "sim.replicate", "sim.traffic"])
def test_ctrl_c_while_a_command_imports_ends_it_without_a_word(module, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(HOOK, encoding="utf-8")
    paths = [str(tmp_path), str(Path(sim.__file__).parents[1])]
    done = subprocess.run(
        [sys.executable, "-m", module, "scenario=steady"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_ctrl_c_is_left_to_a_program_that_imports_the_simulator(tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "__init__.py").write_text("import sim\n", encoding="utf-8")
    told = "import signal\nprint(signal.getsignal(signal.SIGINT) is signal.default_int_handler)\n"
    (tmp_path / "theirs" / "__main__.py").write_text(told, encoding="utf-8")
    paths = [str(tmp_path), str(Path(sim.__file__).parents[1])]
    done = subprocess.run(
        [sys.executable, "-m", "theirs"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "True\n"


@pytest.mark.slow
def test_ctrl_c_leaves_what_had_finished_readable(tmp_path):
    lines = ["scenario=steady", "executor=roofline", "workload.requests=400000", "workload.rate=30"]
    process = subprocess.Popen(
        [sys.executable, "-m", "sim", *lines],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("runs/*.partial/events.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    (path,) = (tmp_path / "runs").iterdir()
    assert path.name.endswith(".partial")
    assert "interrupted with" in out
    assert "\nINTERRUPTED  steady" in out
    assert "PASS" not in out.split("INTERRUPTED")[1]
    run = sim.open_run(path)
    assert run.manifest["interrupted"]
    assert 0 < len(run.requests) < 400_000
    assert (run.requests["outcome"] == "completed").all()
    assert (path / "report.html").is_file()
    with pytest.raises(BadSettings, match="no finished run matches"):
        sim.load(tmp_path / "runs" / "**")
