"""The timed side of classes C and D: an operation beside a loop, by turns; and microseconds of this machine.

Ratios are of the processor's time: what else runs here takes none of it, and slows both sides of a pair alike.
"""

import gc
from collections.abc import Callable
from statistics import median

import numpy as np

from engine.clock import processor_ns, stopwatch_ns
from sim.gate.operations import OPERATIONS, Operation, Work
from sim.gate.worker import Tell

SAMPLE_NS = 1_000_000
MOST_CALLS = 1 << 20
CALLS = 1_000  # of one sample of a mean: a clock that costs 50 ns to read sees nothing below a microsecond
ROUNDS = 20
SINGLES = 2_000  # timed one by one, for p99
P99_ROUNDS = 5
LONG_NS = 100_000
"""An operation that takes so long is timed by itself."""


def loop(turns: int) -> int:
    """What ratios are to: a plain loop that looks up, adds and calls, as the interpreter does all day."""
    table = {number: number for number in range(64)}
    get, total = table.get, 0
    for number in range(turns):
        total += table[number & 63] + (get(number) or 0)
    return total


def ratios(tell: Tell, names: list[str], doubled: list[str], samples: int) -> None:
    """Tell the ratios of each operation to a turn of the loop, and of the loop to itself."""
    gc.freeze()
    gc.disable()
    for name in names:
        kind = OPERATIONS[name]
        tell({"name": name, **beside_loop(kind.work(), samples, 2 if name in doubled else 1)})


def beside_loop(work: Work, samples: int, times: int) -> dict[str, object]:
    """Loop, operation, operation, loop, over and over: what drifts meets both alike. Both take about as long."""
    calls, turns = calls_of(work), calls_of(loop)
    turns = max(turns, turns * took_ns(work, calls) // max(took_ns(loop, turns), 1))
    order = ((loop, turns), (work, calls * times), (work, calls * times), (loop, turns))
    rounds = [[took_ns(*each) for each in order] for _ in range(samples)]
    least_ns = min(min(one, other) for _, one, other, _ in rounds) / calls
    return {
        "ratios": [(one + other) / calls / ((first + last) / turns) for first, one, other, last in rounds],
        "loops": [
            first / last if number % 2 else last / first for number, (first, _, _, last) in enumerate(rounds)
        ],
        "least": least_ns / (min(min(first, last) for first, _, _, last in rounds) / turns),
        "each_us": least_ns / 1e3,
    }


def took_ns(work: Work, calls: int) -> int:
    begun_ns = processor_ns()
    work(calls)
    return processor_ns() - begun_ns


def calls_of(work: Work) -> int:
    """How many take a sample's time, after as many to warm up."""
    calls = 8
    while took_ns(work, calls) < SAMPLE_NS and calls < MOST_CALLS:
        calls *= 2
    return calls


def absolute(tell: Tell, names: list[str], doubled: list[str]) -> None:
    """Tell the mean and the 99th percentile of each operation, in microseconds of the clock on the wall.

    And a turn of the loop, the best around each operation: how fast the machine was then.
    """
    gc.freeze()
    gc.disable()
    for name in names:
        kind = OPERATIONS[name]
        assert kind.make is not None, "only what is done once has a percentile"
        operation = twice(kind.make()) if name in doubled else kind.make()
        for _ in range(max(kind.warm_calls, 1)):
            operation()
        before_ns = turn_ns()
        told = {"name": name, "mean_us": mean_us(operation), "p99_us": p99_us(operation)}
        tell({**told, "turn_ns": min(before_ns, turn_ns())})


def turn_ns() -> float:
    """A turn of the loop, the best of some rounds."""
    turns = calls_of(loop)
    return min(took_ns(loop, turns) for _ in range(ROUNDS)) / turns


def twice(operation: Operation) -> Operation:
    def both() -> object:
        return operation(), operation()

    return both


def mean_us(operation: Operation) -> float:
    """The best mean of many calls: what it costs where nobody disturbs."""
    calls = CALLS if timed_ns(operation, 1) < LONG_NS else 10
    look_ns = median(timed_ns(nothing, 1) for _ in range(100))
    return min(max(0.0, timed_ns(operation, calls) - look_ns) for _ in range(ROUNDS)) / calls / 1e3


def p99_us(operation: Operation) -> float:
    """Of single calls, what it costs to look at the clock taken off; the best of some rounds."""
    singles = SINGLES if timed_ns(operation, 1) < LONG_NS else 100
    rounds = []
    for _ in range(P99_ROUNDS):
        looks = [timed_ns(nothing, 1) for _ in range(singles)]
        took = [timed_ns(operation, 1) for _ in range(singles)]
        rounds.append(float(np.percentile(took, 99)) - median(looks))
    return max(0.0, min(rounds)) / 1e3


def nothing() -> None:
    """What a timer is held against."""


def timed_ns(operation: Callable[[], object], calls: int) -> int:
    begun_ns = stopwatch_ns()
    for _ in range(calls):
        operation()
    return stopwatch_ns() - begun_ns
