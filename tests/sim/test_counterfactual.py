"""Decisions made otherwise, on the same traffic: exact, reproducible, and what the estimate is measured by."""

import json

import numpy as np
import pytest

from engine.clock import NS_PER_S
from engine.errors import BadSettings
from sim.config import read
from sim.counterfactual import Forced, counterfactual
from sim.regret import main
from sim.stage import Stage

QUEUE = [
    "scenario=queue", "fleet.replicas=3", "workload.rate=2.4", "strategy=random", "scenario.max_errors=1e9",
]  # fmt: skip


@pytest.mark.slow
def test_in_lines_that_are_first_come_first_served_the_estimate_is_exact():
    found = counterfactual([*QUEUE, "workload.requests=80"], sample=4)
    assert len(found.table) == 4
    assert found.num_runs == 1 + 2 * 4
    assert (found.table["regret_e2e_s"] >= 0).all()
    assert found.table["regret_e2e_s"].max() > 0
    assert np.allclose(found.table["regret_e2e_s"], found.table["estimated_e2e_s"], atol=1e-8)
    is_best = found.table["chosen"] == found.table["best"]
    assert (found.table.loc[is_best, "regret_e2e_s"] == 0).all()


@pytest.mark.slow
def test_the_result_does_not_depend_on_the_number_of_workers():
    lines = [*QUEUE, "workload.requests=60"]
    one, two = (counterfactual(lines, sample=3, workers=workers) for workers in (1, 2))
    assert one.table.equals(two.table)
    assert one.mean_saved_by_all_s == two.mean_saved_by_all_s


def spent_s(lines, forced):
    """The end-to-end time of each request that was completed, by its number."""
    settings = read([*lines, "routing.decision_log=1"])
    stage = Stage(settings.engine, settings.draw(), 1e7)
    try:
        stage.engine.router.overrule = forced.overrule
        stage.play()
        requests = stage.recorder.requests()
    finally:
        stage.close()
    done = requests[requests["outcome"] == "completed"].set_index("request_id")
    return (done["finished_ns"] - done["arrival_ns"]) / NS_PER_S


def test_what_all_would_have_saved_is_of_those_who_were_completed_either_way():
    """Where a line is full it also matters who finds no place in it: that is counted, and no time saved."""
    lines = [*QUEUE, "fleet.queue_capacity=1", "workload.rate=3.3", "workload.requests=60", "seed=3"]
    found = counterfactual(lines, sample=8).table
    own = spent_s(lines, Forced(()))
    assert (found["more_completed"] != 0).any()
    for row in found[found["chosen"] != found["best"]].itertuples():
        other = spent_s(lines, Forced((), row.request_id, row.attempt, row.best))
        assert row.saved_by_all_s == pytest.approx(
            (own - other).sum()
        )  # those of one alone have no difference
        assert row.more_completed == len(other) - len(own)


def test_measured_times_and_runs_without_a_choice_are_refused():
    with pytest.raises(BadSettings, match="executor is 'torch', but must be one whose times are modelled"):
        counterfactual(["scenario=steady"])
    with pytest.raises(BadSettings, match="no decision of the run had an alternative"):
        counterfactual([*QUEUE, "fleet.replicas=1", "workload.rate=0.1", "workload.requests=5"])


def test_only_the_decision_that_is_meant_is_overruled():
    class Named:
        def __init__(self, **names):
            self.__dict__.update(names)

    seats = [Named(name=name) for name in "abc"]
    forced = Forced((), request_id=3, attempt=1, replica="c")
    assert forced.overrule(Named(id=3), 1, seats, seats[0]) is seats[2]
    assert forced.overrule(Named(id=3), 2, seats, seats[0]) is seats[0]
    assert forced.overrule(Named(id=4), 1, seats, seats[0]) is seats[0]
    assert forced.overrule(Named(id=3), 1, seats[:2], seats[0]) is seats[0]  # it is not there


def test_the_command_tells_of_a_finished_run(played, capsys):
    assert main([str(played.path)]) == 0
    out = capsys.readouterr().out
    assert f"{len(played.regret)} choices judged" in out


def test_the_command_refuses_what_makes_no_sense(capsys, tmp_path):
    assert main(["scenario=queue", "sample=0"]) == 2
    assert "sample is '0', but must be a whole number of at least 1" in capsys.readouterr().err
    assert main([str(tmp_path)]) == 2
    assert "is not a run folder" in " ".join(capsys.readouterr().err.split())
    assert main(["scenario=steady", f"report.folder={tmp_path / 'runs'}"]) == 2
    assert not (tmp_path / "runs").exists()
    assert main([]) == 2
    assert "usage" in capsys.readouterr().out


def test_ctrl_c_is_said_and_nothing_is_written(tmp_path, capsys, monkeypatch):
    def interrupted(*_given):
        raise KeyboardInterrupt

    monkeypatch.setattr("sim.regret.counterfactual", interrupted)
    assert main(["scenario=queue", f"report.folder={tmp_path}"]) == 130
    assert capsys.readouterr().err == "modelyard: interrupted; nothing is written\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_command_writes_what_it_shows(tmp_path, capsys):
    lines = [*QUEUE, "workload.requests=60", "sample=2", "workers=1", f"report.folder={tmp_path}"]
    assert main(lines) == 0
    assert "2 of " in capsys.readouterr().out
    (folder,) = tmp_path.iterdir()
    facts = json.loads((folder / "regret.json").read_text())
    assert facts["num_runs"] == 5
    assert len((folder / "regret.csv").read_text().splitlines()) == 3
