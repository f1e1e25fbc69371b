"""`python -m sim.profile`, called as a function."""

import pytest

from engine.execution.profile import SHIPPED
from engine.execution.profile_file import read_profile
from sim.profile.__main__ import main
from sim.profile.rig import Rig

QUICK = ["budget_s=0.2", "context_tokens=64", "fleet.max_batch=4"]
MODEL = "llama-3.2-1b"


def refused(capsys, *arguments):
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("modelyard: ")
    assert said.err.count("\n") == 1
    return said.err


def test_without_arguments_it_says_how_it_is_used(capsys):
    assert main([]) == 2
    assert capsys.readouterr().out.startswith("usage: python -m sim.profile out=FILE")
    assert main(["--help"]) == 0


def test_the_profile_that_comes_along_can_be_shown(capsys):
    path = SHIPPED / f"{MODEL}.json"
    assert path.stat().st_size < 60_000
    assert main(["show", str(path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for words in ("a step", "held out of the fit", "processor", "tiers.ssd.gib_per_s=", "models.warm_s="):
        assert words in said


@pytest.mark.slow
@pytest.mark.torch
def test_a_cost_model_is_measured_even_after_an_interruption_and_shown(tmp_path, capsys, monkeypatch):
    whole, seen = Rig.observe, []

    def interrupted(self, cell, repeats):
        seen.append(cell)
        if len(seen) > 8:
            raise KeyboardInterrupt
        return whole(self, cell, repeats)

    out = tmp_path / "new" / "out.json"
    monkeypatch.setattr(Rig, "observe", interrupted)
    assert main([f"out={out}", *QUICK]) == 130
    said = capsys.readouterr().err
    assert f"interrupted; 5 visits are kept in {out}.points, and the same command goes on with them" in said
    assert not out.exists()
    monkeypatch.undo()
    assert main([f"out={out}", *QUICK]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "held out of the fit" in said
    assert [each.name for each in out.parent.iterdir()] == [out.name]
    assert main(["show", str(out)]) == 0
    assert " ".join(capsys.readouterr().out.split()) == said
    assert read_profile(out).measured["context_tokens"] == 64


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["out"], "'out' is no setting: write SETTING=VALUE, or show FILE"),
        (["budget_s=3"], "out has no value: say with out=FILE where the cost model goes"),
        (["out="], "out has no value"),
        (["out=p.json", "budget_s=0"], "budget_s is 0.0, but must be above 0"),
        (["out=p.json", "budget_s=soon"], "profile.budget_s is 'soon', but must be of type float"),
        (["out=p.json", "budget_s=nan"], "budget_s is nan, but must be above 0"),
        (["out=p.json", "context_tokens=3"], "context_tokens is 3, but must be at least 64"),
        (["out=p.json", "seed=-1"], "seed is -1, but must be at least 0"),
        (["out=p.json", "model=none"], "no model is called 'none'; choose from llama-3.2-1b"),
        (["out=p.json", "executor=roofline"], "executor is 'roofline', but must be 'torch'"),
        (["out=p.json", "executor.device=abacus"], "executor.device is 'abacus', but must be a device"),
        (["out=p.json", "fleet=none"], "no fleet is called 'none'"),
        (["out=p.json", "models.folder=none"], "none"),
        (["out=."], "out is '.', but must be the path of a file in a folder that can be written to"),
        (["out=/dev/null/p.json"], "out is '/dev/null/p.json', but must be the path of a file"),
        (["show"], "show is given 0 files, but must be given the path of one profile"),
        (["show", "none.json"], "none.json: there is no such file"),
        (["show", "."], ".: is a folder, but must be a plain file"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(arguments, wanted, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "models.folder=none" in arguments:
        arguments = [*arguments, "model=other"]
    assert wanted in refused(capsys, *arguments)
    assert not list(tmp_path.iterdir())
