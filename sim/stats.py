"""What can be said of a run, or of several: intervals, warm-up, and when there is too little to say anything.

Replications are independent runs on seeds of their own: their means are compared by Student's t (`sim.intervals`).
Within one run neighbours are alike; batch means and order statistics are for that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, sqrt
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from engine.errors import EngineError
from sim.intervals import COVERAGE, Interval, interval, t_quantile, within

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

BATCHES = 20
TIMES_A_BATCH = 10
"""Autocorrelation times that a batch is long at least."""
WINDOW_TIMES = 5
"""Autocorrelation times after which correlations are noise."""
MSER_BATCH = 5
LEAST_WARM_UP = 0.1
MOST_WARM_UP = 0.5


class TooShort(EngineError):
    """The run does not outlast its own start: nothing can be said of its steady state."""

    reason = "run_too_short"


def quantile_interval(values: Floats, q: float, coverage: float = COVERAGE) -> tuple[float, float] | None:
    """Between which two of the values, given in the order of time, the q-quantile lies; None when too few say so.

    Distribution-free: the number of values below the quantile is binomial (Conover, "Practical Nonparametric
    Statistics", 3.2), here by its normal approximation, ranks rounded outwards. Where neighbours are alike its
    variance is as many times that as their autocorrelation time: that of the values, or that of being below the
    quantile, whichever is longer. O(n log n).
    """
    if _ranks(len(values), q, coverage, 1.0) is None:
        return None
    below = values <= np.quantile(values, q)
    time = max(autocorrelation_time(values), autocorrelation_time(below))
    ranks = _ranks(len(values), q, coverage, time)
    if ranks is None:
        return None
    low, high = np.partition(values, ranks)[list(ranks)]
    return float(low), float(high)


def _ranks(count: int, q: float, coverage: float, time: float) -> tuple[int, int] | None:
    """The places in order of the ends of a quantile's interval; None where there are no such values."""
    reach = NormalDist().inv_cdf((1 + coverage) / 2) * sqrt(time * count * q * (1 - q))
    low, high = floor(count * q - reach) - 1, ceil(count * q + reach)
    return (low, high) if low >= 0 and high < count else None


def autocorrelation_time(*series: Floats | Flags) -> float:
    """How many neighbours say together as much as one independent value; at least 1.

    The integrated autocorrelation time with a window of five times itself (Sokal, "Monte Carlo Methods in Statistical
    Mechanics", 1997); of several replications about the mean of all, which sees more than each about its own.
    O(n log n).
    """
    count = min(map(len, series))
    values = np.array([each[:count] for each in series], dtype=np.float64)
    deviations = values - values.mean()
    if not deviations.any():
        return 1.0
    spectrum = np.fft.rfft(deviations, 2 * count)
    correlations = np.fft.irfft((spectrum * spectrum.conjugate()).mean(axis=0))[:count]
    times = 2 * np.cumsum(correlations / correlations[0]) - 1
    beyond = np.flatnonzero(np.arange(count) >= WINDOW_TIMES * times)
    return max(1.0, float(times[beyond[0]] if len(beyond) else times.max()))


def batch_means(values: Floats, batches: int = BATCHES, coverage: float = COVERAGE) -> Interval:
    """The interval of the mean of a series whose neighbours are alike, by the means of its batches.

    A batch is ten autocorrelation times long at least: there are fewer of them where the series is short, and the
    interval is wider. Values that do not fill the last batch count in the mean only.
    """
    time = autocorrelation_time(values)
    count = max(2, min(batches, int(len(values) / (TIMES_A_BATCH * time))))
    size = len(values) // count
    if size < 1:
        return Interval(float(values.mean()), None)
    means = values[: size * count].reshape(count, size).mean(axis=1)
    half_width = interval(means.tolist(), coverage).half_width
    assert half_width is not None
    return Interval(float(values.mean()), half_width * max(1.0, sqrt(TIMES_A_BATCH * time / size)))


def clustered_difference(
    first: Floats, first_cluster: Codes, second: Floats, second_cluster: Codes, coverage: float = COVERAGE
) -> Interval:
    """The mean of the second values less that of the first, where those of one cluster are alike, as of one session.

    Clusters are independent, and differ in size: the mean is a ratio of two sums over them, whose variance is that of
    its linear part (Cochran, "Sampling Techniques", 6.4). No interval with less than two clusters on a side.
    """
    mean = float(second.mean() - first.mean())
    errors = [_clustered_error(*side) for side in ((first, first_cluster), (second, second_cluster))]
    if None in errors:
        return Interval(mean, None)
    error = sqrt(sum(each**2 for each in errors if each is not None))
    return Interval(mean, NormalDist().inv_cdf((1 + coverage) / 2) * error)


def _clustered_error(values: Floats, cluster: Codes) -> float | None:
    """The standard error of a mean of values in clusters; None with less than two of them."""
    _, number = np.unique(cluster, return_inverse=True)
    count = int(number.max()) + 1
    if count < 2:  # noqa: PLR2004  no spread is known of one
        return None
    sums = np.bincount(number, values - values.mean(), minlength=count)
    return sqrt(float((sums**2).sum()) * count / (count - 1)) / len(values)


def mser5(values: Floats) -> int:
    """Where the start of a series ends: the cut that leaves the smallest standard error (White, 1997; batches of 5).

    Only cuts within the first half are looked at: the last few batches are alike by chance.
    """
    count = len(values) // MSER_BATCH
    if not count:
        return 0
    means = values[: count * MSER_BATCH].reshape(count, MSER_BATCH).mean(axis=1)
    left = np.arange(count, 0, -1)
    sums, squares = np.cumsum(means[::-1])[::-1], np.cumsum(means[::-1] ** 2)[::-1]
    errors = (squares - sums**2 / left) / left**2
    return int(np.argmin(errors[: count // 2 + 1])) * MSER_BATCH


def averaged(series: Sequence[Floats]) -> Floats:
    """The mean of several replications at each place (Welch), as far as the shortest goes."""
    length = min(map(len, series))
    mean: Floats = np.mean([each[:length] for each in series], axis=0)
    return mean


def warm_up(series: Sequence[Floats]) -> float:
    """The share of each replication that belongs to its start: by MSER-5 of the averaged series, at least a tenth.

    Raises TooShort when the start reaches to the middle: it may not have ended there. Also when what is left is not
    as long as a batch has to be: a start that goes on for longer than that is not seen within it.
    """
    mean = averaged(series)
    share = mser5(mean) / len(mean)
    if share >= MOST_WARM_UP - MSER_BATCH / len(mean):
        raise TooShort(
            f"run too short: after half of its {len(mean)} points it is not yet steady; make it several times as long"
        )
    share = max(LEAST_WARM_UP, share)
    left = [each[int(share * len(each)) :] for each in series]
    count, time = min(map(len, left)), autocorrelation_time(*left)
    if count < TIMES_A_BATCH * time:
        raise TooShort(
            f"run too short: {count} points are left of it, of which {time:.0f} in a row say as much as one; "
            f"make it {max(2, ceil(TIMES_A_BATCH * time / count))} times as long at least"
        )
    return share


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for being many (Holm, 1979), in the given order."""
    count, highest = len(p_values), 0.0
    corrected = [0.0] * count
    for rank, index in enumerate(sorted(range(count), key=lambda index: (p_values[index], index))):
        highest = max(highest, min(1.0, (count - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


@dataclass(frozen=True, slots=True)
class Difference:
    """How much one side differs from the other over pairs of runs: the mean of second minus first."""

    count: int
    mean: float
    half_width: float | None
    p_value: float | None
    """How often chance alone makes such a difference; None with a single pair."""


def difference(first: Sequence[float], second: Sequence[float], coverage: float = COVERAGE) -> Difference:
    """The paired difference by Student's t: of runs on the same traffic, what both have in common cancels out."""
    gaps = [b - a for a, b in zip(first, second, strict=True)]
    found = interval(gaps, coverage)
    if found.half_width is None:
        return Difference(1, found.mean, None, None)
    degrees = len(gaps) - 1
    error = found.half_width / t_quantile(degrees, coverage)
    if error == 0:
        return Difference(len(gaps), found.mean, 0.0, 1.0 if found.mean == 0 else 0.0)
    return Difference(len(gaps), found.mean, found.half_width, 1 - within(abs(found.mean) / error, degrees))
