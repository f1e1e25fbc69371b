"""Who runs jobs: looks at the clock, takes whose turn it is, and writes down how they end.

One loop does all of the writing but for what jobs save of themselves. It looks again when something is due, when
somebody has called, and every few seconds so that those that run count as alive. Where the database fails it comes
back later; nothing that has ended is forgotten meanwhile.
"""

import sqlite3
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from engine.clock import Clock, Signal, to_ns
from engine.errors import EngineError
from engine.server.disk import is_full
from engine.server.jobs.course import Cancelled, Course, Later, Stopped, is_hopeless
from engine.server.jobs.store import (
    CANCELLED,
    DONE,
    FAILED,
    QUEUED,
    Ending,
    Job,
    JobStore,
    Turn,
)

Result = dict[str, Any]
Perform = Callable[[Job, Course], Awaitable[Result]]

HEARTBEAT_S = 5.0
MAX_RETRY_AFTER_S = 3_600.0
FULL_S = 10.0
"""When a job comes again that has met a full disk. That is no try in vain: it goes on when there is room."""


@dataclass(slots=True, kw_only=True)
class Lane:
    """How many jobs of a kind run at a time; `is_aside`: they take no worker, for they wait most of the time."""

    at_once: int = 1
    is_aside: bool = False


class Runner:
    """Runs jobs of the `lanes`' kinds by `perform`, at most `workers` at a time."""

    def __init__(
        self,
        store: JobStore,
        clock: Clock,
        perform: Perform,
        lanes: Mapping[str, Lane],
        chance: Callable[[], float],
        *,
        life: int,
        workers: int,
        max_attempts: int,
        retry_after_s: float,
    ) -> None:
        self.runs: Counter[tuple[str, str]] = Counter()  # tries that have ended, by kind and how
        self.waiting: dict[str, int] = {}  # by kind, as of the last look
        self.num_faults = 0  # of the database
        self._store = store
        self._clock = clock
        self._perform = perform
        self._lanes = lanes
        self._chance = chance
        self._life = life
        self._workers = workers
        self._max_attempts = max_attempts
        self._retry_after_s = retry_after_s
        self._courses: dict[int, Course] = {}  # of all that run, and of those whose end is not written yet
        self._endings: dict[int, Ending] = {}
        self._cancelled: set[int] = set()  # heard of while they were being taken
        self._woken: Signal | None = None
        self._is_called = False
        self._is_closing = False
        self._is_serving = False
        self._idle: Signal | None = None

    @property
    def num_running(self) -> int:
        return len(self._courses) - len(self._endings)

    def running(self) -> Counter[str]:
        """How many run, by kind."""
        return Counter(
            course.job.kind for number, course in self._courses.items() if number not in self._endings
        )

    def unix_ns(self) -> int:
        """The time as it is remembered."""
        return self._clock.epoch_ns + self._clock.now_ns()

    def start(self) -> None:
        """Begin to look. Who ran in an earlier process waits from now on: a blocking write."""
        self._store.begin(self.unix_ns())
        self._is_serving = True
        self._clock.spawn(self._serve())

    def call(self) -> None:
        """Something may be due."""
        self._is_called = True
        if self._woken is not None:
            self._woken.set()

    async def cancel(self, number: int) -> Job:
        """Let a job end: at once if it waits, where it saves next if it runs. Raises NoSuchObject."""
        job, _ = await self._clock.compute(lambda: self._store.cancel(number, self.unix_ns()))
        if job.state == "running":
            course = self._courses.get(number)
            if course is not None:
                course.cancel()
            else:
                self._cancelled.add(number)
        self.call()
        return job

    def interrupt(self, number: int) -> None:
        """Let a job that runs be cancelled where it saves next, without a word in the database: its kind has one."""
        course = self._courses.get(number)
        if course is not None:
            course.cancel()
        self.call()

    async def close(self, patience_s: float) -> None:
        """Take nothing more, and let what runs come to where it saves; the next process takes it up from there."""
        self._is_closing = True
        self.call()
        for course in self._courses.values():
            course.stop()
        if self.num_running or self._is_serving:
            self._idle = idle = self._clock.signal()
            timer = self._clock.call_later(to_ns(patience_s), idle.set)
            await idle.wait()
            timer.cancel()
        running = [number for number in self._courses if number not in self._endings]
        try:
            await self._clock.compute(lambda: self._store.leave(dict(self._endings), running, self.unix_ns()))
        except sqlite3.Error:  # the next process finds out who ran
            self.num_faults += 1

    async def _serve(self) -> None:
        """Look, begin what is due, and wait for the next time."""
        try:
            while not self._is_closing:
                self._is_called = False
                wait_ns = to_ns(HEARTBEAT_S)
                try:
                    turn = await self._look()
                except sqlite3.Error:
                    self.num_faults += 1
                else:
                    self.waiting = turn.waiting
                    for job in turn.jobs:
                        self._begin(job)
                    if turn.next_ns is not None:
                        wait_ns = min(wait_ns, max(0, turn.next_ns - self.unix_ns()))
                await self._wait(wait_ns)
        finally:
            self._is_serving = False
            self._tell_idle()

    async def _look(self) -> Turn:
        endings = dict(self._endings)
        running = [number for number in self._courses if number not in endings]
        kinds = Counter(self._courses[number].job.kind for number in running)
        aside = {kind for kind, lane in self._lanes.items() if lane.is_aside}
        free = {kind: lane.at_once - kinds[kind] for kind, lane in self._lanes.items()}
        workers = self._workers - sum(number for kind, number in kinds.items() if kind not in aside)
        turn, _ = await self._clock.compute(
            lambda: self._store.turn(
                self.unix_ns(),
                self._life,
                endings=endings,
                running=running,
                free=free,
                workers=workers,
                aside=aside,
                max_attempts=self._max_attempts,
            )
        )
        for number in endings:
            del self._endings[number], self._courses[number]
        return turn

    async def _wait(self, wait_ns: int) -> None:
        if self._is_called or self._is_closing:
            return
        self._woken = woken = self._clock.signal()
        timer = self._clock.call_later(wait_ns, woken.set)
        await woken.wait()
        timer.cancel()
        self._woken = None

    def _begin(self, job: Job) -> None:
        course = Course(job, self._clock, self._save)
        self._courses[job.id] = course
        if job.id in self._cancelled:
            self._cancelled.discard(job.id)
            course.cancel()
        if self._is_closing:
            course.stop()
        self._clock.spawn(self._run(job, course))

    async def _run(self, job: Job, course: Course) -> None:
        try:
            course.check()
            ending = Ending(state=DONE, result=await self._perform(job, course))
        except Cancelled:
            ending = Ending(state=CANCELLED)
        except Stopped:
            ending = Ending(state=QUEUED, is_counted=False)
        except Later as later:
            ending = Ending(state=QUEUED, is_counted=False, delay_ns=later.delay_ns)
        except Exception as error:  # noqa: BLE001  whatever it is: it is this job's, and is told there
            ending = self._failed(job, error)
        except BaseException:  # the clock is closed: it goes on in the next process
            self._endings[job.id] = Ending(state=QUEUED, is_counted=False)
            self._tell_idle()
            raise
        self.runs[job.kind, "retried" if ending.error and ending.state == QUEUED else ending.state] += 1
        self._endings[job.id] = ending
        self.call()
        self._tell_idle()

    def _failed(self, job: Job, error: Exception) -> Ending:
        """Again later, twice as late each time and not when all others do; or never."""
        why = str(error) if isinstance(error, EngineError) else f"{type(error).__name__}: {error}"
        if is_full(error):
            return Ending(state=QUEUED, error=why, delay_ns=to_ns(FULL_S), is_counted=False)
        if is_hopeless(error) or job.attempts >= job.max_attempts:
            return Ending(state=FAILED, error=why)
        longest_s = self._retry_after_s * 2 ** min(job.attempts - 1, 32)
        delay_s = min(MAX_RETRY_AFTER_S, longest_s) * (0.5 + 0.5 * self._chance())
        return Ending(state=QUEUED, error=why, delay_ns=to_ns(delay_s))

    async def _save(self, job: Job) -> None:
        await self._clock.compute(
            lambda: self._store.save(
                job.id,
                done=job.done,
                total=job.total,
                note=job.note,
                checkpoint=job.checkpoint,
                now_ns=self.unix_ns(),
            )
        )

    def _tell_idle(self) -> None:
        if self._idle is not None and not self.num_running and not self._is_serving:
            self._idle.set()
