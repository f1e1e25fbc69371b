"""Offline batches as they are known: whose they are, what became of them and when, as OpenAI's API has it."""

import sqlite3
from collections.abc import Callable
from typing import Any

import msgspec

from engine.errors import BadRequest
from engine.server.jobs.database import Database
from engine.server.jobs.faults import NoSpace, NoSuchObject
from engine.server.jobs.files import MAX_NAME, new_id, no_file
from engine.server.keys import Holder

ENDPOINTS = ("/v1/chat/completions", "/v1/completions")
WINDOW, WINDOW_S = "24h", 86_400
KIND = "batch"

VALIDATING, IN_PROGRESS, FINALIZING, CANCELLING = "validating", "in_progress", "finalizing", "cancelling"
COMPLETED, FAILED, EXPIRED, CANCELLED = "completed", "failed", "expired", "cancelled"
OVER = (COMPLETED, FAILED, EXPIRED, CANCELLED)

MAX_PAIRS, MAX_KEY, MAX_VALUE = 16, 64, 512
PRUNED_AT_ONCE = 500


class Author(msgspec.Struct, kw_only=True):
    """What the key that made a batch opened then. The key itself is not kept."""

    id: str
    tenant: str
    name: str = ""
    models: list[str] | None = None
    max_priority: int | None = None

    @classmethod
    def of(cls, holder: Holder) -> "Author":
        models = None if holder.models is None else sorted(holder.models)
        return cls(
            id=holder.id,
            tenant=holder.tenant,
            name=holder.name,
            models=models,
            max_priority=holder.max_priority,
        )

    def holder(self) -> Holder:
        """In whose name its requests are made."""
        models = None if self.models is None else frozenset(self.models)
        return Holder(
            id=self.id,
            tenant=self.tenant,
            name=self.name,
            models=models,
            max_priority=self.max_priority,
        )


class Problem(msgspec.Struct):
    """What is wrong with a batch, and in which line."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class Used(msgspec.Struct):
    """Tokens of all answers together."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0


class Batch(msgspec.Struct, kw_only=True):
    """A batch, its times in unix seconds. Its two files have ids from the beginning, which are told at the end."""

    id: str
    author: Author
    endpoint: str
    input_file_id: str
    created_at: int
    expires_at: int
    completion_window: str = WINDOW
    metadata: dict[str, str] | None = None
    output_expires_s: int | None = None
    status: str = VALIDATING
    ends_as: str = ""  # once it is finalizing
    job: int = 0
    model: str | None = None
    total: int = 0
    last_line: int = 0
    completed: int = 0
    failed: int = 0
    used: Used = msgspec.field(default_factory=Used)
    errors: list[Problem] = []
    output_file_id: str = ""
    error_file_id: str = ""
    has_output: bool = False
    has_errors: bool = False
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None

    @property
    def tenant(self) -> str:
        return self.author.tenant

    @property
    def is_over(self) -> bool:
        return self.status in OVER

    def move(self, status: str, now_s: int) -> None:
        """It is in another state from now on; the first time counts."""
        self.status = status
        name = f"{status}_at"
        if getattr(self, name) is None:
            setattr(self, name, now_s)

    def as_dict(self) -> dict[str, Any]:
        """As OpenAI's API has it."""
        used = self.used
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "model": self.model,
            "errors": {"object": "list", "data": self.errors} if self.errors else None,
            "input_file_id": self.input_file_id,
            "completion_window": self.completion_window,
            "status": self.status,
            "output_file_id": self.output_file_id if self.has_output else None,
            "error_file_id": self.error_file_id if self.has_errors else None,
            "created_at": self.created_at,
            "in_progress_at": self.in_progress_at,
            "expires_at": self.expires_at,
            "finalizing_at": self.finalizing_at,
            "completed_at": self.completed_at,
            "failed_at": self.failed_at,
            "expired_at": self.expired_at,
            "cancelling_at": self.cancelling_at,
            "cancelled_at": self.cancelled_at,
            "request_counts": {"total": self.total, "completed": self.completed, "failed": self.failed},
            "usage": {
                "input_tokens": used.input_tokens,
                "input_tokens_details": {"cached_tokens": used.cached_tokens},
                "output_tokens": used.output_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": used.input_tokens + used.output_tokens,
            },
            "metadata": self.metadata,
        }


encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(Batch).decode


