"""A replica: one loaded instance of a model, and the callers whose requests it has in hand."""

from collections.abc import Callable
from collections.abc import Sequence as Listing
from dataclasses import dataclass
from functools import partial

import numpy as np

from engine.clock import Clock
from engine.errors import DeadlinePassed, ReplicaLost
from engine.execution.executor import Executor, KVBlock, Sequence
from engine.execution.grammar import Follower
from engine.execution.law import LawExecutor
from engine.execution.loops import LEAP_STEPS, Leaping, Loop, Stepping
from engine.execution.modelled import Modelled
from engine.execution.scheduler import Scheduler
from engine.execution.serving import Serving
from engine.execution.sharing import Sharing
from engine.request import Sampling, Stream, Tokens

PROBE_TOKENS: Tokens = np.zeros(1, dtype=np.int32)


@dataclass(slots=True, init=False)
class Answer:
    """What a replica did for one attempt: `blocks` are the full KV blocks that were not cached before.

    `is_stopped`: generation ended before all tokens that were asked for.
    """

    started_ns: int
    computed_tokens: int
    blocks: list[KVBlock]
    is_stopped: bool

    def __init__(
        self,
        started_ns: int,
        computed_tokens: int,
        blocks: list[KVBlock],
        is_stopped: bool = False,
    ) -> None:
        self.started_ns = started_ns
        self.computed_tokens = computed_tokens
        self.blocks = blocks
        self.is_stopped = is_stopped


@dataclass(slots=True, init=False)
class Work:
    """One attempt, as a replica takes it: the tokens to hold before the first new one, and what is known of them.

    `preempted` is called whenever the attempt has to give its KV back, with the tokens that are to be computed anew.
    """

    tokens: Tokens
    max_new_tokens: int
    prefix: Listing[KVBlock]
    cached_tokens: int
    deadline_ns: int | None
    sampling: Sampling | None
    seed: int
    priority: int
    stops: Callable[[int], bool] | None
    preempted: Callable[[int], None] | None
    follower: Follower | None

    def __init__(
        self,
        tokens: Tokens,
        max_new_tokens: int,
        prefix: Listing[KVBlock] = (),
        cached_tokens: int = 0,
        deadline_ns: int | None = None,
        sampling: Sampling | None = None,
        seed: int = 0,
        priority: int = 0,
        stops: Callable[[int], bool] | None = None,
        preempted: Callable[[int], None] | None = None,
        follower: Follower | None = None,
    ) -> None:
        self.tokens = tokens
        self.max_new_tokens = max_new_tokens
        self.prefix = prefix
        self.cached_tokens = cached_tokens
        self.deadline_ns = deadline_ns
        self.sampling = sampling
        self.seed = seed
        self.priority = priority
        self.stops = stops
        self.preempted = preempted
        self.follower = follower


