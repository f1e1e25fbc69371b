"""Jobs, whole: a folder, the runner, schedules from the settings, and offline batches."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from engine.chance import draws
from engine.clock import NS_PER_S, Clock, to_ns
from engine.engine import Engine
from engine.errors import QueueFull
from engine.figures import Figure, Values
from engine.server.bodies import refused
from engine.server.jobs import batches as states
from engine.server.jobs.batch_run import Ask, Office, fail_batch
from engine.server.jobs.batches import Batch, Batches, Problem
from engine.server.jobs.course import Course
from engine.server.jobs.database import Database
from engine.server.jobs.files import Files
from engine.server.jobs.kinds import Tools, checked, kinds
from engine.server.jobs.places import Places
from engine.server.jobs.runner import Lane, Result, Runner
from engine.server.jobs.store import QUEUED, RUNNING, Job, JobStore, Schedule
from engine.server.keys import Holder
from engine.server.settings import JobSettings, LimitsSettings

TIDY_EVERY_S = 3_600.0
PATIENCE_S = 5.0
MAX_SHOWN = 64  # characters of a wrong name
SCHEDULED = {
    "rescan": "rescan_every_s",
    "health_sweep": "health_every_s",
    "cache_scrub": "scrub_every_s",
    "cache_rebalance": "rebalance_every_s",
    "quota_reset": "quota_reset_every_s",
}
"""Kinds that the settings may have done again and again, and what says how often."""


class Jobs:
    """Make it, `start` it when the engine has started, `close` it before the clock is closed."""

    def __init__(
        self,
        folder: Path | None,
        engine: Engine,
        clock: Clock,
        settings: JobSettings,
        ask: Ask,
        is_idle: Callable[[], bool],
        *,
        limits: LimitsSettings | None = None,
        holder_of: Callable[[str], Holder | None] | None = None,
    ) -> None:
        """`ask` is the way of an HTTP request without the socket; `is_idle` says whether batches may go on.

        `holder_of` finds whose key has that id, as long as it opens something: batches of other keys fail. Without a
        folder nothing outlives the process. Raises BadSettings for a folder that is in use, or no good.
        """
        self.settings = settings
        self.limits = limits if limits is not None else LimitsSettings()
        self.clock = clock
        self._database = database = Database(folder)
        self.store = JobStore(database, settings.max_waiting)
        self.files = Files(
            database,
            max_bytes=settings.max_files_bytes,
            max_tenant_bytes=settings.max_tenant_files_bytes,
            max_tenant_files=settings.max_tenant_files,
        )
        self.batches = Batches(
            database,
            max_open=settings.max_tenant_batches,
            max_attempts=settings.max_attempts,
            priority=settings.batch_priority,
        )
        self._office = Office(
            clock=clock,
            batches=self.batches,
            files=self.files,
            ask=ask,
            is_idle=is_idle,
            places=Places(settings.batch_concurrency, clock),
            holder_of=holder_of,
            check_every_s=settings.batch_check_every_s,
            retry_after_s=settings.retry_after_s,
            max_line_bytes=self.limits.max_body_bytes,
            max_requests=settings.max_batch_requests,
            keep_s=settings.keep_s,
        )
        self._tools = Tools(
            engine=engine, clock=clock, settings=settings, office=self._office, store=self.store
        )
        lanes = {name: kinds.find(name).lane for name in kinds.names()}
        lanes[states.KIND] = Lane(at_once=settings.batches_at_once, is_aside=True)
        self.runner = Runner(
            self.store,
            clock,
            self._perform,
            lanes,
            draws(engine.settings.seed, "jobs.retry"),
            life=database.life,
            workers=settings.workers,
            max_attempts=settings.max_attempts,
            retry_after_s=settings.retry_after_s,
        )

    def start(self) -> None:
        """Go on with what an earlier process has left, and begin what is due. Blocks for some milliseconds."""
        now_ns = self.unix_ns()
        self.store.declare(list(self._schedules()), now_ns)
        self.files.sweep(self.batches.kept_files())
        self.runner.start()
        for batch_id, why in self.batches.abandoned():
            fail_batch(self._office, batch_id, Problem("job_failed", why))
        if self.settings.warm_up:
            models = {"models": list(self.settings.warm_up)}
            with suppress(QueueFull):
                self.store.add(
                    "warm_up", models, now_ns, max_attempts=self.settings.max_attempts, dedupe="warm_up"
                )

    async def close(self) -> None:
        """Let what runs come to where it can go on, and let go of the folder."""
        await self.runner.close(PATIENCE_S)
        self._database.close()

    def unix_ns(self) -> int:
        """The time as it is remembered."""
        return self.clock.epoch_ns + self.clock.now_ns()

    # for operators

    async def submit(
        self,
        kind: str,
        arguments: Mapping[str, Any],
        *,
        priority: int = 0,
        delay_s: float = 0.0,
        dedupe: str | None = None,
    ) -> Job:
        """A new job, or the one with the same `dedupe` that is not over. Raises BadRequest, QueueFull."""
        self.check(kind, arguments)
        job, _ = await self.clock.compute(
            lambda: self.store.add(
                kind,
                arguments,
                self.unix_ns(),
                max_attempts=self.settings.max_attempts,
                priority=priority,
                delay_ns=to_ns(delay_s),
                dedupe=dedupe,
            )
        )
        self.runner.call()
        return job

    def check(self, kind: str, arguments: Mapping[str, Any]) -> None:
        """Raise BadRequest for a job that nobody can ask for."""
        known = [name for name in kinds.names() if kinds.find(name).by_hand]
        if kind not in known:
            raise refused("kind", f"kind is {kind[:MAX_SHOWN]!r}, but must be one of {', '.join(known)}")
        checked(kind, arguments)

    async def find(self, number: int) -> Job:
        """Raises NoSuchObject."""
        job, _ = await self.clock.compute(lambda: self.store.find(number))
        return job

    async def cancel(self, number: int) -> Job:
        """Let a job end; that of a batch by way of its batch. Raises NoSuchObject."""
        job = await self.find(number)
        if job.kind != states.KIND:
            return await self.runner.cancel(number)
        batch_id, _ = await self.clock.compute(lambda: self.batches.of_job(number))
        if batch_id is not None and job.state in (QUEUED, RUNNING):
            await self.cancel_batch(batch_id)
        return await self.find(number)

    async def schedule(self, schedule: Schedule) -> Schedule:
        """An operator's word on what is done again and again. Raises BadRequest."""
        self.check(schedule.kind, schedule.arguments)
        put, _ = await self.clock.compute(lambda: self.store.put(schedule, self.unix_ns()))
        self.runner.call()
        return put

    # for clients

    async def create_batch(
        self,
        holder: Holder,
        endpoint: str,
        input_file_id: str,
        *,
        metadata: dict[str, str] | None = None,
        output_expires_s: int | None = None,
    ) -> Batch:
        """A new batch, which runs when the fleet has time. Raises NoSuchObject, NoSpace."""
        batch, _ = await self.clock.compute(
            lambda: self.batches.create(
                holder,
                endpoint,
                input_file_id,
                self.unix_ns(),
                metadata=metadata,
                output_expires_s=output_expires_s,
            )
        )
        self.runner.call()
        return batch

    async def cancel_batch(self, batch_id: str, tenant: str | None = None) -> Batch:
        """Have a batch end; what is answered by then stays. Raises NoSuchObject, BadRequest."""
        batch, _ = await self.clock.compute(lambda: self.batches.cancel(batch_id, tenant, self.unix_ns()))
        if not batch.is_over:
            self.runner.interrupt(batch.job)
        return batch

    # figures

    def figures(self) -> Iterator[Figure]:
        """What waits and runs, how tries have ended, and what batches and their files take."""
        runner, office = self.runner, self._office
        ended: Values = {key: float(number) for key, number in runner.runs.items()}
        yield Figure("modelyard:job_runs", "Tries of jobs that have ended.", ("kind", "outcome"), ended)
        waiting: Values = {(kind,): float(number) for kind, number in runner.waiting.items()}
        yield Figure("modelyard:jobs_waiting", "Jobs that wait.", ("kind",), waiting, is_gauge=True)
        running: Values = {(kind,): float(number) for kind, number in runner.running().items()}
        yield Figure("modelyard:jobs_running", "Jobs that run.", ("kind",), running, is_gauge=True)
        faults: Values = {(): float(runner.num_faults)}
        yield Figure("modelyard:job_store_faults", "Writes of the jobs' database that failed.", (), faults)
        asked: Values = {
            ("asked",): float(office.num_asked),
            ("deferred",): float(office.num_deferred),
        }
        yield Figure("modelyard:batch_requests", "Requests of offline batches.", ("outcome",), asked)
        held: Values = {(): float(self.files.num_bytes)}
        yield Figure("modelyard:batch_file_bytes", "Bytes of files of batches.", (), held, is_gauge=True)

    # inside

    async def _perform(self, job: Job, course: Course) -> Result:
        arguments = checked(job.kind, job.arguments)
        return await kinds.make(job.kind, self._tools, arguments).run(course)

    def _schedules(self) -> Iterator[Schedule]:
        """What the settings want done again and again."""
        yield Schedule(name="tidy", kind="tidy", arguments={}, every_ns=to_ns(TIDY_EVERY_S))
        for kind, key in SCHEDULED.items():
            every_s = getattr(self.settings, key)
            if every_s is not None:
                yield Schedule(name=kind, kind=kind, arguments={}, every_ns=max(1, round(every_s * NS_PER_S)))
