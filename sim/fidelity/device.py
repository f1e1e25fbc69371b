"""One device for all replicas of a machine: they take turns at it, step by step, live and simulated alike.

A machine with one core for the engine runs one step at a time, whatever number of replicas it has. Live, a lock
keeps the steps apart, so that their times are those of a device to itself. Simulated, a ledger does the same
arithmetic, and charges besides what the host does between steps, as it was measured on the real engine.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from engine.clock import stopwatch_ns
from engine.execution import Batch, Executor, KVBlock, Machine, Modelled, Sequence, StepResult, executors
from engine.settings import ExecutorSettings, ModelSettings
from sim.streams import stream

LIVE, SIMULATED = "twin_live", "twin_simulated"
"""What the two sides' executors are called."""

Ratios = npt.NDArray[np.float64]


class Shape(NamedTuple):
    """A batch as a cost model sees it: numbers only."""

    chunks: tuple[tuple[int, int, int, int], ...]  # computed, cached, prompt tokens, tokens of this chunk
    decodes: tuple[int, ...]  # computed tokens of each

    @property
    def has_prefill(self) -> bool:
        return bool(self.chunks)

    @property
    def beginners(self) -> int:
        """Sequences whose first step this is."""
        return sum(computed == cached for computed, cached, _, _ in self.chunks)


class Step(NamedTuple):
    """A step of the real engine: when the device was asked for, got and left, by the stopwatch."""

    model: str
    asked_ns: int
    begun_ns: int
    ended_ns: int
    duration_ns: int
    shape: Shape


@dataclass(slots=True)
class StepLog:
    """The steps of a live run and the sequences that left after them, as they came."""

    steps: list[Step] = field(default_factory=list)
    retired: list[int] = field(default_factory=list)  # how many steps were over when each left


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
    return Shape(chunks, tuple(each.computed_tokens for each in batch.decodes))


@dataclass(slots=True, kw_only=True)
class LiveOptions:
    """The executor that really computes, the turns of the machine, and where steps are noted, if anywhere."""

    inner: ExecutorSettings
    turns: asyncio.Lock
    log: StepLog | None = None


class Delegating:
    """An executor that passes on to another one all that is not a step."""

    keeps_blocks: bool
    weights_id: str
    keep: Any
    vocab: int
    context_tokens: int
    kv_capacity_tokens: int
    kv_bytes_per_token: int
    kv_value_bytes: float

    def __init__(self, inner: Executor) -> None:
        self._inner = inner
        for name in (*Delegating.__annotations__,):
            setattr(self, name, getattr(inner, name))

    def retire(self, sequence: Sequence, first: int, last: int, block_tokens: int) -> list[KVBlock]:
        return self._inner.retire(sequence, first, last, block_tokens)

    def release(self, sequence: Sequence) -> None:
        self._inner.release(sequence)

    def prefill_ns(self, start: int, end: int) -> int:
        return self._inner.prefill_ns(start, end)

    def reset(self) -> None:
        self._inner.reset()

    @classmethod
    def weights_bytes(cls, model: ModelSettings, options: Any) -> int:
        inner = executors.find(options.inner.name)
        return inner.weights_bytes(model, made_options(options.inner))

    @classmethod
    def vocab_of(cls, model: ModelSettings) -> int | None:
        shape = model.stand_in or model.architecture
        return shape.vocab if shape is not None else None


@executors(LIVE)
class LiveTurns(Delegating):
    """An executor that computes, one step at a time on the machine."""

    Options: ClassVar[type[Any]] = LiveOptions
    is_modelled: ClassVar[bool] = False

    def __init__(self, machine: Machine, options: LiveOptions) -> None:
        super().__init__(make_inner(options.inner, machine))
        self._options = options
        self._model = machine.model.name

    async def step(self, batch: Batch) -> StepResult:
        log = self._options.log
        if log is None:
            async with self._options.turns:
                return await self._inner.step(batch)
        asked_ns, shape = stopwatch_ns(), shape_of(batch)
        async with self._options.turns:
            begun_ns = stopwatch_ns()
            result = await self._inner.step(batch)
        times = (asked_ns, begun_ns, stopwatch_ns(), result.duration_ns)
        log.steps.append(Step(self._model, *times, shape))
        return result

    def retire(self, sequence: Sequence, first: int, last: int, block_tokens: int) -> list[KVBlock]:
        log = self._options.log
        if log is not None:
            log.retired.append(len(log.steps))
        return super().retire(sequence, first, last, block_tokens)


