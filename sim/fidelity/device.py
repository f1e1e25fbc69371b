"""One device for all replicas of a machine: they take turns at it, step by step, live and simulated alike.

A machine with one core for the engine runs one step at a time, whatever number of replicas it has. Live, a lock
keeps the steps apart, so that their times are those of a device to itself. Simulated, a ledger does the same
arithmetic, and charges besides what the host does between steps, as it was measured on the real engine.
"""

import asyncio
from bisect import bisect_left, bisect_right
from collections import deque
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from engine.clock import stopwatch_ns
from engine.execution import (
    Batch,
    Executor,
    KVBlock,
    Machine,
    Modelled,
    Sequence,
    StepResult,
    executors,
    spoken,
)
from engine.settings import ExecutorSettings, ModelSettings

LIVE, SIMULATED = "twin_live", "twin_simulated"
"""What the two sides' executors are called."""

Ratios = npt.NDArray[np.float64]

NEIGHBOURS = 65
"""Steps of about the same size among which one is drawn."""
COMERS = 25
"""Requests that came when about as much of a turn was left, among which one is drawn."""
STRETCH_TURNS = 200
"""That come in the order of the calibration: several times the tens of turns of a slow spell."""


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


class Step(NamedTuple):
    """A step of the real engine: when the device was asked for, got and left, by the stopwatch."""

    model: str
    asked_ns: int
    begun_ns: int
    ended_ns: int
    duration_ns: int
    shape: Shape


class Leaving(NamedTuple):
    """A sequence that left: how many steps were over, and how many tokens' KV was copied out for it."""

    steps_over: int
    kept_tokens: int


@dataclass(slots=True)
class StepLog:
    """The steps of a live run and the sequences that left after them, as they came."""

    steps: list[Step] = field(default_factory=list)
    left: list[Leaving] = field(default_factory=list)

    def clear(self) -> None:
        """Forget what was before."""
        self.steps.clear()
        self.left.clear()

    def since(self, zero_ns: int) -> "StepLog":
        """The same log, its times counted from that reading of the stopwatch."""
        steps = [
            each._replace(
                asked_ns=each.asked_ns - zero_ns,
                begun_ns=each.begun_ns - zero_ns,
                ended_ns=each.ended_ns - zero_ns,
            )
            for each in self.steps
        ]
        return StepLog(steps, list(self.left))


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


@dataclass(slots=True, kw_only=True)
class LiveOptions:
    """The executor that really computes, the turns of the machine, and where steps are noted."""

    inner: ExecutorSettings
    turns: asyncio.Lock
    log: StepLog

    def inner_of(self, model: ModelSettings) -> ExecutorSettings:
        """The same for every model."""
        return self.inner


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
        inner = options.inner_of(model)
        return executors.find(inner.name).weights_bytes(model, made_options(inner))

    @classmethod
    def vocab_of(cls, model: ModelSettings) -> int | None:
        shape = model.stand_in or model.architecture
        return shape.vocab if shape is not None else None


@executors(LIVE)
class LiveTurns(Delegating):
    """An executor that computes, one step at a time on the machine."""

    Options: ClassVar[type[Any]] = LiveOptions
    is_modelled: ClassVar[bool] = False
    follows_grammars: ClassVar[bool] = True

    def __init__(self, machine: Machine, options: LiveOptions) -> None:
        super().__init__(make_inner(options.inner, machine))
        self._options = options
        self._model = machine.model.name

    async def step(self, batch: Batch) -> StepResult:
        asked_ns, shape = stopwatch_ns(), shape_of(batch)
        async with self._options.turns:
            begun_ns = stopwatch_ns()
            result = await self._inner.step(batch)
        times = (asked_ns, begun_ns, stopwatch_ns(), result.duration_ns)
        self._options.log.steps.append(Step(self._model, *times, shape))
        return result

    def retire(self, sequence: Sequence, first: int, last: int, block_tokens: int) -> list[KVBlock]:
        log = self._options.log
        log.left.append(Leaving(len(log.steps), (last - first) * block_tokens))
        return super().retire(sequence, first, last, block_tokens)


