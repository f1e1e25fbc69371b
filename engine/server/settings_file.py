"""The settings file: YAML, and lines like `server.port=9000` over it, to a checked `Deployment`.

Whatever is wrong leaves here as one BadSettings: file and line, the setting, its value, what is allowed. Without a
file, and for all that a file does not say, defaults hold that can be served at once.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from engine.cache import allocation, check_order
from engine.errors import BadModel, BadSettings
from engine.execution import executors
from engine.formats import open_checkpoint
from engine.registry import Model, discover
from engine.routing import check_strategy
from engine.server import earlier
from engine.server.default_models import default_models
from engine.server.settings import MODELS_FOLDER, ServerSettings
from engine.server.typed import typed, unknown
from engine.server.yaml_file import Tree, one_value, parse_yaml, read_yaml
from engine.settings import (
    THIS_MACHINE,
    CacheSettings,
    EngineSettings,
    ExecutorSettings,
    FleetSettings,
    HardwareSettings,
    HealthSettings,
    LoadingSettings,
    ModelSettings,
    QuotaSettings,
    RoutingSettings,
    require,
)

SECTIONS = (
    "server",
    "models",
    "fleet",
    "executor",
    "hardware",
    "routing",
    "health",
    "quotas",
    "cache",
    "seed",
)
PATHS = (
    "server.keys_file",
    "server.audit.file",
    "server.log.file",
    "server.traces.file",
    "server.jobs.folder",
    "models.folder",
    "models.registry_file",
    "quotas.state_file",
    "cache.*.path",
    "fleet.models.*",
    "fleet.models.*.path",
    "executor.converted_folder",
    "executor.path",
    "hardware",
)
"""Settings that are paths: relative to the file that says them, or to the working directory on a command line."""

TIMED_EVERY = 16
"""One decision in so many is timed where nobody says; a simulation times none, so that its figures stay the same."""

NEEDS_HARDWARE = "roofline"
IN_PROSE = re.compile(r"\w+: ")
SUBJECT = re.compile(r"([\w.*@/+-]+(?:\[\d+\][\w.*@/+-]*)*)(?: is | has |: | and | names )")


@dataclass(slots=True, kw_only=True)
class Deployment:
    """An engine and its server, ready to be made. `notes` are what was decided without being asked, in sentences.

    What is wrong and shows when they are made is told with its place inside of `placed()`.
    """

    engine: EngineSettings
    server: ServerSettings
    notes: list[str] = field(default_factory=list)
    placed: Callable[[], AbstractContextManager[None]] = nullcontext


def deployment(
    path: Path | None = None, overrides: Sequence[str] = (), *, models_folder: Path = MODELS_FOLDER
) -> Deployment:
    """The deployment of that file, and of lines `full.name=VALUE` over it. Raises BadSettings, UnknownName.

    Where nothing names a model, `models_folder` is looked at, and stand-ins are made in it if it holds none.
    """
    tree = Tree() if path is None else _read(path)
    names_models = bool(tree.get("models.folder") or tree.get("fleet.models"))
    for line in overrides:
        _override(tree, line)
    names_models = names_models or bool(tree.get("fleet.models"))
    for name in tree.values:
        with _placed(tree, path):
            if name not in SECTIONS:
                raise unknown(name, [*SECTIONS, *earlier.KEYS])
    notes = [f"settings: {'the defaults' if path is None else path}"]
    with _placed(tree, path):
        if tree.get("server.log.level") is False:
            tree.values["server"]["log"]["level"] = "off"  # which YAML reads as false
        server = typed(ServerSettings, _group(tree, "server"), "server")
        notes += _doors(server)
        loading = _group(tree, "models")
        models = [
            _model(value, f"fleet.models[{at}]") for at, value in enumerate(_listed(tree, "fleet.models"))
        ]
        if not names_models:
            folder = Path(loading.setdefault("folder", str(models_folder)))
            models, said = default_models(folder)
            notes += said
        engine = _engine(tree, loading, models)
    return Deployment(engine=engine, server=server, notes=notes, placed=partial(_placed, tree, path))


def _read(path: Path) -> Tree:
    """The file, our settings in the place of the earlier system's, its paths whole."""
    try:
        tree = read_yaml(path)
    except BadSettings:
        inside = _inside_braces(path)
        if inside is None:
            raise
        tree = inside
    with _placed(tree, path):
        earlier.translate(tree)
    _make_whole(tree.values, path.parent.absolute())
    return tree


