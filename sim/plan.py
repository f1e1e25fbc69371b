"""What a sweep is to play: every combination of the values between commas, each on the same seeds.

Hydra's own grammar is understood: `strategy=random,round_robin`, `workload.rate=range(2,10,2)`, `eviction=glob(*)`,
`seed=range(1,11)`; and `seed=1..10`, which a shell leaves alone.
"""

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from engine.errors import BadSettings
from sim.composing import CONFIG_MODULE, keeping_ctrl_c
from sim.config import RunSettings, explained, read
from sim.workers import MOST_RUNS, Job

MOST_SEED = 2**63 - 1

Combination = dict[str, str]
"""The swept settings, and which of its values each has."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All runs of a sweep, by number: combinations in the order of their values, and for each the seeds in theirs."""

    swept: dict[str, list[str]]
    fixed: list[str]
    seeds: list[int | None]
    """None: the seed that the configuration has."""

    @property
    def combinations(self) -> list[Combination]:
        return [
            dict(zip(self.swept, values, strict=True)) for values in itertools.product(*self.swept.values())
        ]

    def lines(self, combination: Mapping[str, str]) -> tuple[str, ...]:
        """The override lines of one combination, without the seed."""
        return (*self.fixed, *(f"{name}={value}" for name, value in combination.items()))

    def read(self) -> list[RunSettings]:
        """The settings of all combinations, on their first seed. Raises BadSettings for the first that is no good."""
        return [read(self.lines(each)) for each in self.combinations]

    def jobs(self, folder: Path) -> list[Job]:
        """A run for each combination and seed, in folders of that one."""
        pairs = itertools.product(self.combinations, self.seeds)
        return [
            Job(number, self.lines(each), folder / f"{number:05}", seed)
            for number, (each, seed) in enumerate(pairs)
        ]

    def labels(self) -> list[Combination]:
        """What tells the combination of each run, by its number."""
        return [each for each in self.combinations for _ in self.seeds]


def planned(overrides: Sequence[str]) -> Plan:
    """What override lines with several values ask for. Raises BadSettings."""
    swept: dict[str, list[str]] = {}
    fixed: list[str] = []
    seeds: list[int | None] = [None]
    others = [line for line in overrides if not line.startswith("seed=")]
    given = [line.removeprefix("seed=") for line in overrides if line.startswith("seed=")]
    for line, override in zip(others, _parsed(others), strict=True):
        name, values = override.get_key_element(), _values(override, line)
        if name in swept:
            raise BadSettings(f"{name} is given twice, but can be swept once")
        _all_different(name, line.partition("=")[2], values)
        if len(values) > 1:
            swept[name] = values
        else:
            fixed.append(f"{name}={values[0]}" if override.is_sweep_override() else line)
    if given:
        seeds = list(_seeds(given[-1]))
    count = len(seeds)
    for values in swept.values():
        count *= len(values)
    if count > MOST_RUNS:
        raise BadSettings(f"a sweep of {count:,} runs was asked for, but at most {MOST_RUNS:,} are allowed")
    return Plan(swept, fixed, seeds)


def label(combination: Mapping[str, str]) -> str:
    """A combination as one types it."""
    return " ".join(f"{name}={value}" for name, value in combination.items()) or "as configured"


def chosen(text: str, swept: Mapping[str, Sequence[str]]) -> Combination:
    """The combination that `baseline=` names, as in `strategy=random,eviction=lru`; what it leaves out is the first.

    Raises BadSettings for what is not swept.
    """
    found = {name: values[0] for name, values in swept.items()}
    named: set[str] = set()
    for part in re.split(r",(?=[\w./@+~]+=)", text) if text else []:
        name, _, value = part.partition("=")
        if name not in swept:
            known = ", ".join(swept) or "none"
            raise BadSettings(f"baseline is {text!r}, but must name values of what is swept: {known}")
        if name in named:
            raise BadSettings(
                f"baseline is {text!r}, but must name each setting once: {name} stands there twice"
            )
        if value not in swept[name]:
            raise BadSettings(
                f"baseline has {name}={value}, but must have one of its values: {', '.join(swept[name])}"
            )
        found[name] = value
        named.add(name)
    return found


@keeping_ctrl_c()
def _parsed(lines: Sequence[str]) -> list[Override]:
    hydra = GlobalHydra.instance()
    of_the_caller, hydra.hydra = hydra.hydra, None
    try:
        with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            return list(OverridesParser.create(config_loader=loader).parse_overrides(list(lines)))
    except (HydraException, OmegaConfBaseException) as error:
        raise explained(error, lines) from error
    finally:
        GlobalHydra.instance().hydra = of_the_caller


def _values(override: Override, line: str) -> list[str]:
    """All values of a line, as one writes each of them."""
    if not override.is_sweep_override():
        return [""]
    if not override.is_discrete_sweep():
        raise BadSettings(f"{line!r} has no end of values, but must name them, as in KEY=A,B or range(1,11)")
    try:
        values = list(override.sweep_string_iterator())
    except (HydraException, ValueError) as error:
        raise BadSettings(f"{line!r} cannot be swept: {' '.join(str(error).split())}") from error
    if not values:
        raise BadSettings(f"{line!r} has no values, but must have at least one")
    return values


def _all_different(name: str, text: str, values: Sequence[object]) -> None:
    twice = [each for each, count in Counter(values).items() if count > 1]
    if twice:
        raise BadSettings(f"{name} is {text!r}, which has {str(twice[0])!r} twice")


def _seeds(text: str) -> list[int]:
    """The seeds of `1,2,3`, `range(1,11)`, `1..10` or `1..3,7`."""
    if ".." not in text:
        (override,) = _parsed([f"seed={text}"])
        parts = _values(override, f"seed={text}") if override.is_sweep_override() else [text]
        seeds = [_seed(part) for part in parts]
    else:
        seeds = [seed for part in text.split(",") for seed in _counted(part)]
    _all_different("seed", text, seeds)
    return seeds


def _counted(part: str) -> Sequence[int]:
    ends = re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", part)
    if ends is None:
        return [_seed(part)]
    first, last = map(int, ends.groups())
    if not 0 <= last - first < MOST_RUNS:
        raise BadSettings(
            f"seed is {part!r}, but must go from a smaller number to a larger one, {MOST_RUNS:,} at most"
        )
    return range(first, last + 1)


def _seed(value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,19}", value) or int(value) > MOST_SEED:
        raise BadSettings(f"seed is {value!r}, but must be a whole number from 0 to 2^63 - 1")
    return int(value)