@dataclass(slots=True)
class Spread:
    """What steps of about a size took in reality, over what was said of them: the size's own error, and its tail.

    `said_ns` is sorted; `ratios[i]` belongs to `said_ns[i]`. A step takes its ratio from its `NEIGHBOURS` nearest in
    size: a spike of the machine that tripled a step of a millisecond triples none of a hundred.
    """

    said_ns: list[float]
    ratios: list[float]
    # ratios by the place of their first neighbour, the quickest first
    _windows: dict[int, list[float]] = field(default_factory=dict)

    def ratio(self, said_ns: float, rank: float) -> float:
        """The ratio of a step of which that is said, and before which comes that share, of [0, 1), of its like."""
        window = self._neighbours(said_ns)
        return window[int(rank * len(window))] if window else 1.0

    def rank(self, said_ns: float, ratio: float) -> float:
        """The share of its like that are quicker than a step with that ratio; of those that are equal, half."""
        window = self._neighbours(said_ns)
        return (bisect_left(window, ratio) + bisect_right(window, ratio)) / (2 * len(window) + 1)

    def mean(self, said_ns: float) -> float:
        """The mean of what `ratio` may answer."""
        window = self._neighbours(said_ns)
        return sum(window) / len(window) if window else 1.0

    def _neighbours(self, said_ns: float) -> list[float]:
        """The ratios of steps of about that size, the least first."""
        count = len(self.ratios)
        first = bisect_left(self.said_ns, said_ns) - min(NEIGHBOURS, count) // 2
        first = min(max(first, 0), max(0, count - NEIGHBOURS))
        window = self._windows.get(first)
        if window is None:
            window = self._windows[first] = sorted(self.ratios[first : first + NEIGHBOURS])
        return window


def no_spread() -> Spread:
    """Every step takes what is said of it."""
    return Spread([], [])


@dataclass(slots=True)
class Crowds:
    """How many times as long as is said steps take, by how many sequences decode in them: 0, 1, 2 to 3, 4 to 7, ...

    A crowd makes other errors of a cost model than a few do, and a calibration run has more of a crowd than many a
    run that is compared.
    """

    factors: dict[int, float] = field(default_factory=dict)  # by the bits of that number

    def factor(self, decodes: int) -> float:
        """That of a step with so many: of the nearest that is known."""
        bits = decodes.bit_length()
        nearest = min(self.factors, key=lambda each: (abs(each - bits), each), default=None)
        return 1.0 if nearest is None else self.factors[nearest]


class Course:
    """How slow each turn is among its like, in stretches of what calibration runs went through.

    In reality slow turns come in spells. Drawn one by one they would even each other out within an answer, and its
    tail would be too thin. So the turns of the calibration come in their order, cut into stretches that are played in
    an order of their own each time around: what is slow in all stays as much. Without a calibration each turn is
    drawn alone.
    """

    def __init__(self, ranks: list[float], random: np.random.Generator) -> None:
        """`ranks` of [0, 1), of the turns in their order."""
        self._stretches = [ranks[at : at + STRETCH_TURNS] for at in range(0, len(ranks), STRETCH_TURNS)]
        self._random = random
        self._ahead: list[float] = []  # of this time around, the next one last

    def next(self) -> float:
        """The rank of the next turn of the machine, whichever replica has it."""
        if not self._stretches:
            return self._random.random()
        if not self._ahead:
            order = self._random.permutation(len(self._stretches)).tolist()
            self._ahead = [rank for number in order for rank in self._stretches[number]][::-1]
        return self._ahead.pop()


