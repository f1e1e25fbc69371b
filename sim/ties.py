"""What happens first at one nanosecond: what was asked for first, or, to see whether that matters, chance has it."""

from collections.abc import Iterator
from itertools import count

from sim.agenda import Agenda
from sim.streams import stream

FIRST_COME, SHUFFLED = "first_come", "shuffled"
TIES = (FIRST_COME, SHUFFLED)
RANKS, NUMBER_BITS = 1 << 62, 40
DRAWN_AT_ONCE = 4_096


def shuffle(agenda: Agenda, seed: int) -> None:
    """From now on, what is due at one nanosecond happens in random order; what has to be last still is.

    Figures that change by more than chance rest on an order that no real system has.
    """
    agenda.break_ties(_ranks(seed).__next__)


def _ranks(seed: int) -> Iterator[int]:
    """A random rank for each event, and behind it its number in case two are equal."""
    source, numbers = stream(seed, "ties"), count()
    while True:
        for rank in source.integers(RANKS, size=DRAWN_AT_ONCE).tolist():
            yield rank << NUMBER_BITS | next(numbers)
