"""What a running job is handed: it tells how far it is, and hears when it is to end."""

from collections.abc import Awaitable, Callable
from typing import Any

from engine.clock import Clock, Signal
from engine.errors import BadSettings, EngineError, OverQuota
from engine.server.jobs.store import Job

CLIENT_ERROR, SERVER_ERROR = 400, 500


class Cancelled(Exception):
    """Somebody has said that the job is to end for good."""


class Stopped(Exception):
    """The process ends; the job goes on from its checkpoint in the next one."""


class Later(Exception):
    """There is nothing to do for so long: the job gives its place to others, and goes on from its checkpoint then."""

    def __init__(self, delay_ns: int) -> None:
        super().__init__()
        self.delay_ns = delay_ns


Save = Callable[[Job], Awaitable[None]]


class Course:
    """One try of a job. `checkpoint` is what the last one has left, None at the very first.

    A job ends where it saves, pauses or checks: these raise Cancelled or Stopped when it is to.
    """

    def __init__(self, job: Job, clock: Clock, save: Save) -> None:
        self.job = job
        self.clock = clock
        self.is_cancelled = bool(job.is_cancelled)
        self.is_stopped = False
        self._save = save
        self._woken: Signal | None = None

    @property
    def checkpoint(self) -> Any:
        return self.job.checkpoint

    @property
    def is_last_try(self) -> bool:
        """Whether nobody tries it again when this one fails."""
        return self.job.attempts >= self.job.max_attempts

    def check(self) -> None:
        """Raise Cancelled or Stopped when the job is to end."""
        if self.is_cancelled:
            raise Cancelled
        if self.is_stopped:
            raise Stopped

    async def save(
        self, done: int, total: int | None = None, *, checkpoint: Any = None, note: str = ""
    ) -> None:
        """So many parts are done, of so many; `checkpoint` is JSON to go on from. On disk when this returns."""
        job = self.job
        if done > job.done:
            job.attempts = 1
        job.done, job.total, job.note, job.checkpoint = done, total, note, checkpoint
        await self._save(job)
        self.check()

    async def pause(self, delay_ns: int) -> None:
        """Let time pass; less when the job is to end, or is woken."""
        self.check()
        self._woken = woken = self.clock.signal()
        timer = self.clock.call_later(delay_ns, woken.set)
        try:
            await woken.wait()
        finally:
            timer.cancel()
            self._woken = None
        self.check()

    def wake(self) -> None:
        """Let a pause be over."""
        if self._woken is not None:
            self._woken.set()

    def cancel(self) -> None:
        """Somebody has said so."""
        self.is_cancelled = True
        self.wake()

    def stop(self) -> None:
        """The process ends."""
        self.is_stopped = True
        self.wake()


def is_hopeless(error: Exception) -> bool:
    """Whether trying again would end the same way: what was asked for is wrong."""
    if isinstance(error, BadSettings):
        return True
    if isinstance(error, OverQuota):
        return False
    return isinstance(error, EngineError) and CLIENT_ERROR <= error.status < SERVER_ERROR
