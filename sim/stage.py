"""The stage: an engine under a virtual clock, traffic that walks in, and faults that strike on time."""

import gc
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from inspect import isawaitable

import numpy as np

from engine.clock import to_ns
from engine.engine import Engine
from engine.errors import EngineError, NotFound, UnknownName
from engine.request import Request
from engine.settings import EngineSettings, require
from engine.telemetry import Event
from sim.audit import Census, audit
from sim.faults import Fault, check_replica
from sim.loading import drawn_load_times
from sim.points import Points
from sim.recorder import Recorder
from sim.traffic import Trace
from sim.traffic.trace import Lengths
from sim.world import SimClock

SAMPLES = 1000  # of each time series over the arrivals, unless a run says how far apart
LEAST_SAMPLE_S = 0.25
EVENTS_A_LOOK = 512  # how often the loop looks up from its events to show progress and to see whether to stop

Watcher = Callable[[int, int, int], bool]
"""Told now and then: now_ns, requests ended, events; its answer is whether to stop."""


Act = Callable[[Engine], Event | Awaitable[Event | None] | None]
"""What happens to an engine at a time; the event that it gives back, if any, is told."""


def keep_going(_now_ns: int, _ended: int, _events: int) -> bool:
    """The watcher that watches nothing."""
    return False


