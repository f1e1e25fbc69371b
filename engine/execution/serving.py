"""Servers before one line: each serves one request at a time, for as long as its service time says."""

from dataclasses import dataclass
from functools import partial

from engine.clock import Clock, Timer
from engine.execution.executor import Sequence
from engine.execution.law import LawExecutor
from engine.execution.loops import Loop
from engine.execution.scheduler import Scheduler


@dataclass(slots=True)
class Service:
    """A sequence that is being served: when that is over, and the timer of it."""

    sequence: Sequence
    end_ns: int
    timer: Timer


class Serving(Loop):
    """As many servers as the batch has places, and one line before them. For queueing theory.

    Where it `gives_way`, somebody who comes and is worth more than the least of those who are served takes that one's
    server; the other one waits at the head of its equals, and is served for what is left (preemptive resume). O(1) an
    arrival or an end, O(servers) where somebody gives way.
    """

    def __init__(
        self,
        name: str,
        executor: LawExecutor,
        scheduler: Scheduler,
        clock: Clock,
        block_tokens: int,
        rank: int,
        *,
        gives_way: bool,
    ) -> None:
        super().__init__(name, executor, scheduler, clock, block_tokens)
        self._law = executor
        self._rank = rank
        self._gives_way = gives_way
        self._is_on = False
        self._served: dict[int, Service] = {}  # in the order of their beginning
        self._left_ns: dict[int, int] = {}  # of the service of those who gave way
        self._seen_ns = 0  # up to when `busy_ns` is counted
        self._beginning: Timer | None = None

    def start(self) -> None:
        self._is_on = True
        self.rouse()

    def rouse(self) -> None:
        if not self._is_on or self._beginning is not None:
            return
        if self._gives_way or not self._scheduler.is_full:
            self._beginning = self._clock.call_last(0, self._begin, self._rank)

    def catch_up(self) -> None:
        """Count the time in which somebody was served, up to now."""
        now_ns = self._clock.now_ns()
        if self._served:
            self.busy_ns += now_ns - self._seen_ns
        self._seen_ns = now_ns

    def drop(self, sequence: Sequence) -> None:
        self.catch_up()
        super().drop(sequence)
        self._left_ns.pop(sequence.id, None)
        service = self._served.pop(sequence.id, None)
        if service is not None:
            service.timer.cancel()
            self._retire()
            self.rouse()

    def crash(self) -> None:
        self.catch_up()
        self._is_on = False
        for service in self._served.values():
            service.timer.cancel()
        self._served.clear()
        self._left_ns.clear()
        if self._beginning is not None:
            self._beginning.cancel()
            self._beginning = None
        super().crash()

    def recover(self) -> None:
        self.is_alive = True
        self.start()

    def _begin(self) -> None:
        """Everybody who is due at this nanosecond stands in the line."""
        self._beginning = None
        self.catch_up()
        self._take()
        if self._gives_way:
            while (service := self._outranked()) is not None:
                self._suspend(service)
                self._take()

    def _take(self) -> None:
        """Begin to serve whom there is a server for."""
        now_ns = self._clock.now_ns()
        for sequence in self._scheduler.join(now_ns):
            left_ns = self._left_ns.pop(sequence.id, None)
            service_ns = self._law.service_ns(sequence) if left_ns is None else left_ns
            timer = self._clock.call_last(service_ns, partial(self._land, sequence), self._rank)
            self._served[sequence.id] = Service(sequence, now_ns + service_ns, timer)

    def _outranked(self) -> Service | None:
        """Who has to give way to the first of those who wait: the least; of equals the one that began last."""
        waiting, now_ns = self._scheduler.waiting, self._clock.now_ns()
        if not len(waiting):
            return None
        services = [each for each in reversed(self._served.values()) if each.end_ns > now_ns]
        least = min(services, key=lambda each: each.sequence.priority, default=None)
        if least is None or least.sequence.priority >= waiting[0].priority:
            return None
        return least

    def _suspend(self, service: Service) -> None:
        sequence = service.sequence
        service.timer.cancel()
        del self._served[sequence.id]
        self._left_ns[sequence.id] = service.end_ns - self._clock.now_ns()
        self._scheduler.suspend(sequence)
        self.num_preemptions += 1
        if sequence.preempted is not None:
            sequence.preempted(0)

    def _land(self, sequence: Sequence) -> None:
        """One is done: it leaves, and the next one begins."""
        self.catch_up()
        del self._served[sequence.id]
        self.num_steps += 1
        now_ns = self._clock.now_ns()
        for _ in range(sequence.max_new_tokens):
            sequence.accept(1, now_ns)
        self._retire()
        if self._beginning is None:
            self._begin()
