"""Intervals: what few paired runs say about a mean, by Student's t."""

from collections.abc import Sequence
from math import atan, cos, pi, sin, sqrt
from typing import NamedTuple

COVERAGE = 0.95


class Interval(NamedTuple):
    """A mean, and how far from it the truth may be; None where one run says nothing of that."""

    mean: float
    half_width: float | None

    @property
    def low(self) -> float:
        """Its lower end; the mean where there is no interval."""
        return self.mean - (self.half_width or 0.0)

    @property
    def high(self) -> float:
        return self.mean + (self.half_width or 0.0)


def interval(values: Sequence[float], coverage: float = COVERAGE) -> Interval:
    """The t-interval of the mean of independent values."""
    count = len(values)
    assert count > 0, "there are values"
    if count == 1:
        return Interval(values[0], None)
    if min(values) == max(values):  # their sum would be rounded
        return Interval(values[0], 0.0)
    mean = sum(values) / count
    deviation = sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    return Interval(mean, t_quantile(count - 1, coverage) * deviation / sqrt(count))


def paired(values: Sequence[float], others: Sequence[float], coverage: float = COVERAGE) -> Interval:
    """The interval of the mean difference of runs on the same traffic."""
    return interval([value - other for value, other in zip(values, others, strict=True)], coverage)


def t_quantile(degrees: int, coverage: float = COVERAGE) -> float:
    """How many standard errors to both sides hold `coverage` of Student's t, to nine digits."""
    low, high = 0.0, 1.0
    while within(high, degrees) < coverage:
        high *= 2
    while high - low > 1e-10 * high:
        middle = (low + high) / 2
        if within(middle, degrees) < coverage:
            low = middle
        else:
            high = middle
    return high


def within(t: float, degrees: int) -> float:
    """P(|T| < t): the finite series of Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle = atan(t / sqrt(degrees))
    if degrees == 1:
        return 2 * angle / pi
    odd = degrees % 2
    term = total = cos(angle) if odd else 1.0
    for n in range(2 + odd, degrees - 1, 2):
        term *= (n - 1) / n * cos(angle) ** 2
        total += term
    series = sin(angle) * total
    return 2 / pi * (angle + series) if odd else series
