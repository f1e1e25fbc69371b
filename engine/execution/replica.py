"""A replica: one loaded instance of a model, and the loop that keeps its device busy."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from engine.clock import Clock, Signal
from engine.errors import DeadlinePassed, ReplicaLost
from engine.execution.executor import Batch, Executor, KVBlock, Sequence, StepResult
from engine.execution.scheduler import Scheduler
from engine.request import Sampling, Stream, Tokens

PROBE_TOKENS: Tokens = np.zeros(1, dtype=np.int32)


@dataclass(slots=True)
class Answer:
    """What a replica did for one attempt: `blocks` are the full KV blocks that were not cached before.

    `is_stopped`: generation ended before all tokens that were asked for.
    """

    started_ns: int
    computed_tokens: int
    blocks: list[KVBlock]
    is_stopped: bool = False


@dataclass(slots=True)
class Work:
    """One attempt, as a replica takes it: the tokens to hold before the first new one, and what is known of them.

    `preempted` is called whenever the attempt has to give its KV back, with the tokens that are to be computed anew.
    """

    tokens: Tokens
    max_new_tokens: int
    prefix: list[KVBlock] = field(default_factory=list)
    cached_tokens: int = 0
    deadline_ns: int | None = None
    sampling: Sampling | None = None
    seed: int = 0
    stops: Callable[[int], bool] | None = None
    preempted: Callable[[int], None] | None = None


class Replica:
    """Serves one model on one device."""

    def __init__(
        self, name: str, model: str, executor: Executor, scheduler: Scheduler, clock: Clock, block_tokens: int
    ) -> None:
        self.name = name
        self.model = model
        self.num_in_hand = 0
        self.busy_ns = 0
        self.num_steps = 0
        self.num_preemptions = 0
        self.is_alive = True
        self._executor = executor
        self._scheduler = scheduler
        self._clock = clock
        self._block_tokens = block_tokens
        self._life = 0  # the loop of an earlier life must not touch what the present one owns
        self._wake: Signal | None = None
        self._is_stepping = False
        self._step_over: Signal | None = (
            None  # made by a new life that waits for the last step of an earlier one
        )
        self._num_sequences = 0

    def start(self) -> None:
        """Begin to serve. The loop runs beside the caller until the clock's world ends or the replica crashes."""
        self._clock.spawn(self._serve(self._life))

    def stop(self) -> None:
        """Serve no more. Nobody may wait for it: a replica that still holds requests crashes instead."""
        assert not self.num_in_hand, f"replica {self.name!r} is stopped with requests in its hands"
        self.crash()

    @property
    def num_running(self) -> int:
        return self._scheduler.num_running

    @property
    def num_waiting(self) -> int:
        return len(self._scheduler.waiting)

    async def generate(self, work: Work, stream: Stream) -> Answer:
        """Generate `work.max_new_tokens` tokens into `stream`. Raises ReplicaLost, or DeadlinePassed."""
        if not self.is_alive:
            raise ReplicaLost(f"replica {self.name!r} does not answer")
        sequence = self._sequence(work, stream)
        self._scheduler.add(sequence)
        self._rouse()
        self.num_in_hand += 1
        timer = None
        if work.deadline_ns is not None:
            left_ns = max(0, work.deadline_ns - self._clock.now_ns())
            timer = self._clock.call_later(left_ns, partial(self._expire, sequence))
        try:
            await sequence.done.wait()
        finally:
            self.num_in_hand -= 1
            if timer is not None:
                timer.cancel()
            if not sequence.done.is_set:  # the caller is gone
                self._scheduler.drop(sequence)
        if sequence.error is not None:
            raise sequence.error
        return Answer(sequence.started_ns or 0, sequence.computed_tokens, sequence.kept, sequence.is_stopped)

    async def probe(self, timeout_ns: int) -> bool:
        """Whether one token is generated within `timeout_ns`, on the way of every request but first in line.

        Busy is not ill: where others leave it no slot or no share of a step in that time, steps that were finished
        in it are an answer too.
        """
        if not self.is_alive:
            return False
        sequence, steps_before = self._sequence(Work(PROBE_TOKENS, 1), Stream()), self.num_steps
        self._scheduler.add_first(sequence)
        self._rouse()
        timer = self._clock.call_later(timeout_ns, partial(self._expire, sequence))
        await sequence.done.wait()
        timer.cancel()
        if isinstance(sequence.error, DeadlinePassed):
            return self.num_steps > steps_before
        return sequence.error is None

    def crash(self) -> None:
        """The device is gone, with all that it held."""
        self.is_alive = False
        self._life += 1
        for sequence in self._scheduler.clear():
            if not sequence.done.is_set:
                sequence.error = ReplicaLost(f"replica {self.name!r} died with the request in its hands")
                sequence.done.set()
        self._rouse()

    def recover(self) -> None:
        """The device is back, empty. Harmless when it was never gone."""
        if not self.is_alive:
            self.is_alive = True
            self._clock.spawn(self._revive(self._life))

    async def _revive(self, life: int) -> None:
        """Begin a new life when the last step of the earlier one is over: steps never run concurrently."""
        if self._is_stepping:
            if self._step_over is None:
                self._step_over = self._clock.signal()
            await self._step_over.wait()
        if life == self._life:
            self._executor.reset()
            await self._serve(life)

    async def _serve(self, life: int) -> None:
        """The loop of one life. Whatever ends it, nobody is left waiting for it."""
        try:
            await self._live(life)
        except BaseException as error:
            if life == self._life:
                self.crash()
            if not isinstance(error, ReplicaLost):
                raise

    async def _live(self, life: int) -> None:
        """A batch, a step, its results, until this life ends."""
        while life == self._life:
            batch = self._scheduler.next_batch(self._clock.now_ns())
            for sequence in batch.preempted:
                self._preempt(sequence)
            if not batch.num_tokens:
                self._wake = self._clock.signal()
                await self._wake.wait()
                continue
            result = await self._step(batch)
            if life == self._life:
                self._apply(batch, result, self._clock.now_ns())

    async def _step(self, batch: Batch) -> StepResult:
        self._is_stepping = True
        try:
            return await self._executor.step(batch)
        finally:
            self._is_stepping = False
            if self._step_over is not None:
                self._step_over.set()
                self._step_over = None

    def _apply(self, batch: Batch, result: StepResult, now_ns: int) -> None:
        self.busy_ns += result.duration_ns
        self.num_steps += 1
        for sequence, token in zip(batch.decodes, result.decode_tokens, strict=True):
            sequence.computed_tokens += 1
            self._accept(sequence, token, result, now_ns)
        for chunk, first_token in zip(batch.chunks, result.chunk_tokens, strict=True):
            chunk.sequence.computed_tokens += chunk.num_tokens
            if first_token is not None:
                self._accept(chunk.sequence, first_token, result, now_ns)
        for sequence in self._scheduler.settle():
            self._retire(sequence)

    def _accept(self, sequence: Sequence, token: int, result: StepResult, now_ns: int) -> None:
        error = result.errors.get(sequence.id)
        if error is None:
            sequence.accept(token, now_ns, result.logprobs.get(sequence.id))
        else:
            sequence.fail(error)

    def _preempt(self, sequence: Sequence) -> None:
        self.num_preemptions += 1
        self._executor.release(sequence)
        if sequence.preempted is not None:
            sequence.preempted(len(sequence.tokens) - sequence.cached_tokens)

    def _retire(self, sequence: Sequence) -> None:
        size = self._block_tokens
        first = sequence.cached_tokens // size
        last = (
            first if sequence.is_dropped or sequence.error is not None else sequence.computed_tokens // size
        )
        sequence.kept = self._executor.retire(sequence, first, last, size)
        sequence.done.set()

    def _expire(self, sequence: Sequence) -> None:
        if not sequence.done.is_set:
            sequence.error = DeadlinePassed(f"replica {self.name!r} was not done when the deadline passed")
            self._scheduler.drop(sequence)
            sequence.done.set()

    def _sequence(self, work: Work, stream: Stream) -> Sequence:
        self._num_sequences += 1
        return Sequence(
            id=self._num_sequences,
            tokens=work.tokens,
            max_new_tokens=work.max_new_tokens,
            stream=stream,
            done=self._clock.signal(),
            prefix=work.prefix,
            cached_tokens=work.cached_tokens,
            sampling=work.sampling,
            seed=work.seed,
            stops=work.stops,
            preempted=work.preempted,
            queued_ns=self._clock.now_ns(),
        )

    def _rouse(self) -> None:
        if self._wake is not None:
            self._wake.set()
            self._wake = None