@contextmanager
def few_collections() -> Iterator[None]:
    """Look for circles of objects that nobody needs four hundred times less often: requests leave none behind.

    In the loop of workload W these looks are 8 % of the time. What is there already is not looked at meanwhile.
    """
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(400 * before[0], *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


class Followers:
    """Who waits for whose end: the requests that follow each one, 8 bytes a request."""

    __slots__ = ("_ends", "_order")

    def __init__(self, after: Lengths) -> None:
        first = int((after < 0).sum())
        self._order = np.argsort(after, kind="stable")[first:].astype(np.int32)
        self._ends = first_of(after[self._order], len(after))

    def of(self, number: int) -> list[int]:
        """The requests that wait for the end of that one."""
        ends = self._ends
        return self._order[ends.item(number) : ends.item(number + 1)].tolist()  # type: ignore[no-any-return]


def first_of(values: Lengths, count: int) -> Lengths:
    """Where each number from 0 to `count` (inclusive) would stand in sorted `values`."""
    return np.searchsorted(values, np.arange(count + 1)).astype(np.int32)


class Stage:
    """One run: make it, set faults with `at`, then `play` it."""

    def __init__(self, settings: EngineSettings, trace: Trace, sample_every_s: float | None = None) -> None:
        """`sample_every_s`: how far the points of time series are apart; None: so that some thousand come together.

        Raises BadSettings before anything runs.
        """
        self.clock = SimClock()
        self.recorder = Recorder()
        self.census = Census()
        load_times = drawn_load_times(settings.models, settings.seed)
        self.engine = Engine(settings, self.clock, [self.census, self.recorder], load_times=load_times)
        self.trace = trace
        try:
            self._check_vocab()
        except BaseException:
            self.engine.close()
            raise
        self._points = Points(self.engine)
        self._due = len(trace)  # requests, before it is over
        self.events = 0
        self.stopped = False
        self.answers: dict[int, list[int]] | None = None  # of completed requests, where somebody wants them
        self.door: Callable[[], Awaitable[None]] | None = None  # what each request passes before it is served
        self._thins_out = sample_every_s is None
        self._sample_every_ns = to_ns(sample_every_s or LEAST_SAMPLE_S)
        if sample_every_s is None:
            self._sample_every_ns = max(self._sample_every_ns, trace.span_ns // SAMPLES)
        self._coming: Iterator[Request] = iter(())
        self._followers = Followers(trace.after) if trace.after is not None else None

    def _check_vocab(self) -> None:
        fleet, registry, targets = self.engine.fleet, self.engine.registry, self.engine.targets
        for name in self.trace.asked_for:
            is_group = targets.is_group(name)
            try:
                keys = [card.key for card in targets.members(name)] if is_group else [registry.find(name).key]
            except NotFound as error:
                raise UnknownName(f"the workload asks for {name!r}, but {error}") from error
            for key in keys:
                vocab = fleet.vocab_of(key)
                fits = vocab is None or self.trace.vocab <= vocab
                require("workload.vocab", self.trace.vocab, fits, f"at most {vocab}, which {key!r} has")

    def at(self, at_s: float, fault: Fault, setting: str) -> None:
        """Let `fault` strike at that time.

        Raises BadSettings when the fleet has no such replica; `setting` is the key that names it.
        """
        check_replica(setting, fault.replica, self.engine)
        self.clock.spawn(self._strike(at_s, fault))

    def act(self, at_s: float, act: Act) -> None:
        """Let that happen at that time: an operator's hand, a file that comes, a limit that changes."""
        self.clock.spawn(self._do(at_s, act))

    def play(self, watcher: Watcher = keep_going) -> None:
        """Run until every request of the trace has ended, or the watcher says stop.

        Raises Broken when the books of the finished run do not add up.
        """
        self.engine.start()
        numbers: Iterable[int] = range(len(self.trace))
        if self.trace.after is not None:
            numbers = np.flatnonzero(self.trace.after < 0).tolist()
        self._coming = map(self.trace.request, numbers)
        self.clock.call_later(0, self._walk_in)
        self.clock.spawn(self._sample())
        with few_collections():
            self._loop(watcher)
        if self.stopped:
            return
        audit(self.engine, self.recorder, self.census, self.trace)

    def _loop(self, watcher: Watcher) -> None:
        advance = self.clock.advance
        while not self.clock.is_over:
            self.events += advance(EVENTS_A_LOOK)
            if watcher(self.clock.now_ns(), self.census.ended, self.events):
                self.stopped = True
                return

    def close(self) -> None:
        """End what still runs; requests in flight are told to nobody any more."""
        self.engine.telemetry.clear()
        self.clock.close()
        self.engine.close()

    def _walk_in(self, request: Request | None = None) -> None:
        """Requests come, each at its time, whatever becomes of those before it (an open loop)."""
        clock = self.clock
        if request is not None:
            clock.launch(self._serve(request))
        for coming in self._coming:
            wait_ns = coming.arrival_ns - clock.now_ns()
            if wait_ns:
                clock.call_later(wait_ns, partial(self._walk_in, coming))
                return
            clock.launch(self._serve(coming))

    async def _serve(self, request: Request) -> None:
        if self.door is not None:
            await self.door()
            request.arrival_ns = self.clock.now_ns()
        try:
            completion = await self.engine.serve(request)
            if self.answers is not None:
                self.answers[request.id] = completion.tokens
        except EngineError:
            pass  # its outcome and reason are told already: that is the caller's answer
        if self.census.ended == self._due:
            self.clock.is_over = True
        elif self._followers is not None:
            for number in self._followers.of(request.id):
                self._follow(number)

    def _follow(self, number: int) -> None:
        """Let a request come that waited for the end of another one, after its time to think."""
        assert self.trace.think_ns is not None
        self.clock.call_later(self.trace.think_ns.item(number), partial(self._come, number))

    def _come(self, number: int) -> None:
        request = self.trace.request(number)
        request.arrival_ns = self.clock.now_ns()
        self.clock.launch(self._serve(request))

    async def _strike(self, at_s: float, fault: Fault) -> None:
        await self.clock.sleep(to_ns(at_s))
        self.engine.telemetry.emit(await fault.strike(self.engine))

    async def _do(self, at_s: float, act: Act) -> None:
        await self.clock.sleep(to_ns(at_s))
        done = act(self.engine)
        event = await done if isawaitable(done) else done
        if event is not None:
            self.engine.telemetry.emit(event)

    async def _sample(self) -> None:
        while True:
            for _ in range(2 * SAMPLES):
                self.sample()
                await self.clock.sleep(self._sample_every_ns)
            if self._thins_out:  # it takes longer than the arrivals told: sessions wait, or work piles up
                self._sample_every_ns *= 2

    def sample(self) -> None:
        """Take a point of each time series, and look whether the books agree at this moment."""
        self.census.check(self.engine)
        names, values = self._points.take()
        self.recorder.sample_all(self.clock.now_ns(), names, values)
