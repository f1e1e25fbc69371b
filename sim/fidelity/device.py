"""One device for all replicas of a machine: they take turns at it, step by step, live and simulated alike.

A machine with one core for the engine runs one step at a time, whatever number of replicas it has. Live, a lock
keeps the steps apart, so that their times are those of a device to itself. Simulated, a ledger does the same
arithmetic, and charges besides what the host does between steps, as it was measured on the real engine.
"""

import asyncio
from bisect import bisect_left, bisect_right
from collections import deque
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

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
from sim.fidelity.factors import Line, ModelFactors
from sim.fidelity.steplog import Leaving, Step, StepLog, shape_of
from sim.fidelity.track import Track

LIVE, SIMULATED = "twin_live", "twin_simulated"
"""What the two sides' executors are called."""

Ratios = npt.NDArray[np.float64]

NEIGHBOURS = 65
"""Steps of about the same size among which one is drawn."""
COMERS = 25
"""Requests that came when about as much of a turn was left, among which one is drawn."""
STRETCH_TURNS = 200
"""That come in the order of the calibration: several times the tens of turns of a slow spell."""


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


@dataclass(slots=True)
class HostCosts:
    """What the machine does besides the steps that a cost model predicts, as measured on the real engine.

    A turn of the machine, from the end of one step to that of the next, takes what the cost model says of the step
    times `scale` and its model's own of `factors`, `step_ns`, `switch_ns` if the step before was another model's,
    `begin_ns` with each sequence that begins in it, `after_ns` with each that began in the one before, whose first
    token is told meanwhile, and `wake_ns` when the machine had nothing to do; all but the last times a ratio of
    `decode_spread` or `prefill_spread`, by the `ranks` that turns had one after the other. Besides, `arrive_ns` with
    each request that is let in while it lasts, `leave_ns` with each sequence that has left since the step before,
    `keep_ns` a token of KV that was copied out for it, and `read_ns` with each prefix that is brought up from files,
    which takes one of `tier_ns`. All that is as many times as long as the track says. The yardstick takes `yard_ns`
    more. Between the load and a machine that rests, a request is on its way for one of `in_ns`; to a busy one for the
    least of these, and then it passes the `door`, which is shut while the yardstick is taken. The news of its first
    token takes one of `first_ns`, and those of its end, after its last token, one of `end_ns`.
    """

    scale: float = 1.0
    factors: dict[str, ModelFactors] = field(default_factory=dict)  # by the model's name
    step_ns: float = 0.0
    switch_ns: float = 0.0
    arrive_ns: float = 0.0
    begin_ns: float = 0.0
    after_ns: float = 0.0
    wake_ns: float = 0.0
    leave_ns: float = 0.0
    keep_ns: float = 0.0
    read_ns: float = 0.0
    yard_ns: float = 0.0
    in_ns: Ratios = field(default_factory=lambda: np.zeros(1))
    door: Door = field(default_factory=Door)
    first_ns: Ratios = field(default_factory=lambda: np.zeros(1))
    end_ns: Ratios = field(default_factory=lambda: np.zeros(1))
    decode_spread: Spread = field(default_factory=no_spread)
    prefill_spread: Spread = field(default_factory=no_spread)
    ranks: list[float] = field(default_factory=list)
    tier_ns: Ratios = field(default_factory=lambda: np.zeros(0))  # none where no prefix came from files

    def spread_of(self, *, has_prefill: bool) -> Spread:
        """Among which turns one finds its like."""
        return self.prefill_spread if has_prefill else self.decode_spread


@dataclass(slots=True)
class Turn:
    """A turn that was booked."""

    ends_ns: int


