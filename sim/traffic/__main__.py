"""`python -m sim.traffic describe trace.csv.gz`: what traffic is like; `fit` writes a generator like it.

0: done. 2: the file or the settings are no good, and nothing is written. 130: interrupted.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text
from yaml import YAMLError

from engine.errors import BadSettings, UnknownName
from engine.registry.discovery import printable
from engine.settings import require
from sim.composing import CONFIG_MODULE
from sim.config import choices, typed
from sim.early import begin
from sim.traffic import MergedWorkload, ServeGenWorkload, Trace, TraceWorkload, Workload, draw, workloads
from sim.traffic.clients import figures
from sim.traffic.describe import BLOCK_TOKENS, Description, describe
from sim.traffic.fit import Fit, PartsFit, fit_by_model, written
from sim.traffic.formats import SERVEGEN, detect
from sim.traffic.lengths import of_one_law
from sim.traffic.trace import MAX_TOKENS
from sim.traffic.workload import whole

USAGE = """usage: python -m sim.traffic describe TRAFFIC [SETTING=VALUE ...]   the figures of traffic
       python -m sim.traffic fit TRAFFIC [SETTING=VALUE ...]        a generator like it, and how alike they are

TRAFFIC is the path of a trace file, of a pool of clients (a file or a folder), or of a YAML file as fit writes it; or
it is workload=NAME.

settings:
  workload.KEY=VALUE  a setting of the workload; for a file, those of workload={kind}; for a pool of clients, those
                      of workload=servegen
  seed=1              of what is drawn
  block_tokens=64     the size of the blocks that an endless cache would hold
  window_s=null       fit: length of the windows that have a rate each; null: what fits best
  out=null            fit: the file to write; null: the settings go to standard output, the figures to standard error

workloads: {workloads}

exit codes: 0 done, 2 bad file or settings, 130 interrupted"""
COMMANDS = ("describe", "fit")
OF_A_FIT = ("window_s", "out")
BAD_SETTINGS = 2
INTERRUPTED = 130
WIDTH = 150  # of a table that is not shown on a terminal
Columns = dict[str, list[tuple[str, str]]]
"""Figures by their names, in order, of each thing that is described."""

MODELS = 5  # over which a workload is spread that does not say how many


@dataclass(slots=True, kw_only=True)
class Options:
    """What the commands can be told besides the workload's own settings."""

    seed: int = 1
    block_tokens: int = BLOCK_TOKENS
    window_s: float | None = None
    out: str | None = None

    def __post_init__(self) -> None:
        whole("seed", self.seed, 0, 2**63 - 1)
        whole("block_tokens", self.block_tokens, 1, MAX_TOKENS)
        is_file = self.out is None or (self.out != "" and not Path(self.out).is_dir())
        require("out", self.out, is_file, "the path of a file, or null")


@dataclass(slots=True, kw_only=True)
class Asked:
    """A command line, read."""

    command: str
    name: str  # of the traffic, as given
    workload: Workload
    options: Options = field(default_factory=Options)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or {"--help", "-h"} & set(given):
        usage = USAGE.format(kind="trace", workloads=", ".join(choices("workload")))
        sys.stdout.write(f"{usage}\n")
        return 0
    try:
        asked = read(given)
        run(asked)
    except BadSettings as error:
        sys.stderr.write(f"modelyard: {error}\n")
        return BAD_SETTINGS
    except KeyboardInterrupt:
        sys.stderr.write("modelyard: interrupted; nothing is written\n")
        return INTERRUPTED
    return 0


def read(arguments: Sequence[str]) -> Asked:
    """What the command line asks for. Raises BadSettings."""
    command, *rest = arguments
    if command not in COMMANDS:
        raise UnknownName(f"no command is called {command!r}; choose from {', '.join(COMMANDS)}")
    if not rest:
        raise BadSettings(f"{command} has no traffic; give it the path of a file, or workload=NAME")
    name, *settings = rest
    for setting in settings:
        if "=" not in setting:
            raise BadSettings(f"{setting!r} is no setting: write SETTING=VALUE")
    own = [setting for setting in settings if setting.startswith("workload.")]
    return Asked(
        command=command,
        name=name.removeprefix("workload="),
        workload=workload(name, own),
        options=_options(command, [setting for setting in settings if setting not in own]),
    )


