"""Jobs and schedules as they are remembered: who waits, who runs, how far they are, and how they ended.

Times are unix times in nanoseconds. Blocking calls, for worker threads.
"""

import json
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from engine.clock import NS_PER_S
from engine.errors import QueueFull
from engine.server.jobs.database import Database
from engine.server.jobs.faults import NoSuchObject

QUEUED, RUNNING, DONE, FAILED, CANCELLED = "queued", "running", "done", "failed", "cancelled"
OVER = (DONE, FAILED, CANCELLED)
STATES = (QUEUED, RUNNING, *OVER)
PRUNED_AT_ONCE = 1_000

JSON_FIELDS = ("arguments", "checkpoint", "result")


@dataclass(slots=True)
class Job:
    """A job, whatever it is doing. `attempts` are tries in a row of which none got further than the one before."""

    id: int
    kind: str
    arguments: dict[str, Any]
    dedupe: str | None
    state: str
    priority: int
    attempts: int
    max_attempts: int
    created_ns: int
    queued_ns: int
    run_at_ns: int
    started_ns: int | None
    finished_ns: int | None
    heartbeat_ns: int | None
    life: int | None
    is_cancelled: int
    done: int
    total: int | None
    note: str
    checkpoint: Any
    result: Any
    error: str | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON, with times in seconds."""
        found: dict[str, Any] = {
            "id": self.id,
            "object": "job",
            "kind": self.kind,
            "arguments": self.arguments,
            "state": self.state,
            "priority": self.priority,
            "attempts": self.attempts,
            "max_attempts": self.max_attempts,
            "progress": {"done": self.done, "total": self.total, "note": self.note},
            "result": self.result,
            "error": self.error,
        }
        for name in ("created", "run_at", "started", "finished", "heartbeat"):
            at_ns = getattr(self, f"{name}_ns")
            found[name] = None if at_ns is None else at_ns / NS_PER_S
        return found


@dataclass(slots=True, kw_only=True)
class Ending:
    """How a try ended. A job that is `queued` again waits for `delay_ns`; `is_counted`: it was a try in vain."""

    state: str
    result: dict[str, Any] | None = None
    error: str | None = None
    delay_ns: int = 0
    is_counted: bool = True


@dataclass(slots=True, kw_only=True)
class Schedule:
    """A job that comes again and again. `is_edited`: an operator's word, which goes before the settings'."""

    name: str
    kind: str
    arguments: dict[str, Any]
    every_ns: int
    is_on: bool = True
    is_edited: bool = False
    last_ns: int = 0
    skipped: int = 0  # times at which the one before was still running

    def as_dict(self) -> dict[str, Any]:
        """For JSON, with times in seconds."""
        found = asdict(self)
        every_ns, last_ns = found.pop("every_ns"), found.pop("last_ns")
        return {**found, "object": "schedule", "every_s": every_ns / NS_PER_S, "last": last_ns / NS_PER_S}


@dataclass(slots=True)
class Turn:
    """What a look at the clock brought: jobs whose turn it is, and when to look again at the latest."""

    jobs: list[Job]
    waiting: dict[str, int]  # by kind
    next_ns: int | None


class JobStore:
    """The tables of jobs and schedules."""

    def __init__(self, database: Database, max_waiting: int) -> None:
        self._database = database
        self._max_waiting = max_waiting

    # jobs

    def add(
        self,
        kind: str,
        arguments: Mapping[str, Any],
        now_ns: int,
        *,
        max_attempts: int,
        priority: int = 0,
        delay_ns: int = 0,
        dedupe: str | None = None,
    ) -> Job:
        """A new job; where one with the same `dedupe` waits or runs, that one. Raises QueueFull."""
        with self._database.change() as database:
            if dedupe is not None and (alive := _alive(database, dedupe)) is not None:
                return alive
            (waiting,) = database.execute("SELECT count(*) FROM jobs WHERE state = 'queued'").fetchone()
            if waiting >= self._max_waiting:
                raise QueueFull(f"{waiting} jobs wait, as many as server.jobs.max_waiting allows")
            number = _insert(
                database, kind, arguments, now_ns, priority, max_attempts, delay_ns=delay_ns, dedupe=dedupe
            )
            return _job(database.execute("SELECT * FROM jobs WHERE id = ?", (number,)).fetchone())

    def find(self, number: int) -> Job:
        """Raises NoSuchObject."""
        rows = self._database.read("SELECT * FROM jobs WHERE id = ?", (number,))
        if not rows:
            raise NoSuchObject(f"no job has the id {number}")
        return _job(rows[0])

    def page(
        self, *, state: str | None = None, kind: str | None = None, after: int | None = None, limit: int = 100
    ) -> list[Job]:
        """The latest first, those before `after` (an id)."""
        conditions, values = ["id < ?"], [after if after is not None else 1 << 62]
        wanted: list[Any] = [*values]
        for column, value in (("state", state), ("kind", kind)):
            if value is not None:
                conditions.append(f"{column} = ?")
                wanted.append(value)
        where = " AND ".join(conditions)
        rows = self._database.read(
            f"SELECT * FROM jobs WHERE {where} ORDER BY id DESC LIMIT ?",  # noqa: S608  only our own words
            [*wanted, limit],
        )
        return [_job(row) for row in rows]

    def count(self) -> dict[tuple[str, str], int]:
        """How many there are, by kind and state."""
        rows = self._database.read("SELECT kind, state, count(*) FROM jobs GROUP BY kind, state")
        return {(row[0], row[1]): row[2] for row in rows}

    def cancel(self, number: int, now_ns: int) -> Job:
        """Let a job that waits be over; one that runs is marked. Nothing happens to one that is over."""
        with self._database.change() as database:
            database.execute(
                "UPDATE jobs SET state = 'cancelled', finished_ns = ?, is_cancelled = 1 "
                "WHERE id = ? AND state = 'queued'",
                (now_ns, number),
            )
            database.execute("UPDATE jobs SET is_cancelled = 1 WHERE id = ? AND state = 'running'", (number,))
        return self.find(number)

    def save(
        self, number: int, *, done: int, total: int | None, note: str, checkpoint: Any, now_ns: int
    ) -> None:
        """How far a job is. Having got further makes its tries begin at one again."""
        with self._database.change() as database:
            database.execute(
                "UPDATE jobs SET attempts = CASE WHEN ? > done THEN 1 ELSE attempts END, done = ?, total = ?, "
                "note = ?, checkpoint = ?, heartbeat_ns = ? WHERE id = ? AND state = 'running'",
                (done, done, total, note, json.dumps(checkpoint), now_ns, number),
            )

    def begin(self, now_ns: int) -> int:
        """Take over from earlier processes: what ran in them waits again; how many did.

        What was cut off as often as it may, without getting further, has failed: it may be what ends the process.
        Where the clock has gone back since, whoever waits is not made to wait longer for it.
        """
        with self._database.change() as database:
            database.execute(
                "UPDATE jobs SET run_at_ns = ? + (run_at_ns - queued_ns), queued_ns = ? "
                "WHERE state = 'queued' AND queued_ns > ?",
                (now_ns, now_ns, now_ns),
            )
            database.execute("UPDATE schedules SET last_ns = ? WHERE last_ns > ?", (now_ns, now_ns))
            database.execute(
                "UPDATE jobs SET state = 'cancelled', finished_ns = ? "
                "WHERE state IN ('queued', 'running') AND is_cancelled",
                (now_ns,),
            )
            database.execute(
                "UPDATE jobs SET state = 'failed', finished_ns = ?, "
                "error = 'the process ended while it ran, ' || attempts || ' times without getting further' "
                "WHERE state = 'running' AND attempts >= max_attempts",
                (now_ns,),
            )
            cut_off = database.execute(
                "UPDATE jobs SET state = 'queued', queued_ns = ?, run_at_ns = ? WHERE state = 'running'",
                (now_ns, now_ns),
            ).rowcount
        return int(cut_off)

    def turn(
        self,
        now_ns: int,
        life: int,
        *,
        endings: Mapping[int, Ending],
        running: Collection[int],
        free: Mapping[str, int],
        workers: int,
        aside: Collection[str],
        max_attempts: int,
    ) -> Turn:
        """Write down who has ended and who is alive, let schedules begin what is due, and take whose turn it is.

        `free` is how many more of each kind may run, `workers` how many more of those together that are not `aside`.
        """
        with self._database.change() as database:
            for number, ending in endings.items():
                _end(database, number, ending, now_ns)
            for number in running:
                database.execute("UPDATE jobs SET heartbeat_ns = ? WHERE id = ?", (now_ns, number))
            next_ns = _begin_scheduled(database, now_ns, max_attempts)
            taken = _take(database, now_ns, life, dict(free), workers, aside)
            waits = database.execute(
                "SELECT min(run_at_ns) FROM jobs WHERE state = 'queued' AND run_at_ns > ?", (now_ns,)
            ).fetchone()[0]
            waiting = dict(
                database.execute(
                    "SELECT kind, count(*) FROM jobs WHERE state = 'queued' GROUP BY kind"
                ).fetchall()
            )
        times = [each for each in (next_ns, waits) if each is not None]
        return Turn(taken, waiting, min(times, default=None))

    def leave(self, endings: Mapping[int, Ending], running: Collection[int], now_ns: int) -> None:
        """The process ends: what runs in it waits for the next one, and nothing was in vain."""
        with self._database.change() as database:
            for number, ending in endings.items():
                _end(database, number, ending, now_ns)
            for number in running:
                _end(database, number, Ending(state=QUEUED, is_counted=False), now_ns)

    def prune(self, before_ns: int) -> int:
        """Forget jobs that were over by then, some at a time; how many."""
        with self._database.change() as database:
            return database.execute(
                "DELETE FROM jobs WHERE id IN (SELECT id FROM jobs WHERE state IN ('done', 'failed', 'cancelled') "
                "AND finished_ns < ? LIMIT ?)",
                (before_ns, PRUNED_AT_ONCE),
            ).rowcount

    # schedules

    def schedules(self) -> list[Schedule]:
        """All, by name."""
        return [_schedule(row) for row in self._database.read("SELECT * FROM schedules ORDER BY name")]

    def declare(self, schedules: Sequence[Schedule], now_ns: int) -> None:
        """Take over what the settings say, but for what an operator has said since. Each keeps when it was last due.

        A new one is due for the first time when its interval has passed.
        """
        with self._database.change() as database:
            names = [each.name for each in schedules]
            marks = ", ".join("?" * len(names))
            database.execute(
                f"DELETE FROM schedules WHERE NOT is_edited AND name NOT IN ({marks})",  # noqa: S608  question marks
                names,
            )
            for each in schedules:
                _put(database, each, now_ns, "WHERE NOT schedules.is_edited")

    def put(self, schedule: Schedule, now_ns: int) -> Schedule:
        """An operator's word on a schedule, old or new."""
        with self._database.change() as database:
            _put(database, schedule, now_ns, "WHERE true")
            row = database.execute("SELECT * FROM schedules WHERE name = ?", (schedule.name,)).fetchone()
        return _schedule(row)


