"""Sizes of a scenario, and lines that win over other lines."""

import pytest

from engine.errors import UnknownName
from sim.config import read
from sim.sizes import merged

FULL = '+sizes.full=["executor=roofline","workload.requests=40","tiers=gpu_ram","tiers.ram.gib=2"]'


def test_a_size_is_lines_under_those_of_the_user():
    settings = read(["scenario=steady", FULL, "size=full"])
    assert settings.engine.executor.name == "roofline"
    assert settings.workload.requests == 40
    assert settings.engine.cache.ram.gib == 2


def test_without_a_size_the_lines_are_only_there_to_be_asked_for():
    assert read(["scenario=steady", FULL]).engine.executor.name == "torch"


def test_lines_of_the_user_win_over_those_of_a_size():
    settings = read(["scenario=steady", FULL, "size=full", "workload.requests=7", "tiers=off"])
    assert settings.workload.requests == 7
    assert not settings.engine.cache.enabled
    assert "tiers.ram.gib=2" not in settings.overrides


def test_a_size_may_have_bounds_of_its_own_scenario():
    of_size = '+sizes.lax=["scenario.max_not_completed=5"]'
    assert read(["scenario=steady", of_size, "size=lax"]).scenario.max_not_completed == 5
    lines = ["scenario=steady", of_size, "size=lax", "scenario.max_not_completed=2"]
    assert read(lines).scenario.max_not_completed == 2


def test_an_unknown_size_is_named_with_those_that_are_there():
    with pytest.raises(UnknownName, match=r"no size is called 'huge'; choose from full"):
        read(["scenario=steady", FULL, "size=huge"])


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        (["a=1"], ["a=2"], ["a=2"]),
        (["a.b=1", "ab=1"], ["a=2"], ["ab=1", "a=2"]),
        (["a=1"], ["a.b=2"], ["a=1", "a.b=2"]),
        (["hydra/launcher=x"], ["hydra/launcher=y"], ["hydra/launcher=y"]),
        (["+a=1"], ["++a=2"], ["++a=2"]),
    ],
)
def test_a_stronger_line_takes_the_place_of_what_it_covers(first, last, expected):
    assert merged(last, first, stronger=last) == expected
