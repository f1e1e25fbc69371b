"""How sure a figure of a single run is: between which values it lies, and how many requests say so.

Within one run neighbours are alike, so an interval holds for this traffic and not for all: what other draws of it
would have given, only replications tell.
"""

from sim import metrics
from sim.checks import number
from sim.runs import Run
from sim.stats import batch_means, quantile_interval

LATENCIES = {"ttft": metrics.ttft_s, "tpot": metrics.tpot_s, "e2e": metrics.e2e_s}
LEAST = 20
"""Values, below which nothing is said of a mean."""


def interval_of(run: Run, figure: str) -> tuple[tuple[float, float] | None, int] | None:
    """The 95 % interval of a latency of a run and the number of its values; None for what is no latency.

    A percentile has that of order statistics, a mean that of batch means. None where there are too few values, or
    they hang together so much that the interval of a mean would reach below nought.
    """
    kind, _, name = figure.removesuffix("_s").partition("_")
    if name not in LATENCIES or not (kind == "mean" or kind[1:].isdigit()):
        return None
    done = run.whole.completed.sort_values(["arrival_ns", "request_id"])
    values = LATENCIES[name](done)
    if kind != "mean":
        return quantile_interval(values, float(kind[1:]) / 100), len(values)
    found = batch_means(values) if len(values) >= LEAST else None
    return (None if found is None or found.low < 0 else (found.low, found.high)), len(values)


def told(run: Run, figure: str, value: float | None) -> str:
    """The figure with what it rests on, as people read it."""
    found = interval_of(run, figure) if value is not None else None
    if found is None:
        return number(value)
    ends, count = found
    if ends is None:
        why = "too few" if count < LEAST else "too few, or too much alike,"
        return f"{number(value)} (n={count}, {why} for an interval)"
    return f"{number(value)} (95 %: {number(ends[0])} to {number(ends[1])}, n={count})"