def _alive(database: sqlite3.Connection, dedupe: str) -> Job | None:
    row = database.execute(
        "SELECT * FROM jobs WHERE dedupe = ? AND state IN ('queued', 'running')", (dedupe,)
    ).fetchone()
    return None if row is None else _job(row)


def _insert(
    database: sqlite3.Connection,
    kind: str,
    arguments: Mapping[str, Any],
    now_ns: int,
    priority: int,
    max_attempts: int,
    *,
    delay_ns: int = 0,
    dedupe: str | None = None,
) -> int:
    number = database.execute(
        "INSERT INTO jobs (kind, arguments, dedupe, state, priority, attempts, max_attempts, created_ns, queued_ns, "
        "run_at_ns) VALUES (?, ?, ?, 'queued', ?, 0, ?, ?, ?, ?)",
        (kind, json.dumps(arguments), dedupe, priority, max_attempts, now_ns, now_ns, now_ns + delay_ns),
    ).lastrowid
    assert number is not None
    return number


def _end(database: sqlite3.Connection, number: int, ending: Ending, now_ns: int) -> None:
    if ending.state == QUEUED:
        database.execute(
            "UPDATE jobs SET state = 'queued', queued_ns = ?, run_at_ns = ?, error = ?, attempts = attempts - ? "
            "WHERE id = ? AND state = 'running'",
            (now_ns, now_ns + ending.delay_ns, ending.error, not ending.is_counted, number),
        )
        return
    database.execute(
        "UPDATE jobs SET state = ?, finished_ns = ?, result = ?, error = ? WHERE id = ? AND state = 'running'",
        (ending.state, now_ns, json.dumps(ending.result), ending.error, number),
    )