class Replica:
    """Serves one model on one device.

    An executor that foresees its steps is driven in leaps of at most `leap_steps`; `rank` tells replicas apart that
    end a step at the same nanosecond. An executor of service times follows the `discipline` of the fleet's settings.
    """

    def __init__(
        self,
        name: str,
        model: str,
        executor: Executor,
        scheduler: Scheduler,
        clock: Clock,
        block_tokens: int,
        *,
        rank: int = 0,
        leap_steps: int = LEAP_STEPS,
        discipline: str = "fifo",
    ) -> None:
        self.name = name
        self.model = model
        self.num_in_hand = 0
        self._scheduler = scheduler
        self._clock = clock
        self._num_sequences = 0
        self._probes: list[tuple[int, Sequence]] = []  # that are to be answered, and when that is too late
        self._watched_until_ns = 0  # when somebody looks at them
        self._loop: Loop
        if isinstance(executor, LawExecutor):
            if discipline == "ps":
                self._loop = Sharing(name, executor, scheduler, clock, block_tokens, rank)
            else:
                gives_way = discipline == "preemptive"
                self._loop = Serving(
                    name, executor, scheduler, clock, block_tokens, rank, gives_way=gives_way
                )
        elif isinstance(executor, Modelled):
            self._loop = Leaping(name, executor, scheduler, clock, block_tokens, rank, leap_steps)
        else:
            self._loop = Stepping(name, executor, scheduler, clock, block_tokens)

    def start(self) -> None:
        """Begin to serve, and go on beside the caller until the clock's world ends or the replica crashes."""
        self._loop.start()

    def stop(self) -> None:
        """Serve no more. Nobody may wait for it: a replica that still holds requests crashes instead."""
        assert not self.num_in_hand, f"replica {self.name!r} is stopped with requests in its hands"
        self.crash()

    @property
    def is_alive(self) -> bool:
        return self._loop.is_alive

    @property
    def takes_more(self) -> bool:
        """Whether there is a place for one more request, in the batch or in the line."""
        return self._scheduler.takes_more

    @property
    def busy_ns(self) -> int:
        """The sum of all steps that are over."""
        self._loop.catch_up()
        return self._loop.busy_ns

    @property
    def num_steps(self) -> int:
        """How many steps are over."""
        self._loop.catch_up()
        return self._loop.num_steps

    @property
    def num_preemptions(self) -> int:
        return self._loop.num_preemptions

    @property
    def num_running(self) -> int:
        return self._scheduler.num_running

    @property
    def num_waiting(self) -> int:
        return len(self._scheduler.waiting)

    async def generate(self, work: Work, stream: Stream) -> Answer:
        """Generate `work.max_new_tokens` tokens into `stream`. Raises ReplicaLost, or DeadlinePassed."""
        loop = self._loop
        if not loop.is_alive:
            raise ReplicaLost(f"replica {self.name!r} does not answer")
        self._num_sequences += 1
        sequence = Sequence(  # by place: names of fourteen arguments take as long as all else here
            self._num_sequences,
            work.tokens,
            work.max_new_tokens,
            stream,
            self._clock.signal(),
            work.prefix,
            work.cached_tokens,
            work.sampling,
            work.seed,
            work.stops,
            work.preempted,
        )
        sequence.priority = work.priority
        sequence.follower = work.follower
        sequence.queued_ns = self._clock.now_ns()
        self._scheduler.add(sequence)
        loop.rouse()
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
                loop.drop(sequence)
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
        steps_before = self.num_steps
        self._num_sequences += 1
        sequence = Sequence(self._num_sequences, PROBE_TOKENS, 1, Stream(), self._clock.signal())
        sequence.queued_ns = self._clock.now_ns()
        self._scheduler.add_first(sequence)
        self._loop.rouse()
        probe = (self._clock.now_ns() + timeout_ns, sequence)
        self._probes.append(probe)
        self._watch_probes(probe[0])
        await sequence.done.wait()
        self._probes.remove(probe)
        if isinstance(sequence.error, DeadlinePassed):
            return self.num_steps > steps_before
        return sequence.error is None

    def crash(self) -> None:
        """The device is gone, with all that it held."""
        self._loop.crash()

    def recover(self) -> None:
        """The device is back, empty. Harmless when it was never gone."""
        if not self.is_alive:
            self._loop.recover()

    def _watch_probes(self, until_ns: int) -> None:
        """Look then at who is to be answered: one timer for many probes, most of which are answered long before."""
        if not self._watched_until_ns or until_ns < self._watched_until_ns:
            self._watched_until_ns = until_ns
            self._clock.call_later(until_ns - self._clock.now_ns(), self._look_at_probes)

    def _look_at_probes(self) -> None:
        now_ns, self._watched_until_ns = self._clock.now_ns(), 0
        for late_ns, sequence in self._probes:
            if late_ns <= now_ns:
                self._expire(sequence)
            else:
                self._watch_probes(late_ns)

    def _expire(self, sequence: Sequence) -> None:
        if not sequence.done.is_set:
            sequence.error = DeadlinePassed(f"replica {self.name!r} was not done when the deadline passed")
            self._loop.drop(sequence)
            sequence.done.set()
