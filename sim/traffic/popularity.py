"""Popularity: who of many is asked for, by Zipf's law or by weights, and how ranks change in time."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
import numpy.typing as npt

from engine.settings import at_least, require
from sim.traffic.trace import Lengths

Floats = npt.NDArray[np.float64]


@dataclass(slots=True, kw_only=True)
class Rotation:
    """From `at_s` on, whoever had a rank is followed by the one `by` places further on."""

    at_s: float
    by: int

    def check(self, key: str) -> None:
        at_least(f"{key}.at_s", self.at_s, 0)
        require(f"{key}.by", self.by, abs(self.by) < 2**31, "a number of ranks")


@dataclass(slots=True, kw_only=True)
class Shift:
    """From `at_s` on, each is chosen as often as its weight says, whatever it was before."""

    at_s: float
    weights: list[float]

    def check(self, key: str, choices: int) -> None:
        at_least(f"{key}.at_s", self.at_s, 0)
        check_weights(f"{key}.weights", self.weights, choices)


def check_weights(key: str, weights: Sequence[float], choices: int) -> None:
    """Raise BadSettings unless these are weights of so many."""
    require(key, weights, len(weights) == choices, f"one for each of {choices} models")
    for weight in weights:
        require(key, weight, isfinite(weight) and weight >= 0, "a finite number, at least 0")
    require(key, weights, sum(weights) > 0, "above zero together")


def zipf_weights(choices: int, exponent: float) -> Floats:
    """The weights of ranks: that of i (from 1) is i^-exponent."""
    weights: Floats = np.arange(1, choices + 1, dtype=np.float64) ** -exponent
    return weights


def chosen(random: np.random.Generator, count: int, weights: Floats) -> Lengths:
    """`count` indices into the weights, each as likely as its weight. One draw each."""
    upto = np.cumsum(weights) / weights.sum()
    return np.searchsorted(upto[:-1], random.random(count), side="right").astype(np.int32)


def zipf(random: np.random.Generator, count: int, choices: int, exponent: float) -> Lengths:
    """`count` ranks below `choices`, i with weight (i + 1)^-exponent."""
    return chosen(random, count, zipf_weights(choices, exponent))


def rotated(rank: Lengths, time_s: Floats, rotations: Sequence[Rotation], choices: int) -> Lengths:
    """Who has the rank at that time; shifts add up."""
    shift = np.zeros(len(rank), np.int64)
    for rotation in rotations:
        shift[time_s >= rotation.at_s] += rotation.by
    return ((rank + shift) % choices).astype(np.int32)
