"""The accelerator's memory alone, and then one more tier below it at a time: memory, files, the network, a cloud.
Each finds more of the prompts, and no request waits longer for it: what is cheaper computed is not loaded.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from engine.settings import EngineSettings, at_least, require
from sim.checks import Check, all_completed, gains, no_worse
from sim.checks import at_least as least
from sim.metrics import TIERS
from sim.runs import Run
from sim.scratch import temporary_stores
from sim.stage import Stage

NONE, ALWAYS = "none", "always"
"""The runs beside this one: without any cache, and one that loads whatever is found."""


@dataclass
class Settings:
    """By how much the first tier must pay, and what a further one may cost at most."""

    name: str
    min_times_sooner: float
    max_fall: float
    max_slower: float
    min_gained: float

    def __post_init__(self) -> None:
        at_least("scenario.min_times_sooner", self.min_times_sooner, 1)
        for name in ("max_fall", "max_slower", "min_gained"):
            share = getattr(self, name)
            require(f"scenario.{name}", share, 0 <= share <= 1, "from 0 to 1")


def scenery(engine: EngineSettings, _: Settings) -> AbstractContextManager[EngineSettings]:
    return temporary_stores(engine)


def script(stage: Stage, _: Settings) -> None:
    """Nothing happens but requests."""


def checks(run: Run, s: Settings) -> Iterator[Check]:
    steps = steps_of(run)
    yield all_completed(run.whole)
    alone = run.beside.get(NONE, [])
    names = list(steps)
    if names:
        first = steps[names[0]]
        times = [ttft_s(without) / ttft_s(with_it) for without, with_it in zip(alone, first, strict=False)]
        name = f"times sooner the first token with {names[0]}"
        yield least(name, mean(times), s.min_times_sooner, told(first), published="2 to 3")
    for before, after in pairwise(names):
        pairs = list(zip(steps[before], steps[after], strict=False))
        more = [hit_ratio(new) - hit_ratio(old) for old, new in pairs]
        yield no_worse(f"hit ratio gained by {after}", more, s.max_fall, told(steps[after]))
        if not run.is_modelled:
            continue  # measured times tell as much of what else the machine did
        sooner = [1 - ttft_s(new) / ttft_s(old) for old, new in pairs]
        yield no_worse(f"part of the time to first token saved by {after}", sooner, s.max_slower)
    if len(names) > 1:
        pairs = list(zip(steps[names[0]], steps[names[-1]], strict=False))
        more = [hit_ratio(new) - hit_ratio(old) for old, new in pairs]
        yield gains(f"hit ratio gained by all below {names[0]}", more, s.min_gained)
    if not run.is_modelled:
        return
    pairs = list(zip(run.beside.get(ALWAYS, []), run.beside.get("itself", []), strict=False))
    sooner = [1 - ttft_s(ours) / ttft_s(theirs) for theirs, ours in pairs]
    yield no_worse("part of it saved by computing what is cheaper computed", sooner, s.max_slower)


def steps_of(run: Run) -> dict[str, Sequence[Run]]:
    """The runs by their tiers, from the hottest alone to all of them; with fewer tiers than asked for, once each."""
    found: dict[str, Sequence[Run]] = {}
    several = [runs for name, runs in run.beside.items() if name not in (NONE, ALWAYS)]
    for runs in sorted(several, key=lambda runs: len(runs[0].manifest["cache"]["tiers"])):
        found.setdefault(" + ".join(runs[0].manifest["cache"]["tiers"]), runs)
    return found


def ttft_s(run: Run) -> float:
    return float(run.whole.ttft_s.mean())


def hit_ratio(run: Run) -> float:
    return run.whole.hit_ratio or 0.0


def mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def told(runs: Sequence[Run]) -> str:
    """A row of the table: the time to first token, and what was found in which tier."""
    asked = sum(int(each.whole.completed["prompt_tokens"].sum()) for each in runs)
    parts = []
    for tier in TIERS:
        if tier in runs[0].manifest["cache"]["tiers"]:
            found = sum(int(each.whole.completed[f"cached_tokens_{tier}"].sum()) for each in runs)
            parts.append(f"{tier} {100 * found / asked:.1f} %")
    return f"TTFT {mean([ttft_s(each) for each in runs]):.3g} s, found in {', '.join(parts)}"
