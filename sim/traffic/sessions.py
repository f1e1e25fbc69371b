"""Sessions: turns that follow each other, each prompt with all that was said before it."""

from dataclasses import dataclass
from math import isfinite
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from engine.clock import NS_PER_S
from engine.settings import require
from sim.traffic.synthetic import MAX_SIGMA
from sim.traffic.trace import Lengths, Times

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Number = TypeVar("Number", np.float64, np.int64)

MAX_TURNS = 1000.0
LONGEST_THINK_S = 86_400.0 * 366


@dataclass(slots=True, kw_only=True)
class SessionSettings:
    """How many turns a session has, geometric, and how long a user thinks before the next, log-normal.

    `wait`: thinking begins when the answer has ended, so a slow system gets its next turn later. Otherwise it begins
    when the turn before arrived.
    """

    mean_turns: float = 1.0
    think_median_s: float = 40.0
    think_sigma: float = 1.0
    wait: bool = True

    def check(self, key: str) -> None:
        """Raise BadSettings unless there are such sessions."""
        require(
            f"{key}.mean_turns",
            self.mean_turns,
            1 <= self.mean_turns <= MAX_TURNS,
            f"from 1 to {MAX_TURNS:g}",
        )
        usual = isfinite(self.think_median_s) and 0 <= self.think_median_s <= LONGEST_THINK_S
        require(f"{key}.think_median_s", self.think_median_s, usual, "a time from 0 to a year")
        require(f"{key}.think_sigma", self.think_sigma, 0 <= self.think_sigma <= MAX_SIGMA, "from 0 to 10")

    def think_s(self, random: np.random.Generator, count: int) -> Floats:
        """So many times to think."""
        drawn = np.exp(self.think_sigma * random.standard_normal(count))
        return np.minimum(self.think_median_s * drawn, LONGEST_THINK_S)


def before(values: npt.NDArray[Number], first: Ids, session: Lengths) -> npt.NDArray[Number]:
    """For each turn, the sum of `values` over the turns of its session before it.

    Turns stand session by session; `first` is the row of each session's first turn.
    """
    sums: npt.NDArray[Number] = np.cumsum(values, dtype=values.dtype) - values
    sums_before: npt.NDArray[Number] = sums - sums[first][session]
    return sums_before


def waits(rows: Ids, turn: Lengths, think_s: Floats) -> tuple[Lengths, Times]:
    """The columns `after` and `think_ns` of the rows of a table of turns that a trace keeps, in its order.

    `think_s[row]` comes after the turn of that row and before the next; `turn` is that of each kept row.
    """
    place = np.full(len(think_s), -1, np.int32)
    place[rows] = np.arange(len(rows), dtype=np.int32)
    follows = turn > 0
    earlier = rows - follows
    after = np.where(follows, place[earlier], -1).astype(np.int32)
    think_ns = np.where(follows, np.rint(think_s[earlier] * NS_PER_S), 0).astype(np.int64)
    return after, think_ns
