"""Runs beside a run: the same requests served otherwise, and the same story on further seeds, for checks to compare.

`beside: {seeds: 5, runs: {round_robin: ["strategy=round_robin"]}}` plays the configuration on five seeds, from its
own on, and on each of them once more with the lines of `round_robin`. What has the same seed meets the same requests,
so differences are paired. `sim.play` plays them; they lie in `beside/<name>/<seed>` of the run's folder.
"""

import re
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import BadSettings
from engine.settings import at_least, require
from sim.sizes import lines_of, merged

if TYPE_CHECKING:
    from collections.abc import Callable

    from sim.config import RunSettings
    from sim.runs import Run

FOLDER = "beside"
ITSELF = "itself"
MOST_SEEDS = 100_000
"""As many runs as a sweep may have."""
LAST_SEED = 2**63 - 1
NAME = re.compile(r"[a-z][a-z0-9_+-]{0,63}")
ALONE = ("beside.seeds=0",)
"""Of a run beside another one: it has none of its own."""


@dataclass(slots=True, kw_only=True)
class BesideSettings:
    """How many seeds, and by name the lines in which the other runs differ. With no seeds nothing is played."""

    seeds: int = 0
    runs: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        at_least("beside.seeds", self.seeds, 0)
        require("beside.seeds", self.seeds, self.seeds <= MOST_SEEDS, f"at most {MOST_SEEDS:,}")
        for name, lines in self.runs.items():
            allowed = "small letters, digits, _, + and -, and not itself"
            require("beside.runs", name, NAME.fullmatch(name) is not None and name != ITSELF, allowed)
            lines_of(f"beside.runs.{name}", lines)

    def check(self, seed: int) -> None:
        """Raise BadSettings where there are fewer seeds than are asked for, from that one on."""
        left = LAST_SEED - seed + 1
        require(
            "beside.seeds",
            self.seeds,
            self.seeds <= left,
            f"at most {left:,}: there are no more from seed {seed} on",
        )


def settings_beside(
    settings: "RunSettings", read: "Callable[[list[str]], RunSettings]"
) -> "dict[str, list[RunSettings]]":
    """What is to be played beside, by name, a run for each seed; the run itself is left out.

    Raises BadSettings, before anything runs, where the lines of one of them are no good.
    """
    seeds = range(settings.seed, settings.seed + settings.beside.seeds)
    if not seeds:
        return {}
    found = {ITSELF: [reseeded(settings, seed) for seed in seeds[1:]]}
    for name, lines in settings.beside.runs.items():
        try:
            other = read(merged(lines, settings.overrides, stronger=lines))
        except BadSettings as error:
            raise BadSettings(f"beside.runs.{name}: {error}") from error
        found[name] = [reseeded(other, seed) for seed in seeds]
    return found


def reseeded(settings: "RunSettings", seed: int) -> "RunSettings":
    """The same run on another seed, with none beside it."""
    lines = merged([f"seed={seed}"], merged(ALONE, settings.overrides, stronger=ALONE), stronger=["seed="])
    return replace(
        settings,
        seed=seed,
        engine=replace(deepcopy(settings.engine), seed=seed),
        beside=BesideSettings(),
        overrides=lines,
        config={**settings.config, "seed": seed, "beside": {"seeds": 0, "runs": {}}},
    )


def open_beside(folder: Path, itself: "Run", open_run: "Callable[[Path], Run]") -> "dict[str, list[Run]]":
    """The runs that lie beside one in its folder, by name, in the order of their seeds; that run itself first."""
    names = sorted(path.name for path in (folder / FOLDER).glob("*") if path.is_dir())
    found: dict[str, list[Run]] = {}
    for name in names:
        paths = [path for path in (folder / FOLDER / name).iterdir() if path.name.isdigit()]
        found[name] = [open_run(path) for path in sorted(paths, key=lambda path: int(path.name))]
    if found:
        found[ITSELF] = [itself, *found.get(ITSELF, [])]
    return found
