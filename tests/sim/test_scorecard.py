"""The scorecard: the published tables, ours beside theirs."""

import re
from pathlib import Path

import pytest

from sim.scorecard.__main__ import main
from sim.scorecard.table import Table, page
from sim.scorecard.timing import timed

COMMITTED = Path(__file__).parents[2] / "docs" / "scorecard.md"
QUICK = ["seeds=1", "duration_s=60", "requests=2", "rounds=1"]


def labels(text):
    """Titles, heads, and the words of each row: all but the figures that were measured."""
    return [
        re.sub(r"[\d.,]+(?: ± [\d.,]+)?", "#", line.split(" | ")[0] + line.split(" | ")[1])
        for line in text.splitlines()
        if line.startswith("| ")
    ] + [line for line in text.splitlines() if line.startswith("## ")]


@pytest.mark.slow
def test_the_committed_one_has_the_tables_that_the_command_makes(tmp_path):
    out = tmp_path / "scorecard.md"
    assert main([*QUICK, f"out={out}"]) == 0
    assert labels(out.read_text()) == labels(COMMITTED.read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["scorecard.md"]


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("seed", "'seed' is no setting: write SETTING=VALUE; the settings are out, seeds, seed,"),
        ("seeds=0", "scorecard.seeds is 0, but must be at least 1"),
        ("seeds=x", "scorecard.seeds is 'x', but must be of type integer"),
        ("out=nowhere/x.md", "scorecard.out is 'nowhere/x.md', but must be in a folder that is there"),
        ("out=x.txt", "scorecard.out is 'x.txt', but must be the name of a Markdown file"),
        ("speed=2", "no setting is called 'scorecard.speed'"),
    ],
)
def test_bad_settings_are_named_and_nothing_is_measured(argument, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([argument]) == 2
    assert says in capsys.readouterr().err.replace("\n", " ")
    assert not list(tmp_path.iterdir())


def test_an_interrupt_writes_nothing(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("sim.scorecard.__main__.measured", stop)
    assert main([f"out={tmp_path}/x.md"]) == 130
    assert not list(tmp_path.iterdir())


def test_more_work_takes_longer():
    little, much = (timed(lambda n=n: sum(range(n)), rounds=3, calls=200) for n in (10, 2_000))
    assert 0 < little.mean_ns < much.mean_ns
    assert little.p99_ns < much.p99_ns


def test_a_page_says_where_and_how_it_was_made():
    text = page([Table("Speed", ("what", "ours"), [("route", "1 us")], "One core.")], "a machine", "make it")
    assert "## Speed\n\nOne core.\n\n| what | ours |\n| --- | --- |\n| route | 1 us |" in text
    assert "```bash\nmake it\n```" in text
    assert "on a machine." in text
