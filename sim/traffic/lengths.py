"""Lengths: how many tokens a prompt, an answer or a template has, by a law or by a histogram."""

import csv
from dataclasses import dataclass, field
from math import erfc, exp, isfinite, lgamma, log
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.settings import above, require
from sim.traffic.arrivals import finite_at_least
from sim.traffic.synthetic import MAX_SIGMA, log_normal_tokens
from sim.traffic.trace import MAX_TOKENS, BadTrace, Lengths
from sim.traffic.workload import whole

LAWS = {
    "fixed": ("tokens",),
    "lognormal": ("median", "sigma"),
    "gamma": ("mean", "cv"),
    "uniform": (),
    "histogram": (),
}
FILE_HEADER = ["tokens", "weight"]
MAX_CV = 7.0
STEPS = 200_001  # of a sum over the logarithms of a Gamma law: shares are exact to 1e-6
TINY = 1e-6


def of_one_law(values: Any) -> Any:
    """Settings of a workload in which a law that is given takes nothing along of the one that is usual in its place.

    What other laws need, and is not given with it, is null: `{law: fixed, tokens: 4}` has no median.
    """
    if isinstance(values, list):
        return [of_one_law(each) for each in values]
    if not isinstance(values, dict):
        return values
    needed = LAWS.get(values["law"]) if isinstance(values.get("law"), str) else None
    others = () if needed is None else {name for law in LAWS.values() for name in law} - {*needed}
    return {**dict.fromkeys(sorted(others)), **{key: of_one_law(value) for key, value in values.items()}}


