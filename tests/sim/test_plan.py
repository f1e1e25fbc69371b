"""What is swept, and on which seeds, from a command line."""

import pytest

from engine.errors import BadSettings
from sim.plan import chosen, label, planned


def test_values_between_commas_are_swept_and_brackets_are_whole(tmp_path):
    plan = planned(["scenario=steady", "strategy=random,round_robin", "a=[1,2]", "b={c: 1, d: 2},'x,y'"])
    assert plan.swept == {"strategy": ["random", "round_robin"], "b": ["{c:1,d:2}", "'x,y'"]}
    assert plan.fixed == ["scenario=steady", "a=[1,2]"]
    assert plan.seeds == [None]
    jobs = plan.jobs(tmp_path)
    assert [job.number for job in jobs] == [0, 1, 2, 3]
    assert jobs[3].overrides == ("scenario=steady", "a=[1,2]", "strategy=round_robin", "b='x,y'")
    assert jobs[3].folder == tmp_path / "00003"


@pytest.mark.parametrize(
    ("line", "seeds"),
    [
        ("seed=range(1,11)", list(range(1, 11))),
        ("seed=1..10", list(range(1, 11))),
        ("seed=3,1", [3, 1]),
        ("seed=1..3,7", [1, 2, 3, 7]),
        ("seed=5", [5]),
    ],
)
def test_seeds_are_no_combinations_but_are_played_for_each(line, seeds, tmp_path):
    plan = planned([line, "a=1,2"])
    assert plan.seeds == seeds
    assert len(plan.combinations) == 2
    jobs = plan.jobs(tmp_path)
    assert [job.seed for job in jobs] == seeds * 2
    assert all("seed" not in line for job in jobs for line in job.overrides)


def test_what_hydra_can_enumerate_is_swept():
    plan = planned(["eviction=glob(l*)", "workload.rate=range(1,3,0.5)", "strategy=choice(random,affinity)"])
    assert plan.swept == {
        "eviction": ["lfu", "lru"],
        "workload.rate": ["1.0", "1.5", "2.0", "2.5"],
        "strategy": ["random", "affinity"],
    }


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["seed=5..1"], "seed is '5..1', but must go from a smaller number"),
        (["seed=1,1"], "seed is '1,1', which has '1' twice"),
        (["seed=1..99999,7..9"], "has '7' twice"),
        (["seed=x"], "seed is 'x', but must be a whole number from 0"),
        (["seed=range(1,1)"], "has no values"),
        (["seed=range(0,400)", "a=range(0,400)"], "160,000 runs was asked for, but at most 100,000"),
        (["a=b,b"], "a is 'b,b', which has 'b' twice"),
        (["a=1,2", "a=3,4"], "a is given twice"),
        (["a=interval(0,1)"], "has no end of values"),
        (["a"], "'a' is no setting: write KEY=VALUE"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_what_cannot_be_swept_is_refused(lines, told):
    with pytest.raises(BadSettings, match=r".*") as refused:
        planned(lines)
    assert told in str(refused.value)
    assert len(str(refused.value)) < 300


def test_a_baseline_names_each_setting_once():
    swept = {"strategy": ["random", "round_robin"]}
    with pytest.raises(BadSettings, match="name each setting once: strategy stands there twice"):
        chosen("strategy=random,strategy=round_robin", swept)


def test_a_baseline_has_the_first_values_where_it_names_none():
    swept = {"strategy": ["random", "affinity"], "x": ["[1,2]", "3"]}
    assert chosen("", swept) == {"strategy": "random", "x": "[1,2]"}
    assert chosen("strategy=affinity,x=[1,2]", swept) == {"strategy": "affinity", "x": "[1,2]"}
    assert label(chosen("x=3", swept)) == "strategy=random x=3"
    with pytest.raises(BadSettings, match="must name values of what is swept: strategy, x"):
        chosen("eviction=lru", swept)
    with pytest.raises(
        BadSettings, match="baseline has strategy=lru, but must have one of its values: random"
    ):
        chosen("strategy=lru", swept)
