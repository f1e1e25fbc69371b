"""Five models are sure of a fifth of the cache each. Most of the load is on one of them when floors take the place of
those parts: the cache goes where the load is, and goes on when that moves.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import pandas as pd

from engine.cache.allocation import Dynamic
from engine.clock import to_ns
from engine.engine import Engine
from engine.settings import above, require
from engine.settings import at_least as least
from sim.checks import Check, all_completed, at_least, at_most, evidence, gains, no_worse
from sim.runs import Run
from sim.stage import Act, Stage

MIB = 2**20


@dataclass
class Settings:
    """Every number of the story. The first model has the load from the start of its window, the second afterwards."""

    name: str
    first: str
    second: str
    load_from_s: float
    window_from_s: float
    floors_at_s: float
    settled_at_s: float
    moves_at_s: float
    ends_at_s: float
    first_floor: float
    floor: float
    within_s: float
    min_in_use: float
    max_unequal: float
    min_held: float
    min_rise: float
    min_gain: float
    max_behind: float
    max_lost_mib: float

    def __post_init__(self) -> None:
        times = ("load_from_s", "window_from_s", "floors_at_s", "settled_at_s", "moves_at_s", "ends_at_s")
        for before, after in pairwise(times):
            given, bound = getattr(self, after), getattr(self, before)
            require(f"scenario.{after}", given, given > bound, f"after scenario.{before}, {bound:g}")
        least("scenario.load_from_s", self.load_from_s, 0)
        above("scenario.within_s", self.within_s, 0)
        for name in (
            "first_floor",
            "floor",
            "min_in_use",
            "max_unequal",
            "min_held",
            "min_rise",
            "min_gain",
            "max_behind",
        ):
            share = getattr(self, name)
            require(f"scenario.{name}", share, 0 <= share <= 1, "from 0 to 1")


def script(stage: Stage, s: Settings) -> None:
    known = [model.name for model in stage.engine.settings.fleet.models]
    for name in ("first", "second"):
        model = getattr(s, name)
        require(f"scenario.{name}", model, model in known, f"one of {', '.join(known)}")
    require("tiers", "off", stage.engine.cache.enabled, "on: there is no cache to divide")
    stage.act(0.0, floors_of(s.first_floor))
    stage.act(s.floors_at_s, floors_of(s.floor))


def floors_of(floor: float) -> Act:
    """An operator sets all floors to that share of an even part; where the cache has none, nothing happens."""

    def set_floors(engine: Engine) -> None:
        allocation = engine.cache.allocation
        if isinstance(allocation, Dynamic):
            allocation.floor = floor
            engine.cache.balance(engine.clock.now_ns())

    return set_floors


def checks(run: Run, s: Settings) -> Iterator[Check]:
    held = held_by_model(run, s.first, s.second)
    equal = 1 / held.shape[1]
    before = held[(held.index >= to_ns(s.window_from_s)) & (held.index < to_ns(s.floors_at_s))]
    first, second = column(held, s.first), column(held, s.second)
    in_use = None if before.empty else float(before.sum(axis="columns").iloc[-1])
    near = None if before.empty else 1 - float((before[first] - equal).abs().max())

    yield all_completed(run.whole)
    yield evidence("part of the cache in use before the floors", in_use, s.min_in_use)
    yield evidence("how near it is to an equal part before the floors", near, 1 - s.max_unequal)
    most = most_held(held[first], s.floors_at_s, s.within_s)
    note = f"of the cache, within {s.within_s:g} s"
    yield at_least("the most that the loaded model holds", most, s.min_held, note, published="42 %")
    yield risen(run, s)
    most = most_held(held[second], s.moves_at_s, s.within_s)
    yield at_least("the most that the next loaded model holds", most, s.min_held, note)
    after = held[held.index >= to_ns(s.floors_at_s)]
    lost = max(lost_below(before, s.first_floor * equal), lost_below(after, s.floor * equal))
    name = "the most that a model lost below its floor, MiB"
    yield at_most(name, lost * run.capacity_bytes / MIB, s.max_lost_mib)
    yield gains("hit ratio above that of equal parts", gained(run, s, "fair"), s.min_gain)
    yield no_worse("hit ratio beside that of no division", gained(run, s, "shared"), s.max_behind)


def risen(run: Run, s: Settings) -> Check:
    """The first model's hit ratio while it has an equal part, and once the floors have let it have more."""
    equal, more = (
        run.between(begin_s, end_s).of_model(s.first)
        for begin_s, end_s in ((s.window_from_s, s.floors_at_s), (s.settled_at_s, s.moves_at_s))
    )
    name, published = "what its hit ratio rises by", "72 to 81 %"
    if equal.hit_ratio is None or more.hit_ratio is None:
        return at_least(name, None, s.min_rise, published=published)
    note = f"from {equal.hit_ratio:.3f}, n={equal.count}, to {more.hit_ratio:.3f}, n={more.count}"
    return at_least(name, more.hit_ratio - equal.hit_ratio, s.min_rise, note, published=published)


def gained(run: Run, s: Settings, other: str) -> list[float]:
    """How much more of the prompts was found than with another division, once both have settled, seed by seed."""
    pairs = zip(run.beside.get("itself", []), run.beside.get(other, []), strict=True)
    ratios = [tuple(each.between(s.settled_at_s, s.ends_at_s).hit_ratio for each in pair) for pair in pairs]
    return [ours - theirs for ours, theirs in ratios if ours is not None and theirs is not None]


def held_by_model(run: Run, *models: str) -> pd.DataFrame:
    """What part of the whole cache each model holds: a column a model, a row a look; those named have one anyway."""
    series = run.timeseries
    is_held = series["subject"].str.startswith("tier ") & series["metric"].str.startswith("bytes of ")
    held = series[is_held].pivot_table("value", "at_ns", "metric", aggfunc="sum").fillna(0.0)
    held.columns = held.columns.str.removeprefix("bytes of ")
    for model in models:  # the cache knows a model from its first request on
        if column(held, model) not in held.columns:
            held[model] = 0.0
    return held / run.capacity_bytes


def column(held: pd.DataFrame, model: str) -> str:
    """The column of a model, whatever its version."""
    names = (str(name) for name in held.columns)
    return next((name for name in names if name == model or name.startswith(f"{model}@")), model)


def most_held(held: "pd.Series[float]", begin_s: float, within_s: float) -> float | None:
    """The most that was held within a time."""
    looked = held[(held.index > to_ns(begin_s)) & (held.index <= to_ns(begin_s + within_s))]
    return float(looked.max()) if len(looked) else None


def lost_below(held: pd.DataFrame, floor: float) -> float:
    """The most that a model lost between two looks of what no other may take from it, as a part of the cache."""
    lost = (held.clip(upper=floor).shift() - held).iloc[1:]
    return 0.0 if lost.empty else float(lost.max().max())
