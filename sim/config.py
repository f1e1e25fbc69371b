"""The door: Hydra composes, and what it composed becomes plain, checked dataclasses before anything runs.

A DictConfig never gets further than this file. Whatever is wrong with a configuration leaves here as one
BadSettings (or UnknownName): the key, its value, what is allowed.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cache, lru_cache
from importlib import import_module
from itertools import count, islice, product
from string import ascii_lowercase
from types import ModuleType
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from engine.cache import allocation, check_order
from engine.errors import BadSettings, UnknownName
from engine.execution import executors
from engine.routing import check_strategy
from engine.settings import (
    AllowanceSettings,
    Architecture,
    CacheSettings,
    EngineSettings,
    ExecutorSettings,
    FleetSettings,
    HardwareSettings,
    HealthSettings,
    LimitSettings,
    LoadingSettings,
    ModelSettings,
    QuotaSettings,
    RoutingSettings,
    above,
    at_least,
    require,
)
from sim.beside import BesideSettings
from sim.composing import composed_by_hydra, config_folder, keeping_ctrl_c
from sim.faults import Crash, Fault, Recover
from sim.names import check_names
from sim.sizes import sized
from sim.ties import FIRST_COME, TIES
from sim.traffic import GeneratedWorkload, Trace, Workload, draw, workloads
from sim.traffic.lengths import LAWS, of_one_law

SECTIONS = (
    "executor",
    "hardware",
    "fleet",
    "models",
    "workload",
    "strategy",
    "tiers",
    "eviction",
    "allocation",
    "quotas",
    "report",
    "scenario",
    "seed",
    "ties",
    "routing",
    "health",
    "faults",
    "size",
    "sizes",
    "beside",
)
OPTIONAL = ("size",)
CLOSEST_SAMPLES_S = 0.001
"""A step takes longer, and an hour with a point in every nanosecond of it has no end."""

FAULTS: dict[str, type[Crash | Recover]] = {"crash": Crash, "recover": Recover}

T = TypeVar("T")


@dataclass(slots=True, kw_only=True)
class ReportSettings:
    """Where the run folder goes and what it holds.

    `spans`: also one trace a request, as OpenTelemetry has it: 3.6 kB of it, three times what all else takes.
    `evictions`: each eviction is a fact, too.
    """

    folder: str = "runs"
    sample_every_s: float | None = None
    plots: bool = True
    spans: bool = False
    evictions: bool = False

    def __post_init__(self) -> None:
        require("report.folder", self.folder, self.folder != "", "the path of a folder")
        if self.sample_every_s is not None:
            above("report.sample_every_s", self.sample_every_s, 0)
            at_least("report.sample_every_s", self.sample_every_s, CLOSEST_SAMPLES_S)


@dataclass(slots=True, kw_only=True)
class TimedFault:
    """A fault and when it strikes."""

    at_s: float
    fault: Fault


@dataclass(slots=True, kw_only=True)
class RunSettings:
    """One run, whole: what `sim.play` needs and nothing else."""

    engine: EngineSettings
    workload: Workload
    story: ModuleType  # a module of `scenarios`: Settings, script, checks
    scenario: Any  # the story's own Settings
    report: ReportSettings
    faults: list[TimedFault]
    seed: int
    overrides: list[str]
    config: dict[str, Any]  # as composed, for the run folder
    ties: str = FIRST_COME  # what happens first at one nanosecond
    beside: BesideSettings = field(default_factory=BesideSettings)

    @contextmanager
    def scenery(self) -> Iterator[EngineSettings]:
        """The engine's settings, while what the story needs besides, such as a folder with files, is there."""
        build = getattr(self.story, "scenery", None)
        with nullcontext(self.engine) if build is None else build(self.engine, self.scenario) as engine:
            yield engine

    def draw(self) -> Trace:
        """All requests of the run: those of its workload, and what its story makes of them. Raises BadSettings."""
        trace = draw(self.workload, self.seed, [model.name for model in self.engine.fleet.models])
        traffic = getattr(self.story, "traffic", None)
        woven: Trace = trace if traffic is None else traffic(trace, self.scenario)
        return woven


def read(overrides: Sequence[str]) -> RunSettings:
    """Compose a configuration from override lines, as on the command line. Raises BadSettings."""
    return settle(composed(overrides), overrides)