@dataclass(slots=True, kw_only=True)
class LengthSettings:
    """A law of lengths. What is drawn is rounded, then clipped to [min, max]; `uniform` is between the two.

    fixed: tokens. lognormal: median and sigma of the logarithm. gamma: mean and cv. histogram: `edges` and a weight
    for each bin, in which whole numbers from its edge to below the next are alike; or a CSV `file` with the columns
    tokens and weight.
    """

    law: str = "lognormal"
    tokens: int | None = None
    median: float | None = None
    sigma: float | None = None
    mean: float | None = None
    cv: float | None = None
    edges: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    file: str | None = None
    min: int = 1
    max: int = MAX_TOKENS

    def check(self, key: str) -> None:
        """Raise BadSettings unless there is such a law and nothing is set that it would ignore."""
        require(f"{key}.law", self.law, self.law in LAWS, f"one of {', '.join(LAWS)}")
        for name in ("tokens", "median", "sigma", "mean", "cv"):
            value = getattr(self, name)
            if name in LAWS[self.law]:
                require(f"{key}.{name}", value, value is not None, f"given, since the law is {self.law}")
            else:
                require(f"{key}.{name}", value, value is None, f"null, since the law is {self.law}")
        whole(f"{key}.min", self.min, 1, MAX_TOKENS)
        whole(f"{key}.max", self.max, self.min, MAX_TOKENS)
        self._check_values(key)
        self._check_histogram(key)

    def _check_values(self, key: str) -> None:
        if self.tokens is not None:
            whole(f"{key}.tokens", self.tokens, self.min, self.max)
        if self.median is not None:
            require(
                f"{key}.median",
                self.median,
                0 < self.median <= MAX_TOKENS,
                f"above 0, at most {MAX_TOKENS:,}",
            )
        if self.sigma is not None:
            require(f"{key}.sigma", self.sigma, 0 <= self.sigma <= MAX_SIGMA, f"from 0 to {MAX_SIGMA:g}")
        if self.mean is not None:
            require(f"{key}.mean", self.mean, 0 < self.mean <= MAX_TOKENS, f"above 0, at most {MAX_TOKENS:,}")
        if self.cv is not None:
            above(f"{key}.cv", self.cv, 0)
            require(f"{key}.cv", self.cv, self.cv <= MAX_CV, f"at most {MAX_CV:g}")

    def _check_histogram(self, key: str) -> None:
        if self.law != "histogram":
            for name in ("edges", "weights"):
                require(
                    f"{key}.{name}", getattr(self, name), not getattr(self, name), f"empty for {self.law}"
                )
            require(f"{key}.file", self.file, self.file is None, f"null, since the law is {self.law}")
            return
        if self.file is not None:
            require(
                f"{key}.edges",
                self.edges,
                not self.edges and not self.weights,
                "empty, since there is a file",
            )
            return
        allowed = "a number more than weights, one bin at least"
        require(f"{key}.edges", self.edges, len(self.edges) == len(self.weights) + 1 > 1, allowed)
        for edge in self.edges:
            whole(f"{key}.edges", edge, 1, MAX_TOKENS + 1)
        require(f"{key}.edges", self.edges, bool((np.diff(self.edges) > 0).all()), "in rising order")
        for weight in self.weights:
            finite_at_least(f"{key}.weights", weight, 0)
        total = sum(self.weights)
        require(f"{key}.weights", self.weights, total > 0 and isfinite(total), "above zero together")

    def draw(self, random: np.random.Generator, count: int) -> Lengths:
        """So many lengths. Raises BadTrace for a file that is no histogram."""
        if self.law == "fixed":
            assert self.tokens is not None
            return np.full(count, self.tokens, np.int32)
        if self.law == "uniform":
            return random.integers(self.min, self.max, size=count, dtype=np.int32, endpoint=True)
        if self.law == "lognormal":
            assert self.median is not None
            assert self.sigma is not None
            return log_normal_tokens(random, count, self.median, self.sigma, self.min, self.max)
        if self.law == "gamma":
            assert self.mean is not None
            assert self.cv is not None
            drawn = random.standard_gamma(self.cv**-2, count) * (self.mean * self.cv**2)
            return np.clip(np.rint(drawn), self.min, self.max).astype(np.int32)
        return np.clip(self._from_bins(random.random(count)), self.min, self.max).astype(np.int32)

    def at(self, normal: npt.NDArray[np.float64]) -> Lengths:
        """The lengths that have the same place in their law as the values have in the normal law."""
        if self.law == "fixed":
            return np.full(len(normal), self.tokens, np.int32)
        if self.law == "lognormal":
            assert self.median is not None
            assert self.sigma is not None
            drawn = np.exp(log(self.median) + self.sigma * normal)
            return np.clip(np.rint(drawn), self.min, self.max).astype(np.int32)
        share = np.clip(normal_shares(normal), 0.0, np.nextafter(1.0, 0.0))
        if self.law == "uniform":
            return (self.min + np.floor(share * (self.max - self.min + 1))).astype(np.int32)
        if self.law == "gamma":
            assert self.mean is not None
            assert self.cv is not None
            drawn = gamma_quantiles(self.cv**-2, share) * (self.mean * self.cv**2)
            return np.clip(np.rint(drawn), self.min, self.max).astype(np.int32)
        return np.clip(self._from_bins(share), self.min, self.max).astype(np.int32)

    def _from_bins(self, drawn: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Whole numbers of the bins: one draw chooses the bin and the place in it."""
        low, high, weights = self._bins()
        upto = np.cumsum(weights) / weights.sum()
        chosen = np.searchsorted(upto[:-1], drawn, side="right")
        start = np.concatenate(([0.0], upto[:-1]))[chosen]
        place = (drawn - start) * (weights.sum() / np.maximum(weights[chosen], 1e-300))
        width = high[chosen] - low[chosen]
        values: npt.NDArray[np.int64] = low[chosen] + np.minimum((place * width).astype(np.int64), width - 1)
        return values

    def _bins(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        if self.file is None:
            edges = np.array(self.edges, np.int64)
            return edges[:-1], edges[1:], np.array(self.weights, np.float64)
        values, weights = read_histogram(Path(self.file))
        return values, values + 1, weights


def normal_shares(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The shares of the normal law below values."""
    of_one = np.frompyfunc(erfc, 1, 1)
    shares: npt.NDArray[np.float64] = of_one(values * -(0.5**0.5)).astype(np.float64) / 2
    return shares


def gamma_quantiles(shape: float, shares: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Where the Gamma law of that shape and scale 1 has such shares below: its density added up over logarithms."""
    low = (log(TINY) + lgamma(shape + 1)) / shape  # below, the law is a power
    high = log(shape + 40 * shape**0.5 + 60)
    logs = np.linspace(max(low, -700.0), high, STEPS)
    density = np.exp(shape * logs - np.exp(logs) - lgamma(shape))
    below = np.concatenate(([0.0], np.cumsum((density[1:] + density[:-1]) / 2) * (logs[1] - logs[0])))
    first = exp(shape * logs[0] - lgamma(shape + 1))
    upto = (first + below) / (first + below[-1])
    kept = np.concatenate(([True], np.diff(upto) > 0))
    return np.exp(np.interp(shares, upto[kept], logs[kept]))


def read_histogram(path: Path) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The lengths of a histogram file and their weights. Raises BadTrace with the line."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadTrace(f"{path} cannot be read as a histogram: {error}") from error
    while rows and not rows[-1]:  # blank lines at the end, as in a trace
        rows.pop()
    if not rows or [name.strip() for name in rows[0]] != FILE_HEADER:
        raise BadTrace(f"{path}, line 1 must be the header {','.join(FILE_HEADER)}")
    pairs = [_pair(f"{path}, line {number}", row) for number, row in enumerate(rows[1:], 2)]
    total = sum(weight for _, weight in pairs)
    if total <= 0:
        raise BadTrace(f"{path} must have a weight above zero, but has none in {len(pairs)} rows")
    if not isfinite(total):
        raise BadTrace(f"{path} has weights that are {total} together, but must have a finite sum")
    return np.array([value for value, _ in pairs], np.int64), np.array([weight for _, weight in pairs])


def _pair(where: str, row: list[str]) -> tuple[int, float]:
    try:
        tokens, weight = int(row[0]), float(row[1])
    except (ValueError, IndexError) as error:
        raise BadTrace(f"{where} is {','.join(row)!r}, but must be a whole number and a weight") from error
    if not (1 <= tokens <= MAX_TOKENS and isfinite(weight) and weight >= 0):
        raise BadTrace(f"{where} is {','.join(row)!r}, but must be 1 to {MAX_TOKENS:,} tokens, weight from 0")
    return tokens, weight
