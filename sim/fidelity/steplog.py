"""What a live run notes of its steps: numbers only, whatever the executor was."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from engine.execution import Batch


class Shape(NamedTuple):
    """A batch as a cost model sees it: numbers only."""

    chunks: tuple[tuple[int, int, int, int], ...]  # computed, cached, prompt tokens, tokens of this chunk
    decodes: tuple[tuple[int, int], ...]  # computed, prompt tokens of each

    @property
    def has_prefill(self) -> bool:
        return bool(self.chunks)

    @property
    def beginners(self) -> int:
        """Sequences whose first step this is."""
        return sum(computed == cached for computed, cached, _, _ in self.chunks)

    @property
    def chunk_tokens(self) -> int:
        """Tokens of a chunk, in the mean; 0 where there is none."""
        return sum(chunk[-1] for chunk in self.chunks) // len(self.chunks) if self.chunks else 0


class Step(NamedTuple):
    """A step of the real engine: when the device was asked for, got and left, by the stopwatch."""

    model: str
    asked_ns: int
    begun_ns: int
    ended_ns: int
    duration_ns: int
    shape: Shape


class Reading(NamedTuple):
    """The yardstick, taken once: when it was due, got and left the machine, by the stopwatch, and what it took."""

    due_ns: int
    begun_ns: int
    ended_ns: int
    took_ns: int


class Leaving(NamedTuple):
    """A sequence that left: how many steps were over, and how many tokens' KV was copied out for it."""

    steps_over: int
    kept_tokens: int


@dataclass(slots=True)
class StepLog:
    """The steps of a live run, the sequences that left after them, and the yardstick's, as they came."""

    steps: list[Step] = field(default_factory=list)
    left: list[Leaving] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)  # of the yardstick

    def clear(self) -> None:
        """Forget what was before."""
        self.steps.clear()
        self.left.clear()
        self.readings.clear()

    def since(self, zero_ns: int) -> "StepLog":
        """The same log, its times counted from that reading of the stopwatch."""
        steps, readings = ([moved(each, zero_ns) for each in rows] for rows in (self.steps, self.readings))
        return StepLog(steps, list(self.left), readings)


READ = ("due_ns", "asked_ns", "begun_ns", "ended_ns")
"""What is read from the stopwatch."""


def moved(row: Any, zero_ns: int) -> Any:
    """The same row, its times counted from that reading of the stopwatch."""
    return row._replace(**{name: getattr(row, name) - zero_ns for name in READ if name in row._fields})


def shape_of(batch: Batch) -> Shape:
    """The numbers of a batch, before its step changes them."""
    chunks = tuple(
        (
            each.sequence.computed_tokens,
            each.sequence.cached_tokens,
            len(each.sequence.tokens),
            each.num_tokens,
        )
        for each in batch.chunks
    )
    return Shape(chunks, tuple((each.computed_tokens, len(each.tokens)) for each in batch.decodes))
