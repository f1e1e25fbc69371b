"""Routes of files and batches, as OpenAI's API has them, and of jobs for operators."""

import re
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import msgspec
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Route

from engine.clock import NS_PER_S
from engine.errors import EngineError
from engine.server.answers import encode
from engine.server.audit import AuditLog
from engine.server.bodies import parsed, refused
from engine.server.gate import NoSuchPart
from engine.server.jobs.batches import ENDPOINTS, MAX_KEY, MAX_PAIRS, MAX_VALUE, WINDOW
from engine.server.jobs.faults import NoSuchObject
from engine.server.jobs.files import no_file
from engine.server.jobs.jobs import Jobs
from engine.server.jobs.kinds import kinds
from engine.server.jobs.store import STATES, Schedule
from engine.server.jobs.upload import Form, body_of, expiry_s, take_in, told_bytes
from engine.server.keys import Holder
from engine.server.settings import SOONEST_S, YEAR_S

MAX_BATCHES, MAX_FILES, MAX_JOBS = 100, 10_000, 1_000
LISTED_BATCHES, LISTED_JOBS = 20, 100
MAX_NAME = 64
MAX_PRIORITY = 1_000_000
LOOPBACK = "operator@loopback"
"""Who it was, where operators have no keys."""

Handler = Callable[[Request], Awaitable[Response]]


class ExpiresAfter(msgspec.Struct, forbid_unknown_fields=True):
    """How long what a batch writes is kept."""

    anchor: str
    seconds: int


class NewBatch(msgspec.Struct, forbid_unknown_fields=True):
    """What a client says of a batch."""

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None
    output_expires_after: ExpiresAfter | None = None


