"""Arrivals: renewal processes of several families, run faster or slower by a curve and by flash crowds."""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil, isfinite, lgamma

import numpy as np
import numpy.typing as npt

from engine.settings import above, at_least, require
from sim.streams import stream

Floats = npt.NDArray[np.float64]

FAMILIES = ("poisson", "gamma", "weibull", "constant", "onoff")
SHAPED = ("gamma", "weibull")
SHAPES = (0.02, 1000.0)  # of Gamma gaps; at the least, their CV is 7
WEIBULL_SHAPES = (0.1, 100.0)
SHORTEST_S = 0.001  # of a burst, a pause, a window or a flash crowd
MAX_WINDOWS = 1_000_000  # of a rate curve within one run
MAX_BURST = 10_000_000
DRAWN_AT_ONCE = 8_192  # always as many, so that longer traffic begins with the shorter, bit for bit


@dataclass(slots=True, kw_only=True)
class Flash:
    """A flash crowd: from `at_s` on, for `for_s`, arrivals come `times` as fast."""

    at_s: float
    for_s: float
    times: float

    def check(self, key: str) -> None:
        at_least(f"{key}.at_s", self.at_s, 0)
        finite_at_least(f"{key}.for_s", self.for_s, SHORTEST_S)
        above(f"{key}.times", self.times, 0)
        require(f"{key}.times", self.times, isfinite(self.times), "a finite number")


@dataclass(slots=True, kw_only=True)
class ArrivalSettings:
    """The gaps between arrivals, and how their rate changes in the course of the run.

    Gamma and Weibull gaps have a `shape` or a `cv`, one of the two. `onoff`: Poisson bursts of `on_s` in the mean
    with nothing for `off_s` between them. `curve` multiplies the rate in windows of `curve_s`, and begins again after
    the last; a flash crowd multiplies it further. Nothing is rescaled to force a count.
    """

    family: str = "poisson"
    shape: float | None = None
    cv: float | None = None
    on_s: float | None = None
    off_s: float | None = None
    curve_s: float | None = None
    curve: list[float] = field(default_factory=list)
    flashes: list[Flash] = field(default_factory=list)

    def check(self, key: str) -> None:
        """Raise BadSettings unless there is such a process."""
        known = f"one of {', '.join(FAMILIES)}"
        require(f"{key}.family", self.family, self.family in FAMILIES, known)
        self._check_shape(key)
        for name in ("on_s", "off_s"):
            value = getattr(self, name)
            if self.family == "onoff":
                require(f"{key}.{name}", value, value is not None, f"a time of at least {SHORTEST_S:g}")
                finite_at_least(f"{key}.{name}", value, SHORTEST_S)
            else:
                require(f"{key}.{name}", value, value is None, "null unless the family is onoff")
        self._check_curve(key)
        for index, flash in enumerate(self.flashes):
            flash.check(f"{key}.flashes[{index}]")

    def _check_shape(self, key: str) -> None:
        given = [name for name in ("shape", "cv") if getattr(self, name) is not None]
        if self.family not in SHAPED:
            for name in given:
                require(
                    f"{key}.{name}", getattr(self, name), False, "null unless the family is gamma or weibull"
                )
            return
        require(f"{key}.shape", self.shape, len(given) == 1, "given for this family, or else cv, not both")
        shape = self.gap_shape()
        least, most = SHAPES if self.family == "gamma" else WEIBULL_SHAPES
        allowed = f"such that the shape of the gaps is from {least:g} to {most:g}"
        require(f"{key}.{given[0]}", getattr(self, given[0]), least <= shape <= most, allowed)

    def _check_curve(self, key: str) -> None:
        if not self.curve:
            require(f"{key}.curve_s", self.curve_s, self.curve_s is None, "null without a curve")
            return
        require(f"{key}.curve_s", self.curve_s, self.curve_s is not None, "the length of the curve's windows")
        finite_at_least(f"{key}.curve_s", self.curve_s or 0.0, SHORTEST_S)
        for index, times in enumerate(self.curve):
            finite_at_least(f"{key}.curve[{index}]", times, 0)
        require(f"{key}.curve", self.curve, sum(self.curve) > 0, "above zero in one window at least")

    def gap_shape(self) -> float:
        """The shape of Gamma or Weibull gaps."""
        if self.shape is not None:
            return self.shape
        if self.cv is None or not self.cv > 0:
            return 0.0
        return self.cv**-2 if self.family == "gamma" else weibull_shape(self.cv)


def finite_at_least(key: str, value: float, least: float) -> None:
    """Raise BadSettings unless the value is a finite number of at least `least`."""
    require(key, value, isfinite(value) and value >= least, f"a number of at least {least:g}")


def weibull_cv(shape: float) -> float:
    """The coefficient of variation of Weibull gaps: sqrt(G(1 + 2/k) / G(1 + 1/k)^2 - 1)."""
    log_ratio = lgamma(1 + 2 / shape) - 2 * lgamma(1 + 1 / shape)
    return float(np.sqrt(np.expm1(log_ratio)))


def weibull_shape(cv: float) -> float:
    """The shape of Weibull gaps with that coefficient of variation, which falls as the shape grows; 0 for none."""
    low, high = WEIBULL_SHAPES
    if not weibull_cv(high) <= cv <= weibull_cv(low):
        return 0.0
    for _ in range(100):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if weibull_cv(middle) > cv else (low, middle)
    return low