def workload(name: str, overrides: Sequence[str]) -> Workload:
    """The settings of a workload that is named, or of the file at a path. Raises BadSettings."""
    if name.startswith("workload="):
        chosen = name.removeprefix("workload=")
        if chosen not in choices("workload"):
            known = ", ".join(choices("workload"))
            raise UnknownName(f"no workload is called {chosen!r}; choose from {known}")
        return _settled(_changed(_composed(chosen), overrides))
    path = Path(name)
    if not path.exists():
        raise BadSettings(f"{name} is no file; give the path of one, or workload=NAME")
    if path.suffix in {".yaml", ".yml"}:
        return _settled(_changed(_loaded(path), overrides))
    kind = "servegen" if path.is_dir() or detect(path) == SERVEGEN else "trace"
    of_a_file = _composed(kind) | {"path": name, "requests": None}
    return _settled(_changed(of_a_file, overrides))


def run(asked: Asked) -> None:
    """Do what is asked, and print it. Raises BadSettings."""
    options = asked.options
    with _status(f"reading {asked.name}") as say:
        pool = asked.workload.pool() if isinstance(asked.workload, ServeGenWorkload) else None
        trace = _drawn(asked.workload, options.seed)
        say("describing it")
        described = {"original": describe(trace, options.block_tokens)}
        if asked.command == "fit":
            say("fitting a generator")
            found = fit_by_model(trace, options.window_s)
            say("drawing from it")
            described |= _regenerated(found, trace, options, described["original"].block_tokens)
    if asked.command == "describe" and pool is not None:
        of_clients = {each.model: each.rows() for each in figures(pool)}
        _print(_table(f"{asked.name}: the clients, over all of their windows", of_clients), sys.stdout)
    if asked.command == "describe":
        _print(_table(asked.name, _rows(described)), sys.stdout)
    else:
        _tell(found, asked.name, described, options.out)


def _drawn(settings: Workload, seed: int) -> Trace:
    """The trace; that of a file with the models' own names."""
    if isinstance(settings, (TraceWorkload, ServeGenWorkload)):
        return settings.as_it_is(seed)
    return draw(settings, seed, _names(settings))


def _regenerated(
    found: Fit | PartsFit, trace: Trace, options: Options, block_tokens: int
) -> dict[str, Description]:
    """What traffic from the fit is like; nothing where, of a trace of a few requests, none is drawn."""
    try:
        drawn = draw(found.workload, options.seed + 1, trace.asked_for)
    except BadSettings:
        return {}
    return {"regenerated": describe(drawn, block_tokens)}


def _tell(found: Fit | PartsFit, name: str, described: dict[str, Description], out: str | None) -> None:
    """Write the settings; then say what was found, and how alike both are."""
    text = written(found, Path(name).name)
    if out is None:
        sys.stdout.write(text)
    else:
        _write(Path(out), text)
    shown = sys.stderr if out is None else sys.stdout
    width = max((len(concern) for concern in found.findings), default=0) + 2
    for concern, finding in found.findings.items():
        shown.write(f"{printable(f'{concern:<{width}}{finding}')}\n")
    _print(_table(name, _rows(described)), shown)


def _rows(described: dict[str, Description]) -> Columns:
    return {name: each.rows() for name, each in described.items()}


def _composed(name: str) -> dict[str, Any]:
    """The settings of that workload in the configuration folder."""
    hydra = GlobalHydra.instance()
    of_the_caller, hydra.hydra = hydra.hydra, None  # a program that uses Hydra itself keeps its own
    try:
        with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
            return _plain(compose(f"workload/{name}").workload)
    finally:
        GlobalHydra.instance().hydra = of_the_caller