def _begin_scheduled(database: sqlite3.Connection, now_ns: int, max_attempts: int) -> int | None:
    """Let jobs begin that are due, once however often they were missed; when the next one is due.

    The job and the time at which it was due are written together, so that no restart skips or doubles one.
    """
    next_ns: int | None = None
    for row in database.execute("SELECT * FROM schedules WHERE is_on").fetchall():
        schedule = _schedule(row)
        last_ns = min(schedule.last_ns, now_ns)
        passed = (now_ns - last_ns) // schedule.every_ns
        if passed:
            last_ns += passed * schedule.every_ns
            dedupe = f"schedule:{schedule.name}"
            is_alive = _alive(database, dedupe) is not None
            if not is_alive:
                _insert(database, schedule.kind, schedule.arguments, now_ns, 0, max_attempts, dedupe=dedupe)
            database.execute(
                "UPDATE schedules SET last_ns = ?, skipped = skipped + ? WHERE name = ?",
                (last_ns, is_alive, schedule.name),
            )
        due_ns = last_ns + schedule.every_ns
        next_ns = due_ns if next_ns is None else min(next_ns, due_ns)
    return next_ns


def _take(
    database: sqlite3.Connection,
    now_ns: int,
    life: int,
    free: dict[str, int],
    workers: int,
    aside: Collection[str],
) -> list[Job]:
    """The jobs whose turn it is: the highest priority first, then who has waited longest."""
    taken: list[Job] = []
    while True:
        open_kinds = [kind for kind, room in free.items() if room > 0 and (workers > 0 or kind in aside)]
        marks = ", ".join("?" * len(open_kinds))
        row = database.execute(
            f"SELECT * FROM jobs WHERE state = 'queued' AND run_at_ns <= ? AND kind IN ({marks}) "  # noqa: S608
            "ORDER BY priority DESC, run_at_ns, id LIMIT 1",
            (now_ns, *open_kinds),
        ).fetchone()
        if row is None:
            return taken
        database.execute(
            "UPDATE jobs SET state = 'running', attempts = attempts + 1, life = ?, heartbeat_ns = ?, error = NULL, "
            "started_ns = coalesce(started_ns, ?) WHERE id = ?",
            (life, now_ns, now_ns, row["id"]),
        )
        job = _job(database.execute("SELECT * FROM jobs WHERE id = ?", (row["id"],)).fetchone())
        free[job.kind] -= 1
        workers -= job.kind not in aside
        taken.append(job)


def _put(database: sqlite3.Connection, schedule: Schedule, now_ns: int, condition: str) -> None:
    database.execute(
        "INSERT INTO schedules (name, kind, arguments, every_ns, is_on, is_edited, last_ns, skipped) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, 0) ON CONFLICT (name) DO UPDATE SET kind = excluded.kind, "
        "arguments = excluded.arguments, every_ns = excluded.every_ns, is_on = excluded.is_on, "
        "is_edited = excluded.is_edited " + condition,
        (
            schedule.name,
            schedule.kind,
            json.dumps(schedule.arguments),
            schedule.every_ns,
            schedule.is_on,
            schedule.is_edited,
            now_ns,
        ),
    )


def _job(row: sqlite3.Row) -> Job:
    found = dict(row)
    for name in JSON_FIELDS:
        if found[name] is not None:
            found[name] = json.loads(found[name])
    return Job(**found)


def _schedule(row: sqlite3.Row) -> Schedule:
    found = dict(row)
    found["arguments"] = json.loads(found["arguments"])
    found["is_on"], found["is_edited"] = bool(found["is_on"]), bool(found["is_edited"])
    return Schedule(**found)