class Batches:
    """The table of batches. Blocking calls, for worker threads."""

    def __init__(self, database: Database, *, max_open: int, max_attempts: int, priority: int) -> None:
        """`max_open` is how many of a tenant may wait or run at a time."""
        self._database = database
        self._max_open = max_open
        self._max_attempts = max_attempts
        self._priority = priority

    def create(
        self,
        holder: Holder,
        endpoint: str,
        input_file_id: str,
        now_ns: int,
        *,
        metadata: dict[str, str] | None = None,
        output_expires_s: int | None = None,
    ) -> Batch:
        """A new batch and its job: both or neither. Raises NoSuchObject, NoSpace."""
        now_s, tenant = now_ns // 10**9, holder.tenant
        batch = Batch(
            id=new_id("batch_"),
            author=Author.of(holder),
            endpoint=endpoint,
            input_file_id=input_file_id,
            created_at=now_s,
            expires_at=now_s + WINDOW_S,
            metadata=metadata,
            output_expires_s=output_expires_s,
            output_file_id=new_id("file-"),
            error_file_id=new_id("file-"),
        )
        with self._database.change() as database:
            run = database.execute
            file = run(
                "SELECT purpose FROM files WHERE id = ? AND tenant = ?", (input_file_id, tenant)
            ).fetchone()
            if file is None or file[0] != KIND:
                error = no_file(input_file_id)
                error.param = "input_file_id"
                raise error
            (num_open,) = run(
                "SELECT count(*) FROM batches WHERE tenant = ? AND NOT is_over", (tenant,)
            ).fetchone()
            if num_open >= self._max_open:
                raise NoSpace(
                    f"{num_open} batches of this tenant are not over yet, as many as may be at a time"
                )
            batch.job = (
                run(
                    "INSERT INTO jobs (kind, arguments, state, priority, attempts, max_attempts, created_ns, "
                    "queued_ns, run_at_ns) VALUES (?, ?, 'queued', ?, 0, ?, ?, ?, ?)",
                    (
                        KIND,
                        encode({"batch": batch.id}).decode(),
                        self._priority,
                        self._max_attempts,
                        now_ns,
                        now_ns,
                        now_ns,
                    ),
                ).lastrowid
                or 0
            )
            run(
                "INSERT INTO batches (id, tenant, input, job, is_over, record) VALUES (?, ?, ?, ?, 0, ?)",
                (batch.id, tenant, input_file_id, batch.job, encode(batch).decode()),
            )
        return batch

    def find(self, batch_id: str, tenant: str | None = None) -> Batch:
        """`tenant` None: whoever's it is. Raises NoSuchObject."""
        rows = self._database.read("SELECT record FROM batches WHERE id = ?", (batch_id,))
        batch = decode(rows[0][0]) if rows else None
        if batch is None or tenant not in (None, batch.tenant):
            raise no_batch(batch_id)
        return batch

    def page(self, tenant: str, *, after: str | None = None, limit: int = 20) -> tuple[list[Batch], bool]:
        """A tenant's, the latest first, behind `after`; and whether there are more. Raises NoSuchObject."""
        before = 1 << 62
        if after is not None:
            rows = self._database.read(
                "SELECT number FROM batches WHERE id = ? AND tenant = ?", (after, tenant)
            )
            if not rows:
                raise no_batch(after)
            before = rows[0][0]
        rows = self._database.read(
            "SELECT record FROM batches WHERE tenant = ? AND number < ? ORDER BY number DESC LIMIT ?",
            (tenant, before, limit + 1),
        )
        return [decode(row[0]) for row in rows[:limit]], len(rows) > limit

    def change(self, batch_id: str, change: Callable[[Batch], object], now_s: int) -> Batch:
        """Change what is known of a batch, unless it is over. Raises NoSuchObject."""
        with self._database.change() as database:
            return _change(database, batch_id, change, now_s)

    def cancel(self, batch_id: str, tenant: str | None, now_ns: int) -> Batch:
        """Have a batch end. One whose turn has never come is over at once. Raises NoSuchObject, BadRequest."""
        batch, now_s = self.find(batch_id, tenant), now_ns // 10**9
        if batch.status not in (VALIDATING, IN_PROGRESS, CANCELLING):
            raise BadRequest(f"batch {batch_id!r} is {batch.status}, but must be validating or in_progress")
        with self._database.change() as database:
            has_never_run = database.execute(
                "UPDATE jobs SET state = 'cancelled', finished_ns = ? "
                "WHERE id = ? AND state = 'queued' AND started_ns IS NULL",
                (now_ns, batch.job),
            ).rowcount
            database.execute(
                "UPDATE jobs SET run_at_ns = ? WHERE id = ? AND state = 'queued'", (now_ns, batch.job)
            )

            def cancelled(batch: Batch) -> None:
                batch.move(CANCELLING, now_s)
                if has_never_run:
                    batch.move(CANCELLED, now_s)

            return _change(database, batch_id, cancelled, now_s)  # with its job, or neither

    def of_job(self, job: int) -> str | None:
        """The batch that a job runs."""
        rows = self._database.read("SELECT id FROM batches WHERE job = ?", (job,))
        return rows[0][0] if rows else None

    def abandoned(self) -> list[tuple[str, str]]:
        """Batches whose job is over without them, however that came about, and what is known of it."""
        rows = self._database.read(
            "SELECT batches.id, jobs.error FROM batches LEFT JOIN jobs ON jobs.id = batches.job "
            "WHERE NOT is_over AND coalesce(jobs.state, 'failed') NOT IN ('queued', 'running')"
        )
        return [(row[0], row[1] or "its job is gone") for row in rows]

    def kept_files(self) -> set[str]:
        """Ids of files that batches are writing, and that no table of files knows yet."""
        rows = self._database.read("SELECT record FROM batches WHERE NOT is_over")
        batches = [decode(row[0]) for row in rows]
        return {each.output_file_id for each in batches} | {each.error_file_id for each in batches}

    def prune(self, before_s: int) -> int:
        """Forget batches that were over by then, some at a time; how many."""
        with self._database.change() as database:
            return database.execute(
                "DELETE FROM batches WHERE id IN (SELECT id FROM batches WHERE is_over AND ended_s < ? LIMIT ?)",
                (before_s, PRUNED_AT_ONCE),
            ).rowcount


def _change(
    database: sqlite3.Connection, batch_id: str, change: Callable[[Batch], object], now_s: int
) -> Batch:
    row = database.execute("SELECT record FROM batches WHERE id = ?", (batch_id,)).fetchone()
    if row is None:
        raise no_batch(batch_id)
    batch = decode(row[0])
    if not batch.is_over:
        change(batch)
        database.execute(
            "UPDATE batches SET is_over = ?, ended_s = ?, record = ? WHERE id = ?",
            (batch.is_over, now_s if batch.is_over else None, encode(batch).decode(), batch_id),
        )
    return batch


def no_batch(batch_id: str) -> NoSuchObject:
    error = NoSuchObject(f"no batch has the id {batch_id[:MAX_NAME]!r}")
    error.param = "batch_id"
    return error
