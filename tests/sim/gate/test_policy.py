"""Two configurations on the same traffic, played for real, and judged."""

import json

import pytest

from sim import workers
from sim.gate.policy import PolicySettings, judge_policy, judged
from sim.gate.policy_command import main
from sim.gate.rows import FAIL, INCONCLUSIVE, PASS

FEW = ["scenario=steady", "executor=roofline", "report=tables", "workload.requests=60", "workload.rate=60"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)


def settings(may_cost=None, **options):
    return PolicySettings(may_cost=may_cost or {"goodput_per_s": 0.03}, **options)


@pytest.mark.parametrize(
    ("name", "pairs", "verdict"),
    [
        ("goodput_per_s", [(100, 98), (200, 197), (50, 49)], PASS),
        ("goodput_per_s", [(100, 110), (200, 220), (50, 55)], PASS),
        ("goodput_per_s", [(100, 90), (200, 181), (50, 45)], FAIL),
        ("goodput_per_s", [(100, 99), (200, 188), (50, 48)], INCONCLUSIVE),
        ("mean_ttft_s", [(1.0, 1.01), (2.0, 2.03), (1.5, 1.52)], PASS),
        ("mean_ttft_s", [(1.0, 1.1), (2.0, 2.21), (1.5, 1.66)], FAIL),
        ("mean_ttft_s", [(1.0, 0.5), (2.0, 1.0), (1.5, 0.74)], PASS),
        ("token_hit_ratio", [(0.5, 0.4), (0.6, 0.48), (0.5, 0.41)], FAIL),
        ("goodput_per_s", [(100, 97), (100, 97)], PASS),
        ("goodput_per_s", [(100, 96), (100, 96)], FAIL),
        ("goodput_per_s", [(0, 0), (100, 100)], INCONCLUSIVE),
        ("p99_ttft_s", [(1.0, None), (1.0, 1.0)], INCONCLUSIVE),
        ("goodput_per_s", [(100, 100)], INCONCLUSIVE),
        ("goodput_per_s", [], INCONCLUSIVE),
    ],
)
def test_the_interval_of_the_cost_decides(name, pairs, verdict):
    row = judged(name, pairs, settings({name: 0.03}))
    assert row.verdict == verdict
    assert (row.note == "") == (verdict == PASS)


def test_who_cannot_decide_says_how_many_pairs_could():
    pairs = [(100.0, 100.0 - cost) for cost in (0.0, 4.0, 0.5, 3.0)]
    note = judged("goodput_per_s", pairs, settings()).note
    needed = int(note.split("about ")[1].split()[0])
    assert 4 < needed < 100


def test_several_figures_make_each_interval_wider():
    pairs = [(100.0, 99.0), (100.0, 98.0), (100.0, 99.5)]
    alone = judged("goodput_per_s", pairs, settings())
    together = judged("goodput_per_s", pairs, settings({"goodput_per_s": 0.03, "mean_ttft_s": 0.03}))
    assert together.interval[0] < alone.interval[0] < alone.delta < alone.interval[1] < together.interval[1]


def test_a_configuration_costs_nothing_against_itself(tmp_path, capsys):
    """Both sides as files, and what is left in the folders."""
    for side in ("base", "head"):
        (tmp_path / f"{side}.yaml").write_text("".join(f"- {line}\n" for line in FEW))
    assert main(["base=base.yaml", "head=head.yaml", "seeds=2", "workers=1", "out=told", "show=all"]) == 0
    assert capsys.readouterr().out.startswith("GATE PASS 2 of 2\n")
    rows = {row["name"]: row for row in json.loads((tmp_path / "told" / "gate.json").read_text())["rows"]}
    assert rows["policy/goodput_per_s"]["interval"] == [0.0, 0.0]
    assert rows["policy/runs that fail"]["head"] == 0
    assert (tmp_path / "told" / "gate.xml").is_file()
    (folder,) = (tmp_path / "runs").iterdir()
    assert sorted(each.name for each in (folder / "runs").iterdir()) == [
        "base-1",
        "base-2",
        "head-1",
        "head-2",
    ]


