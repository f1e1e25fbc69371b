"""Checks: what must hold of a run, with the value seen, the bound and a verdict.

A check whose value could not be measured (nothing happened in its window) is inconclusive, never a pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sim.intervals import interval

if TYPE_CHECKING:
    from sim.runs import Window

LEAST_SAMPLES_P99 = 100


@dataclass(slots=True, frozen=True)
class Check:
    """One claim: `value op limit`. `verdict` is pass, fail or inconclusive; `note` says what it rests on.

    `published`: what the earlier system says of the same thing, to be read beside it.
    """

    name: str
    value: float | None
    op: str
    limit: float
    verdict: str
    note: str = ""
    published: str = ""


def at_most(name: str, value: float | None, limit: float, note: str = "", *, published: str = "") -> Check:
    verdict = _verdict(value, value is not None and value <= limit)
    return Check(name, value, "<=", limit, verdict, note, published)


def at_least(name: str, value: float | None, limit: float, note: str = "", *, published: str = "") -> Check:
    verdict = _verdict(value, value is not None and value >= limit)
    return Check(name, value, ">=", limit, verdict, note, published)


def gains(name: str, gained: Sequence[float], least: float, note: str = "", *, published: str = "") -> Check:
    """What one side gains over another, pair by pair of runs on the same requests, is at least so much in the mean.

    It passes when the mean does and the interval says that there is a gain at all; it fails when even the upper end
    of the interval is below the bound. What lies between is undecided: more seeds would tell.
    """
    if not gained:
        return Check(name, None, ">=", least, "inconclusive", note or "no pairs", published)
    found = interval(gained)
    told = f"{found.mean:.4g}, one pair: no interval"
    if found.half_width is not None:
        told = f"95 % from {found.low:.4g} to {found.high:.4g} over {len(gained)} pairs"
    verdict = "inconclusive"
    if found.mean >= least and (found.half_width is None or found.low > 0):
        verdict = "pass"
    elif found.high < least:
        verdict = "fail"
    return Check(name, found.mean, ">=", least, verdict, f"{note}; {told}" if note else told, published)


def no_worse(
    name: str, gained: Sequence[float], margin: float, note: str = "", *, published: str = ""
) -> Check:
    """What one side gains over another, pair by pair of runs on the same requests, is no loss beyond the margin.

    It passes when even the lower end of the interval is no such loss, and fails when even the upper end is one.
    """
    check = gains(name, gained, -margin, note, published=published)
    if not gained or check.verdict == "fail":
        return check
    found = interval(gained)
    holds = (found.mean if found.half_width is None else found.low) >= -margin
    return replace(check, verdict="pass" if holds else "inconclusive")


def all_completed(requests: "Window", most: float = 0, *, published: str = "") -> Check:
    """At most so many of the requests did not complete; for what reasons is said beside it."""
    return at_most(
        "requests that did not complete", requests.not_completed, most, requests.told, published=published
    )


def evidence(name: str, value: float | None, least: float, note: str = "", *, published: str = "") -> Check:
    """The run shows enough for the other checks to mean something. If not, it is undecided, not a failure."""
    shown = value is not None and value >= least
    return Check(name, value, ">=", least, "pass" if shown else "inconclusive", note, published)


def within(name: str, delay_s: float | None, limit_s: float, *, was_due: bool, published: str = "") -> Check:
    """Something came at most `limit_s` after its cause. When it was due and never came, that is a failure."""
    if delay_s is None and was_due:
        return Check(name, None, "<=", limit_s, "fail", "never", published)
    return at_most(name, delay_s, limit_s, published=published)


def p99_at_most(name: str, values: npt.NDArray[np.float64], limit: float, *, published: str = "") -> Check:
    """The 99th percentile of `values` is at most `limit`.

    Under 100 samples there is no p99. Then the maximum, which bounds it, can show that the claim holds; that it
    does not hold, nothing can.
    """
    if len(values) >= LEAST_SAMPLES_P99:
        p99 = float(np.percentile(values, 99))
        return at_most(name, p99, limit, f"n={len(values)}", published=published)
    if not len(values):
        return at_most(name, None, limit, "n=0", published=published)
    largest = float(np.max(values))
    note = f"n={len(values)}: the maximum, which bounds p99"
    return Check(name, largest, "<=", limit, "pass" if largest <= limit else "inconclusive", note, published)


def equal_share(
    name: str,
    error: float | None,
    limit: float,
    count: int,
    parts: int,
    note: str = "",
    *,
    published: str = "",
) -> Check:
    """The largest distance of one of `parts` from an equal share of `count` requests is at most `limit`.

    A larger distance is a failure only beyond three standard deviations of a fair lottery, sqrt(p (1 - p) / n):
    with few requests, chance alone goes further than `limit`, and then nothing is decided.
    """
    check = at_most(name, error, limit, note, published=published)
    fair = 1 / max(parts, 1)
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
    """The checks as text, a line each: verdict, name, value, bound, what it rests on, what was published."""
    rows = [
        (check.verdict, check.name, number(check.value), check.op, number(check.limit), noted(check))
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


def noted(check: Check) -> str:
    """What a check rests on, and what was published of the same thing."""
    return "; ".join(filter(None, (check.note, check.published and f"published: {check.published}")))


def _verdict(value: float | None, holds: bool) -> str:
    if value is None:
        return "inconclusive"
    return "pass" if holds else "fail"


def number(value: float | None) -> str:
    """A figure as people read it; a dash for one that does not exist."""
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
