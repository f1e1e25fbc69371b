"""A batch that runs: its lines are asked for one by one while the fleet has time, and answered into its files.

What is in the files is done, whatever happens to the process; everything else is asked for, again if need be. A busy
fleet is given nothing more at once; one that refuses is left alone for as long as it says.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from engine.clock import NS_PER_S, Clock, Signal, to_ns
from engine.errors import EngineError, openai_answer
from engine.server.disk import is_full
from engine.server.jobs import batches as states
from engine.server.jobs.batch_lines import Asked, Findings, Outputs, encode, look_through, parsed
from engine.server.jobs.batches import Batch, Batches, Problem
from engine.server.jobs.course import Cancelled, Course, Later, Stopped, is_hopeless
from engine.server.jobs.files import BATCH_OUTPUT, Files
from engine.server.jobs.lines import Line, Reader, lines_of
from engine.server.jobs.places import Places
from engine.server.keys import Holder

Answer = tuple[int, Mapping[str, str], bytes]
"""Status, headers and body of an HTTP answer."""

Ask = Callable[[str, bytes, Holder], Awaitable[Answer]]
"""The way of an HTTP request without the socket: path, body, and whose it is."""

TOLD_NS = NS_PER_S  # how often it is written down how far a batch is
LONG_NS = 60 * NS_PER_S  # a batch that has to wait so long gives its place to others
MAX_TRIES = 3  # of a line that fails on our side without a word when to come again
MAX_DOUBLINGS = 10
MAX_RETRY_AFTER_S = 86_400.0
TOO_MANY, INTERNAL = 429, 500

REASONS = {
    states.EXPIRED: ("batch_expired", "the completion window ended before this request was asked for"),
    states.CANCELLED: ("batch_cancelled", "the batch was cancelled before this request was asked for"),
}


class Expired(Exception):
    """The completion window has ended."""


@dataclass(slots=True)
class Errand:
    """A line that is to be asked for, and how often that has failed."""

    number: int
    asked: Asked
    tries: int = 0


@dataclass(slots=True, kw_only=True)
class Office:
    """What all batches share."""

    clock: Clock
    batches: Batches
    files: Files
    ask: Ask
    is_idle: Callable[[], bool]
    places: Places
    holder_of: Callable[[str], Holder | None] | None = None
    check_every_s: float = 1.0
    retry_after_s: float = 5.0
    max_line_bytes: int = 8 << 20
    max_requests: int = 50_000
    keep_s: float = 2_592_000.0
    num_asked: int = 0
    num_deferred: int = 0

    def unix_ns(self) -> int:
        return self.clock.epoch_ns + self.clock.now_ns()

    def unix_s(self) -> int:
        return self.unix_ns() // NS_PER_S


class BatchRun:
    """One try of a batch's job."""

    def __init__(self, office: Office, batch: Batch, course: Course) -> None:
        self._office = office
        self._clock = office.clock
        self._batch = batch
        self._course = course
        self._holder = batch.author.holder()
        self._outputs: Outputs | None = None
        self._again: deque[Errand] = deque()  # refused, and to be asked for again
        self._paused_ns = 0  # until then nothing is asked for
        self._flying = 0
        self._landed: Signal | None = None
        self._trouble: Exception | None = None
        self._told_ns = 0
        self._num_told = -1
        self._reader = Reader(iter(()))
        self._lines: deque[Line] = deque()

    @property
    def _input(self) -> Path:
        return self._office.files.path(self._batch.input_file_id)

    async def run(self) -> Batch:
        """From wherever it is to its end. Raises what ends a try before that."""
        if not self._batch.total and not await self._validate():
            return self._batch
        try:
            await self._open()
            end = await self._proceed()
            await self._finish(end)
        except Exception:
            await self._leave()
            raise
        if end == states.CANCELLED:
            raise Cancelled
        return self._batch

    async def _proceed(self) -> str:
        """Ask for what is left, unless it has been said that nobody should; how it ends."""
        batch = self._batch
        if batch.status == states.FINALIZING:
            return batch.ends_as
        if batch.status == states.CANCELLING:
            return states.CANCELLED
        try:
            await self._ask_all()
        except Expired:
            return states.EXPIRED
        except Cancelled:
            return states.CANCELLED
        return states.COMPLETED

    # before and after

    async def _validate(self) -> bool:
        """Look at every line; whether all are good."""
        office, batch = self._office, self._batch
        found, _ = await self._clock.compute(
            lambda: look_through(
                self._input,
                batch.endpoint,
                max_line_bytes=office.max_line_bytes,
                max_requests=office.max_requests,
            )
        )
        await self._change(lambda batch: _validated(batch, found, office.unix_s()))
        return not found.problems

    async def _open(self) -> None:
        """The files that it writes, and what is in them from before."""
        office, batch = self._office, self._batch
        self._reader = Reader(lines_of(self._input, office.max_line_bytes))
        outputs, _ = await self._clock.compute(
            lambda: Outputs(
                batch.id,
                office.files.path(batch.output_file_id),
                office.files.path(batch.error_file_id),
                batch.last_line,
            )
        )
        self._outputs = outputs
        if office.holder_of is not None and batch.author.id:
            holder = office.holder_of(batch.author.id)
            if holder is None:
                raise KeyGone(batch.author.id)
            self._holder = holder

    async def _finish(self, end: str) -> None:
        """Write down what was not asked for, and let the files be seen."""
        office, outputs = self._office, self._outputs
        assert outputs is not None
        await self._change(lambda batch: _finalizing(batch, end, office.unix_s()))
        if end in REASONS:
            await self._give_up(outputs, *REASONS[end])
        assert outputs.num_answered == self._batch.total, "every line is answered"
        await self._clock.compute(outputs.close)
        self._outputs = None
        published, _ = await self._clock.compute(lambda: publish(office, self._batch))
        await self._change(lambda batch: _ended(batch, outputs, published, end, office.unix_s()))

    async def _give_up(self, outputs: Outputs, code: str, message: str) -> None:
        """Say of every line that is not answered why it is not."""
        reader = Reader(lines_of(self._input, self._office.max_line_bytes))
        while lines := (await self._clock.compute(reader.next))[0]:
            left = [each for each in map(self._errand, lines) if each is not None]
            names = [(each.number, each.asked.custom_id) for each in left]
            await self._clock.compute(partial(outputs.give_up, names, code, message))

    async def _leave(self) -> None:
        """A try ends before the batch does: what is asked for still comes in."""
        await self._land(0)
        outputs, self._outputs = self._outputs, None
        if outputs is not None:
            try:
                await self._change(lambda batch: _counted(batch, outputs))
            finally:
                await self._clock.compute(outputs.close)

    async def _change(self, change: Callable[[Batch], object]) -> None:
        office, batch_id = self._office, self._batch.id
        self._batch, _ = await self._clock.compute(
            lambda: office.batches.change(batch_id, change, office.unix_s())
        )

    # asking

    async def _ask_all(self) -> None:
        """Ask for every line that is not answered yet. Raises Expired, Cancelled, Stopped, Later."""
        try:
            while (errand := await self._next()) is not None:
                await self._wait_for_turn()
                await self._office.places.take()
                if not self._may_go():
                    self._office.places.give_back()
                    self._again.appendleft(errand)
                    continue
                self._flying += 1
                self._office.num_asked += 1
                self._clock.spawn(self._fly(errand))
                await self._tell()
        finally:
            await self._land(0)
        if self._trouble is not None:
            raise self._trouble

    def _may_go(self) -> bool:
        """Whether something may be asked for at this moment."""
        course = self._course
        if course.is_cancelled or course.is_stopped or self._trouble is not None:
            return False
        return self._clock.now_ns() >= self._paused_ns and self._office.is_idle()

    async def _wait_for_turn(self) -> None:
        """Until the fleet has time. Raises Expired, Cancelled, Stopped, Later, and what a request has met."""
        clock, office, course = self._clock, self._office, self._course
        expires_ns = self._batch.expires_at * NS_PER_S
        while True:
            course.check()
            if self._trouble is not None:
                raise self._trouble
            left_ns = expires_ns - office.unix_ns()
            if left_ns <= 0:
                raise Expired
            paused_ns = self._paused_ns - clock.now_ns()
            if paused_ns > LONG_NS:
                raise Later(min(paused_ns, left_ns))
            if paused_ns <= 0 and office.is_idle():
                return
            await self._tell()
            await course.pause(min(max(paused_ns, to_ns(office.check_every_s)), left_ns))

    async def _next(self) -> Errand | None:
        """The next line to ask for; None when all are answered."""
        while True:
            if self._trouble is not None:
                raise self._trouble
            if self._again:
                return self._again.popleft()
            while self._lines:
                errand = self._errand(self._lines.popleft())
                if errand is not None:
                    return errand
            lines, _ = await self._clock.compute(self._reader.next)
            self._lines.extend(lines)
            if self._lines or self._again:  # what was under way may have come back meanwhile
                continue
            if not self._flying:
                return None
            await self._land(self._flying - 1)

    def _errand(self, line: Line) -> Errand | None:
        """What a line asks for; None where it is answered."""
        assert self._outputs is not None
        if self._outputs.answered[line.number]:
            return None
        asked = parsed(line, self._batch.endpoint, self._office.max_line_bytes)
        assert isinstance(asked, Asked), "the input was looked through and cannot change"
        return Errand(line.number, asked)

    async def _fly(self, errand: Errand) -> None:
        """Ask for one line, and write down what comes."""
        try:
            status, headers, body = await self._asked(errand)
            if not self._is_deferred(errand, status, headers):
                await self._write(errand, status, headers.get("x-request-id", ""), body)
        except Exception as error:  # noqa: BLE001  told by who gives out the lines
            self._trouble = error
        finally:
            self._office.places.give_back()
            self._flying -= 1
            if self._landed is not None:
                self._landed.set()

    async def _asked(self, errand: Errand) -> Answer:
        try:
            return await self._office.ask(self._batch.endpoint, bytes(errand.asked.body), self._holder)
        except EngineError as error:
            answer = openai_answer(error)
            return answer.status, answer.headers, encode(answer.body)

    def _is_deferred(self, errand: Errand, status: int, headers: Mapping[str, str]) -> bool:
        """Whether a line is to be asked for again later, and then nothing is asked for before that."""
        if status != TOO_MANY and status < INTERNAL:
            return False
        wait_s = retry_after_s(headers)
        if wait_s is None:
            errand.tries += 1
            if errand.tries >= MAX_TRIES and status != TOO_MANY:
                return False
            wait_s = self._office.retry_after_s * 2 ** min(errand.tries - 1, MAX_DOUBLINGS)
        self._office.num_deferred += 1
        self._paused_ns = max(self._paused_ns, self._clock.now_ns() + to_ns(wait_s))
        self._again.append(errand)
        return True

    async def _write(self, errand: Errand, status: int, request_id: str, body: bytes) -> None:
        outputs = self._outputs
        assert outputs is not None
        custom_id = errand.asked.custom_id
        await self._clock.compute(lambda: outputs.answer(errand.number, custom_id, status, request_id, body))

    async def _land(self, most: int) -> None:
        """Wait until at most so many are on their way."""
        while self._flying > most:
            self._landed = landed = self._clock.signal()
            await landed.wait()
        self._landed = None

    async def _tell(self) -> None:
        """Write down how far it is, now and then, and never twice the same."""
        now_ns, outputs = self._clock.now_ns(), self._outputs
        if now_ns < self._told_ns or outputs is None or outputs.num_answered == self._num_told:
            return
        self._told_ns, self._num_told = now_ns + TOLD_NS, outputs.num_answered
        await self._change(lambda batch: _counted(batch, outputs))
        await self._course.save(outputs.num_answered, self._batch.total, note=self._batch.id)