@dataclass(slots=True)
class HostCosts:
    """What the machine does besides the steps that a cost model predicts, as measured on the real engine.

    A step takes `scale` times what is predicted, times one of the ratios in `decode_ratios` or `prefill_ratios`, and
    before it the host works for `step_ns`, for `begin_ns` with each sequence that begins in it, and for `retire_ns`
    with each that has left since the step before. A finished request is told `answer_ns` after its last token.
    """

    step_ns: float = 0.0
    begin_ns: float = 0.0
    retire_ns: float = 0.0
    answer_ns: float = 0.0
    scale: float = 1.0
    decode_ratios: Ratios = field(default_factory=lambda: np.ones(1))
    prefill_ratios: Ratios = field(default_factory=lambda: np.ones(1))


@dataclass(slots=True)
class Ledger:
    """When the one device of a simulated machine is free again."""

    free_ns: int = 0

    def book(self, now_ns: int, duration_ns: int) -> int:
        """Take the next turn for so long; when it ends."""
        self.free_ns = max(now_ns, self.free_ns) + duration_ns
        return self.free_ns


@dataclass(slots=True, kw_only=True)
class SimulatedOptions:
    """The cost models by the name of the model they are of, the host's costs, and the machine's ledger."""

    models: dict[str, ExecutorSettings]
    host: HostCosts
    ledger: Ledger
    seed: int = 0

    @property
    def inner(self) -> ExecutorSettings:
        """Any of them: what they have in common."""
        return next(iter(self.models.values()))


@executors(SIMULATED)
class SimulatedTurns(Delegating):
    """An executor without tensors, one step at a time on the machine, with the costs of the host around it."""

    Options: ClassVar[type[Any]] = SimulatedOptions
    is_modelled: ClassVar[bool] = True

    def __init__(self, machine: Machine, options: SimulatedOptions) -> None:
        super().__init__(make_inner(options.models[machine.model.name], machine))
        self._modelled = cast("Modelled", self._inner)
        self._options = options
        self._clock = machine.clock
        self._chance = stream(options.seed, f"fidelity.{machine.replica}")

    async def step(self, batch: Batch) -> StepResult:
        now_ns, host = self._clock.now_ns(), self._options.host
        ratios = host.prefill_ratios if batch.chunks else host.decode_ratios
        ratio = ratios[int(self._chance.random() * len(ratios))]
        computing_ns = round(self._modelled.duration_ns(batch) * host.scale * ratio)
        beginners = sum(each.sequence.computed_tokens == each.sequence.cached_tokens for each in batch.chunks)
        hosting_ns = round(host.step_ns + host.begin_ns * beginners)
        self._modelled.stepped(1)
        ends_ns = self._options.ledger.book(now_ns, hosting_ns + computing_ns)
        await self._clock.sleep(ends_ns - now_ns)
        answer = self._modelled.answer
        return StepResult(
            computing_ns,
            [answer(each.sequence, 0, 1)[0] if each.is_last else None for each in batch.chunks],
            [answer(each, each.num_new, 1)[0] for each in batch.decodes],
        )

    def retire(self, sequence: Sequence, first: int, last: int, block_tokens: int) -> list[KVBlock]:
        self._options.ledger.book(self._clock.now_ns(), round(self._options.host.retire_ns))
        return super().retire(sequence, first, last, block_tokens)


def make_inner(settings: ExecutorSettings, machine: Machine) -> Executor:
    """The executor behind the turns."""
    return executors.make(settings.name, machine, made_options(settings))


def made_options(settings: ExecutorSettings) -> Any:
    return executors.find(settings.name).Options(**settings.options)