def _inside_braces(path: Path) -> Tree | None:
    """A file of one line, as the earlier system's stands in prose: `a: 1, b: 2`. None where it is none."""
    try:
        text = path.read_text("utf-8").strip()
        return parse_yaml(f"{{{text}}}", str(path)) if IN_PROSE.match(text) and "\n" not in text else None
    except (OSError, UnicodeDecodeError, BadSettings):
        return None


def _override(tree: Tree, line: str) -> None:
    """Take over a line of a command. Raises BadSettings."""
    name, equals, text = line.partition("=")
    if not equals or not name.strip():
        raise BadSettings(f"{line!r} is no setting: write NAME=VALUE, like server.port=9000")
    name, value = earlier.meant(name.strip(), one_value(text, line))
    single = Tree()
    single.put(name, value, line)
    names = [name]
    if name.partition(".")[0] in earlier.KEYS:
        with _placed(single, None):
            earlier.translate(single)
        names = [each for each in single.places if each.partition(".")[0] in SECTIONS]
    _make_whole(single.values, Path.cwd())
    for each in names:
        tree.put(each, single.get(each), line)


def _make_whole(values: dict[str, Any], base: Path) -> None:
    """Make whole paths of relative ones."""
    for pattern in PATHS:
        _make_one_whole(values, pattern.split("."), base)


def _make_one_whole(values: Any, parts: list[str], base: Path) -> None:
    first, rest = parts[0], parts[1:]
    names: list[Any] = []
    if isinstance(values, dict):
        names = list(values) if first == "*" else [first] if first in values else []
    elif isinstance(values, list) and first == "*":
        names = list(range(len(values)))
    for name in names:
        if rest:
            _make_one_whole(values[name], rest, base)
        elif isinstance(values[name], str) and values[name]:
            values[name] = str(base / Path(values[name]).expanduser())


@contextmanager
def _placed(tree: Tree, path: Path | None) -> Iterator[None]:
    """Say of what is wrong in here where it was said, as far as anybody knows."""
    try:
        yield
    except BadSettings as error:
        told = str(error)
        if told.startswith("tiers"):  # what the simulator's configuration calls the cache's settings
            told = f"cache{told.removeprefix('tiers')}"
        subject = SUBJECT.match(told)
        place = tree.place(subject[1]) if subject else None
        place = place or (str(path) if path is not None else None)
        raise type(error)(told if place is None else f"{place}: {told}") from error


def _engine(tree: Tree, loading: dict[str, Any], models: list[ModelSettings]) -> EngineSettings:
    routing = typed(RoutingSettings, {"time_every": TIMED_EVERY, **_group(tree, "routing")}, "routing")
    cache = typed(CacheSettings, _group(tree, "cache"), "cache")
    with _called("routing.strategy"):
        check_strategy(routing)
    with _called("cache.eviction"):
        check_order(cache.eviction, cache.options)
    with _called("cache.allocation"):
        allocation.make(cache.allocation, **cache.allocation_options)
    executor = _executor(tree.values.get("executor"))
    folder = typed(LoadingSettings, loading, "models")
    seed = tree.values.get("seed", 1)
    require("seed", seed, type(seed) is int and seed >= 0, "a whole number from 0")
    return EngineSettings(
        fleet=_fleet(_group(tree, "fleet"), models, folder),
        executor=executor,
        hardware=_hardware(tree.values.get("hardware"), executor),
        routing=routing,
        health=typed(HealthSettings, _group(tree, "health"), "health"),
        quotas=typed(QuotaSettings, _group(tree, "quotas"), "quotas"),
        cache=cache,
        models=folder,
        seed=seed,
    )


def _group(tree: Tree, name: str) -> dict[str, Any]:
    """The settings of a section; none where it is empty."""
    found = tree.values.get(name)
    require(name, found, found is None or isinstance(found, dict), "a group of settings")
    return dict(found or {})