@pytest.mark.slow
def test_a_head_that_is_worse_in_every_way_fails_by_every_name(capsys):
    limits = ["may_cost=goodput_per_s:3%,mean_ttft_s:10%", "slo_ttft_s=0.2", "seeds=3", "workers=1"]
    assert main([*FEW, *limits, "--", "--", "fleet.max_batch=1", "fleet.queue_capacity=2"]) == 1
    said = capsys.readouterr().out
    assert said.startswith("GATE FAIL 3 of 3\n")
    for name in ("goodput_per_s", "mean_ttft_s", "runs that fail"):
        assert f"policy/{name}" in said
    assert "checks of the scenario fail that did not" in said
    assert "python -m sim.gate policy scenario=steady" in said


@pytest.mark.slow
def test_runs_that_end_in_an_error_on_the_head_fail_the_gate(monkeypatch):
    play = workers._play

    def played(job, settings):
        if job.folder.name.startswith("head"):
            return workers.Played(job.number, job.folder, 1, "error", "", {}, "RuntimeError: lost")
        return play(job, settings)

    monkeypatch.setattr(workers, "_play", played)
    found = judge_policy(FEW, FEW, settings(seeds=2, workers=1))
    assert [(row.verdict, row.note) for row in found.rows] == [
        (FAIL, "RuntimeError: lost"),
        (INCONCLUSIVE, "fewer than two pairs are whole"),
    ]


@pytest.mark.slow
def test_after_an_interrupt_the_pairs_that_were_whole_are_told(monkeypatch):
    play = workers._play

    def played(job, settings):
        if job.folder.name == "head-3":
            raise KeyboardInterrupt
        return play(job, settings)

    monkeypatch.setattr(workers, "_play", played)
    found = judge_policy(FEW, FEW, settings(seeds=4, workers=1))
    assert found.interrupted
    assert found.rows[1].verdict == INCONCLUSIVE
    assert found.rows[1].note == "interrupted after 2 of 4 pairs"
    assert found.path.name.endswith(".partial")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "-- stands 0 times, but must stand twice"),
        ("-- a -- b -- c", "-- stands 3 times, but must stand twice"),
        ("may_cost=x:3% -- --", "may_cost is 'x', but must be one of goodput_per_s, "),
        ("may_cost=goodput_per_s -- --", "may_cost is 'goodput_per_s', but must be FIGURE:SHARE"),
        ("may_cost=goodput_per_s:-1% -- --", "may_cost=goodput_per_s is -0.01, but must be at least 0 %"),
        ("may_cost=goodput_per_s:nan% -- --", "may_cost=goodput_per_s is nan, but must be at least 0 %"),
        (
            "may_cost=goodput_per_s:1%,goodput_per_s:2% -- --",
            "may_cost is 'goodput_per_s:1%,goodput_per_s:2%', but must be one value for each name",
        ),
        ("seeds=1 -- --", "seeds is 1, but must be at least 2"),
        ("seeds=x -- --", "seeds is 'x', but must be a whole number"),
        ("slo_ttft_s=soon -- --", "slo_ttft_s is 'soon', but must be a number"),
        ("slo_ttft_s=0 -- --", "slo_ttft_s is 0.0, but must be above 0"),
        ("workers=0 -- --", "workers is '0', but must be a whole number of at least 1"),
        ("show=some -- --", "show is 'some', but must be worst or all"),
        ("out= -- --", "out is '', but must be the path of a folder"),
        ("-- strategy=least -- strategy=random", "no strategy is called 'least'"),
        ("-- -- workload.rate=61", "base and head meet different traffic"),
        pytest.param("-- -- seed=2", "base and head meet different traffic", marks=pytest.mark.slow),
        (
            "base=nowhere.yaml head=b",
            "base is 'nowhere.yaml', which cannot be read: No such file or directory",
        ),
        ("base=nowhere.yaml", "head is None, but must be a file"),
        ("base=a.yaml head=a.yaml -- --", "-- is 2, but must be left out"),
        ("base=map.yaml head=map.yaml", "base is 'map.yaml', but must be a YAML list of lines"),
    ],
)
def test_bad_input_is_refused_in_one_sentence_before_anything_runs(line, said, capsys, tmp_path):
    (tmp_path / "map.yaml").write_text("strategy: random\n")
    assert main([*FEW, *line.split()]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"modelyard: {said}")
    assert told.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_how_it_is_asked(capsys):
    assert main(["--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: python -m sim.gate policy")
    assert main([]) == 2