@keeping_ctrl_c()
def composed(overrides: Sequence[str]) -> DictConfig:
    """What Hydra makes of the override lines. Raises BadSettings."""
    try:
        return composed_by_hydra(overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise explained(error, overrides) from error


@keeping_ctrl_c()
def settle(config: DictConfig, overrides: Sequence[str]) -> RunSettings:
    """The composed configuration as plain dataclasses, of the size that it asks for. Raises BadSettings."""
    parts = _plain(config, overrides)
    lines = sized(parts, overrides)
    if lines is not None:
        parts = _plain(composed(lines), lines)
    _check_sections(parts)
    require("faults", parts["faults"], isinstance(parts["faults"], list), "a list of faults")
    seed = _seed(parts["seed"])
    story = _story(parts["scenario"])
    settings = RunSettings(
        engine=_engine(parts, seed),
        workload=_workload(parts["workload"]),
        story=story,
        scenario=typed(story.Settings, parts["scenario"], "scenario"),
        report=typed(ReportSettings, parts["report"], "report"),
        faults=[_fault(f"faults[{index}]", entry) for index, entry in enumerate(parts["faults"])],
        seed=seed,
        ties=_ties(parts["ties"]),
        beside=typed(BesideSettings, parts["beside"], "beside"),
        overrides=list(overrides),
        config=parts,
    )
    if not hasattr(story, "scenery"):  # what is built for the story may be a folder of models
        check_names(settings.engine)
    settings.beside.check(seed)
    return settings


def _engine(parts: dict[str, Any], seed: int) -> EngineSettings:
    return EngineSettings(
        fleet=_fleet(parts["fleet"]),
        executor=_executor(parts["executor"]),
        hardware=typed(HardwareSettings, parts["hardware"], "hardware"),
        routing=_routing(parts["routing"], parts["strategy"]),
        health=typed(HealthSettings, parts["health"], "health"),
        quotas=typed(QuotaSettings, _given(parts["quotas"], "quotas"), "quotas"),
        cache=_cache(parts["tiers"], parts["eviction"], parts["allocation"]),
        models=typed(LoadingSettings, parts["models"], "models"),
        seed=seed,
    )


def _plain(config: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise explained(error, overrides) from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def typed(cls: type[T], values: Any, key: str) -> T:
    """`values` as an instance of the dataclass `cls`, types converted and names checked. Raises BadSettings."""
    if not isinstance(values, dict):
        raise BadSettings(f"{key} is {values!r}, but must be a group of settings: {_names(cls)}")
    for name in values:
        if name not in {field.name for field in fields(cls)}:  # type: ignore[arg-type]
            raise BadSettings(
                f"no setting is called {f'{key}.{name}'!r}; the settings of {key} are {_names(cls)}"
            )
    try:
        made = OmegaConf.to_object(_merged(cls, _Values(repr(values), values)))  # type: ignore[arg-type]  # each is its own, and checked
    except OmegaConfBaseException as error:
        for entry_cls, entry, place in _entries(cls, values, key):
            typed(entry_cls, entry, place)  # OmegaConf does not say in which entry of a list the trouble is
        raise BadSettings(_sentence(error, key)) from error
    except BadSettings as error:
        for entry_cls, entry, place in _entries(cls, values, key):
            typed(entry_cls, entry, place)  # nor does a class know in which entry it stands
        own = OWN_KEYS.get(cls, key)
        if own == key or not str(error).startswith(f"{own}."):
            raise
        raise type(error)(key + str(error).removeprefix(own)) from error
    assert isinstance(made, cls)
    return made


OWN_KEYS: dict[type, str] = {
    AllowanceSettings: "quotas.limits",
    LimitSettings: "tiers.limits",
    Architecture: "architecture",
    GeneratedWorkload: "workload",
}
"""What classes that stand in lists and maps call themselves."""


def _entries(cls: type, values: dict[str, Any], key: str) -> Iterator[tuple[type, Any, str]]:
    """What is given for the groups of settings of a dataclass, in lists and maps too, with its class and its key.

    Raises BadSettings where it is no list, or no map.
    """
    for name, hint in get_type_hints(cls).items():
        if name not in values:
            continue
        kinds = [kind for kind in (hint, *get_args(hint)) if is_dataclass(kind)]
        given, place = values[name], f"{key}.{name}"
        if not kinds:
            _check_shape(place, given, hint)
            continue
        kind = cast("type", kinds[0])
        if get_origin(hint) is list:
            require(place, given, isinstance(given, list), f"a list of groups of settings: {_names(kind)}")
            yield from ((kind, entry, f"{place}[{number}]") for number, entry in enumerate(given))
        elif get_origin(hint) is dict:
            require(place, given, isinstance(given, dict), f"a map to groups of settings: {_names(kind)}")
            yield from ((kind, entry, f"{place}.{each}") for each, entry in given.items())
        elif given is not None or type(None) not in get_args(hint):
            yield kind, given, place


def _check_shape(key: str, given: Any, hint: Any) -> None:
    """Raise BadSettings for what is no list, or no map, where there should be one."""
    shape, parts = get_origin(hint), get_args(hint)
    if shape is list:
        require(key, given, isinstance(given, list), "a list, as in [A, B]")
    elif shape is dict:
        require(key, given, isinstance(given, dict), "a map, as in {NAME: VALUE}")
        for name, value in given.items():
            _check_shape(f"{key}.{name}", value, parts[1])
    elif given is not None:
        for part in parts:  # of what may be null
            _check_shape(key, given, part)


@dataclass(frozen=True, slots=True)
class _Values:
    """What is given for a dataclass; the same if it is written the same, for 1 == True == 1.0."""

    text: str
    values: dict[str, Any] = field(compare=False)


@lru_cache(128)
def _merged(cls: type, given: _Values) -> DictConfig:
    merged = OmegaConf.merge(_schema(cls), given.values)
    assert isinstance(merged, DictConfig)
    return merged


@cache
def _schema(cls: type) -> DictConfig:
    """What OmegaConf makes of a dataclass, which takes longer than merging; who merges into it copies it."""
    made = OmegaConf.structured(cls)
    assert isinstance(made, DictConfig)
    return made


def explained(error: Exception, overrides: Sequence[str]) -> BadSettings:
    """Hydra's complaint in one sentence of ours."""
    missing = error if isinstance(error, MissingConfigException) else error.__cause__
    if isinstance(missing, MissingConfigException) and missing.missing_cfg_file:
        group, _, name = missing.missing_cfg_file.rpartition("/")
        known = missing.options or choices(group)
        return UnknownName(f"no {group} is called {name!r}; choose from {_options(known)}")
    if isinstance(error, OverrideParseException):
        has_quoted_keys = re.search(r"""[{,]\s*("[^"]*"|'[^']*')\s*:""", error.override or "")
        besides = "; the keys of a map have no quotes here, as in {*: [auto]}" if has_quoted_keys else ""
        return BadSettings(
            f"{error.override!r} is no setting: write KEY=VALUE, and quote a VALUE with special characters{besides}"
        )
    text = " ".join(str(error).split())
    if match := re.search(r"You must specify '(\w+)'", text):
        return BadSettings(
            f"no {match[1]} is given; choose one with {match[1]}=NAME from {_options(choices(match[1]))}"
        )
    if match := re.search(r"Could not override '([^']+)'", text):
        unknown = error.__cause__.full_key if isinstance(error.__cause__, ConfigKeyError) else None
        return UnknownName(_unknown_key(match[1], overrides, unknown or match[1]))
    if isinstance(error, MissingMandatoryValue):
        return BadSettings(f"{error.full_key} has no value; give it one with {error.full_key}=VALUE")
    if match := re.match(r"Error merging override ([^=]+)=(.*)", text):
        text = f"{match[1]} is {match[2]}, but has a map where a list must stand"
    return BadSettings(text)


def _unknown_key(key: str, overrides: Sequence[str], full: str) -> str:
    """A sentence on a key that does not exist, with those that stand beside it.

    `full` is what does not exist where `key` was given a map, as in `fleet={batch: 8}`.
    """
    parent, _, _ = key.rpartition(".")
    others = [line for line in overrides if line.split("=")[0].lstrip("+~") != key]
    if not parent and key in SECTIONS:
        others = [line for line in overrides if not re.match(rf"[+~]*{key}=\s*{{", line)]
        parent, key = full.rpartition(".")[0], full
    if not parent:
        return f"no setting is called {key!r}; the settings are {_options(SECTIONS)}"
    beside = [line for line in others if not re.match(rf"[+~]*{re.escape(parent)}\.[^.=]+=", line)]
    node = _composed_node(others, parent) or _composed_node(
        beside, parent
    )  # another one of them may be unknown too
    if not isinstance(node, DictConfig):
        return f"no setting is called {key!r}"
    name = key.rpartition(".")[2]
    if name in node:
        held = _options(map(str, node[name])) if isinstance(node[name], DictConfig) else ""
        has = f", which has {held}" if held else ""
        return f"{key} is a map{has}: to put another one in its place, write '~{key}' '+{key}={{...}}'"
    known = f"no setting is called {key!r}; the settings of {parent} are {_options(map(str, node))}"
    laws = [law for law, needed in LAWS.items() if name in needed]
    if "law" not in node or not laws:
        return known
    whole = ", ".join((f"law: {laws[0]}", *(f"{each}: ..." for each in LAWS[laws[0]])))
    return f"{known}; for another law write '~{parent}' '+{parent}={{{whole}}}'"


def _composed_node(lines: Sequence[str], key: str) -> Any:
    """What lines make of a group; None where they make nothing, or are no good."""
    try:
        return OmegaConf.select(composed(lines), key)
    except BadSettings:
        return None


def _check_sections(parts: dict[str, Any]) -> None:
    for name in parts:
        if name not in SECTIONS:
            raise UnknownName(f"no setting is called {name!r}; the settings are {_options(SECTIONS)}")
    for name in SECTIONS:
        require(name, parts.get(name), name in OPTIONAL or parts.get(name) is not None, "given")


def choices(name: str) -> list[str]:
    """The choices of a configuration group; none for a setting that is no group."""
    return sorted(path.stem for path in (config_folder() / name).glob("*.yaml"))


def _options(names: Iterable[str] | None) -> str:
    return ", ".join(names or ())


def _names(cls: type[Any]) -> str:
    return _options(field.name for field in fields(cls))


def _sentence(error: OmegaConfBaseException, key: str) -> str:
    """OmegaConf's complaint about a value, with the whole key before it."""
    first = str(error).split("\n")[0].rstrip(".")
    full = f"{key}.{error.full_key}" if error.full_key else key
    if match := re.match(r"Value (.+) of type .+ could not be converted to (\w+)", first):
        return f"{full} is {match[1]}, but must be of type {match[2].lower()}"
    if match := re.match(r"Cannot convert '\w+' to string: '(.*)'$", first):
        return f"{full} is {match[1]}, but must be of type str"
    if match := re.match(r"Value (.+) is not a valid bool", first):
        return f"{full} is {match[1]}, but must be true or false"
    if first.endswith("is not Optional") or first.startswith("Incompatible value 'None'"):
        return f"{full} is None, but must be given"
    if isinstance(error, MissingMandatoryValue):
        return f"{full} has no value; give it one with {full}=VALUE"
    return f"{full}: {first}"


def _seed(value: Any) -> int:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    require("seed", value, is_whole and 0 <= value < 2**63, "a whole number from 0 to 2^63 - 1")
    return int(value)


def _ties(value: Any) -> str:
    require("ties", value, value in TIES, f"one of {', '.join(TIES)}")
    return str(value)


def _story(values: dict[str, Any]) -> ModuleType:
    name = str(values.get("name"))
    known = choices("scenario")
    if name not in known:
        raise UnknownName(f"no scenario is called {name!r}; choose from {_options(known)}")
    return import_module(f"scenarios.{name}")


OF_ITS_OWN = ("name", "version", "path")
"""What tells models apart that are alike otherwise."""


def _models(given: Sequence[Any]) -> list[ModelSettings]:
    """The models of a fleet; those that are alike but for their names are read once: each takes OmegaConf 10 ms."""
    models: list[ModelSettings] = []
    known: dict[str, ModelSettings] = {}
    for index, values in enumerate(given):
        own: dict[str, Any] = {}
        alike: str | None = None
        if isinstance(values, dict):
            own = {name: values[name] for name in OF_ITS_OWN if isinstance(values.get(name), str)}
            alike = repr({name: type(value) if name in own else value for name, value in values.items()})
        made = known.get(alike) if alike is not None else None
        if made is None:
            made = typed(ModelSettings, values, f"fleet.models[{index}]")
            if alike is not None:
                known[alike] = made
        else:
            made = replace(made, **own)
        models.append(made)
    return models


def _fleet(values: Any) -> FleetSettings:
    if not isinstance(values, dict):
        raise BadSettings(f"fleet is {values!r}, but must be a group of settings")
    given, replicas = values.get("models"), values.get("replicas")
    require(
        "fleet.models", given, isinstance(given, list) and len(given) > 0, "at least one model, in a list"
    )
    models = _models(given or ())
    if isinstance(replicas, int) and not isinstance(replicas, bool):
        at_least("fleet.replicas", replicas, 1)
        replicas = dict.fromkeys(islice(_letters(), replicas), models[0].name)
    if not isinstance(replicas, dict):
        raise BadSettings(
            f"fleet.replicas is {replicas!r}, but must be a number or a map from names to models"
        )
    sizes = {name: value for name, value in values.items() if name not in ("models", "replicas")}
    limits = typed(_Limits, sizes, "fleet")
    names = {str(name): str(model) for name, model in replicas.items()}
    return FleetSettings(
        models=models,
        replicas=names,
        max_batch=limits.max_batch,
        step_tokens=limits.step_tokens,
        fast_forward=limits.fast_forward,
        queue_capacity=limits.queue_capacity,
        discipline=limits.discipline,
    )


@dataclass(slots=True, kw_only=True)
class _Limits:
    """What a fleet sets besides its models and replicas."""

    max_batch: int
    step_tokens: int
    fast_forward: bool = True
    queue_capacity: int | None = None
    discipline: str = "fifo"


def _letters() -> Iterable[str]:
    """a, b, ..., z, aa, ab, ..."""
    for length in count(1):
        for letters in product(ascii_lowercase, repeat=length):
            yield "".join(letters)


def _executor(values: dict[str, Any]) -> ExecutorSettings:
    name, options = _named(values, "executor")
    made = typed(executors.find(name).Options, options, "executor")
    return ExecutorSettings(
        name=name, options={field.name: getattr(made, field.name) for field in fields(made)}
    )


def _routing(values: dict[str, Any], chosen: dict[str, Any]) -> RoutingSettings:
    name, options = _named(chosen, "strategy")
    given = {**_given(values, "routing"), "strategy": name, "options": options}
    made = typed(RoutingSettings, given, "routing")
    check_strategy(made)
    return made


def _given(values: Any, key: str) -> dict[str, Any]:
    """What is not null: the rest has the default of its setting, for Hydra adds no keys to a map that is given."""
    if not isinstance(values, dict):
        raise BadSettings(f"{key} is {values!r}, but must be a group of settings")
    return {name: value for name, value in values.items() if value is not None}


def _cache(values: dict[str, Any], evicting: dict[str, Any], dividing: dict[str, Any]) -> CacheSettings:
    name, options = _named(evicting, "eviction")
    check_order(name, options)
    how, shares = _named(dividing, "allocation")
    allocation.make(how, **shares)
    chosen = {"eviction": name, "options": options, "allocation": how, "allocation_options": shares}
    return typed(CacheSettings, {**values, **chosen}, "tiers")


def _workload(values: dict[str, Any]) -> Workload:
    kind = str(values.get("kind"))
    made: Workload = typed(workloads.find(kind), of_one_law(values), "workload")
    return made


def _fault(key: str, entry: Any) -> TimedFault:
    if not isinstance(entry, dict) or "fault" not in entry or "at_s" not in entry:
        raise BadSettings(f"{key} is {entry!r}, but must look like {{fault: crash, replica: b, at_s: 5}}")
    name = entry["fault"]
    if not isinstance(name, str) or name not in FAULTS:
        raise UnknownName(
            f"no fault is called {name!r}, as {key}.fault has it; choose from {_options(FAULTS)}"
        )
    options = {option: value for option, value in entry.items() if option not in ("fault", "at_s")}
    at_s = typed(_At, {"at_s": entry["at_s"]}, key).at_s
    at_least(f"{key}.at_s", at_s, 0)
    return TimedFault(at_s=at_s, fault=typed(FAULTS[name], options, key))


@dataclass(slots=True, kw_only=True)
class _At:
    """When a fault strikes."""

    at_s: float


def _named(values: Any, key: str) -> tuple[str, dict[str, Any]]:
    """A group that has a name and options besides."""
    if not isinstance(values, dict) or not isinstance(values.get("name"), str):
        raise BadSettings(f"{key} is {values!r}, but must have a name and options")
    return values["name"], {name: value for name, value in values.items() if name != "name"}