def _listed(tree: Tree, name: str) -> list[Any]:
    found = tree.get(name)
    require(name, found, found is None or isinstance(found, list), "a list")
    return list(found or [])


def _model(value: Any, key: str) -> ModelSettings:
    """A model: a path, a group with a `path` whose file says the rest, or all of it with its `architecture`."""
    given = {"path": value} if isinstance(value, str) else value
    if not isinstance(given, dict) or "architecture" in given or not isinstance(given.get("path"), str):
        if isinstance(given, dict) and "architecture" not in given:
            raise BadSettings(f"{key} is {given!r}, but must have a path, or an architecture")
        return typed(ModelSettings, given, key)
    try:
        card = Model.from_checkpoint(open_checkpoint(Path(given["path"])))
    except (BadModel, OSError) as error:
        raise BadSettings(f"{key} is {given['path']!r}, which cannot be served: {error}") from error
    if card.settings is None:
        raise BadSettings(f"{key} is {given['path']!r}, which cannot be served: {card.reason}")
    return typed(ModelSettings, {**asdict(card.settings), **given}, key)


def _fleet(values: dict[str, Any], models: list[ModelSettings], loading: LoadingSettings) -> FleetSettings:
    """The fleet: one replica of each model, called like it, unless `replicas` says otherwise."""
    values.pop("models", None)
    replicas = values.pop("replicas", None)
    if replicas is None:
        replicas = {model.name: model.name for model in models}
    allowed = "a map from names of replicas to names of models"
    require("fleet.replicas", replicas, isinstance(replicas, dict), allowed)
    known = [model.name for model in models]
    wanted = [name for name in dict.fromkeys(replicas.values()) if name not in known]
    models = [*models, *_from_folder(wanted, loading)]
    plain = {"models": [asdict(model) for model in models], "replicas": replicas}
    return typed(FleetSettings, {**values, **plain}, "fleet")


def _from_folder(names: list[Any], loading: LoadingSettings) -> Iterator[ModelSettings]:
    """Models of the folder that replicas name. Those that are not there are told of later, with those that are."""
    if not names or loading.folder is None:
        return
    for each in discover(Path(loading.folder)).healthy:
        if each.checkpoint is not None and each.checkpoint.name in names:
            card = Model.from_checkpoint(each.checkpoint)
            if card.settings is not None:
                names.remove(card.name)
                yield card.settings


def _executor(value: Any) -> ExecutorSettings:
    """The executor: its name, or a group with its name and its options."""
    given = {"name": value} if isinstance(value, str) else value if value is not None else {"name": "torch"}
    is_named = isinstance(given, dict) and isinstance(given.get("name", "torch"), str)
    require("executor", value, is_named, "a name, or a group with a name and options")
    options = {**given}
    name = options.pop("name", "torch")
    require("executor", name, name in executors.names(), f"one of {', '.join(executors.names())}")
    if options:  # only then: finding torch imports it
        made = typed(executors.find(name).Options, options, "executor")
        options = {each.name: getattr(made, each.name) for each in fields(made) if each.name in options}
    return ExecutorSettings(name=name, options=options)


def _hardware(value: Any, executor: ExecutorSettings) -> HardwareSettings:
    """The accelerator: a group of its figures, or the path of a YAML file that has them."""
    if value is None:
        allowed = f"given with executor {NEEDS_HARDWARE}: it computes with its figures"
        require("hardware", value, executor.name != NEEDS_HARDWARE, allowed)
        return THIS_MACHINE
    if isinstance(value, str):
        with _called("hardware, a group or a YAML file like those of conf/hardware"):
            value = read_yaml(Path(value)).values
    return typed(HardwareSettings, value, "hardware")


@contextmanager
def _called(key: str) -> Iterator[None]:
    """Put the name of the setting before what is wrong with it."""
    try:
        yield
    except BadSettings as error:
        raise type(error)(f"{key}: {error}") from error


def _doors(server: ServerSettings) -> list[str]:
    """Who comes in where, where that might be a surprise."""
    if server.keys_file is not None:
        return []
    open_to_all = "server: nobody is asked for a key, and `user` says who the tenant is"
    return [f"{open_to_all}; keys are made by: python -m engine keys add --tenant NAME FILE"]
