"""Runs beside a run: what a scenario's checks compare it with."""

from types import SimpleNamespace

import pytest

import sim
from engine.clock import to_ns
from engine.errors import BadSettings
from sim import play as playing
from sim.config import read

PLAIN = ["executor=roofline", "report=tables", "workload.requests=60"]
TWO = ["beside.seeds=2", '+beside.runs.random=["strategy=random"]']


def test_the_same_requests_meet_another_strategy_on_each_seed(tmp_path):
    run = sim.run("steady", [*PLAIN, *TWO, "seed=4", f"report.folder={tmp_path}"])
    beside = run.beside
    assert {name: [each.manifest["seed"] for each in runs] for name, runs in beside.items()} == {
        "itself": [4, 5],
        "random": [4, 5],
    }
    assert beside["itself"][0] is run
    assert [each.manifest["strategy"] for each in beside["random"]] == ["random", "random"]
    for itself, other in zip(beside["itself"], beside["random"], strict=True):
        assert sorted(itself.requests["arrival_ns"]) == sorted(other.requests["arrival_ns"])
        assert itself.manifest["digest"] != other.manifest["digest"]
    alone = sim.run("steady", [*PLAIN, "seed=5", f"report.folder={tmp_path}"])
    assert beside["itself"][1].manifest["digest"] == alone.manifest["digest"]


def test_a_run_that_is_opened_again_has_them_and_a_search_for_runs_has_not(tmp_path):
    run = sim.run("steady", [*PLAIN, *TWO, f"report.folder={tmp_path}"])
    opened = sim.open_run(run.path)
    assert sorted(opened.beside) == ["itself", "random"]
    assert [each.path for each in opened.beside["random"]] == [each.path for each in run.beside["random"]]
    assert len(sim.load(tmp_path / "**")) == 1
    assert len(sim.load(run.path / "beside" / "**")) == 3


def test_without_seeds_there_are_none(tmp_path):
    run = sim.run("steady", [*PLAIN, TWO[1], f"report.folder={tmp_path}"])
    assert run.beside == {}
    assert not (run.path / "beside").exists()


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (['+beside.runs.x=["strategy=nothing"]'], "beside.runs.x: no strategy is called 'nothing'"),
        (["+beside.runs.x=[strategy]"], "beside.runs.x is ['strategy'], but must be a list of lines"),
        (["+beside.runs.itself=[]"], "beside.runs is 'itself', but must be"),
        (["+beside.runs.Up=[]"], "beside.runs is 'Up', but must be"),
        (["beside.seeds=-1"], "beside.seeds is -1, but must be at least 0"),
    ],
)
def test_what_is_no_good_is_said_before_anything_runs(tmp_path, lines, says):
    with pytest.raises(BadSettings) as error:
        sim.run("steady", [*PLAIN, "beside.seeds=1", *lines, f"report.folder={tmp_path}/runs"])
    assert str(error.value).startswith(says)
    assert not (tmp_path / "runs").exists()


def test_an_interrupt_in_a_run_beside_keeps_what_was_whole(tmp_path, monkeypatch):
    on_stage = playing._on_stage

    def interrupt_the_second(settings, others, progress):
        if others is None and settings.seed == 2:
            monkeypatch.setattr(playing.Progress, "advance", lambda *_: True)  # as after Ctrl-C
        return on_stage(settings, others, progress)

    monkeypatch.setattr(playing, "_on_stage", interrupt_the_second)
    run = sim.run("steady", [*PLAIN, *TWO, f"report.folder={tmp_path}"])
    assert run.manifest["interrupted"]
    assert run.path.name.endswith(".partial")
    assert sim.open_run(run.path).whole.count == 60


def test_an_act_happens_at_its_time_and_its_measures_are_kept(tmp_path):
    seen = []

    def script(stage, _settings):
        stage.act(1.5, lambda engine: seen.append(engine.clock.now_ns()))

        async def later(engine):
            await engine.clock.sleep(to_ns(0.5))
            seen.append(engine.clock.now_ns())

        stage.act(1.5, later)

    settings = read(["scenario=steady", *PLAIN, f"report.folder={tmp_path}"])
    story = SimpleNamespace(
        script=script, checks=lambda _run, _settings: [], measure=lambda *_: {"scan_s": 0.25}
    )
    settings.story = story
    run = playing.play(settings)
    assert seen == [to_ns(1.5), to_ns(2)]
    assert run.measured == sim.open_run(run.path).measured == {"scan_s": 0.25}


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["beside.seeds=100001"], "beside.seeds is 100001, but must be at most 100,000"),
        (
            ["beside.seeds=3", f"seed={2**63 - 2}"],
            f"beside.seeds is 3, but must be at most 2: there are no more from seed {2**63 - 2} on",
        ),
    ],
)
def test_more_seeds_than_there_are_come_to_nobody(lines, said):
    with pytest.raises(BadSettings) as caught:
        read(["scenario=steady", *PLAIN, *lines])
    assert str(caught.value) == said


def test_the_last_seeds_may_be_played_beside_each_other():
    assert read(["scenario=steady", *PLAIN, "beside.seeds=2", f"seed={2**63 - 2}"]).beside.seeds == 2


def test_what_is_wrong_with_a_run_beside_and_comes_out_when_it_begins_leaves_no_folder(tmp_path):
    lines = ["beside.seeds=1", '+beside.runs.other=["routing.fallbacks={nobody: [auto]}"]']
    with pytest.raises(BadSettings, match=r"^beside\.runs\.other: routing\.fallbacks names 'nobody'"):
        sim.run("steady", [*PLAIN, *lines, f"report.folder={tmp_path}"])
    assert list(tmp_path.iterdir()) == []
