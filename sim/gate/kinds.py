"""What every class of a gate can do: name its rows, measure them, and judge one beside its baseline."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sim.gate.rows import FAIL, INCONCLUSIVE, Figure, Row

COMMAND = "python -m sim.gate"


@dataclass(frozen=True, slots=True)
class Measured:
    """A row's figure, and what else its class needs to judge it."""

    name: str
    value: Figure
    details: dict[str, Any] = field(default_factory=dict)


class Class(Protocol):
    """A class of rows. Their names begin with its letter."""

    letter: str
    file: str
    """Of its baselines."""
    attempts: int
    """How often a row may be measured until it passes."""
    failed_verdict: str
    """What it means that the process which measures has failed."""

    def names(self) -> list[str]:
        """All rows there are."""

    def doubles(self) -> list[str]:
        """Those that notice when their work is done twice."""

    def key(self) -> str:
        """What baselines hold for that are measured here."""

    def missing(self) -> str | None:
        """Why nothing can be measured here; None where it can."""

    def base(self, name: str, stored: Figure | None) -> Figure | None:
        """What a row is held against, where `stored` is its baseline."""

    def measure(self, names: Sequence[str], doubled: Sequence[str]) -> Iterator[Measured]:
        """Measure rows, those `doubled` with their work done twice. Raises MeasuringFailed."""

    def judge(self, base: Figure, head: Measured) -> Row:
        """The verdict on what was measured."""


def undecided(
    name: str,
    note: str,
    base: Figure | None = None,
    head: Figure | None = None,
    noise: float | None = None,
) -> Row:
    """A row of which nothing can be said."""
    return Row(
        name=name,
        verdict=INCONCLUSIVE,
        base=base,
        head=head,
        noise=noise,
        note=note,
        command=command_of(name),
    )


def broken(kind: Class, name: str, note: str) -> Row:
    """A row whose measurement failed."""
    verdict = kind.failed_verdict
    assert verdict in {FAIL, INCONCLUSIVE}, "what failed does not pass"
    return Row(name=name, verdict=verdict, note=note, command=command_of(name))


def command_of(name: str) -> str:
    """What measures that row again."""
    return (
        f"{COMMAND} rows='{name}'" if any(letter in name for letter in "*?[ ") else f"{COMMAND} rows={name}"
    )


def share(base: float, head: float) -> float | None:
    """How much more head is, as a share of base."""
    return (head - base) / base if base else None