@dataclass(slots=True)
class Door:
    """How long requests that come while the machine is busy are on their way, by what is left of its turn.

    One core serves, so who comes shortly before the end of a turn is often let in only after it, when the next batch
    has been formed: a turn later. `left_ns` is sorted. `let_in_ns[i]` belongs to `left_ns[i]`: when that request was
    let in, from when it came, or where it `is_late[i]`, from the end of the turn.
    """

    left_ns: list[float] = field(default_factory=list)
    let_in_ns: list[float] = field(default_factory=list)
    is_late: list[bool] = field(default_factory=list)

    def opens_ns(self, now_ns: int, ends_ns: int, random: np.random.Generator) -> int:
        """When a request is let in that comes now, in a turn that ends then: as one of those most like it was."""
        count = len(self.left_ns)
        if not count:
            return now_ns
        first = bisect_left(self.left_ns, ends_ns - now_ns) - COMERS // 2
        first = min(max(first, 0), max(0, count - COMERS))
        like = first + int(random.integers(min(COMERS, count)))
        if self.is_late[like]:
            return ends_ns + round(self.let_in_ns[like])
        return min(now_ns + round(self.let_in_ns[like]), ends_ns - 1)


class Scales(NamedTuple):
    """How many times as long as its cost model says a model's steps take, by what they do and by what was before.

    A step that only decodes reads all weights once. After a step of its own model they are in the processor's caches,
    as far as these reach; after one of another model that one's are, and they come from memory.
    """

    prefill: float = 1.0
    decode: float = 1.0
    cold_decode: float = 1.0  # after a step of another model


def kind_of(shape: Shape, *, is_cold: bool) -> int:
    """The place of such a step's among `Scales`."""
    if shape.has_prefill:
        return 0
    return 2 if is_cold else 1


AS_MODELLED = Scales()


@dataclass(slots=True)
class HostCosts:
    """What the machine does besides the steps that a cost model predicts, as measured on the real engine.

    A turn of the machine, from the end of one step to that of the next, takes what the cost model says of the step
    times `scale` and its model's own of `scales`, `step_ns`, `switch_ns` if the step before was another model's,
    `begin_ns` with each sequence that begins in it (whatever its request has cost since it came), and `wake_ns` when
    the machine had nothing to do; all but the last times a factor of `decode_crowds` or `prefill_crowds`, and a ratio
    of `decode_spread` or `prefill_spread`, by the `ranks` that turns had one after the other. Besides,
    `leave_ns` with each sequence that has left since the step before, `keep_ns` a token of KV that was copied out
    for it, and `read_ns` with each prefix that is brought up from files, which takes one of `tier_ns`. Between the
    load and a machine that rests, a request is on its way for one of `in_ns`; to a busy one for the least of these,
    and then it passes the `door`. The news of its first token takes one of `first_ns`, and those of its end, after
    its last token, one of `end_ns`.
    """

    scale: float = 1.0
    scales: dict[str, Scales] = field(default_factory=dict)
    step_ns: float = 0.0
    switch_ns: float = 0.0
    begin_ns: float = 0.0
    wake_ns: float = 0.0
    leave_ns: float = 0.0
    keep_ns: float = 0.0
    read_ns: float = 0.0
    in_ns: Ratios = field(default_factory=lambda: np.zeros(1))
    door: Door = field(default_factory=Door)
    first_ns: Ratios = field(default_factory=lambda: np.zeros(1))
    end_ns: Ratios = field(default_factory=lambda: np.zeros(1))
    decode_crowds: Crowds = field(default_factory=Crowds)
    prefill_crowds: Crowds = field(default_factory=Crowds)
    decode_spread: Spread = field(default_factory=no_spread)
    prefill_spread: Spread = field(default_factory=no_spread)
    ranks: list[float] = field(default_factory=list)
    tier_ns: Ratios = field(default_factory=lambda: np.zeros(0))  # none where no prefix came from files


class Pace(NamedTuple):
    """How many times as long as said turns take in all: those that prefill, and those that only decode."""

    prefill: float = 1.0
    decode: float = 1.0


AS_SAID = Pace()


