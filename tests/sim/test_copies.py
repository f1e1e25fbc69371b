"""A trace that is replayed as it stands is the same on every seed: as many runs of it are one observation."""

import json
from io import StringIO

import pandas as pd
import pytest
from rich.console import Console

import sim
from sim import replicate, sweep
from sim.advise.command import main as advise
from sim.copies import SAME, are_copies, rows_without_copies, without_copies
from sim.plots.several import mean_of

ROWS = [
    f"2024-05-10 00:00:{second:02}.5000000+00:00,{100 + 37 * second},{20 + second}" for second in range(40)
]


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *ROWS]))
    trace = ["workload=azure", f"workload.path={path}"]
    return ["executor=roofline", "report=tables", *trace, f"report.folder={tmp_path / 'runs'}"]


def test_copies_are_one_and_others_are_as_many_as_they_are():
    assert list(without_copies("abc", ["x", "x", "x"])) == ["a"]
    assert without_copies("abc", ["x", "x", "y"]) == "abc"
    assert without_copies("ab", ["", ""]) == "ab"  # of runs that failed nothing is known
    assert not are_copies(["x"])
    table = pd.DataFrame({"digest": ["x", "x"], "seed": [1, 2]})
    assert list(rows_without_copies(table)["seed"]) == [1]


def test_replications_that_are_the_same_have_no_interval_and_say_so(lines):
    found = replicate("steady", lines, replications=3, workers=1)
    assert found.intervals["mean_ttft_s"].mean == found.runs["mean_ttft_s"][0]
    assert all(each.half_width is None for each in found.intervals.values())
    told = json.loads((found.path / "intervals.json").read_text())
    assert told["intervals"]["mean_ttft_s"]["n"] == 1
    out = Console(width=130, record=True, file=StringIO())
    replicate.show(found, out)
    text = out.export_text()
    assert "mean_ttft_s" in text
    assert SAME in text


def test_more_of_the_same_would_not_make_anything_surer(lines):
    found = replicate("steady", lines, replications=2, most=50, until={"mean_ttft_s": 0.01}, workers=1)
    assert len(found.runs) == 2
    assert found.stopped_by == SAME


@pytest.mark.slow
def test_a_sweep_of_the_same_has_an_order_and_no_verdict(lines):
    swept = ["scenario=steady", *lines, "strategy=round_robin,least_loaded", "hardware=l4,a100", "seed=1..2"]
    found = sim.sweep(swept, workers=1)
    assert all(each.figure.half_width is None and each.p_value is None for each in found.ranking)
    assert {each.verdict("mean_ttft_s") for each in found.ranking} == {"", "one pair: no interval"}
    assert {row.difference.half_width for rows in found.effects.values() for row in rows} == {None}
    out = Console(width=130, record=True, file=StringIO())
    sweep.show_sweep(found, out)
    assert f"seeds  {SAME}" in out.export_text()
    folders = sorted((found.path / "runs").iterdir())
    compared = sim.compare(folders[:2], folders[4:6])
    assert compared.seeds == [1]
    assert next(row for row in compared.rows if row.figure == "mean_e2e_s").difference.count == len(ROWS)
    runs = [sim.open_run(each) for each in folders[:2]]
    assert mean_of(runs, "mean_ttft_s") == mean_of(runs[:1], "mean_ttft_s")


def test_what_draws_something_is_not_the_same(lines):
    found = sim.sweep(["scenario=steady", *lines, "strategy=round_robin,random", "seed=1..2"], workers=1)
    by_name = {each.name: each for each in found.ranking}
    assert by_name["strategy=round_robin"].figure.half_width is None
    assert by_name["strategy=random"].figure.half_width > 0
    assert by_name["strategy=random"].difference.count == 2
    out = Console(width=130, record=True, file=StringIO())
    sweep.show_sweep(found, out)
    assert f"seeds  strategy=round_robin: {SAME}" in out.export_text()


def test_runs_beside_that_are_the_same_are_one(lines):
    beside = ["beside.seeds=2", "+beside.runs.other=['strategy=least_loaded']"]
    run = sim.run("steady", [*lines, *beside])
    assert [len(runs) for runs in run.beside.values()] == [1, 1]
    assert sorted(path.name for path in (run.path / "beside" / "other").iterdir()) == ["1", "2"]


def test_advice_on_the_same_says_that_nothing_else_was_seen(lines, tmp_path):
    asked = ["hardware=l4,a100", "price.accelerator=1"]
    open_ = ["strategy=round_robin", "allocation=shared", "eviction=lru", "tiers.ram.gib=1"]
    own = ["ttft_s=5", "percentile=50", "seeds=2", "verify=2", "budget=8", "workers=1"]
    assert advise(["scenario=steady", *lines, *asked, *open_, *own], Console(quiet=True)) == 0
    (folder,) = (tmp_path / "runs").glob("*_advise_steady")
    told = json.loads((folder / "advice.json").read_text())
    assert told["simulations"] == 4
    assert told["verification_seeds"] == []
    assert SAME in told["sentence"]