class NewJob(msgspec.Struct, forbid_unknown_fields=True):
    """What an operator says of a job."""

    kind: str
    arguments: dict[str, Any] = {}
    priority: Annotated[int, msgspec.Meta(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] = 0
    delay_s: Annotated[float, msgspec.Meta(ge=0, le=YEAR_S)] = 0.0


class NewSchedule(msgspec.Struct, forbid_unknown_fields=True):
    """What an operator says of a job that comes again and again."""

    kind: str
    every_s: Annotated[float, msgspec.Meta(ge=SOONEST_S, le=YEAR_S)]
    arguments: dict[str, Any] = {}
    is_on: bool = True


NEW_BATCH = msgspec.json.Decoder(NewBatch)
NEW_JOB = msgspec.json.Decoder(NewJob)
NEW_SCHEDULE = msgspec.json.Decoder(NewSchedule)


def public_routes(jobs: Jobs) -> list[BaseRoute]:
    """/v1/files and /v1/batches. Whose they are is `request.state.holder`."""
    client = _Client(jobs)
    return [
        Route("/v1/files", client.upload, methods=["POST"]),
        Route("/v1/files", client.files, methods=["GET"]),
        Route("/v1/files/{id}", client.file, methods=["GET"]),
        Route("/v1/files/{id}", client.delete, methods=["DELETE"]),
        Route("/v1/files/{id}/content", client.content, methods=["GET"]),
        Route("/v1/batches", client.create, methods=["POST"]),
        Route("/v1/batches", client.batches, methods=["GET"]),
        Route("/v1/batches/{id}", client.batch, methods=["GET"]),
        Route("/v1/batches/{id}/cancel", client.cancel, methods=["POST"]),
    ]


def admin_routes(jobs: Jobs, audit: AuditLog | None = None) -> list[BaseRoute]:
    """/admin/jobs. Whatever is changed is put down in the audit log, and so is what was refused."""
    operator = _Operator(jobs, audit)
    return [
        Route("/admin/jobs", operator.jobs, methods=["GET"]),
        Route("/admin/jobs", operator.audited("job.submit", operator.submit), methods=["POST"]),
        Route("/admin/jobs/kinds", operator.kinds, methods=["GET"]),
        Route("/admin/jobs/schedules", operator.schedules, methods=["GET"]),
        Route(
            "/admin/jobs/schedules/{name}",
            operator.audited("schedule.update", operator.schedule),
            methods=["PUT"],
        ),
        Route("/admin/jobs/{id}", operator.job, methods=["GET"]),
        Route("/admin/jobs/{id}/cancel", operator.audited("job.cancel", operator.cancel), methods=["POST"]),
    ]


class _Client:
    """What clients may do with their files and batches."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._clock = jobs.clock

    # files

    async def upload(self, request: Request) -> Response:
        jobs, limits = self._jobs, self._jobs.limits
        holder, most = _holder(request), limits.max_file_bytes
        told = told_bytes(request, most)
        form = Form(request.headers.get("content-type", ""))
        room = most if told is None else min(told, most)
        upload, _ = await self._clock.compute(
            lambda: jobs.files.begin(holder.tenant, room, is_known=told is not None)
        )
        try:
            await take_in(request, form, upload, max_file_bytes=most, timeout_s=limits.body_timeout_s)
            now_s = jobs.unix_ns() // NS_PER_S
            after_s = form.expires_after_s()
            expires_s = now_s + (round(jobs.settings.keep_s) if after_s is None else after_s)
            name, purpose = form.file_name or "", form.fields["purpose"]
            file, _ = await self._clock.compute(lambda: upload.publish(name, purpose, now_s, expires_s))
        finally:
            await self._clock.compute(upload.close)
        return answered(file.as_dict())

    async def files(self, request: Request) -> Response:
        tenant, query = _holder(request).tenant, request.query_params
        limit = _whole(request, "limit", MAX_FILES, 1, MAX_FILES)
        order = _one_of(request, "order", ("desc", "asc"))
        (found, has_more), _ = await self._clock.compute(
            lambda: self._jobs.files.page(
                tenant,
                purpose=query.get("purpose"),
                after=query.get("after"),
                limit=limit,
                is_descending=order != "asc",
            )
        )
        return answered(_page([file.as_dict() for file in found], has_more=has_more))

    async def file(self, request: Request) -> Response:
        file_id, tenant = request.path_params["id"], _holder(request).tenant
        found, _ = await self._clock.compute(lambda: self._jobs.files.find(file_id, tenant))
        return answered(found.as_dict())

    async def content(self, request: Request) -> Response:
        file_id, tenant = request.path_params["id"], _holder(request).tenant
        found, _ = await self._clock.compute(lambda: self._jobs.files.find(file_id, tenant))
        path = self._jobs.files.path(found.id)
        try:
            stat = path.stat()
        except FileNotFoundError:
            raise no_file(file_id) from None
        answer = FileResponse(
            path, media_type="application/octet-stream", filename=found.name, stat_result=stat
        )
        _choose_ranges(request, stat.st_size, (answer.headers["etag"], answer.headers["last-modified"]))
        return answer

    async def delete(self, request: Request) -> Response:
        file_id, tenant = request.path_params["id"], _holder(request).tenant
        await self._clock.compute(lambda: self._jobs.files.delete(file_id, tenant))
        return answered({"id": file_id, "object": "file", "deleted": True})

    # batches

    async def create(self, request: Request) -> Response:
        jobs = self._jobs
        wanted = parsed(await body_of(request, jobs.limits), NEW_BATCH, jobs.limits)
        check_batch(wanted)
        expires = wanted.output_expires_after
        batch = await jobs.create_batch(
            _holder(request),
            wanted.endpoint,
            wanted.input_file_id,
            metadata=wanted.metadata,
            output_expires_s=None if expires is None else expiry_of(expires),
        )
        return answered(batch.as_dict())

    async def batches(self, request: Request) -> Response:
        tenant, after = _holder(request).tenant, request.query_params.get("after")
        limit = _whole(request, "limit", LISTED_BATCHES, 1, MAX_BATCHES)
        (found, has_more), _ = await self._clock.compute(
            lambda: self._jobs.batches.page(tenant, after=after, limit=limit)
        )
        return answered(_page([batch.as_dict() for batch in found], has_more=has_more))

    async def batch(self, request: Request) -> Response:
        batch_id, tenant = request.path_params["id"], _holder(request).tenant
        found, _ = await self._clock.compute(lambda: self._jobs.batches.find(batch_id, tenant))
        return answered(found.as_dict())

    async def cancel(self, request: Request) -> Response:
        batch_id, tenant = request.path_params["id"], _holder(request).tenant
        batch = await self._jobs.cancel_batch(batch_id, tenant)
        return answered(batch.as_dict())


class _Operator:
    """What operators may look at and do."""

    def __init__(self, jobs: Jobs, audit: AuditLog | None) -> None:
        self._jobs = jobs
        self._clock = jobs.clock
        self._audit = audit

    async def jobs(self, request: Request) -> Response:
        state, kind = _one_of(request, "state", STATES), _one_of(request, "kind", kinds.names())
        limit = _whole(request, "limit", LISTED_JOBS, 1, MAX_JOBS)
        after = _whole(request, "after", None, 1, (1 << 62) - 1)
        found, _ = await self._clock.compute(
            lambda: self._jobs.store.page(state=state, kind=kind, after=after, limit=limit + 1)
        )
        rows = [job.as_dict() for job in found[:limit]]
        return answered(_page(rows, has_more=len(found) > limit))

    async def kinds(self, request: Request) -> Response:
        rows = [
            {
                "kind": name,
                "does": (cls.__doc__ or "").partition("\n")[0],
                "arguments": list(cls.takes.__struct_fields__),
            }
            for name in kinds.names()
            if (cls := kinds.find(name)).by_hand
        ]
        return answered({"object": "list", "data": rows})

    async def job(self, request: Request) -> Response:
        return answered((await self._jobs.find(_number(request))).as_dict())

    async def submit(self, request: Request) -> tuple[str, Any, dict[str, Any]]:
        limits = self._jobs.limits
        wanted = parsed(await body_of(request, limits), NEW_JOB, limits)
        job = await self._jobs.submit(
            wanted.kind, wanted.arguments, priority=wanted.priority, delay_s=wanted.delay_s
        )
        return f"job {job.id}", None, job.as_dict()

    async def cancel(self, request: Request) -> tuple[str, Any, dict[str, Any]]:
        number = _number(request)
        before = await self._jobs.find(number)
        after = await self._jobs.cancel(number)
        return f"job {number}", before.as_dict(), after.as_dict()

    async def schedules(self, request: Request) -> Response:
        found, _ = await self._clock.compute(self._jobs.store.schedules)
        return answered({"object": "list", "data": [schedule.as_dict() for schedule in found]})

    async def schedule(self, request: Request) -> tuple[str, Any, dict[str, Any]]:
        name, limits = request.path_params["name"], self._jobs.limits
        if len(name) > MAX_NAME:
            raise refused("name", f"the name has {len(name)} characters, but may have {MAX_NAME}")
        wanted = parsed(await body_of(request, limits), NEW_SCHEDULE, limits)
        known, _ = await self._clock.compute(self._jobs.store.schedules)
        before = next((each.as_dict() for each in known if each.name == name), None)
        put = await self._jobs.schedule(
            Schedule(
                name=name,
                kind=wanted.kind,
                arguments=wanted.arguments,
                every_ns=round(wanted.every_s * NS_PER_S),
                is_on=wanted.is_on,
                is_edited=True,
            )
        )
        return f"schedule {name}", before, put.as_dict()

    def audited(
        self, action: str, change: Callable[[Request], Awaitable[tuple[str, Any, dict[str, Any]]]]
    ) -> Handler:
        """A change: of what, from what, to what; put down before it is answered."""

        async def do(request: Request) -> Response:
            try:
                subject, before, after = await change(request)
            except EngineError as error:
                self._write(request, action, request.url.path, None, None, error.reason)
                raise
            self._write(request, action, subject, before, after, "done")
            return answered(after)

        return do

    def _write(
        self, request: Request, action: str, subject: str, before: Any, after: Any, outcome: str
    ) -> None:
        if self._audit is None:
            return
        client = getattr(request.state, "client", None)
        self._audit.write(
            _holder(request).id or LOOPBACK,
            action,
            subject,
            before=before,
            after=after,
            outcome=outcome,
            request_id=None if client is None else client.request_id,
            remote=None if client is None else client.address,
        )


def answered(told: Any) -> Response:
    """As JSON."""
    return Response(encode(told), media_type="application/json")


def check_batch(wanted: NewBatch) -> None:
    """Raise BadRequest for a batch that cannot be."""
    if wanted.endpoint not in ENDPOINTS:
        allowed = " or ".join(map(repr, ENDPOINTS))
        raise refused("endpoint", f"endpoint is {wanted.endpoint[:MAX_NAME]!r}, but must be {allowed}")
    window = wanted.completion_window
    if window != WINDOW:
        raise refused(
            "completion_window", f"completion_window is {window[:MAX_NAME]!r}, but must be {WINDOW!r}"
        )
    pairs = wanted.metadata or {}
    is_small = all(len(key) <= MAX_KEY and len(value) <= MAX_VALUE for key, value in pairs.items())
    if len(pairs) > MAX_PAIRS or not is_small:
        raise refused(
            "metadata",
            f"metadata has {len(pairs)} pairs, but may have {MAX_PAIRS}, of keys up to {MAX_KEY} characters "
            f"and values up to {MAX_VALUE}",
        )
    if wanted.output_expires_after is not None:
        expiry_of(wanted.output_expires_after)


def expiry_of(wanted: ExpiresAfter) -> int:
    """How long outputs are kept. Raises BadRequest."""
    name = "output_expires_after"
    return expiry_s(f"{name}.anchor", wanted.anchor, f"{name}.seconds", wanted.seconds)


def _holder(request: Request) -> Holder:
    holder: Holder = request.state.holder
    return holder


def _page(rows: list[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    first, last = (rows[0]["id"], rows[-1]["id"]) if rows else (None, None)
    return {"object": "list", "data": rows, "first_id": first, "last_id": last, "has_more": has_more}


RANGES = re.compile(r"bytes=(?:(?:\d+-\d*|-\d+)(?:\s*,\s*|$))+", re.ASCII | re.IGNORECASE)
BOUNDS = re.compile(r"(\d+)-(\d+)", re.ASCII)
MAX_DIGITS = 18


def _choose_ranges(request: Request, num_bytes: int, marks: tuple[str, ...]) -> None:
    """Leave of a range what the file has (RFC 9110, 14.2): Starlette refuses it where a part is not there.

    One that is none counts as if it was not there, and so does one of a file with other `marks`. Raises NoSuchPart.
    """
    given = request.headers.get("range")
    if given is None:
        return
    others = [each for each in request.scope["headers"] if each[0] != b"range"]
    if _is_range(given) and request.headers.get("if-range", marks[0]) in marks:
        parts = [each.strip() for each in given.partition("=")[2].split(",")]
        there = [each for each in parts if _is_there(each, num_bytes)]
        if not there:
            raise NoSuchPart(given, num_bytes)
        others.append((b"range", f"bytes={','.join(there)}".encode()))
    request.scope["headers"] = others


def _is_there(part: str, num_bytes: int) -> bool:
    first, _, last = part.partition("-")
    return int(first) < num_bytes if first else bool(num_bytes and last and int(last))


def _is_range(given: str) -> bool:
    if RANGES.fullmatch(given) is None:
        return False
    bounds = BOUNDS.findall(given)
    are_short = all(len(each) <= MAX_DIGITS for each in re.findall(r"\d+", given))
    return are_short and all(int(first) <= int(last) for first, last in bounds)


def _number(request: Request) -> int:
    text = request.path_params["id"]
    if not (text.isascii() and text.isdigit() and len(text) < len(str(1 << 62))):
        raise NoSuchObject(f"no job has the id {text[:MAX_NAME]!r}")
    return int(text)


def _whole(request: Request, name: str, otherwise: Any, least: int, most: int) -> Any:
    """A whole number of the query. Raises BadRequest."""
    text = request.query_params.get(name)
    if text is None:
        return otherwise
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(most)) and least <= int(text) <= most):
        raise refused(name, f"{name} is {text[:MAX_NAME]!r}, but must be from {least} to {most}")
    return int(text)


def _one_of(request: Request, name: str, allowed: Any) -> str | None:
    """A word of the query. Raises BadRequest."""
    text = request.query_params.get(name)
    if text is not None and text not in allowed:
        raise refused(name, f"{name} is {text[:MAX_NAME]!r}, but must be one of {', '.join(allowed)}")
    return text
