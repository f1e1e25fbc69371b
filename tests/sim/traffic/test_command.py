"""`python -m sim.traffic`, called as a function, and once as a command."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sim.config import choices, typed
from sim.traffic.__main__ import main
from sim.traffic.generator import GeneratedWorkload
from sim.traffic.sample import write_sample


@pytest.fixture
def sample(tmp_path):
    path = tmp_path / "sample.csv.gz"
    write_sample(path, 3000, 5.5, 1)
    return path


def refused(capsys, *arguments):
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("modelyard: ")
    assert said.err.count("\n") == 1
    return said.err


def test_without_arguments_it_says_how_it_is_used(capsys):
    assert main([]) == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: python -m sim.traffic describe")
    assert all(name in said for name in choices("workload"))


def test_a_file_is_described(sample, capsys):
    assert main(["describe", str(sample)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "requests 3,000 dropped rows 0 span, s" in said
    assert "index of dispersion, 10 / 60 s" in said


@pytest.mark.parametrize("name", ["mix_b", "flash", "short", "favourite", "mix_b_brief"])
def test_a_workload_is_described_with_its_settings_changed(name, capsys):
    assert main(["describe", f"workload={name}", "workload.requests=300", "block_tokens=16"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "requests 300 dropped rows 0" in said


def test_the_seed_is_that_of_the_draws(capsys):
    said = []
    for seed in ("1", "1", "2"):
        assert main(["describe", "workload=generated", f"seed={seed}"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != said[2]


@pytest.mark.parametrize("name", ["like.yaml", "like.yml"])
def test_a_fit_is_written_and_can_be_described(name, sample, tmp_path, capsys):
    out = tmp_path / name
    assert main(["fit", str(sample), f"out={out}"]) == 0
    said = capsys.readouterr().out
    assert "original" in said
    assert "regenerated" in said
    settings = typed(GeneratedWorkload, yaml.safe_load(out.read_text()), "workload")
    assert settings.arrivals.shape == pytest.approx(0.87, abs=0.09)
    assert main(["describe", str(out), "workload.duration_s=60"]) == 0
    assert "span, s" in capsys.readouterr().out
    assert sorted(tmp_path.iterdir()) == [out, sample]


def test_what_is_regenerated_has_another_seed(capsys):
    assert main(["fit", "workload=generated"]) == 0
    row = next(line for line in capsys.readouterr().err.splitlines() if "CV of gaps " in line)
    original, regenerated = row.split()[-2:]
    assert original != regenerated


@pytest.mark.parametrize(("requests", "drawn"), [(3, False), (50, True)])
def test_a_fit_to_a_few_requests_is_written_even_if_nothing_is_drawn_from_it(requests, drawn, capsys):
    assert main(["fit", "workload=generated", f"workload.requests={requests}"]) == 0
    said = capsys.readouterr()
    assert "kind: generated" in said.out
    assert ("regenerated" in said.err) is drawn


def test_a_fit_goes_to_standard_output_and_its_figures_elsewhere(sample, capsys):
    assert main(["fit", str(sample), "window_s=60"]) == 0
    said = capsys.readouterr()
    settings = typed(GeneratedWorkload, yaml.safe_load(said.out), "workload")
    assert settings.arrivals.curve_s == 60
    assert "regenerated" in said.err


def test_what_cannot_be_is_refused_in_one_sentence(sample, capsys):
    assert "no command is called 'descibe'" in refused(capsys, "descibe", str(sample))
    assert "describe has no traffic" in refused(capsys, "describe")
    assert "no.csv is no file" in refused(capsys, "describe", "no.csv")
    assert "choose from azure, bare" in refused(capsys, "describe", "workload=nobody")
    assert "'seed' is no setting" in refused(capsys, "describe", str(sample), "seed")
    assert "no setting of describe is called 'sed'" in refused(capsys, "describe", str(sample), "sed=1")
    assert "no setting of describe is called 'out'" in refused(capsys, "describe", str(sample), "out=x.yaml")
    assert "seed is -1" in refused(capsys, "describe", str(sample), "seed=-1")
    assert "workload.rat" in refused(capsys, "describe", "workload=mix_b", "workload.rat=1")
    assert "workload.rate is -1" in refused(capsys, "describe", "workload=mix_b", "workload.rate=-1")
    assert "workload.path has no value" in refused(capsys, "describe", "workload=azure")
    assert "workload.output=[1] cannot be set" in refused(
        capsys, "describe", "workload=closed", "workload.output=[1]"
    )
    assert "block_tokens is 0" in refused(capsys, "describe", str(sample), "block_tokens=0")
    assert "window_s is" in refused(capsys, "fit", str(sample), "window_s=-5")


@pytest.mark.parametrize("content", ["", "[1, 2]", "kind: nothing", "a: b: c", "kind: generated\nrate: x"])
def test_settings_that_are_none_are_refused(content, tmp_path, capsys):
    path = tmp_path / "settings.yaml"
    path.write_text(content)
    refused(capsys, "describe", str(path))


def test_nothing_is_written_of_a_trace_that_is_no_good(tmp_path, capsys):
    path, out = tmp_path / "cut.csv", tmp_path / "out.yaml"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,12,-1\n")
    assert "line 2" in refused(capsys, "fit", str(path), f"out={out}")
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_written_is_refused(sample, tmp_path, capsys):
    assert main(["fit", str(sample), f"out={tmp_path}/nowhere/out.yaml"]) == 2
    assert "cannot be written: No such file or directory" in capsys.readouterr().err


def test_a_fit_of_more_models_than_usual_can_be_described_under_their_names(tmp_path, capsys):
    path, out = tmp_path / "many.csv", tmp_path / "like.yaml"
    rows = [f"{at / 10},model-{at % 7},t,{10 * 3 ** (at % 7) + at % 3},{5 + at % 4}\n" for at in range(1400)]
    path.write_text("timestamp_s,model,tenant,input_tokens,output_tokens\n" + "".join(rows))
    assert main(["fit", str(path), f"out={out}"]) == 0
    assert yaml.safe_load(out.read_text())["kind"] == "merged"
    assert yaml.safe_load(out.read_text())["requests"] is None  # for a line that sets it
    capsys.readouterr()
    assert main(["describe", str(out)]) == 0
    said = capsys.readouterr().out
    assert "model-" in next(line for line in said.splitlines() if "models: largest shares" in line)
    asked = ["workload=crowd", "workload.requests=500", "workload.parts.crowd.models=9"]
    assert main(["describe", *asked]) == 0


@pytest.mark.parametrize("out", [".", "..", "/", "folder"])
def test_a_folder_is_no_file_to_write_and_nothing_is_left_in_it(out, sample, tmp_path, capsys, monkeypatch):
    inside = tmp_path / "inside"
    (inside / "folder").mkdir(parents=True)
    monkeypatch.chdir(inside)
    assert "must be the path of a file, or null" in refused(capsys, "fit", str(sample), f"out={out}")
    assert sorted(tmp_path.rglob("*")) == [inside, inside / "folder", sample]


def test_what_was_written_of_a_fit_that_cannot_be_kept_is_taken_away(sample, tmp_path, capsys, monkeypatch):
    def refuses(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuses)
    assert main(["fit", str(sample), f"out={tmp_path}/out.yaml"]) == 2
    assert "out.yaml cannot be written: No space left on device" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [sample]


def test_names_are_shown_as_they_are_written(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path("[b]trace[1]:cat:.csv")
    header = "timestamp_s,model,tenant,input_tokens,output_tokens\n"
    path.write_text(f"{header}0,a:cat:,[red]x[/b],5,5\n1,a,y,5,5\n")
    assert main(["describe", str(path)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("[b]trace[1]:cat:.csv ")
    assert "a:cat: 0.500" in said
    assert "[red]x[/b] 0.500" in said


def test_a_file_of_settings_that_holds_itself_is_refused(tmp_path, capsys):
    path = tmp_path / "itself.yaml"
    path.write_text("a: &a [*a]\n", encoding="utf-8")
    assert "has groups in groups without end" in refused(capsys, "describe", str(path))


def test_ctrl_c_is_said_and_nothing_is_written(sample, tmp_path, capsys, monkeypatch):
    def interrupted(*_given):
        raise KeyboardInterrupt

    monkeypatch.setattr("sim.traffic.__main__.describe", interrupted)
    assert main(["fit", str(sample), f"out={tmp_path / 'like.yaml'}"]) == 130
    assert capsys.readouterr().err == "modelyard: interrupted; nothing is written\n"
    assert list(tmp_path.iterdir()) == [sample]


@pytest.mark.slow
def test_it_is_a_command():
    done = subprocess.run(
        [sys.executable, "-m", "sim.traffic", "describe", "workload=flash"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("flash")
