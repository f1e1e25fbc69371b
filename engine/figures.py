"""Figures: numbers that parts of the engine count for themselves, for whoever scrapes them."""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple, Protocol

from engine.clock import NS_PER_S, to_ns

Values = dict[tuple[str, ...], float]
"""By the values of the labels."""

LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Figure(NamedTuple):
    """A number for Prometheus: a counter, or a gauge where it may fall.

    Where labels have too many values, those beyond stand together as one: the sum of them, or the `largest` where a
    sum says nothing (a share, a state).
    """

    name: str
    help_text: str
    labels: tuple[str, ...]
    values: Values
    is_gauge: bool = False
    largest: bool = False


class Counted(Protocol):
    """A histogram, as it is scraped."""

    @property
    def bounds(self) -> Sequence[float]:
        """The inclusive upper bounds of all buckets but the last, which has none. Seconds, or a plain number."""

    @property
    def counts(self) -> Sequence[int]:
        """How many are in each bucket alone."""

    @property
    def total(self) -> float:
        """The sum of all that was observed, in the unit of the bounds."""


class Distribution(NamedTuple):
    """Many numbers for Prometheus, by size: a histogram for each of the labels' values."""

    name: str
    help_text: str
    labels: tuple[str, ...]
    values: Mapping[tuple[str, ...], Counted]


TOGETHER = 64
"""Requests that are counted at a time: one by one they take ten times as long, and more would be a pause."""


class Histogram:
    """Counts of durations by bucket. Upper bounds are inclusive, as Prometheus has them. 0.1 us a duration."""

    __slots__ = ("_bounds_ns", "bounds", "counts", "sum_ns")

    def __init__(self, bounds_s: Sequence[float] = LATENCY_BUCKETS_S) -> None:
        self.bounds = bounds_s
        self._bounds_ns = [to_ns(bound_s) for bound_s in bounds_s]
        self.counts = [0] * (len(bounds_s) + 1)
        self.sum_ns = 0

    def observe(self, duration_ns: int, times: int = 1) -> None:
        """Count a duration, as often as it was."""
        self.counts[bisect_left(self._bounds_ns, duration_ns)] += times
        self.sum_ns += duration_ns * times

    def observe_all(self, durations_ns: list[int]) -> None:
        """Count several, which are sorted for that: among dozens it takes a tenth of the time for each."""
        self.sum_ns += sum(durations_ns)
        _count_sorted(durations_ns, self._bounds_ns, self.counts)

    @property
    def total(self) -> float:
        return self.sum_ns / NS_PER_S

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts by upper bound."""
        return cumulative(self)


class LogHistogram:
    """Counts by powers of two: up to 1, 2, 4, ... `units`, each bucket inclusive of its bound. 0.06 us a number.

    What is above the largest bound is in the last bucket, which has none. `scale` is what a unit is when scraped.
    """

    __slots__ = ("_bounds", "_scale", "_unit", "bounds", "counts", "sum")

    def __init__(self, num_bounds: int, unit: int = 1, scale: float = 1.0) -> None:
        self._unit = unit
        self._scale = scale
        self._bounds = [unit << power for power in range(num_bounds)]
        self.bounds = [float(f"{bound * scale:.9g}") for bound in self._bounds]
        self.counts = [0] * (num_bounds + 1)
        self.sum = 0

    def observe(self, number: int) -> None:
        """Count one number."""
        place = ((number - 1) // self._unit).bit_length() if number > self._unit else 0
        self.counts[min(place, len(self.bounds))] += 1
        self.sum += number

    def observe_all(self, numbers: list[int]) -> None:
        """Count several, which are sorted for that."""
        self.sum += sum(numbers)
        _count_sorted(numbers, self._bounds, self.counts)

    @property
    def total(self) -> float:
        return self.sum * self._scale


def _count_sorted(numbers: list[int], bounds: Sequence[int], counts: list[int]) -> None:
    """Add to each bucket how many of the numbers are in it. Sorts them."""
    numbers.sort()
    begun = 0
    for place, bound in enumerate(bounds):
        if begun == len(numbers):
            return
        end = bisect_right(numbers, bound, begun)
        counts[place] += end - begun
        begun = end
    counts[-1] += len(numbers) - begun


def cumulative(counted: Counted) -> list[tuple[str, float]]:
    """Counts of all up to each bound, as Prometheus has them."""
    bounds = [*map(str, counted.bounds), "+Inf"]
    return list(zip(bounds, map(float, accumulate(counted.counts)), strict=True))
