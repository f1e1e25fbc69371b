import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from engine.errors import BadSettings, UnknownName
from sim.config import choices, composed
from sim.traffic import AzureWorkload, SyntheticWorkload, draw, workloads

CONF = Path(__file__).parents[3] / "conf" / "workload"
CHAT = {
    "requests": 100,
    "rate": 30.0,
    "prompt_median_tokens": 96.0,
    "prompt_sigma": 1.0,
    "prompt_min_tokens": 4,
    "prompt_max_tokens": 2048,
    "output_median_tokens": 64.0,
    "output_sigma": 0.6,
    "output_min_tokens": 1,
    "output_max_tokens": 512,
}
NAN, INF = float("nan"), float("inf")


def test_an_unknown_kind_is_answered_with_those_there_are():
    with pytest.raises(
        UnknownName, match="no workload is called 'azur'; choose from azure, closed, generated"
    ):
        workloads.find("azur")


@pytest.mark.parametrize("kind", workloads.names())
def test_every_kind_has_a_name_that_its_settings_know(kind):
    assert workloads.find(kind).__dataclass_fields__["kind"].default == kind


@pytest.mark.parametrize(
    ("key", "values"),
    {
        "kind": ["azure"],
        "requests": [0, -1, 1.5, NAN, INF, True, None, 10**12],
        "rate": [0, -1, NAN, INF, 1e-9],
        "prompt_median_tokens": [0, -1, NAN, INF, 1e9],
        "prompt_sigma": [-1, NAN, INF, 11],
        "prompt_min_tokens": [0, -1, 1.5, NAN, INF],
        "prompt_max_tokens": [3, -1, INF, 10**9],
        "output_median_tokens": [0, NAN],
        "output_sigma": [-0.1, NAN, INF],
        "output_min_tokens": [0],
        "output_max_tokens": [0, NAN],
        "prefixes": [-1, 1.5, NAN, INF],
        "prefix_zipf": [-1, NAN, INF],
        "prefix_median_tokens": [0, -1, NAN, INF],
        "prefix_sigma": [-1, NAN, INF],
        "prefix_share": [-0.1, 1.1, NAN, INF],
        "model_zipf": [-1, NAN, INF],
        "vocab": [0, 1, -1, NAN, 2**31],
    }.items(),
)
def test_settings_that_make_no_traffic_are_refused_by_key_and_value(key, values):
    for value in values:
        with pytest.raises(BadSettings) as refusal:
            SyntheticWorkload(**(CHAT | {key: value}))
        assert str(refusal.value).startswith(f"workload.{key} is {value!r}, but must be ")


@pytest.mark.parametrize(
    ("key", "values"),
    {
        "kind": ["synthetic"],
        "path": [""],
        "requests": [0, -1, 1.5, NAN, INF],
        "time_scale": [0, -1, NAN, INF],
        "vocab": [0, 1, -1],
    }.items(),
)
def test_settings_that_read_no_trace_are_refused_by_key_and_value(key, values):
    for value in values:
        with pytest.raises(BadSettings) as refusal:
            AzureWorkload(**({"path": "trace.csv"} | {key: value}))
        assert str(refusal.value).startswith(f"workload.{key} is {value!r}, but must be ")


def test_one_length_for_all_is_no_contradiction():
    same = {"prompt_min_tokens": 9, "prompt_max_tokens": 9, "prompt_sigma": 0}
    trace = draw(SyntheticWorkload(**(CHAT | same)), 1, ["m"])
    assert set(trace.prompt_tokens.tolist()) == {9}


@pytest.mark.parametrize("seed", [-1, 1.5, NAN])
def test_a_seed_is_a_natural_number(seed):
    with pytest.raises(BadSettings, match="seed is"):
        draw(SyntheticWorkload(**CHAT), seed, ["m"])


def test_every_kind_is_drawn_for_the_model_asked_for(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,5,6\n")
    for settings in (SyntheticWorkload(**CHAT), AzureWorkload(path=str(path))):
        trace = draw(settings, 7, ["phi"])
        assert (trace.model, trace.seed, trace.request(0).model) == ("phi", 7, "phi")


@pytest.mark.parametrize("file", sorted(CONF.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_yaml_makes_its_settings_and_opens_with_its_command(file):
    opening = re.match(r"# python -m sim scenario=(\w+) (?:\S+ )*workload=(\w+) ", file.read_text())
    assert opening is not None
    assert opening[1] in choices("scenario")
    assert opening[2] == file.stem
    written = composed(["scenario=steady", f"workload={file.stem}"]).workload
    if OmegaConf.is_missing(written, "path"):
        written.path = "trace.csv"
    schema = OmegaConf.structured(workloads.find(written.kind))
    settings = OmegaConf.to_object(OmegaConf.merge(schema, written))
    assert isinstance(settings, workloads.find(written.kind))


def test_the_yaml_of_a_trace_asks_for_its_path_and_lets_all_rows_be_read():
    written = OmegaConf.load(CONF / "azure.yaml")
    assert OmegaConf.is_missing(written, "path")
    asked = OmegaConf.create({"path": "trace.csv", "requests": None})
    settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(AzureWorkload), written, asked))
    assert settings.requests is None