@dataclass(slots=True)
class Ledger:
    """When the one device of a simulated machine is free again."""

    free_ns: int = 0
    turns_ns: deque[int] = field(default_factory=deque)  # when those end that are not over
    model: str = ""  # whose turn was booked last

    def book(self, now_ns: int, duration_ns: int) -> int:
        """Take the next turn for so long; when it ends."""
        self.free_ns = max(now_ns, self.free_ns) + duration_ns
        return self.free_ns

    def turn(self, now_ns: int, duration_ns: int) -> int:
        """The same for a turn."""
        ends_ns = self.book(now_ns, duration_ns)
        self.turns_ns.append(ends_ns)
        return ends_ns

    def turn_ends_ns(self, now_ns: int) -> int:
        """When the turn that is under way ends; now where none is."""
        turns_ns = self.turns_ns
        while turns_ns and turns_ns[0] <= now_ns:
            turns_ns.popleft()
        return turns_ns[0] if turns_ns else now_ns


@dataclass(slots=True, kw_only=True)
class SimulatedOptions:
    """The cost models by their model's name, the host's costs, and the machine's ledger, course and pace."""

    models: dict[str, ExecutorSettings]
    host: HostCosts
    ledger: Ledger
    course: Course
    pace: Pace = AS_SAID

    def inner_of(self, model: ModelSettings) -> ExecutorSettings:
        """The cost model of a model; of one without a replica any, as nobody runs it."""
        return self.models.get(model.name) or next(iter(self.models.values()))


@executors(SIMULATED)
class SimulatedTurns(Delegating):
    """An executor without tensors, one step at a time on the machine, with the costs of the host around it."""

    Options: ClassVar[type[Any]] = SimulatedOptions
    is_modelled: ClassVar[bool] = True
    follows_grammars: ClassVar[bool] = False

    def __init__(self, machine: Machine, options: SimulatedOptions) -> None:
        super().__init__(make_inner(options.inner_of(machine.model), machine))
        self._modelled = cast("Modelled", self._inner)
        self._model = machine.model.name
        self._scales = options.host.scales.get(self._model, AS_MODELLED)
        self._options = options
        self._clock = machine.clock

    async def step(self, batch: Batch) -> StepResult:
        now_ns, host, ledger = self._clock.now_ns(), self._options.host, self._options.ledger
        shape, is_switch, is_awake = shape_of(batch), ledger.model != self._model, ledger.free_ns >= now_ns
        scale = host.scale * self._scales[kind_of(shape, is_cold=is_switch)]
        said_ns = self._modelled.duration_ns(batch) * scale + host.step_ns + host.begin_ns * shape.beginners
        if is_switch and is_awake:  # what there is to do after a rest is in `wake_ns`
            said_ns += host.switch_ns
        said_ns *= (host.prefill_crowds if batch.chunks else host.decode_crowds).factor(len(batch.decodes))
        spread = host.prefill_spread if batch.chunks else host.decode_spread
        turn_ns = said_ns * spread.ratio(said_ns, self._options.course.next())
        if not is_awake:
            turn_ns += host.wake_ns
        turn_ns *= self._options.pace.prefill if batch.chunks else self._options.pace.decode
        self._modelled.stepped(1)
        ends_ns, ledger.model = ledger.turn(now_ns, max(1, round(turn_ns))), self._model
        await self._clock.sleep(ends_ns - now_ns)
        answer = self._modelled.answer
        return StepResult(
            ends_ns - now_ns,  # the wait for its turn included: a replica with work is busy
            [answer(*spoken(each.sequence), 0, 1)[0] if each.is_last else None for each in batch.chunks],
            [answer(*spoken(each), each.num_new, 1)[0] for each in batch.decodes],
        )

    def retire(self, sequence: Sequence, first: int, last: int, block_tokens: int) -> list[KVBlock]:
        host = self._options.host
        cost_ns = round(
            self._options.pace.decode * (host.leave_ns + host.keep_ns * (last - first) * block_tokens)
        )
        self._options.ledger.book(self._clock.now_ns(), cost_ns)
        return super().retire(sequence, first, last, block_tokens)


def make_inner(settings: ExecutorSettings, machine: Machine) -> Executor:
    """The executor behind the turns."""
    return executors.make(settings.name, machine, made_options(settings))


def made_options(settings: ExecutorSettings) -> Any:
    return executors.find(settings.name).Options(**settings.options)