class KeyGone(EngineError):
    """The key that made a batch opens nothing any more."""

    status = 403
    reason = "key_gone"

    def __init__(self, key_id: str) -> None:
        super().__init__(f"key {key_id!r}, which made the batch, was revoked or has expired")


async def run_batch(office: Office, batch_id: str, course: Course) -> Batch:
    """Run a batch. Where nobody would try it again, it has failed."""
    batch, _ = await office.clock.compute(lambda: office.batches.find(batch_id))
    if batch.is_over:
        return batch
    try:
        return await BatchRun(office, batch, course).run()
    except (Cancelled, Later, Stopped):
        raise
    except Exception as error:
        if not is_full(error) and (course.is_last_try or is_hopeless(error)):
            why, code = str(error) or type(error).__name__, getattr(error, "reason", "job_failed")
            await office.clock.compute(lambda: fail_batch(office, batch_id, Problem(code, why)))
        raise


def fail_batch(office: Office, batch_id: str, problem: Problem) -> Batch:
    """It has come to nothing, but for what is answered. Blocking."""
    published = publish(office, office.batches.find(batch_id))
    return office.batches.change(
        batch_id, lambda batch: _failed(batch, published, problem, office.unix_s()), office.unix_s()
    )


def publish(office: Office, batch: Batch) -> tuple[bool, bool]:
    """Let what a batch has written be files of its tenant; what is empty is deleted. Which of the two there are."""
    now_s = office.unix_s()
    kept_s = batch.output_expires_s if batch.output_expires_s is not None else round(office.keep_s)
    found = []
    for file_id, kind in ((batch.output_file_id, "output"), (batch.error_file_id, "error")):
        path = office.files.path(file_id)
        num_bytes = path.stat().st_size if path.exists() else 0
        found.append(num_bytes > 0)
        if num_bytes:
            name = f"{batch.id}_{kind}.jsonl"
            office.files.add(file_id, batch.tenant, name, BATCH_OUTPUT, num_bytes, now_s, now_s + kept_s)
        else:
            path.unlink(missing_ok=True)
    return found[0], found[1]


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """When to come again, as an answer says it."""
    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            wait_s = float(headers[name]) * scale
        except (KeyError, ValueError):
            continue
        if 0 <= wait_s < float("inf"):
            return min(wait_s, MAX_RETRY_AFTER_S)
    return None


def _validated(batch: Batch, found: Findings, now_s: int) -> None:
    if found.problems:
        batch.errors = found.problems
        batch.move(states.FAILED, now_s)
        return
    batch.total, batch.last_line, batch.model = found.total, found.last_line, found.model
    if batch.status == states.VALIDATING:  # it may have been cancelled meanwhile
        batch.move(states.IN_PROGRESS, now_s)


def _counted(batch: Batch, outputs: Outputs) -> None:
    batch.completed, batch.failed, batch.used = outputs.completed, outputs.failed, outputs.used


def _finalizing(batch: Batch, end: str, now_s: int) -> None:
    batch.ends_as = end
    batch.move(states.CANCELLING if end == states.CANCELLED else states.FINALIZING, now_s)


def _ended(batch: Batch, outputs: Outputs, published: tuple[bool, bool], end: str, now_s: int) -> None:
    _counted(batch, outputs)
    batch.has_output, batch.has_errors = published
    batch.move(end, now_s)


def _failed(batch: Batch, published: tuple[bool, bool], problem: Problem, now_s: int) -> None:
    batch.has_output, batch.has_errors = published
    batch.errors = [problem]
    batch.move(states.FAILED, now_s)
