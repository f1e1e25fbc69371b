"""Checks: what must hold of a run, with the value seen, the bound and a verdict.

A check whose value could not be measured (nothing happened in its window) is inconclusive, never a pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

LEAST_SAMPLES_P99 = 100


@dataclass(slots=True, frozen=True)
class Check:
    """One claim: `value op limit`. `verdict` is pass, fail or inconclusive; `note` says what it rests on."""

    name: str
    value: float | None
    op: str
    limit: float
    verdict: str
    note: str = ""


def at_most(name: str, value: float | None, limit: float, note: str = "") -> Check:
    return Check(name, value, "<=", limit, _verdict(value, value is not None and value <= limit), note)


def at_least(name: str, value: float | None, limit: float, note: str = "") -> Check:
    return Check(name, value, ">=", limit, _verdict(value, value is not None and value >= limit), note)


def evidence(name: str, value: float | None, least: float, note: str = "") -> Check:
    """The run shows enough for the other checks to mean something. If not, it is undecided, not a failure."""
    shown = value is not None and value >= least
    return Check(name, value, ">=", least, "pass" if shown else "inconclusive", note)


def within(name: str, delay_s: float | None, limit_s: float, *, was_due: bool) -> Check:
    """Something came at most `limit_s` after its cause. When it was due and never came, that is a failure."""
    if delay_s is None and was_due:
        return Check(name, None, "<=", limit_s, "fail", "never")
    return at_most(name, delay_s, limit_s)


def p99_at_most(name: str, values: npt.NDArray[np.float64], limit: float) -> Check:
    """The 99th percentile of `values` is at most `limit`.

    Under 100 samples there is no p99. Then the maximum, which bounds it, can show that the claim holds; that it
    does not hold, nothing can.
    """
    if len(values) >= LEAST_SAMPLES_P99:
        return at_most(name, float(np.percentile(values, 99)), limit, f"n={len(values)}")
    if not len(values):
        return at_most(name, None, limit, "n=0")
    largest = float(np.max(values))
    note = f"n={len(values)}: the maximum, which bounds p99"
    return Check(name, largest, "<=", limit, "pass" if largest <= limit else "inconclusive", note)


def equal_share(
    name: str, error: float | None, limit: float, count: int, parts: int, note: str = ""
) -> Check:
    """The largest distance of one of `parts` from an equal share of `count` requests is at most `limit`.

    A larger distance is a failure only beyond three standard deviations of a fair lottery, sqrt(p (1 - p) / n):
    with few requests, chance alone goes further than `limit`, and then nothing is decided.
    """
    check = at_most(name, error, limit, note)
    fair = 1 / parts
    by_chance = 3 * (fair * (1 - fair) / max(count, 1)) ** 0.5
    if check.verdict == "fail" and error is not None and error <= by_chance:
        return replace(
            check, verdict="inconclusive", note=f"{note}: chance alone gives up to {by_chance:.3f}"
        )
    return check


def grown(calm: npt.NDArray[np.float64], factor: float, floor: float) -> float:
    """A bound on a p99 in trouble: `factor` times the p99 in calm, never less than `floor`.

    Traffic that bursts has a long tail without any trouble; that is not to be blamed on it.
    """
    if len(calm) < LEAST_SAMPLES_P99:
        return floor
    return max(floor, factor * float(np.percentile(calm, 99)))


def overall(checks: Sequence[Check]) -> str:
    """The verdict of a run: fail before inconclusive before pass. A run without checks shows nothing."""
    verdicts = [check.verdict for check in checks]
    if not verdicts:
        return "inconclusive"
    return next((verdict for verdict in ("fail", "inconclusive") if verdict in verdicts), "pass")


def table(checks: Sequence[Check]) -> str:
    """The checks as text, a line each: verdict, name, value, bound, what it rests on."""
    rows = [
        (check.verdict, check.name, number(check.value), check.op, number(check.limit), check.note)
        for check in checks
    ]
    first, second, third, _, fifth = (
        max((len(row[column]) for row in rows), default=0) for column in range(5)
    )
    lines = [
        f"{verdict:<{first}}  {name:<{second}}  {value:>{third}} {op} {limit:<{fifth}}  {note}"
        for verdict, name, value, op, limit, note in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def _verdict(value: float | None, holds: bool) -> str:
    if value is None:
        return "inconclusive"
    return "pass" if holds else "fail"


def number(value: float | None) -> str:
    """A figure as people read it; a dash for one that does not exist."""
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
