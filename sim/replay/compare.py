"""Allocations side by side: the same traffic through each of them, over seeds, between the bounds."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np

from engine.cache import allocation, orders
from engine.clock import NS_PER_S
from engine.settings import require
from sim.intervals import Interval, interval, paired
from sim.replay.bounds import clairvoyant, endless
from sim.replay.outcome import Outcome
from sim.replay.reference import replay_reference
from sim.replay.replay import replay, unit_cache
from sim.traffic import Chains, MixWorkload
from sim.traffic.mixes import chains
from sim.traffic.mooncake import BLOCK_TOKENS, read
from sim.traffic.workload import whole

MOST_SEEDS = 1_000
MOST_BLOCKS = 1 << 32
MOST_TOKENS = 1 << 20
MIX_BLOCK_TOKENS = 64

IDEAL, CLAIRVOYANT, WALLS = "ideal", "clairvoyant", ("fair walls", "proportional walls")

PUBLISHED = {
    "fair": (0.72, 1.00, 245),
    "proportional": (0.78, 0.85, 198),
    "priority": (0.81, 0.70, 156),
    "dynamic": (0.83, 0.92, 142),
}
"""Hit ratio, fairness and evictions a minute of an earlier system, on a workload that nobody described."""

Advance = Callable[[str, float], None]
"""Told what is going on, and what part of a seed's work is done."""


def _classes() -> dict[str, Any]:
    """The first model, and then the next two, before the others."""
    return {"members": {"m0": "high", "m1": "normal", "m2": "normal"}}


@dataclass(slots=True, kw_only=True)
class ReplaySettings:
    """What is compared, and on what. Models are m0, m1, ..., the most popular first."""

    mix: str = "B"
    path: str | None = None  # a file in the format of the Mooncake traces instead: one model, and no seeds
    seeds: int = 5  # from `seed` on
    seed: int = 1
    capacity: int = 8_000  # blocks
    share: float | None = None  # the capacity as a share of all different blocks instead
    block_tokens: int | None = None  # None: 64, and 512 for a file
    rate: float = 8.0
    duration_s: float = 1800.0
    models: int = 5
    model_zipf: float = 1.0
    shift: bool = True  # the same once more with a popularity that moves at half time
    evictions: list[str] = field(default_factory=lambda: ["lru"])
    allocations: list[str] = field(
        default_factory=lambda: ["shared", "fair", "proportional", "priority", "dynamic"]
    )
    priority: dict[str, Any] = field(default_factory=_classes)  # options of the allocations that have some
    proportional: dict[str, Any] = field(default_factory=dict)
    dynamic: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        whole("replay.seeds", self.seeds, 1, MOST_SEEDS)
        whole("replay.seed", self.seed, 0, 2**62)
        whole("replay.capacity", self.capacity, 1, MOST_BLOCKS)
        if self.share is not None:
            require("replay.share", self.share, 0 < self.share <= 1, "above 0 and at most 1")
        if self.block_tokens is not None:
            whole("replay.block_tokens", self.block_tokens, 1, MOST_TOKENS)
        require("replay.evictions", self.evictions, len(self.evictions) > 0, "at least one")
        for name in self.evictions:
            orders.find(name)
        for name in self.allocations:
            allocation.make(name, **self.options_of(name))
        self.workload(rotate=False)

    def options_of(self, name: str) -> dict[str, Any]:
        """The options of that allocation."""
        return dict(getattr(self, name, {}))

    @property
    def num_runs(self) -> int:
        """A file is the same for every seed."""
        return self.seeds if self.path is None else 1

    @property
    def shifts(self) -> bool:
        return self.shift and self.path is None

    def traffic(self, seed: int, *, rotate: bool = False) -> Chains:
        """What all caches are shown. Raises BadSettings, and BadTrace for a file."""
        if self.path is not None:
            return read(Path(self.path), block_tokens=self.block_tokens or BLOCK_TOKENS)
        return chains(self.workload(rotate=rotate), seed, self.block_tokens or MIX_BLOCK_TOKENS)

    def row(self, allocated: str, evicting: str) -> str:
        """What a row is called: by its allocation, and by its eviction policy where there are several."""
        return allocated if len(self.evictions) == 1 else f"{allocated}, {evicting}"

    def workload(self, *, rotate: bool) -> MixWorkload:
        """The traffic. Raises BadSettings."""
        return MixWorkload(
            mix=self.mix,
            rate=self.rate,
            duration_s=self.duration_s,
            models=self.models,
            model_zipf=self.model_zipf,
            rotate=rotate,
        )

    def capacity_of(self, traffic: Chains) -> int:
        """In blocks."""
        return self.capacity if self.share is None else max(1, int(self.share * traffic.unique_blocks()))


