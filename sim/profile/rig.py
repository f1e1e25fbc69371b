"""The rig: a real torch executor, brought into the state that a step needs, and that step taken with a stopwatch."""

from collections.abc import Sequence as Listing
from dataclasses import replace
from typing import Any, NamedTuple, cast

import numpy as np

from engine.clock import processor_ns, stopwatch_ns
from engine.execution import Batch, Chunk, Executor, Machine, Sequence, StepResult, executors
from engine.execution.terms import counts
from engine.request import Stream
from engine.settings import EngineSettings, ModelSettings
from sim.profile.grid import Cell, Part
from sim.streams import stream
from sim.world import NOBODYS, SimClock

PROBED = Cell(32, 0, 0, (Part("fresh", 0, 32, is_last=True),), (), 0)
YARD_CONTEXTS = (100, 200)
YARDS = 20
YARDS_A_VISIT = 2  # before, and as many after


class Seen(NamedTuple):
    """What a cell took: each of its steps, and a step that is always the same, before and after."""

    durations_ns: list[int]
    yard_ns: list[int]


class Rig:
    """Two executors with the same weights: one that is measured, and one that is the yardstick.

    `own_time_only`: one thread does all the work, so that what the processor does for others can be left out.
    """

    def __init__(self, settings: EngineSettings, model: ModelSettings) -> None:
        """Loads the model. Raises BadSettings, LoadFailed."""
        self.clock = SimClock()
        options = executors.find("torch").Options(**settings.executor.options)
        machine = Machine(
            model,
            settings.hardware,
            self.clock,
            settings.fleet.max_batch,
            settings.seed,
            keeps_on_device=settings.cache.enabled and settings.cache.gpu is not None,
        )
        self.executor = executors.make("torch", machine, options)
        self.block_tokens = settings.cache.block_tokens
        self.own_time_only = options.device == "cpu" and options.threads == 1
        self._yardstick = executors.make("torch", replace(machine), options)
        self._made = 0
        self._around_ns: list[int] = []
        self._calls_ns: int | None = None
        chance, longest = stream(settings.seed, "profile.prompts"), self.executor.context_tokens
        self._prompts = chance.integers(0, self.executor.vocab, longest, dtype=np.int32)
        self._blocks = self._copied_out([], 1)
        self._at_yard = self._settled(self._yardstick, [min(each, self._longest) for each in YARD_CONTEXTS])
        self._calls_ns = self._around_steps()

    @property
    def _longest(self) -> int:
        return self.executor.context_tokens - 2

    def close(self) -> None:
        """Nothing of it runs any more."""
        self.clock.close()

    def observe(self, cell: Cell, repeats: int) -> Seen:
        """Take the step of that cell so often, after once that does not count."""
        executor = self.executor
        before = self._yards()
        old = self._settled(executor, cell.contexts[cell.moving :])
        durations = [self._once(cell, old) for _ in range(repeats + 1)]
        executor.reset()
        return Seen(durations[1:], before + self._yards())

    def counts(self, cell: Cell) -> list[int]:
        """How many units of each term that step has."""
        return counts(counted(cell))

    def copy_out(self, context: int) -> tuple[int, int]:
        """What ending a sequence with so much KV takes that leaves its blocks, and how many tokens those have."""
        (sequence,) = self._settled(self.executor, [context])
        blocks = context // self.block_tokens
        begun_ns, begun = stopwatch_ns(), processor_ns()
        self.executor.retire(sequence, 0, blocks, self.block_tokens)
        took_ns = stopwatch_ns() - begun_ns
        took_ns = processor_ns() - begun if self.own_time_only else took_ns
        self.executor.reset()
        return took_ns, blocks * self.block_tokens

    def blocks(self, count: int) -> list[Any]:
        """So many blocks of KV, as the executor gives them out, each in a place of its own."""
        if len(self._blocks) < count:
            self._blocks = self._copied_out(self._blocks[:1] * count, count)
        return self._blocks[:count]

    def _yards(self) -> list[int]:
        """The yardstick, after once that does not count: what ran before has taken its place in the caches."""
        return [self._yard() for _ in range(1 + YARDS_A_VISIT)][1:]

    def _yard(self) -> int:
        """What the step takes that is always the same: how fast the machine is at the moment."""
        fresh = self._sequence(PROBED.prefill_tokens)
        duration_ns = self._step(
            self._yardstick, Batch([Chunk(fresh, PROBED.prefill_tokens)], self._at_yard)
        )[1]
        self._yardstick.release(fresh)
        return duration_ns

    def _once(self, cell: Cell, old: list[Sequence]) -> int:
        executor = self.executor
        new = self._prefilled(executor, cell.contexts[: cell.moving])
        chunks = [self._chunk(executor, part) for part in cell.parts]
        duration_ns = self._step(executor, Batch(chunks, [*new, *old]))[1]
        for sequence in (*[chunk.sequence for chunk in chunks], *new):
            executor.release(sequence)
        return duration_ns

    def _chunk(self, executor: Executor, part: Part) -> Chunk:
        """A chunk in the state in which it comes: its prefix in the cache, or computed by an earlier step."""
        left = 0 if part.is_last else self.block_tokens
        cached = part.before if part.kind == "cached" else max(0, part.before - 1)
        sequence = self._sequence(part.before + part.new + left, cached)
        if part.kind == "later":
            self._step(executor, Batch([Chunk(sequence, 1)]))
            sequence.computed_tokens = part.before
        return Chunk(sequence, part.new)

    def _prefilled(self, executor: Executor, contexts: Listing[int]) -> list[Sequence]:
        """Sequences with so much KV each that decode next for the first time."""
        made = [self._sequence(each, each - 1) for each in contexts]
        if made:
            result, _ = self._step(executor, Batch([Chunk(each, 1) for each in made]))
            for each, token in zip(made, result.chunk_tokens, strict=True):
                each.computed_tokens = len(each.tokens)
                each.new_tokens = [cast("int", token)]
        return made

    def _settled(self, executor: Executor, contexts: Listing[int]) -> list[Sequence]:
        """Sequences with so much KV each that have decoded before."""
        made = self._prefilled(executor, [each - 1 for each in contexts])
        if made:
            result, _ = self._step(executor, Batch(decodes=made))
            for each, token in zip(made, result.decode_tokens, strict=True):
                each.computed_tokens += 1
                each.new_tokens.append(token)
        return made

    def _sequence(self, tokens: int, cached: int = 0) -> Sequence:
        self._made += 1
        made = bare_sequence(self._made, np.resize(self._prompts, tokens), cached)
        made.prefix = self._prefix(cached)
        return made

    def _prefix(self, tokens: int) -> list[Any]:
        """Blocks for so many tokens; the last one may be shorter."""
        whole, left = divmod(tokens, self.block_tokens)
        blocks = self.blocks(whole + (left > 0))
        return [*blocks[:-1], blocks[-1][..., :left, :]] if left else blocks

    def _copied_out(self, prefix: list[Any], count: int) -> list[Any]:
        """So many blocks of a sequence that has gone on from that prefix, or from nothing."""
        cached = len(prefix) * self.block_tokens
        new = max(1, count * self.block_tokens - cached)
        sequence = bare_sequence(0, np.resize(self._prompts, cached + new), cached)
        sequence.prefix = prefix
        self._step(self.executor, Batch([Chunk(sequence, new)]))
        sequence.computed_tokens = cached + new
        return self.executor.retire(sequence, 0, count, self.block_tokens)

    def _step(self, executor: Executor, batch: Batch) -> tuple[StepResult, int]:
        """Take a step; what it took, less what the processor did for others meanwhile."""
        begun_ns = processor_ns()
        result = cast("StepResult", self.clock.env.run(until=self.clock.spawn(executor.step(batch))))
        own_ns, duration_ns = processor_ns() - begun_ns, result.duration_ns
        if not self.own_time_only:
            return result, duration_ns
        if self._calls_ns is None:
            self._around_ns.append(own_ns - duration_ns)
        return result, max(1, min(duration_ns, own_ns - (self._calls_ns or 0)))

    def _around_steps(self) -> int:
        """What calling a step takes besides the step: told by those that nothing has disturbed."""
        for _ in range(YARDS):
            self._yard()
        undisturbed = [each for each in self._around_ns if each > 0]
        return int(np.median(undisturbed)) if undisturbed else 0


def bare_sequence(number: int, tokens: Any, cached: int) -> Sequence:
    """A sequence for which nobody waits."""
    return Sequence(number, tokens, 1 << 30, Stream(), NOBODYS, cached_tokens=cached, computed_tokens=cached)


def counted(cell: Cell) -> Batch:
    """The batch of a cell without anything in it: for counting."""
    empty = np.zeros(0, dtype=np.int32)
    longest = max([*cell.contexts, *(part.before + part.new + 1 for part in cell.parts), 1])
    tokens = np.zeros(longest, dtype=np.int32)
    chunks, decodes = [], []
    for part in cell.parts:
        cached = part.before if part.kind == "cached" else max(0, part.before - 1)
        length = part.before + part.new + (0 if part.is_last else 1)
        each = bare_sequence(0, tokens[:length], cached)
        each.computed_tokens = part.before
        chunks.append(Chunk(each, part.new))
    for number, context in enumerate(cell.contexts):
        each = bare_sequence(0, tokens[:context] if number < cell.moving else empty, 0)
        each.computed_tokens = context
        decodes.append(each)
    return Batch(chunks, decodes)