def _loaded(path: Path) -> dict[str, Any]:
    """The settings in a file. Raises BadSettings."""
    try:
        values = OmegaConf.load(path)
    except RecursionError as error:  # a list that holds itself
        raise BadSettings(
            f"{path} cannot be read as settings: it has groups in groups without end"
        ) from error
    except (OSError, ValueError, OmegaConfBaseException, YAMLError) as error:
        raise BadSettings(f"{path} cannot be read as settings: {' '.join(str(error).split())}") from error
    if not isinstance(values, DictConfig):
        raise BadSettings(f"{path} must hold the settings of a workload, but holds no names")
    return _plain(values)


def _changed(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The settings with those of the command line. Raises BadSettings."""
    changes = _dotted([line.removeprefix("workload.") for line in overrides])
    try:
        return _plain(OmegaConf.merge(OmegaConf.create(values), changes))
    except OmegaConfBaseException as error:  # a list in the place of a group
        raise BadSettings(f"{', '.join(overrides)} cannot be set: {str(error).splitlines()[0]}") from error


def _plain(values: Any) -> dict[str, Any]:
    made = OmegaConf.to_container(values)  # what is missing stays so: a file's path comes later
    assert isinstance(made, dict)
    return {str(key): value for key, value in made.items()}


def _settled(values: dict[str, Any]) -> Workload:
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in workloads.classes:
        known = ", ".join(workloads.classes)
        raise UnknownName(f"no workload is of the kind {kind!r}; choose from {known}")
    made: Workload = typed(workloads.classes[kind], of_one_law(values), "workload")
    return made


def _options(command: str, settings: Sequence[str]) -> Options:
    known = [each.name for each in fields(Options) if command == "fit" or each.name not in OF_A_FIT]
    values = _dotted(settings)
    for name in values:
        if name not in known:
            raise UnknownName(
                f"no setting of {command} is called {name!r}; choose from workload.KEY, {', '.join(known)}"
            )
    return typed(Options, values, "settings")


def _dotted(settings: Sequence[str]) -> dict[str, Any]:
    """Settings as they are written on a command line. Raises BadSettings."""
    try:
        return _plain(OmegaConf.from_dotlist(list(settings)))
    except (OmegaConfBaseException, ValueError, YAMLError) as error:
        raise BadSettings(" ".join(str(error).split())) from error


def _names(settings: Workload) -> list[str]:
    """Names for the models that a workload tells by numbers; those of its parts, where each is a model."""
    if isinstance(settings, MergedWorkload):
        spread_over = max(part.models for part in settings.parts.values())
        return [f"m{index}" for index in range(spread_over)] if settings.is_spread else list(settings.parts)
    count = getattr(settings, "models", None)
    return [f"m{index}" for index in range(count if isinstance(count, int) else MODELS)]


def _write(path: Path, text: str) -> None:
    """Write a file, whole or not at all. Raises BadSettings."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):  # there may be none
            partial.unlink()
        raise BadSettings(f"{path} cannot be written: {error.strerror}") from error


def _table(name: str, columns: Columns) -> Table:
    """A row for each figure, a column for each thing that is described."""
    made = Table(
        title=name,
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 2, 0, 0),
        show_header=len(columns) > 1,
    )
    made.add_column("", no_wrap=True)
    for column in columns:
        made.add_column(column)
    found = [dict(rows) for rows in columns.values()]
    for row in dict.fromkeys(row for each in found for row in each):
        made.add_row(row, *(each.get(row, "-") for each in found))
    return made


def _print(table: Table, file: Any) -> None:
    width = None if file.isatty() else WIDTH
    console = Console(file=file, width=width, markup=False, emoji=False, highlight=False)  # in titles, too
    console.print(table)


@contextmanager
def _status(text: str) -> Iterator[Any]:
    """What is being done, on a terminal, for as long as it takes."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    with console.status(Text(text)) as status:  # a name is no markup
        yield status.update


if __name__ == "__main__":
    begin()
    sys.exit(main())
