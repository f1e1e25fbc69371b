"""The door: what may come in, and the one sentence for what may not."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

import conf
from engine.errors import BadSettings, UnknownName
from engine.settings import ModelSettings
from sim import composing, config
from sim.config import SECTIONS, read

ROOFLINE = ["scenario=failover", "executor=roofline"]
GROUPS = sorted(
    path for path in Path(conf.__file__).parent.iterdir() if path.is_dir() and any(path.glob("*.yaml"))
)
CHOICES = [(group.name, path.stem) for group in GROUPS for path in sorted(group.glob("*.yaml"))]


# Of the others, which do not ask for each other, one of each is composed at a time.
ALONE = ("executor", "fleet", "scenario", "workload")
BY_GROUP = {
    group: [name for other, name in CHOICES if other == group] for group, _ in CHOICES if group not in ALONE
}
ROUNDS = [
    {group: names[turn % len(names)] for group, names in BY_GROUP.items()}
    for turn in range(max(map(len, BY_GROUP.values())))
]


@pytest.mark.parametrize(
    "chosen",
    [*({group: name} for group, name in CHOICES if group in ALONE), *ROUNDS],
    ids=lambda it: "-".join(it.values()),
)
def test_every_yaml_there_is_composes(chosen):
    overrides = [f"{group}={name}" for group, name in chosen.items()]
    overrides += (
        ["workload.path=trace.csv"] if chosen.get("workload") in ("azure", "servegen", "trace") else []
    )
    overrides += [] if "executor" in chosen else ["executor=roofline"]
    overrides += [] if "scenario" in chosen else ["scenario=steady"]
    settings = read(overrides)
    assert all(settings.config[group] is not None for group in chosen)


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_every_yaml_opens_with_the_command_that_uses_it(group, name):
    text = (Path(conf.__file__).parent / group / f"{name}.yaml").read_text()
    command = next(line for line in text.splitlines() if line.startswith("# python -m sim"))
    assert f"{group}={name}" in command


def test_everything_composed_is_known_and_everything_known_is_composed():
    assert set(read(ROOFLINE).config) == set(SECTIONS)


def test_an_experiment_is_a_few_override_lines():
    overrides = [*ROOFLINE, "strategy=least_loaded", "seed=7", "fleet.replicas=28", "workload.rate=3"]
    settings = read(overrides)
    assert settings.engine.routing.strategy == "least_loaded"
    assert settings.seed == settings.engine.seed == 7
    assert list(settings.engine.fleet.replicas)[:3] == ["a", "b", "c"]
    assert list(settings.engine.fleet.replicas)[25:] == ["z", "aa", "ab"]
    assert settings.workload.rate == 3.0
    assert settings.overrides == overrides


def test_a_program_that_uses_hydra_itself_keeps_its_own():
    with initialize_config_module("conf", version_base="1.3"):
        read(ROOFLINE)
        assert compose("config", overrides=ROOFLINE).seed == 1


@pytest.mark.parametrize(
    "where",
    [
        "composing.compose",
        "composing.OmegaConf.update",
        "config.OmegaConf.merge",
        "config.OmegaConf.to_container",
    ],
)
@pytest.mark.parametrize("kind", [HydraException, OmegaConfBaseException, AttributeError])
def test_ctrl_c_stays_ctrl_c_where_another_error_comes_of_it(kind, where, monkeypatch):
    def interrupted(*_args, **_named):
        try:
            raise KeyboardInterrupt
        finally:
            raise kind

    for kept in (composing._chosen, config._merged):
        kept.cache_clear()
    monkeypatch.setattr(f"sim.{where}", interrupted)
    with pytest.raises(KeyboardInterrupt):
        read([*ROOFLINE, "seed=2"])


def test_replicas_may_be_named_one_by_one():
    with pytest.raises(BadSettings, match=r"fleet\.replicas"):
        read([*ROOFLINE, "fleet.replicas=null"])
    named = read([*ROOFLINE, "fleet.replicas={left: llama-3.2-1b, right: llama-3.2-1b}"])
    assert named.engine.fleet.replicas == {"left": "llama-3.2-1b", "right": "llama-3.2-1b"}
    others = ["~fleet.replicas", "+fleet.replicas={x: model-a, y: model-a}"]  # as the refusal says
    assert read([*ROOFLINE, "fleet=three_models", *others]).engine.fleet.replicas == dict.fromkeys(
        "xy", "model-a"
    )


RAMP = "[{at_s: 0, weights: [1, 0]}, {at_s: 1, weights: [1, 1]}]"
ARMS = "[{name: a, target: auto, weight: 1}, {name: b, target: auto, weight: 0}]"
SHAPE = "hidden: 4, heads: 1, kv_heads: 1, head_dim: 4, ffn: 4, vocab: 5, context_tokens: 5"

BAD = [
    ([], BadSettings, "no scenario is given", "failover, global_eviction"),
    (["scenario=nope"], UnknownName, "no scenario is called 'nope'", "failover, global_eviction"),
    (
        [*ROOFLINE, "scenario.name=nope"],
        UnknownName,
        "no scenario is called 'nope'",
        "failover, global_eviction",
    ),
    ([*ROOFLINE, "strategy=nope"], UnknownName, "no strategy is called 'nope'", "least_loaded, "),
    (
        [*ROOFLINE, "strategy.name=nope"],
        UnknownName,
        "no strategy is called 'nope'",
        "least_loaded, ",
    ),
    ([*ROOFLINE, "+strategy.x=3"], BadSettings, "strategy 'round_robin' does not take", "'x'"),
    ([*ROOFLINE, "eviction.name=mru"], UnknownName, "no eviction policy is called 'mru'", "lru"),
    (["scenario=failover", "executor=nope"], UnknownName, "no executor is called 'nope'", "roofline, torch"),
    ([*ROOFLINE, "executor.name=nope"], UnknownName, "no executor is called 'nope'", "roofline, torch"),
    ([*ROOFLINE, "workload=nope"], UnknownName, "no workload is called 'nope'", "azure, bare, chat"),
    (
        [*ROOFLINE, "workload.kind=nope"],
        UnknownName,
        "no workload is called 'nope'",
        "azure, closed, generated",
    ),
    (
        [*ROOFLINE, "fleet=three_models", "fleet.replicas={x: model-a}"],
        UnknownName,
        "fleet.replicas is a map, which has a, b, c",
        "'~fleet.replicas' '+fleet.replicas={...}'",
    ),
    (
        [*ROOFLINE, "allocation=priority", "allocation.members={x: high}"],
        UnknownName,
        "allocation.members is a map: to put",
        "'+allocation.members={...}'",
    ),
    ([*ROOFLINE, "foo=1"], UnknownName, "no setting is called 'foo'", "seed"),
    ([*ROOFLINE, "+foo=1"], UnknownName, "no setting is called 'foo'", "seed"),
    ([*ROOFLINE, "workload.foo=1"], UnknownName, "no setting is called 'workload.foo'", "rate"),
    ([*ROOFLINE, "+workload.foo=1"], BadSettings, "no setting is called 'workload.foo'", "rate"),
    (
        [*ROOFLINE, "executor.threads=2"],
        UnknownName,
        "no setting is called 'executor.threads'",
        "overhead_us",
    ),
    (
        [*ROOFLINE, "+executor.threads=2"],
        BadSettings,
        "no setting is called 'executor.threads'",
        "overhead_us",
    ),
    ([*ROOFLINE, "hydra.foo=1"], UnknownName, "no setting is called 'hydra.foo'", ""),
    ([*ROOFLINE, "seed.x=1"], UnknownName, "no setting is called 'seed.x'", ""),
    ([*ROOFLINE, "~fleet"], BadSettings, "fleet is None", "given"),
    ([*ROOFLINE, "workload"], BadSettings, "'workload' is no setting", "KEY=VALUE"),
    ([*ROOFLINE, "health=3"], BadSettings, "health is 3", "probe_every_s"),
    ([*ROOFLINE, "executor=[a,b]"], BadSettings, "'b'", "roofline, torch"),
    ([*ROOFLINE, "strategy.name=3"], BadSettings, "strategy is {'name': 3}", "name"),
    ([*ROOFLINE, "workload.requests=0"], BadSettings, "workload.requests is 0", "from 1"),
    ([*ROOFLINE, "workload.rate=0"], BadSettings, "workload.rate is 0.0", "above 0"),
    ([*ROOFLINE, "workload.rate=-1"], BadSettings, "workload.rate is -1.0", "above 0"),
    ([*ROOFLINE, "workload.rate=fast"], BadSettings, "workload.rate is 'fast'", "float"),
    ([*ROOFLINE, "workload=azure"], BadSettings, "workload.path has no value", "workload.path=VALUE"),
    ([*ROOFLINE, "seed=-1"], BadSettings, "seed is -1", "whole number"),
    ([*ROOFLINE, "seed=1.5"], BadSettings, "seed is 1.5", "whole number"),
    ([*ROOFLINE, "seed=true"], BadSettings, "seed is True", "whole number"),
    ([*ROOFLINE, "fleet.replicas=0"], BadSettings, "fleet.replicas is 0", "at least 1"),
    ([*ROOFLINE, "fleet.replicas={a: nope}"], BadSettings, "fleet.replicas.a is 'nope'", "llama-3.2-1b"),
    ([*ROOFLINE, "fleet.replicas=many"], BadSettings, "fleet.replicas is 'many'", "a number or a map"),
    ([*ROOFLINE, "fleet.models=[]"], BadSettings, "fleet.models is []", "at least one"),
    ([*ROOFLINE, "fleet.max_batch=0"], BadSettings, "fleet.max_batch is 0", "at least 1"),
    ([*ROOFLINE, "fleet.step_tokens=8"], BadSettings, "fleet.step_tokens is 8", "at least fleet.max_batch"),
    ([*ROOFLINE, "tiers.ram.gib=nan"], BadSettings, "tiers.ram.gib is nan", "at least 0"),
    ([*ROOFLINE, "report.folder=''"], BadSettings, "report.folder is ''", "path"),
    ([*ROOFLINE, "report.sample_every_s=0"], BadSettings, "report.sample_every_s is 0.0", "above 0"),
    ([*ROOFLINE, "report.sample_every_s=1e-9"], BadSettings, "sample_every_s is 1e-09", "at least 0.001"),
    ([*ROOFLINE, "scenario.dies_at_share=1"], BadSettings, "scenario.dies_at_share is 1.0", "below 1"),
    ([*ROOFLINE, "scenario.dies_at_s=-1"], BadSettings, "scenario.dies_at_s is -1.0", "at least 0"),
    ([*ROOFLINE, "faults=[5]"], BadSettings, "faults[0] is 5", "fault: crash"),
    (
        [*ROOFLINE, "faults=[{fault: boom, at_s: 1}]"],
        UnknownName,
        "no fault is called 'boom'",
        "crash, recover",
    ),
    (
        [*ROOFLINE, "faults=[{fault: crash, at_s: -1, replica: a}]"],
        BadSettings,
        "faults[0].at_s is -1.0",
        "at least 0",
    ),
    (
        [*ROOFLINE, "faults=[{fault: crash, at_s: x, replica: a}]"],
        BadSettings,
        "faults[0].at_s is 'x'",
        "float",
    ),
    ([*ROOFLINE, "faults=[{fault: crash, at_s: 1}]"], BadSettings, "faults[0].replica has no value", ""),
    (
        [*ROOFLINE, "faults=[{fault: crash, at_s: 1, replica: a, y: 2}]"],
        BadSettings,
        "'faults[0].y'",
        "replica",
    ),
    (
        [*ROOFLINE, "quotas.limits=[{model: x, hourly_tokens: 3}, {model: y, hourly_tokens: 1.5}]"],
        BadSettings,
        "quotas.limits[1].hourly_tokens is '1.5'",
        "integer",
    ),
    (
        [*ROOFLINE, "routing.experiments=[{name: x, on: llama-3.2-1b, arms: [{name: a, model: y}]}]"],
        BadSettings,
        "no setting is called 'routing.experiments[0].arms[0].model'",
        "the settings of routing.experiments[0].arms[0] are name, target, weight",
    ),
    (
        [*ROOFLINE, "quotas.limits=[{model: '*', hourly_tokens: 3}, {tenant: '*', hourly_tokens: 0}]"],
        BadSettings,
        "quotas.limits[1].hourly_tokens is 0",
        "at least 1",
    ),
    (
        [*ROOFLINE, "tiers.limits=[{tenant: a, tier: ram, gib: 1}, {tenant: b, tier: ram, gib: -1}]"],
        BadSettings,
        "tiers.limits[1].gib is -1.0",
        "at least 0",
    ),
    (
        [*ROOFLINE, "tiers.limits=[{tenant: a, tier: ram, gib: 1}, {tenant: b, tier: ssd, gib: 1}]"],
        BadSettings,
        "tiers.limits[1].tier is 'ssd'",
        "given: ram",
    ),
    (
        [
            *ROOFLINE,
            f"routing.experiments=[{{name: x, on: auto, ramp: {RAMP}, arms: {ARMS}}}]",
        ],
        BadSettings,
        "routing.experiments.x.ramp[1].weights is [1.0, 1.0]",
        "sum to 1",
    ),
    (
        [*ROOFLINE, "faults=[{fault: crash, replica: a, at_s: 1}, {fault: boom, replica: a, at_s: 1}]"],
        UnknownName,
        "no fault is called 'boom', as faults[1].fault has it",
        "crash, recover",
    ),
    (
        [
            *ROOFLINE,
            f"fleet.models=[{{name: a, architecture: {{layers: 0, {SHAPE}}}}}]",
        ],
        BadSettings,
        "fleet.models[0].architecture.layers is 0",
        "at least 1",
    ),
    (
        [*ROOFLINE, "workload=merged", "workload.parts.code.rate=-1"],
        BadSettings,
        "workload.parts.code.rate is -1.0",
        "above 0",
    ),
    (
        [*ROOFLINE, "workload=merged", "workload.parts.code.prompt.sigma=-1"],
        BadSettings,
        "workload.parts.code.prompt.sigma is -1.0",
        "from 0 to 10",
    ),
    (
        [*ROOFLINE, "workload=merged", "+workload.parts.chat.model_zipf=1"],
        BadSettings,
        "workload.parts.code.model_zipf is None",
        "that of the first part",
    ),
    (
        [
            *ROOFLINE,
            "workload=closed",
            "workload.prompt.law=lognormal",
            "workload.prompt.median=9",
            "workload.prompt.sigma=1",
        ],
        UnknownName,
        "no setting is called 'workload.prompt.median'; the settings of workload.prompt are law, tokens; for",
        "write '~workload.prompt' '+workload.prompt={law: lognormal, median: ..., sigma: ...}'",
    ),
    ([*ROOFLINE, "workload.rate=null"], BadSettings, "workload.rate is None", "given"),
    (
        [*ROOFLINE, "workload=generated", "workload.prompt=5"],
        BadSettings,
        "workload.prompt is 5",
        "law, tokens, ",
    ),
    (
        [*ROOFLINE, "workload=generated", "workload.prompt.law=[a]"],
        BadSettings,
        "prompt.law is ['a']",
        "type str",
    ),
    (
        [*ROOFLINE, "workload=generated", "workload.classes=5"],
        BadSettings,
        "workload.classes is 5",
        "a list of",
    ),
    (
        [*ROOFLINE, "workload=generated", "workload.classes=[5]"],
        BadSettings,
        "classes[0] is 5",
        "name, share, ",
    ),
    (
        [*ROOFLINE, "workload=generated", "workload.tenants.shares=[a]"],
        BadSettings,
        "shares is ['a']",
        "a map, as",
    ),
    ([*ROOFLINE, "routing.groups={g: a}"], BadSettings, "routing.groups.g is 'a'", "a list, as in [A, B]"),
    ([*ROOFLINE, "quotas.modes=5"], BadSettings, "quotas.modes is 5", "a map to groups of settings: at, "),
    ([*ROOFLINE, "beside.runs=5"], BadSettings, "beside.runs is 5", "a map, as in {NAME: VALUE}"),
    ([*ROOFLINE, "health.enabled=maybe"], BadSettings, "health.enabled is 'maybe'", "true or false"),
    ([*ROOFLINE, "fleet.models=5"], BadSettings, "fleet.models is 5", "at least one model, in a list"),
    ([*ROOFLINE, "~fleet.models"], BadSettings, "fleet.models is None", "at least one model, in a list"),
    ([*ROOFLINE, "~fleet.replicas"], BadSettings, "fleet.replicas is None", "a number or a map"),
    ([*ROOFLINE, "faults=5"], BadSettings, "faults is 5", "a list of faults"),
    ([*ROOFLINE, "faults={a: 1}"], BadSettings, "faults is {a: 1}", "where a list must stand"),
    (
        [*ROOFLINE, "tiers={limits: {a: 1}}"],
        BadSettings,
        "tiers is {limits:",
        "a map where a list must stand",
    ),
    ([*ROOFLINE, "faults=[{fault: [crash], at_s: 1}]"], UnknownName, "called ['crash']", "crash, recover"),
    (
        [*ROOFLINE, "workload=merged", "+workload.parts.model-1={rate: 1}", "workload.parts.model-1.rat=1"],
        UnknownName,
        "no setting is called 'workload.parts.model-1.rat'",
        "the settings of workload.parts.model-1 are rate",
    ),
    ([*ROOFLINE, "tiers.limits=[{tear: ram}]"], BadSettings, "'tiers.limits[0].tear'", "tier, gib, "),
    (
        [*ROOFLINE, "routing.fallbacks={'*': [auto]}"],
        BadSettings,
        "is no setting",
        "the keys of a map have no quotes here, as in {*: [auto]}",
    ),
    ([*ROOFLINE, "fleet=null"], BadSettings, "fleet is None", "one of five_alike, reference_five"),
    ([*ROOFLINE, "+fleet=3"], BadSettings, "fleet is 3", "one of five_alike, reference_five"),
    (["scenario=true"], BadSettings, "scenario is True", "one of ab_test, affinity"),
    ([*ROOFLINE, "tiers=[ram, 7]"], BadSettings, "tiers is ['ram', 7]", "one of five, gpu_ram"),
    ([*ROOFLINE, "workload=[]"], BadSettings, "workload is []", "one of azure, bare"),
    ([*ROOFLINE, "fleet={batch: 8}"], UnknownName, "no setting is called 'fleet.batch'", "max_batch, "),
    ([*ROOFLINE, "tiers={ram: {gibs: 8}}"], UnknownName, "called 'tiers.ram.gibs'", "gib, gib_per_s"),
    ([*ROOFLINE, "tiers=ram_ssd", "tiers={ssd: {x: 8}}"], UnknownName, "called 'tiers.ssd.x'", "gib, "),
]


@pytest.mark.parametrize(("overrides", "kind", "thing", "allowed"), BAD, ids=lambda value: str(value)[:60])
def test_bad_input_is_one_sentence_with_the_thing_and_what_is_allowed(overrides, kind, thing, allowed):
    with pytest.raises(kind) as caught:
        read(overrides)
    message = str(caught.value)
    assert thing in message
    assert allowed in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("workload", "law", "params"),
    [
        ("closed", "{law: lognormal, median: 9, sigma: 1}", {"median": 9.0, "sigma": 1.0, "tokens": None}),
        ("generated", "{law: fixed, tokens: 9}", {"median": None, "sigma": None, "tokens": 9}),
    ],
)
def test_another_law_takes_nothing_along_of_the_usual_one(workload, law, params):
    lines = ["~workload.prompt", f"+workload.prompt={law}"]  # as the refusal says
    prompt = read([*ROOFLINE, f"workload={workload}", *lines]).workload.prompt
    assert {name: getattr(prompt, name) for name in params} == params
    with pytest.raises(BadSettings, match=r"workload.prompt.cv is 2.0, but must be null, since the law is"):
        read([*ROOFLINE, f"workload={workload}", *lines, "+workload.prompt.cv=2"])


def test_models_that_are_alike_are_read_once_and_are_what_each_is_by_itself(monkeypatch):
    shape = {
        "layers": 2, "hidden": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "ffn": 96, "vocab": 512,
        "context_tokens": 256,
    }  # fmt: skip
    given = [{"name": f"m{index}", "version": f"1.0.{index}", "architecture": shape} for index in range(50)]
    given[7] = {**given[7], "weight_bytes": 1}
    given[9] = {**given[9], "architecture": {**shape, "tied_embeddings": False}}
    given[11] = {**given[11], "path": "m11.gguf"}
    given[13] = {**given[13], "path": None}
    each = [config.typed(ModelSettings, values, "model") for values in given]
    read = []
    monkeypatch.setattr(
        config, "typed", lambda *given, typed=config.typed: read.append(given[2]) or typed(*given)
    )
    assert config._models(given) == each
    assert [int(name[len("fleet.models[") : -1]) for name in read] == [0, 7, 9, 11, 13]
    with pytest.raises(BadSettings, match="name is '', but must be a name"):
        config._models([*given, {**given[0], "name": ""}])
    with pytest.raises(BadSettings, match=r"no setting is called 'fleet.models\[50\].nam'"):
        config._models([*given, {**given[0], "nam": "m"}])
