"""Rows and classes by hand, for what is said of them; what measures is real in the tests that measure."""

import pytest

from sim.gate.kinds import Measured
from sim.gate.rows import FAIL, INCONCLUSIVE, PASS, WARN, Row


@pytest.fixture
def rows():
    """One of each verdict, and a second failure that is worse than the first."""
    return [
        Row(name="B/quota_check", verdict=PASS, base=9_700, head=9_709, delta=0.001, limit="+5%"),
        Row(name="B/route_a", verdict=FAIL, base=100, head=110, delta=0.1, limit="+5%", note="more instructions",
            command="python -m sim.gate rows=B/route_a"),
        Row(name="C/route_a", verdict=INCONCLUSIVE, base=8.6, head=8.9, noise=0.07, note="too busy",
            command="python -m sim.gate rows=C/route_a"),
        Row(name="D/route_a/mean_us", verdict=WARN, base=0.8, head=1.1, delta=0.375, limit="<= 2.4"),
        Row(name="C/route_b", verdict=FAIL, base=8.0, head=16.0, delta=1.0, interval=(0.9, 1.1), limit="+50%",
            command="python -m sim.gate rows=C/route_b"),
    ]  # fmt: skip


class Planned:
    """A class of rows whose figures are given, attempt by attempt; more than its baseline fails."""

    letter, file, attempts, failed_verdict = "A", "planned", 3, FAIL

    def __init__(self, figures, missing=None):
        self.figures, self.why, self.turns = figures, missing, 0

    def names(self):
        return list(self.figures)

    def doubles(self):
        return list(self.figures)

    def key(self):
        return "here"

    def missing(self):
        return self.why

    def base(self, name, stored):
        return stored

    def measure(self, names, doubled):
        self.turns += 1
        for name in names:
            found = self.figures[name]
            value = found.pop(0) if len(found) > 1 else found[0]
            if isinstance(value, BaseException):
                raise value
            yield Measured(name, value * (2 if name in doubled else 1))

    def judge(self, base, head):
        if head.value < 0:
            return Row(name=head.name, verdict=INCONCLUSIVE, base=base, head=head.value)
        return Row(name=head.name, verdict=FAIL if head.value > base else PASS, base=base, head=head.value,
                   delta=head.value / base - 1)  # fmt: skip


@pytest.fixture
def planned():
    return Planned
