"""A row of a gate: what was, what is, how sure that is, and what follows."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

PASS, WARN, FAIL, INCONCLUSIVE = "pass", "warn", "fail", "inconclusive"
WORST_FIRST = (FAIL, INCONCLUSIVE, WARN, PASS)
EXIT_CODES = {PASS: 0, WARN: 0, FAIL: 1, INCONCLUSIVE: 3}
INTERRUPTED = "interrupted before it was measured"

Figure = int | float | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure beside its baseline.

    `delta` and `interval` are shares of the baseline (0.05 is 5 % more); an interval has 95 % coverage. `note` says
    why the verdict is what it is.
    """

    name: str
    verdict: str
    base: Figure | None = None
    head: Figure | None = None
    delta: float | None = None
    interval: tuple[float, float] | None = None
    noise: float | None = None
    """How much a thing that is timed beside itself seems to differ (A/A)."""
    limit: str = ""
    note: str = ""
    command: str = ""

    def told(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def counted(rows: Sequence[Row]) -> dict[str, int]:
    """How many rows have each verdict."""
    return {verdict: sum(row.verdict == verdict for row in rows) for verdict in WORST_FIRST}


def overall(rows: Sequence[Row]) -> str:
    """Fails where one row does; else inconclusive where one is, or where there is none at all; else passes."""
    count = counted(rows)
    if count[FAIL]:
        return FAIL
    return INCONCLUSIVE if count[INCONCLUSIVE] or not rows else PASS


def headline(rows: Sequence[Row]) -> str:
    """GATE FAIL 2 of 34 (1 inconclusive)."""
    verdict, count = overall(rows), counted(rows)
    besides = [each for each in (INCONCLUSIVE, WARN) if count[each] and each != verdict]
    told = ", ".join(f"{count[each]} {'warned' if each == WARN else each}" for each in besides)
    shown = count[PASS] + count[WARN] if verdict == PASS else count[verdict]
    return f"GATE {verdict.upper()} {shown} of {len(rows)}" + (f" ({told})" if told else "")


def worst_first(rows: Sequence[Row]) -> list[Row]:
    """By verdict, then by how far beyond its baseline; those of the same kind stay in their order."""
    return sorted(rows, key=lambda row: (WORST_FIRST.index(row.verdict), -abs(row.delta or 0.0)))
