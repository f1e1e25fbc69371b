"""What is kept between two compositions gives what Hydra makes of all lines at once, never what was there before."""

from copy import deepcopy

import pytest
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from engine.errors import BadSettings
from sim import composing
from sim.composing import CONFIG_MODULE, composed_by_hydra
from sim.config import composed, read


def by_hydra_alone(lines):
    with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        return compose("config", overrides=list(lines))


STEADY = ["scenario=steady", "executor=roofline"]


@pytest.mark.parametrize(
    "lines",
    [
        STEADY,
        [*STEADY, "seed=7", "workload.rate=2.5", "fleet.replicas=4", "tiers=ram_ssd", "tiers.ram.gib=2"],
        [*STEADY, "workload.rate=3", "workload.rate=5"],
        [*STEADY, "workload.rate=3", "workload={rate: 4}"],  # in the order that they have
        [*STEADY, "workload={rate: 4}", "workload.rate=3"],
        [*STEADY, "workload.rate=3", "workload=mix_b"],  # a choice, wherever it stands, comes first
        [*STEADY, "faults=[{fault: crash, replica: b, at_s: 5}]", "routing.weights={a: 1, b: 2}"],
        [*STEADY, "report.folder='with, a comma'", "report.sample_every_s=null", "strategy.name="],
        [*STEADY, "+beside.runs.other=['seed=2']", "~sizes", "++ties=shuffled"],
        [*STEADY, "workload.rate=${seed}", "scenario.name=steady"],
        [*STEADY, "hydra.job.name=other"],
    ],
    ids=lambda lines: " ".join(lines[2:]) or "bare",
)
def test_it_is_what_hydra_makes_of_all_lines_at_once(lines):
    alone = by_hydra_alone(lines)
    for _ in range(2):  # the second time from what is kept
        made = composed_by_hydra(lines)
        assert made == alone
        assert OmegaConf.to_yaml(made, resolve=True) == OmegaConf.to_yaml(alone, resolve=True)
        assert OmegaConf.is_struct(made)


@pytest.mark.parametrize(
    "lines",
    [
        [*STEADY, "workload.rat=3"],
        [*STEADY, "nothing=3"],
        [*STEADY, "workload=nothing"],
        [*STEADY, "workload.rate=3,4"],
        [*STEADY, "workload.rate"],
        [*STEADY, "fleet@here=three_small"],
        ["executor=roofline"],
    ],
    ids=lambda lines: lines[-1],
)
def test_what_is_wrong_is_refused_as_hydra_refuses_it(lines):
    with pytest.raises(Exception) as alone:  # noqa: PT011  of whatever kind
        by_hydra_alone(lines)
    with pytest.raises(type(alone.value)) as kept:
        composed_by_hydra(lines)
    assert str(kept.value) == str(alone.value)


def test_who_changes_what_he_was_given_changes_nothing_for_the_next():
    first = composed_by_hydra(STEADY)
    before = deepcopy(first)
    first.workload.rate = 99
    first.faults = [1]
    assert composed_by_hydra(STEADY) == before
    settings = read(STEADY)
    settings.engine.fleet.models.clear()
    settings.config.clear()
    assert read(STEADY).engine.fleet.models
    assert read(STEADY).config


def test_only_choices_are_composed(monkeypatch):
    told = []
    alone = composing._composed
    monkeypatch.setattr(composing, "_composed", lambda lines: told.append(lines) or alone(lines))
    composing._chosen.cache_clear()
    for seed in range(5):
        composed([*STEADY, f"seed={seed}", f"workload.rate={seed + 1}"])
    assert told == [tuple(STEADY)]


def test_a_file_that_was_edited_is_read_again(tmp_path, monkeypatch):
    """As in a notebook, between two cells."""
    folder = tmp_path / "confs"
    folder.mkdir()
    (folder / "__init__.py").touch()
    file = folder / "config.yaml"
    file.write_text("depth: 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(composing, "CONFIG_MODULE", "confs")
    composing._chosen.cache_clear()
    assert composed_by_hydra([]).depth == 1
    file.write_text("depth: 22\n")
    assert composed_by_hydra([]).depth == 22
    (folder / "more").mkdir()
    (folder / "more" / "one.yaml").write_text("width: 3\n")
    assert composed_by_hydra(["+more=one"]).more == {"width": 3}


def test_what_a_program_registers_itself_is_seen(monkeypatch):
    store = ConfigStore.instance()
    monkeypatch.setattr(store, "repo", deepcopy(store.repo))
    for rate in (3.0, 4.0):
        store.store(group="workload", name="mine", node={"kind": "bare", "rate": rate}, package="workload")
        assert composed_by_hydra([*STEADY, "workload=mine"]).workload.rate == rate


def test_one_and_true_are_not_the_same_value():
    assert read([*STEADY, "seed=1"]).seed == 1
    with pytest.raises(BadSettings, match="seed is True"):
        read([*STEADY, "seed=true"])
    assert read([*STEADY, "routing.sessions=true"]).engine.routing.sessions is True
    with pytest.raises(BadSettings, match=r"workload\.requests"):
        read([*STEADY, "workload.requests=true"])
    assert read([*STEADY, "workload.requests=1"]).workload.requests == 1
