"""The Python face: run, open, load, and the questions that one asks of a run."""

import gzip
import json
import threading

import pytest

import sim
from engine.errors import BadSettings
from sim.checks import all_completed
from sim.runs import Window

LINES = ["executor=roofline", "report=tables", "workload.requests=90"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return sim.run("failover", [*LINES, f"report.folder={tmp_path_factory.mktemp('runs')}"])


def test_a_run_has_tables_figures_checks_and_a_folder(run):
    assert len(run.requests) == 90
    assert run.summary["completed"] == 90
    assert run.checks[0].name == "requests that did not complete"
    assert run.path.is_dir()
    assert run.replicas == ["a", "b", "c"]


def test_a_window_is_asked_for_its_hits_and_for_one_model(run):
    assert run.whole.hit_ratio == run.summary["token_hit_ratio"]
    assert run.between(None, None).hit_ratio is None
    model = run.requests["model"].iloc[0]
    name = model.partition("@")[0]
    assert run.whole.of_model(model).count == run.whole.of_model(name).count == 90
    assert run.whole.of_model(name[:-1]).count == 0
    assert run.is_modelled
    assert run.capacity_bytes == 2**30


def test_requests_that_did_not_complete_say_why(run):
    rows = run.requests.copy()
    assert Window(rows).told == "n=90"
    rows.loc[:2, ["outcome", "reason"]] = ["rejected", "context_too_long"]
    rows.loc[5, ["outcome", "reason"]] = ["cancelled", None]
    assert Window(rows).told == "n=90; 3 rejected: context_too_long; 1 cancelled"
    check = all_completed(Window(rows), 3)
    assert (check.value, check.verdict, check.note) == (4, "fail", Window(rows).told)


def test_an_opened_run_is_the_one_that_was_played(run):
    opened = sim.open_run(run.path)
    assert opened.requests.equals(run.requests)
    assert opened.timeseries.equals(run.timeseries)
    assert opened.decisions.equals(run.decisions)
    assert opened.checks == run.checks
    assert opened.summary == run.summary
    assert opened.verdict == run.verdict
    assert json.loads((run.path / "summary.json").read_text()) == run.summary


def test_many_runs_load_as_one_table(run):
    table = sim.load(run.path.parent / "**")
    assert list(table.columns[:4]) == ["scenario", "seed", "overrides", "path"]
    assert table.loc[0, "completed"] == 90
    requests = sim.load(run.path.parent / "*", table="requests")
    assert len(requests) == 90
    assert set(requests["scenario"]) == {"failover"}
    checks = sim.load(run.path.parent / "*", table="checks")
    assert len(checks) == len(run.checks)


def test_bad_questions_get_clear_answers(run, tmp_path):
    with pytest.raises(BadSettings, match="table is 'cats', but must be one of summary, requests"):
        sim.load(run.path, table="cats")
    with pytest.raises(BadSettings, match="no finished run matches"):
        sim.load(tmp_path / "**")
    with pytest.raises(BadSettings, match=r"is not a run folder: it has no manifest\.json"):
        sim.open_run(tmp_path)
    with pytest.raises(AttributeError, match="no attribute 'fly'"):
        _ = sim.fly


def test_windows_divide_a_run_by_arrival(run):
    middle_s = 1.5
    before, after = run.between(0, middle_s), run.after(middle_s)
    assert before.count + after.count == run.whole.count == 90
    assert (before.requests["arrival_ns"] < middle_s * 1e9).all()
    assert run.between(None, 3).count == 0
    assert sum(run.whole.served_by(replica) for replica in run.replicas) == 90


def test_shares_need_enough_requests(run):
    assert sum(run.whole.share(replica) for replica in run.replicas) == pytest.approx(1)
    assert run.whole.share("a", fewest=91) is None
    assert run.between(None, None).share("a") is None
    assert run.between(None, None).share_error(["a", "b"]) is None


def test_replicas_of_models_that_came_when_they_were_asked_for_are_told_too(tmp_path):
    """Also where one of them falls ill, which is a mark in the trace of the run."""
    lines = [
        "executor=roofline",
        "fleet=three_models",
        "~fleet.replicas.b",
        "~fleet.replicas.c",
        "report=tables",
    ]
    lines += ["workload.requests=60", "workload.rate=20", "workload.model_zipf=0", "models.cold_median_s=0.1"]
    dies = "faults=[{fault: crash, replica: 'model-b@1.0.0', at_s: 2}]"
    run = sim.run("steady", [*lines, "models.cold_p90_s=0.1", dies, f"report.folder={tmp_path}"])
    assert sorted(run.replicas) == ["a", "model-b@1.0.0", "model-c@1.0.0"]
    assert sum(run.summary[f"share_{replica}"] for replica in run.replicas) == pytest.approx(1)
    assert run.mark_s("crash", "model-b@1.0.0") == 2
    trace = json.loads(gzip.decompress((run.path / "trace.json.gz").read_bytes()))["traceEvents"]
    assert {event["pid"] for event in trace if event["name"] == "decode"} == {1, 2, 3}


def test_marks_that_never_came_are_none(run):
    assert run.mark_s("crash", "b") is None
    assert run.at_mark("requests_in_hand", "crash", "b") is None
    assert run.delay_s("unhealthy", "b", 0.0) is None
    assert run.delay_s("unhealthy", "b", None) is None
    assert run.served_again_s("b", None) is None


def test_what_is_exported_stays():
    detectors = ["Finding", "findings", "regret"]
    others = ["Run", "compare", "load", "open_run", "replicate", "run", "sweep"]
    assert sim.__all__ == sorted([*detectors, *others])
    assert all(callable(getattr(sim, name)) for name in sim.__all__)
    assert all(getattr(sim, name) is not None for name in sim.__all__)


def test_a_run_may_be_played_outside_the_main_thread(tmp_path):
    runs = []
    lines = [*LINES, f"report.folder={tmp_path}"]
    thread = threading.Thread(target=lambda: runs.append(sim.run("steady", lines)))
    thread.start()
    thread.join()
    assert runs[0].verdict == "pass"


def test_two_runs_in_the_same_second_get_folders_of_their_own(tmp_path):
    lines = [*LINES, f"report.folder={tmp_path}"]
    paths = {sim.run("steady", lines).path for _ in range(3)}
    assert len(paths) == 3


def test_a_folder_that_cannot_be_written_is_refused_before_anything_runs(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadSettings, match=r"report\.folder is .*file/runs"):
        sim.run("steady", [*LINES, f"report.folder={tmp_path}/file/runs"])
