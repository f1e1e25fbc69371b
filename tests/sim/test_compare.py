"""Pairs of runs on the same traffic: what is seen, what is not, and what cannot be paired."""

from io import StringIO

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

import sim
from engine.errors import BadSettings
from sim import compare as command
from sim.compare import UNSEEN, rows_of

LINES = ["executor=roofline", "report=tables", "workload=chat", "workload.requests=80", "workload.rate=20"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def run(folder):
    def played(*lines):
        return sim.run("steady", [*LINES, f"report.folder={folder}", *lines])

    return played


@pytest.fixture(scope="module")
def fast_and_slow(run):
    """Two seeds each; the slow side has an accelerator with twice the overhead a step."""
    slow = "executor.overhead_us=5000"
    return [[run(f"seed={seed}", *more) for seed in (1, 2)] for more in ((), (slow,))]


def test_a_difference_is_seen_pair_by_pair(fast_and_slow):
    found = sim.compare(*fast_and_slow)
    assert found.seeds == [1, 2]
    rows = {row.figure: row for row in found.rows}
    assert rows["mean_e2e_s"].difference.mean > 0
    assert rows["mean_e2e_s"].difference.count == 2
    assert rows["token_hit_ratio"].verdict == UNSEEN


def test_a_single_pair_is_compared_request_by_request(fast_and_slow):
    (fast, _), (slow, _) = fast_and_slow
    rows = {row.figure: row for row in sim.compare(fast, slow).rows}
    assert rows["mean_tpot_s"].difference.count == 80
    assert rows["mean_tpot_s"].verdict == "worse"
    assert {row.figure: row for row in sim.compare(slow, fast).rows}["mean_tpot_s"].verdict == "better"
    assert rows["p50_tpot_s"].verdict == "one pair: no interval"


def test_a_run_does_not_differ_from_itself(fast_and_slow):
    found = sim.compare(fast_and_slow[0], [str(run.path) for run in fast_and_slow[0]])
    assert {row.verdict for row in found.rows} == {UNSEEN}
    assert {row.difference.mean for row in found.rows} == {0.0}


def test_what_cannot_be_paired_is_refused(run, fast_and_slow, folder):
    first, second = fast_and_slow
    with pytest.raises(BadSettings, match="seed 2 has no run on the second side"):
        sim.compare(first, second[0])
    with pytest.raises(BadSettings, match="seed 1 has two runs on the first side"):
        sim.compare([first[0], second[0]], second[0])
    with pytest.raises(BadSettings, match="seed 1 met different traffic"):
        sim.compare(first[0], run("seed=1", "workload.requests=81"))
    with pytest.raises(BadSettings, match="no finished run matches"):
        sim.compare(folder / "none*", first)


def test_being_many_figures_is_corrected_for():
    draws = np.random.default_rng(3).normal(1.0, 0.1, (8, 3))
    names = ["mean_ttft_s", "mean_e2e_s", "p99_e2e_s"]
    first = pd.DataFrame(draws, columns=names)
    second = first + np.r_[[0.03] * 4, [0.01] * 4][:, None] * [1, 0, 0]
    row = rows_of(first, second)[0]
    assert row.p_value == pytest.approx(3 * row.difference.p_value)
    assert row.verdict == "worse"


def test_the_command_shows_a_table_and_draws_a_forest(fast_and_slow, tmp_path):
    first, second = ([str(run.path) for run in side] for side in fast_and_slow)
    out = Console(width=110, record=True, file=StringIO())
    assert command.main([*first, "--", *second, f"out={tmp_path / 'forest.png'}"], out) == 0
    assert "2 pairs of runs" in out.export_text()
    assert (tmp_path / "forest.png").read_bytes().startswith(b"\x89PNG")
    assert command.main([*first], out) == 2
    assert command.main([*first, "--", "nowhere"], out) == 2


@pytest.mark.parametrize("name", ["", "forest", "forest.xyz", "nowhere/forest.png"])
def test_a_picture_that_cannot_be_written_is_refused_before_anything_is_compared(name, monkeypatch, capsys):
    monkeypatch.setattr(command, "compare", lambda *_given: pytest.fail("it is compared all the same"))
    assert command.main(["a", "--", "b", f"out={name}"]) == 2
    assert f"out is {name!r}, but must be a file in a folder that exists" in " ".join(
        capsys.readouterr().err.split()
    )


def test_ctrl_c_is_said_and_nothing_is_written(monkeypatch, capsys):
    def interrupted(*_given):
        raise KeyboardInterrupt

    monkeypatch.setattr("sim.compare.compare", interrupted)
    assert command.main(["a", "--", "b"]) == 130
    assert capsys.readouterr().err == "modelyard: interrupted; nothing is written\n"