@dataclass(slots=True, kw_only=True)
class Figures:
    """What one cache made of one seed's traffic; the last two after the popularity moved, None if it never did."""

    token_hit_ratio: float
    block_hit_ratio: float
    request_hit_ratio: float
    worst_model: float
    fairness: float  # Jain's index of hit ratios
    held_fairness: float | None  # and of what models held
    evictions_per_minute: float
    shifted: float | None = None  # block hit ratio
    shifted_worst: float | None = None  # the least token hit ratio of a model

    @classmethod
    def of(cls, outcome: Outcome) -> "Figures":
        return cls(
            token_hit_ratio=outcome.token_hit_ratio(),
            block_hit_ratio=outcome.block_hit_ratio(),
            request_hit_ratio=outcome.request_hit_ratio(),
            worst_model=outcome.worst_model(),
            fairness=outcome.fairness(),
            held_fairness=outcome.held_fairness() if len(outcome.held) else None,
            evictions_per_minute=outcome.evictions_per_minute(),
        )


@dataclass(slots=True)
class Comparison:
    """The figures of each row, a list with an entry for each seed: seeds are pairs."""

    rows: dict[str, list[Figures]] = field(default_factory=dict)

    @property
    def seeds(self) -> int:
        return len(next(iter(self.rows.values()), []))

    def add(self, of_seed: dict[str, Figures]) -> None:
        """Take in one more seed, whole."""
        for name, figures in of_seed.items():
            self.rows.setdefault(name, []).append(figures)

    def interval(self, row: str, figure: str) -> Interval | None:
        """The mean of a figure over the seeds; None where the row does not have it."""
        values = self._values(row, figure)
        return interval(values) if values else None

    def gain(self, row: str, over: str, figure: str) -> Interval | None:
        """How much more of a figure a row has than another, by pairs."""
        values, others = self._values(row, figure), self._values(over, figure)
        return paired(values, others) if values and others else None

    def _values(self, row: str, figure: str) -> list[float]:
        values = [getattr(figures, figure) for figures in self.rows.get(row, [])]
        return [] if None in values else values


def compare(settings: ReplaySettings, advance: Advance | None = None) -> Iterator[dict[str, Figures]]:
    """The figures of every row, a seed at a time: who is interrupted keeps whole seeds."""
    told = advance or _silent
    for seed in islice(count(settings.seed), settings.num_runs):
        yield of_seed(settings, seed, told)


def of_seed(settings: ReplaySettings, seed: int, advance: Advance) -> dict[str, Figures]:
    """All rows on the traffic of one seed."""
    traffic = settings.traffic(seed)
    shifting = settings.traffic(seed, rotate=True) if settings.shifts else None
    caches = _caches(settings, traffic)
    figures: dict[str, Figures] = {}
    for done, (name, run) in enumerate(caches.items()):
        advance(f"seed {seed}: {name}", done / len(caches))
        figures[name] = Figures.of(run(traffic))
        if shifting is not None:
            later = shifting.arrival_ns >= settings.duration_s / 2 * NS_PER_S
            outcome = run(shifting)
            figures[name].shifted = outcome.block_hit_ratio(later)
            figures[name].shifted_worst = outcome.worst_model(later)
    advance(f"seed {seed}", 1.0)
    return figures


def _caches(settings: ReplaySettings, traffic: Chains) -> dict[str, Callable[[Chains], Outcome]]:
    """What each row is; walls are static and know the popularity before it moves."""
    capacity = settings.capacity_of(traffic)
    popularity = np.arange(1, len(traffic.models) + 1, dtype=np.float64) ** -settings.model_zipf
    walls = dict(zip(WALLS, (np.ones(len(traffic.models)), popularity), strict=True))
    runs: dict[str, Callable[[Chains], Outcome]] = {
        IDEAL: endless,
        CLAIRVOYANT: partial(clairvoyant, capacity_blocks=capacity),
    }
    for name, weights in walls.items() if len(traffic.models) > 1 else ():
        shares = (weights / weights.sum()).tolist()
        runs[name] = partial(replay_reference, capacity_blocks=capacity, shares=shares)
    for evicting in settings.evictions:
        for allocated in settings.allocations:
            row = settings.row(allocated, evicting)
            runs[row] = partial(_replayed, settings, capacity, allocated, evicting)
    return runs


def _replayed(
    settings: ReplaySettings, capacity: int, allocated: str, evicting: str, traffic: Chains
) -> Outcome:
    cache = unit_cache(
        capacity,
        traffic.block_tokens,
        eviction=evicting,
        allocation=allocated,
        allocation_options=settings.options_of(allocated),
    )
    return replay(traffic, cache)


def _silent(text: str, done: float) -> None:
    """Tell nobody."""