@dataclass(slots=True)
class Pace:
    """How much of the ordinary traffic has come by a time: the integral of the curve and of the flash crowds."""

    settings: ArrivalSettings
    key: str

    def at(self, time_s: float) -> float:
        """The seconds at the plain rate that bring as much as the time until `time_s`."""
        edges, amounts = self._segments(time_s)
        return float(np.interp(time_s, edges, amounts))

    def when(self, amounts: Floats) -> Floats:
        """The times at which so much has come; the inverse of `at`."""
        if len(amounts) == 0 or not (self.settings.curve or self.settings.flashes):
            return amounts
        until_s = float(amounts[-1])
        edges, reached = self._segments(until_s)
        while reached[-1] < amounts[-1]:
            until_s *= 2
            edges, reached = self._segments(until_s)
        return np.interp(amounts, reached, edges)

    def _segments(self, until_s: float) -> tuple[Floats, Floats]:
        """Where the multiplier changes up to `until_s`, and how much has come by then."""
        asked = self.settings
        edges = [np.array([0.0, until_s])]
        edges += [np.array([flash.at_s, flash.at_s + flash.for_s]) for flash in asked.flashes]
        if asked.curve and asked.curve_s:
            windows = until_s / asked.curve_s
            allowed = f"long enough for at most {MAX_WINDOWS:,} windows in {until_s:g} s"
            require(f"{self.key}.curve_s", asked.curve_s, windows <= MAX_WINDOWS, allowed)
            edges.append(np.arange(1, ceil(windows)) * asked.curve_s)
        borders: Floats = np.unique(np.concatenate(edges))
        borders = borders[borders <= until_s]
        middles = (borders[1:] + borders[:-1]) / 2
        amounts = np.cumsum(np.diff(borders) * self._times(middles))
        return borders, np.concatenate(([0.0], amounts))

    def _times(self, time_s: Floats) -> Floats:
        asked = self.settings
        times = np.ones(len(time_s))
        if asked.curve and asked.curve_s:
            window = (time_s // asked.curve_s).astype(np.int64) % len(asked.curve)
            times = np.array(asked.curve, np.float64)[window]
        for flash in asked.flashes:
            within = (time_s >= flash.at_s) & (time_s < flash.at_s + flash.for_s)
            times[within] *= flash.times
        return times


def renewals(settings: ArrivalSettings, rate: float, until_s: float, seed: int, name: str) -> Floats:
    """Arrivals before `until_s` at `rate`, before any curve; the first follows a gap, too."""
    if settings.family == "onoff":
        _check_bursts(settings, rate, until_s)
        return _bursts(settings, rate, until_s, seed, name)
    return _sums(_gaps(settings, seed, name), 1 / rate, until_s)


def _check_bursts(settings: ArrivalSettings, rate: float, until_s: float) -> None:
    """Raise BadSettings for more bursts, or larger ones, than memory should hold."""
    assert settings.on_s is not None
    assert settings.off_s is not None
    allowed = f"long enough for at most {MAX_WINDOWS:,} bursts in {until_s:g} s"
    require("workload.arrivals.on_s", settings.on_s, until_s <= MAX_WINDOWS * settings.on_s, allowed)
    few = rate * (settings.on_s + settings.off_s) <= MAX_BURST
    allowed = f"short enough for at most {MAX_BURST:,} arrivals in the mean burst"
    require("workload.arrivals.off_s", settings.off_s, few, allowed)


def _gaps(settings: ArrivalSettings, seed: int, name: str) -> Callable[[int], Floats]:
    """What draws so many gaps with a mean of 1."""
    random = stream(seed, name)
    if settings.family == "constant":
        return np.ones
    if settings.family == "poisson":
        return random.standard_exponential
    shape = settings.gap_shape()
    if settings.family == "gamma":
        return lambda count: random.standard_gamma(shape, count) / shape
    mean = np.exp(lgamma(1 + 1 / shape))
    return lambda count: random.weibull(shape, count) / mean


def _sums(gaps: Callable[[int], Floats], mean: float, until: float) -> Floats:
    """The running sums below `until` of gaps with that mean."""
    sums = _sums_past(gaps, mean, until)
    return sums[: np.searchsorted(sums, until)]


def _sums_past(gaps: Callable[[int], Floats], mean: float, until: float) -> Floats:
    parts, last = [], 0.0
    while last < until:
        parts.append(last + np.cumsum(gaps(DRAWN_AT_ONCE) * mean))
        last = float(parts[-1][-1])
    return np.concatenate(parts) if parts else np.empty(0)


def _bursts(settings: ArrivalSettings, rate: float, until_s: float, seed: int, name: str) -> Floats:
    """Poisson arrivals in bursts: drawn on a clock that runs in bursts alone, then moved behind the pauses."""
    assert settings.on_s is not None
    assert settings.off_s is not None
    on = _sums_past(stream(seed, f"{name}.on").standard_exponential, settings.on_s, until_s)
    pauses = stream(seed, f"{name}.off").standard_exponential(len(on)) * settings.off_s
    share = settings.on_s / (settings.on_s + settings.off_s)
    if stream(seed, f"{name}.begins").random() < share:
        pauses[0] = 0.0
    paused = np.cumsum(pauses)
    ended = int(np.searchsorted(on + paused, until_s))
    busy_s = float(on[min(ended, len(on) - 1)])
    work = _sums(stream(seed, name).standard_exponential, share / rate, busy_s)
    times = work + paused[np.searchsorted(on, work, side="right")]
    return times[: np.searchsorted(times, until_s)]
