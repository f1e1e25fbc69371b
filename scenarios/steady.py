"""Traffic, and nothing else happens: the plain run, to measure and to add faults to."""

from collections.abc import Iterator
from dataclasses import dataclass

from engine.settings import at_least
from sim.checks import Check, all_completed
from sim.runs import Run
from sim.stage import Stage


@dataclass
class Settings:
    """How many requests may fail, be refused or time out."""

    name: str
    max_not_completed: int

    def __post_init__(self) -> None:
        at_least("scenario.max_not_completed", self.max_not_completed, 0)


def script(stage: Stage, s: Settings) -> None:
    """Nothing happens."""


def checks(run: Run, s: Settings) -> Iterator[Check]:
    yield all_completed(run.whole, s.max_not_completed)
