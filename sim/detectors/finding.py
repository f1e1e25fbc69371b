"""A finding: something in a run that is worth a look, how bad it is, when, who, and which requests show it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.clock import NS_PER_S
from sim.history import Floats, Integers

MOST_EVIDENCE = 8


@dataclass(frozen=True, slots=True)
class Finding:
    """What a detector says.

    `severity` is a share, from 0 to 1, of what `measure` names; it was told because it is at least `threshold`, and
    `reason` says why that is the bound. `requests` are the ids of those that show it best, `count` is how many do.
    """

    detector: str
    subject: str
    severity: float
    measure: str
    threshold: float
    reason: str
    begin_s: float
    end_s: float
    count: int
    requests: tuple[int, ...]
    says: str

    def line(self) -> str:
        """The finding on one line."""
        when = f"{self.begin_s:.4g} to {self.end_s:.4g} s"
        return f"{self.detector}, {self.subject}, {when}: {self.says} ({self.severity:.1%} of {self.measure})"


def evidence(request_ids: Integers, weights: Floats) -> tuple[int, ...]:
    """The ids of the requests that weigh most, in the order of their weight; of equals the first."""
    order = np.argsort(-weights, kind="stable")[:MOST_EVIDENCE]
    return tuple(request_ids[order].tolist())


def span_s(at_ns: Integers) -> tuple[float, float]:
    """From the first of these times to the last, in seconds."""
    return float(at_ns.min()) / NS_PER_S, float(at_ns.max()) / NS_PER_S


def some(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def worst_first(found: Sequence[Finding]) -> list[Finding]:
    """The findings in the order in which somebody should read them."""
    return sorted(found, key=lambda one: (-one.severity, one.detector, one.subject, one.begin_s))
