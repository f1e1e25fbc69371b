"""Executors without tensors: they know what a step will take before it has begun, and so do many steps ahead."""

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import lru_cache
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from engine.clock import Clock
from engine.execution.executor import Batch, KVBlock, Sequence, StepResult
from engine.native import i64, mypyc_attr
from engine.request import Tokens
from engine.settings import ModelSettings

Durations = npt.NDArray[np.int64]

_FACTOR, _STRIDE = 1_103_515_245, 12_345  # of the congruential generator in ANSI C's example of rand()
LEAST_TABLE: Final = 256

TICK_BITS: Final = 24
"""A nanosecond has 2^24 ticks: their sums are exact, and rounded to them a step over 100,000 tokens is 3 ps off."""
TICKS_PER_NS: Final = 1 << TICK_BITS

MACHINE: Final = 4e18
"""What a machine number holds, as numbers are tagged where they are compiled: 2^62, and a little less."""


def times(one: int, other: int) -> int:
    """The product of ticks with something, neither below 0.

    Compiled, numbers of more than 30 bits are multiplied by a library for numbers of any length, in ten times as
    long, though nearly all such products fit a machine number.
    """
    if (float(one) + 1.0) * (float(other) + 1.0) < MACHINE:  # so that both of them fit, too, where one is 0
        factor: i64 = one
        return factor * i64(other)
    return one * other


if hasattr(times, "__code__"):  # as it is written: in plain Python, numbers know no better
    globals()["times"] = operator.mul


@mypyc_attr(allow_interpreted_subclasses=True)
class Modelled(ABC):
    """What all executors without tensors share: stand-in tokens, KV that is a number, steps foreseen.

    The token after some tokens is a function of the last one and of its position, so that every replica gives the
    same answer, whole or carried on in the middle.
    """

    Options: ClassVar[type[Any]]
    is_modelled: ClassVar[bool] = True
    follows_grammars: ClassVar[bool] = False  # tokens are a formula
    keeps_blocks = True
    weights_id = ""
    keep: Callable[[], object] | None = None
    vocab: int
    context_tokens: int
    kv_capacity_tokens: int
    kv_bytes_per_token: int
    kv_value_bytes: float

    def __init__(self, clock: Clock) -> None:
        self.num_steps = 0  # that are over: the number of the next one
        self._clock = clock

    @abstractmethod
    def duration_ns(self, batch: Batch) -> int:
        """What the next step takes with this batch. Changes nothing."""

    @abstractmethod
    def decode_ns(self, batch: Batch, steps: int) -> Durations:
        """What each of the next `steps` steps takes while these sequences decode and nothing else happens.

        To the nanosecond what `duration_ns` would say of each in its turn. Changes nothing.
        """

    @abstractmethod
    def prefill_ns(self, start: int, end: int) -> int:
        """See `Executor`."""

    @classmethod
    @abstractmethod
    def weights_bytes(cls, model: ModelSettings, options: Any) -> int:
        """See `Executor`."""

    @classmethod
    @abstractmethod
    def vocab_of(cls, model: ModelSettings) -> int | None:
        """See `Executor`."""

    def stepped(self, steps: int) -> None:
        """So many steps are over."""
        self.num_steps += steps

    async def step(self, batch: Batch) -> StepResult:
        duration_ns = self.duration_ns(batch)
        self.stepped(1)
        await self._clock.sleep(duration_ns)
        return StepResult(
            duration_ns,
            [self.answer(*spoken(each.sequence), 0, 1)[0] if each.is_last else None for each in batch.chunks],
            [self.answer(*spoken(each), each.num_new, 1)[0] for each in batch.decodes],
        )

    def answer(self, tokens: Tokens, length: int, first: int, count: int) -> list[int]:
        """Tokens `first` to `first + count` (exclusive) of what is generated after the first `length` of `tokens`."""
        power, ones, ramp = _affine(self.vocab, table_size(first + count))
        last, rise = tokens.item(length - 1) % self.vocab, (_STRIDE * length + 1) % self.vocab
        if count == 1:  # as whoever listens asks
            at = first + 1
            return [(power.item(at) * last + ones.item(at) * rise + ramp.item(at)) % self.vocab]
        upto = slice(first + 1, first + count + 1)
        found = power[upto] * last % self.vocab + ones[upto] * rise % self.vocab + ramp[upto]
        return (found % self.vocab).tolist()  # type: ignore[no-any-return]

    def retire(
        self, sequence: Sequence, first_block: int, last_block: int, block_tokens: int
    ) -> list[KVBlock]:
        return [None] * (last_block - first_block)

    def release(self, sequence: Sequence) -> None:  # noqa: B027  nothing is left to do
        """Nothing is held: KV is a number that the scheduler keeps."""

    def reset(self) -> None:  # noqa: B027
        """Nothing is remembered but the number of the step."""


def spoken(sequence: Sequence) -> tuple[Tokens, int]:
    """Tokens, and how many of them stood before the first that its replica has generated."""
    return sequence.tokens, sequence.given_tokens - sequence.rewound_tokens


@mypyc_attr(allow_interpreted_subclasses=True)
class Even(Modelled):
    """One whose steps of decoding grow evenly, each by as much as the one before it: their sum has a closed form.

    It says what steps take in ticks, and needs no more of those who decode than their number and
    `Batch.context_tokens()`.
    """

    @abstractmethod
    def ticks(self, batch: Batch) -> int:
        """What the next step takes with this batch. Changes nothing."""

    @abstractmethod
    def ramp(self, batch: Batch) -> tuple[int, int, int, int]:
        """The next steps while nothing but decoding happens.

        What goes before the first of them, that one, by how much each takes longer than the one before it (at least
        0), and for how many steps that is so. Changes nothing.
        """

    def duration_ns(self, batch: Batch) -> int:
        return self.ticks(batch) >> TICK_BITS

    def decode_ns(self, batch: Batch, steps: int) -> Durations:
        found: list[int] = []
        held = batch.context_tokens()
        while len(found) < steps:
            ahead = Batch([], batch.decodes, [], held + len(found) * len(batch.decodes))
            before, first, growth, most = self.ramp(ahead)
            if not found:
                first, most = first + before, 1 if before else most
            found += [first + number * growth >> TICK_BITS for number in range(min(most, steps - len(found)))]
        return np.array(found, dtype=np.int64)


def table_size(tokens: int) -> int:
    """A power of two that is large enough, so that few tables are ever made."""
    return LEAST_TABLE if tokens < LEAST_TABLE else int(1 << tokens.bit_length())


@lru_cache(maxsize=64)
def _affine(vocab: int, size: int) -> tuple[Durations, Durations, Durations]:
    """t(k) = power(k) x + ones(k) (STRIDE n + 1) + ramp(k), modulo vocab: k steps of t -> FACTOR t + STRIDE n + 1."""
    tables = np.zeros((3, size + 1), dtype=np.int64)
    power, ones, ramp = 1, 0, 0
    for step in range(size + 1):
        tables[:, step] = power, ones, ramp * _STRIDE % vocab
        power, ones, ramp = (
            power * _FACTOR % vocab,
            (ones * _FACTOR + 1) % vocab,
            (ramp * _FACTOR + step) % vocab,
        )
    tables.setflags(write=False)
    return tables[0], tables[1], tables[2]
