"""Processor sharing: everybody who is there is served at once, at an equal part of the speed."""

from heapq import heappop, heappush

from engine.clock import Clock, Timer
from engine.execution.executor import Sequence
from engine.execution.law import LawExecutor
from engine.execution.loops import Loop
from engine.execution.scheduler import Scheduler


class Sharing(Loop):
    """A server that n requests share, each at 1/n of its speed. For queueing theory: nothing else is served so.

    Everybody who stays gets service at the same rate, so what one has got since the beginning of time says who is
    done next: whoever came at `attained` A and needs S leaves when it is A + S. O(log n) an arrival or an end.
    """

    def __init__(
        self,
        name: str,
        executor: LawExecutor,
        scheduler: Scheduler,
        clock: Clock,
        block_tokens: int,
        rank: int,
    ) -> None:
        super().__init__(name, executor, scheduler, clock, block_tokens)
        self._law = executor
        self._rank = rank
        self._is_on = False
        self._attained_ns = 0.0  # service that somebody has got who was here all the time
        self._seen_ns = 0  # the time of `attained`
        self._ends: list[tuple[float, int, Sequence]] = []  # at which `attained` each one is done
        self._num_here = 0
        self._timer: Timer | None = None

    def start(self) -> None:
        self._is_on = True
        self._seen_ns = self._clock.now_ns()
        self.rouse()

    def rouse(self) -> None:
        if not self._is_on:
            return
        self._pass()
        for sequence in self._scheduler.join(self._clock.now_ns()):
            end = self._attained_ns + self._law.service_ns(sequence)
            heappush(self._ends, (end, sequence.id, sequence))
            self._num_here += 1
        self._look_ahead()

    def catch_up(self) -> None:
        self._pass()

    def drop(self, sequence: Sequence) -> None:
        self._pass()
        was_here = sequence.is_running
        super().drop(sequence)
        self._num_here -= was_here
        self._retire()
        self.rouse()

    def crash(self) -> None:
        self._pass()
        self._is_on = False
        self._ends.clear()
        self._num_here = 0
        self._look_ahead()
        super().crash()

    def recover(self) -> None:
        self.is_alive = True
        self.start()

    def _pass(self) -> None:
        """Bring what everybody has got up to now."""
        now_ns = self._clock.now_ns()
        if self._num_here:
            self._attained_ns += (now_ns - self._seen_ns) / self._num_here
            self.busy_ns += now_ns - self._seen_ns
        self._seen_ns = now_ns

    def _look_ahead(self) -> None:
        """Wait for the next one to be done."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._ends and self._ends[0][2].is_dropped:
            heappop(self._ends)
        if self._ends:
            left_ns = max(0, round((self._ends[0][0] - self._attained_ns) * self._num_here))
            self._timer = self._clock.call_last(left_ns, self._land, self._rank)

    def _land(self) -> None:
        """The next one is done."""
        self._timer = None
        self._pass()
        end, _, sequence = heappop(self._ends)
        self._attained_ns = max(self._attained_ns, end)  # time is rounded to the nanosecond
        self._num_here -= 1
        self.num_steps += 1
        now_ns = self._clock.now_ns()
        for _ in range(sequence.max_new_tokens):
            sequence.accept(1, now_ns)
        self._retire()
        self.rouse()
