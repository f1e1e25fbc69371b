"""The grid: prefill x context x batch, and at each of its points one step that a replica could really take."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np

from engine.execution.terms import fills_row
from engine.settings import at_least, require
from sim.streams import stream

LEAST_CONTEXT = 8
LEAST_PART = 8  # tokens of a chunk, where a point has more than one
PARTS = (1, 1, 2, 4)
KINDS = ("fresh", "fresh", "cached", "later")
LAST_SHARE = 0.6  # of chunks that end their prefill
SPREAD = (0.5, 1.5)  # of the contexts in a batch, around that of the point
MOST_MOVING = 2


class Part(NamedTuple):
    """A chunk: so many new tokens behind `before`, which are in the cache, or were computed in an earlier chunk."""

    kind: str
    before: int
    new: int
    is_last: bool


class Cell(NamedTuple):
    """A step to be measured, and the point of the grid that it stands for.

    The first `moving` of those that decode do so for the first time.
    """

    prefill_tokens: int
    context_tokens: int
    batch: int
    parts: tuple[Part, ...]
    contexts: tuple[int, ...]
    moving: int


@dataclass(slots=True, kw_only=True)
class Limits:
    """How far the grid goes: tokens of a step, sequences of a batch, tokens of a context, and of KV altogether."""

    step_tokens: int
    max_batch: int
    context_tokens: int
    kv_tokens: int
    block_tokens: int = 16

    def __post_init__(self) -> None:
        at_least("fleet.step_tokens", self.step_tokens, 1)
        at_least("context_tokens", self.context_tokens, 4 * LEAST_CONTEXT)
        require("kv_tokens", self.kv_tokens, self.kv_tokens >= self.context_tokens, "at least context_tokens")


def grid(limits: Limits, seed: int) -> list[Cell]:
    """Every point with its step, in a fixed order. What a point leaves open is drawn, the same for the same seed.

    Steps without prefill come most often when a model serves: their points lie closer together.
    """
    chance = stream(seed, "profile.grid")
    contexts, batches = [*powers(32, limits.context_tokens)], [*powers(1, limits.max_batch)]
    between = [low + (high - low) // 2 for low, high in pairwise(batches) if high - low > 1]
    points = [
        *product([0], contexts, sorted([*batches, *between])),
        *product(powers(16, limits.step_tokens), contexts[::2], [0, *batches]),
    ]
    return [
        _cell(*point, limits, chance)
        for point in points
        if point[2] < limits.step_tokens and point[1] * point[2] * max(SPREAD) <= limits.kv_tokens
    ]


def powers(first: int, last: int) -> Iterator[int]:
    """first, its double, ... and `last`."""
    while first < last:
        yield first
        first *= 2
    yield last


def _cell(prefill: int, context: int, batch: int, limits: Limits, chance: np.random.Generator) -> Cell:
    prefill = min(prefill, limits.step_tokens - batch)
    low, high = SPREAD
    drawn = chance.uniform(low * context, high * context, batch)
    longest = limits.context_tokens - 1
    contexts = [min(longest, max(LEAST_CONTEXT, int(each))) for each in drawn]
    contexts = [each - fills_row(each) for each in contexts]  # whoever fills its row would move in each step
    moving = int(chance.integers(0, MOST_MOVING + 1)) * int(chance.random() < 1 / 2)
    parts = tuple(_parts(prefill, context, limits, chance)) if prefill else ()
    return Cell(prefill, context, batch, parts, tuple(contexts), min(moving, batch))


def _parts(prefill: int, context: int, limits: Limits, chance: np.random.Generator) -> Iterator[Part]:
    """The chunks: one or some, each of a prompt that begins, goes on from the cache, or from an earlier chunk."""
    count = min(int(chance.choice(PARTS)), max(1, prefill // LEAST_PART))
    for number in range(count):
        new = prefill * (number + 1) // count - prefill * number // count
        kind, is_last = str(chance.choice(KINDS)), bool(chance.random() < LAST_SHARE)
        whole_blocks = min(context, limits.context_tokens - new) // limits.block_tokens * limits.block_tokens
        before = max(0, whole_blocks) if kind != "fresh" else 0
        yield Part(kind if before else "fresh", before, new, is_last)