@dataclass(slots=True)
class Ledger:
    """When the one device of a simulated machine is free again: who asks first has it first.

    `yards`: when the yardstick is due and for how long it takes the device, the next one last.
    """

    free_ns: int = 0
    worked_ns: int = 0  # until when it is taken by others than the yardstick
    turns: deque[Turn] = field(default_factory=deque)  # those that are not over
    line: Line = field(default_factory=Line)  # the steps that were booked
    yards: list[tuple[int, int]] = field(default_factory=list)
    yard: tuple[int, int] = (0, 0)  # from when to when it had the device last

    def begins_ns(self, now_ns: int) -> int:
        """From when on who asks now has the device."""
        while self.yards and self.yards[-1][0] <= now_ns:
            due_ns, duration_ns = self.yards.pop()
            begins_ns = max(due_ns, self.free_ns)
            self.free_ns = begins_ns + duration_ns
            self.yard = (begins_ns, self.free_ns)
        return max(now_ns, self.free_ns)

    def book(self, now_ns: int, duration_ns: int) -> int:
        """Take the device for so long as soon as it is free; until when."""
        self.free_ns = self.worked_ns = self.begins_ns(now_ns) + duration_ns
        return self.free_ns

    def yard_ends_ns(self, now_ns: int) -> int | None:
        """When the yardstick leaves the device that has it now; None where it has not."""
        self.begins_ns(now_ns)
        begins_ns, ends_ns = self.yard
        return ends_ns if begins_ns <= now_ns < ends_ns else None

    def turn(self, now_ns: int, duration_ns: int) -> Turn:
        """The same for a turn, which may yet be lengthened."""
        booked = Turn(self.book(now_ns, duration_ns))
        self.turns.append(booked)
        return booked

    def turn_ends_ns(self, now_ns: int) -> int:
        """When the turn that is under way ends; now where none is."""
        turns = self.turns
        while turns and turns[0].ends_ns <= now_ns:
            turns.popleft()
        return turns[0].ends_ns if turns else now_ns

    def lengthen(self, now_ns: int, duration_ns: int) -> None:
        """Let the turn that is under way end so much later, and those behind it; nothing where none is."""
        if self.turn_ends_ns(now_ns) > now_ns:
            self.begins_ns(now_ns)
            self.free_ns += duration_ns
            self.worked_ns += duration_ns
            for turn in self.turns:
                turn.ends_ns += duration_ns


@dataclass(slots=True, kw_only=True)
class SimulatedOptions:
    """The cost models by their model's name, the host's costs, and the machine's ledger, course and track."""

    models: dict[str, ExecutorSettings]
    host: HostCosts
    ledger: Ledger
    course: Course
    track: Track = field(default_factory=Track)

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
        self._factors = options.host.factors.get(self._model, ModelFactors())
        self._options = options
        self._clock = machine.clock

    async def step(self, batch: Batch) -> StepResult:
        now_ns, host, ledger = self._clock.now_ns(), self._options.host, self._options.ledger
        shape, begins_ns = shape_of(batch), ledger.begins_ns(now_ns)
        is_awake = ledger.worked_ns >= now_ns
        before = ledger.line.step(self._model, shape)
        scale = host.scale * self._factors.of(shape, before)
        said_ns = self._modelled.duration_ns(batch) * scale + host.step_ns + host.begin_ns * shape.beginners
        if is_awake:  # what there is to do after a rest is in `wake_ns`
            said_ns += host.switch_ns * before.is_switch + host.after_ns * before.began
        spread = host.spread_of(has_prefill=shape.has_prefill)
        turn_ns = said_ns * spread.ratio(said_ns, self._options.course.next())
        if not is_awake:
            turn_ns += host.wake_ns
        turn_ns *= self._options.track.at(begins_ns)
        self._modelled.stepped(1)
        turn = ledger.turn(now_ns, max(1, round(turn_ns)))
        # requests that come meanwhile make it longer
        while (left_ns := turn.ends_ns - self._clock.now_ns()) > 0:
            await self._clock.sleep(left_ns)
        answer = self._modelled.answer
        return StepResult(
            turn.ends_ns - now_ns,  # the wait for its turn included: a replica with work is busy
            [answer(*spoken(each.sequence), 0, 1)[0] if each.is_last else None for each in batch.chunks],
            [answer(*spoken(each), each.num_new, 1)[0] for each in batch.decodes],
        )

    def retire(self, sequence: Sequence, first: int, last: int, block_tokens: int) -> list[KVBlock]:
        host, now_ns = self._options.host, self._clock.now_ns()
        cost_ns = host.leave_ns + host.keep_ns * (last - first) * block_tokens
        self._options.ledger.book(now_ns, round(cost_ns * self._options.track.at(now_ns)))
        return super().retire(sequence, first, last, block_tokens)


def make_inner(settings: ExecutorSettings, machine: Machine) -> Executor:
    """The executor behind the turns."""
    return executors.make(settings.name, machine, made_options(settings))


def made_options(settings: ExecutorSettings) -> Any:
    return executors.find(settings.name).Options(**settings.options)
