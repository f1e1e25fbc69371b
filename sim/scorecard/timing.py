"""What an operation takes on the real clock: means of many calls, and a p99 of single ones."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np

from engine.clock import processor_ns, stopwatch_ns

Operation = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Took:
    """Nanoseconds, as medians over rounds: the mean of a round's calls, and the p99 of single ones."""

    mean_ns: float
    p99_ns: float


def timed(operation: Operation, *, rounds: int = 15, calls: int = 2_000) -> Took:
    """Time an operation: means in processor time, which nobody shares, p99 on the clock, less the looks at it."""
    for _ in range(calls):
        operation()
    means, tails = [], []
    for _ in range(rounds):
        begun_ns = processor_ns()
        for _ in range(calls):
            operation()
        means.append((processor_ns() - begun_ns) / calls)
        tails.append(_p99_ns(operation, calls))
    return Took(median(means), median(tails))


def _p99_ns(operation: Operation, calls: int) -> float:
    looks, took = np.empty(calls), np.empty(calls)
    for number in range(calls):
        begun_ns = stopwatch_ns()
        looks[number] = stopwatch_ns() - begun_ns
        begun_ns = stopwatch_ns()
        operation()
        took[number] = stopwatch_ns() - begun_ns
    return max(0.0, float(np.percentile(took, 99) - np.median(looks)))


def us(nanoseconds: float) -> str:
    """Microseconds, as people read them."""
    return f"{nanoseconds / 1e3:.2f} us"
