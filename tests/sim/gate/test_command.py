"""The command as it is typed, on what is cheap to measure."""

import json
import shutil

import pytest

from sim.gate import __main__ as command
from sim.gate import valgrind
from sim.gate.__main__ import main
from sim.gate.rows import INTERRUPTED

CHEAP = "rows=A/kept/registry_lookup,A/kept/cache_find"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)


def asked(*arguments):
    return main([*arguments, CHEAP, "baselines=baselines"])


def test_from_no_baseline_to_a_regression(tmp_path, capsys):
    """No baseline: 3. After a renewal: 0. When what was kept differs: 1, and its name."""
    assert asked() == 3
    assert capsys.readouterr().out.startswith("GATE INCONCLUSIVE 2 of 2\n")
    assert asked("update", "reason=the first") == 0
    assert asked() == 0
    assert "2 rows pass; show=all shows them" in capsys.readouterr().out
    path = tmp_path / "baselines" / "exact.json"
    path.write_text(path.read_text().replace('"A/kept/cache_find": ', '"A/kept/cache_find": 1'))
    assert asked("out=told") == 1
    said = capsys.readouterr().out
    assert said.startswith("GATE FAIL 1 of 2\n")
    assert "\n    python -m sim.gate rows=A/kept/cache_find baselines=baselines\n" in said
    told = json.loads((tmp_path / "told" / "gate.json").read_text())
    assert [row["verdict"] for row in told["rows"]] == ["fail", "pass"]
    assert "<failure" in (tmp_path / "told" / "gate.xml").read_text()


def test_without_valgrind_class_b_says_so_and_is_no_pass(monkeypatch, capsys):
    which = shutil.which
    monkeypatch.setattr(valgrind.shutil, "which", lambda name: None if name == "valgrind" else which(name))
    assert main(["rows=B/registry_lookup"]) == 3
    said = capsys.readouterr().out
    assert said.startswith("GATE INCONCLUSIVE 1 of 1\n")
    assert "valgrind is not installed (apt-get install valgrind)" in said


def test_an_interrupt_tells_the_rows_that_were_measured(monkeypatch, capsys, tmp_path):
    assert asked("update", "reason=the first") == 0
    rows_of = command.rows_of

    def interrupted(asked):
        yield next(rows_of(asked))
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "rows_of", interrupted)
    capsys.readouterr()
    assert asked("show=all") == 130
    said = capsys.readouterr().out
    assert said.startswith("GATE INCONCLUSIVE 1 of 2\n")
    assert INTERRUPTED in said
    told = json.loads((tmp_path / "runs" / "gate" / "gate.json").read_text())
    assert {row["verdict"] for row in told["rows"]} == {"pass", "inconclusive"}


def test_how_it_is_asked(capsys):
    assert main(["--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: python -m sim.gate")
    assert main(["policy", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: python -m sim.gate policy")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("chekc", "command is 'chekc', but must be one of check, update, selftest, policy"),
        ("classes=E", "classes is 'E', but must be some of A, B, C, D"),
        ("rows=none", "no row is called 'none'; choose from A/failover/events"),
        ("classes=D rows=A/*", "rows is 'A/*', of which none is in classes=D"),
        ("strategy=random", "'strategy=random' is no setting of a gate; the settings are classes"),
        ("show=some", "show is 'some', but must be worst or all"),
        ("out=", "out is '', but must be the path of a folder"),
        ("update", "reason is '', but must be why the baselines may be renewed"),
        ("check reason=x", "reason is 'x', but must be given with update only"),
        ("times=3", "times is '3', but must be given with selftest only"),
        ("selftest times=0", "times is '0', but must be a whole number of at least 1"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(line, said, capsys):
    assert main(line.split()) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"modelyard: {said}")
    assert told.count("\n") == 1


def test_a_baseline_that_is_damaged_is_refused(tmp_path, capsys):
    (tmp_path / "baselines").mkdir()
    (tmp_path / "baselines" / "exact.json").write_text("{")
    assert asked() == 2
    assert "exact.json cannot be read as baselines" in capsys.readouterr().err
