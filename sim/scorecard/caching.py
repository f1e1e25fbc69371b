"""Hit ratios by allocation, and what a division of the cache takes."""

from functools import partial

from engine.cache import PrefixCache
from engine.settings import GIB, CacheSettings, TierSettings
from sim.intervals import Interval
from sim.replay.compare import IDEAL, PUBLISHED, Comparison, ReplaySettings, compare
from sim.scorecard.table import Table
from sim.scorecard.timing import Operation, timed

SHARED = "shared"
PUBLISHED_MS = {"fair": 0.1, "proportional": 0.3, "priority": 0.2, "dynamic": 0.5}
MODELS, BLOCK_BYTES, BLOCKS = 5, 1_024, 1_000


def caching(seeds: int, seed: int, duration_s: float, rounds: int) -> Table:
    """The same traffic through each allocation, between an endless cache and one that all models share."""
    capacity = round(8_000 * duration_s / 1_800)
    settings = ReplaySettings(seeds=seeds, seed=seed, duration_s=duration_s, capacity=capacity, shift=False)
    comparison = Comparison()
    for figures in compare(settings):
        comparison.add(figures)
    rows = [_row(comparison, name, rounds) for name in (SHARED, *PUBLISHED)]
    ideal = comparison.interval(IDEAL, "block_hit_ratio")
    assert ideal is not None, "the ideal is a row"
    note = (
        f"Mix B at 8 requests/s for {duration_s:.0f} s, five models by Zipf 1.0, {capacity:,} blocks of 64 tokens, "
        f"LRU, {comparison.seeds} seeds; hits of blocks with 95 % intervals; an endless cache finds "
        f"{_percent(ideal)}. Fairness is Jain's index of what the models hold. Division: one among {MODELS} models."
    )
    heads = ("allocation", "hits", "published", "evicted/min", "published", "fairness", "published")
    return Table("Cache by allocation", (*heads, "division", "published"), rows, note)


def _row(comparison: Comparison, name: str, rounds: int) -> tuple[str, ...]:
    hits = comparison.interval(name, "block_hit_ratio")
    evicted = comparison.interval(name, "evictions_per_minute")
    fairness = comparison.interval(name, "held_fairness")
    assert hits is not None, "every allocation has hits"
    ours = (
        _percent(hits),
        "" if evicted is None else f"{evicted.mean:.0f}",
        "" if fairness is None else f"{fairness.mean:.2f}",
    )
    theirs = ("", "", "")
    if name in PUBLISHED:
        share, jain, a_minute = PUBLISHED[name]
        theirs = (f"{100 * share:.0f} %", str(a_minute), f"{jain:.2f}")
    cells = [each for pair in zip(ours, theirs, strict=True) for each in pair]
    took_ms = timed(_division(name), rounds=rounds, calls=20).mean_ns / 1e6
    return (name, *cells, f"{took_ms:.3f} ms", f"{PUBLISHED_MS[name]} ms" if name in PUBLISHED_MS else "")


def _division(allocation: str) -> Operation:
    """Say anew what each model of a full cache is sure of."""
    cache = PrefixCache(
        CacheSettings(ram=TierSettings(gib=BLOCKS * BLOCK_BYTES / GIB), allocation=allocation)
    )
    for model in range(MODELS):
        space = cache.space(f"model-{model}@1.0.0", "w", "", BLOCK_BYTES)
        cache.keep(
            space, [(model << 32 | number).to_bytes(16, "little") for number in range(BLOCKS // MODELS)]
        )
    return partial(cache.balance, 0)


def _percent(found: Interval) -> str:
    half = "" if found.half_width is None else f" ± {100 * found.half_width:.1f}"
    return f"{100 * found.mean:.1f}{half} %"
