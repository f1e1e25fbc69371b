"""Lines of batches: what clients ask, checked before anything runs, and what is answered, counted from the files."""

from collections.abc import Iterable
from contextlib import ExitStack, closing
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec

from engine.server.jobs.batches import Problem, Used
from engine.server.jobs.lines import Appender, Line, lines_of

MAX_CUSTOM_ID = 512
MAX_PROBLEMS = 100
DIGEST_BYTES = 16
OK, NOT_OK = 200, 300

encode = msgspec.json.Encoder().encode


class Asked(msgspec.Struct):
    """A line of the input."""

    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


class Stub(msgspec.Struct):
    """As much of a body as has to be known before it is sent."""

    model: str | None = None
    stream: bool | None = None


class Cached(msgspec.Struct):
    cached_tokens: int = 0


class Tokens(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: Cached | None = None


class Body(msgspec.Struct):
    """As much of an answer as is counted."""

    usage: Tokens | None = None


class Response(msgspec.Struct):
    body: msgspec.Raw


class Written(msgspec.Struct):
    """As much of a line of an output as tells what it answers."""

    id: str
    response: Response | None = None


decode_asked = msgspec.json.Decoder(Asked).decode
decode_stub = msgspec.json.Decoder(Stub).decode
decode_body = msgspec.json.Decoder(Body).decode
decode_written = msgspec.json.Decoder(Written).decode


class Findings(msgspec.Struct):
    """What a look through an input has brought."""

    problems: list[Problem]
    total: int = 0
    last_line: int = 0
    model: str | None = None  # that all lines ask for; None where they differ


def look_through(path: Path, endpoint: str, *, max_line_bytes: int, max_requests: int) -> Findings:
    """Check every line of an input; at most MAX_PROBLEMS are told. Keeps 16 bytes of each line's name."""
    found = Findings([])
    problems, seen, models = found.problems, set[bytes](), set[str | None]()
    for line in lines_of(path, max_line_bytes):
        found.total, found.last_line = found.total + 1, line.number
        if found.total > max_requests:
            problems.append(Problem("too_many_tasks", f"the file has more than {max_requests} requests"))
            break
        asked = parsed(line, endpoint, max_line_bytes)
        if isinstance(asked, Problem):
            problems.append(asked)
        else:
            digest = blake2b(asked.custom_id.encode(), digest_size=DIGEST_BYTES).digest()
            if digest in seen:
                message = f"custom_id {asked.custom_id!r} stands in an earlier line too"
                problems.append(Problem("duplicate_custom_id", message, line.number, "custom_id"))
            seen.add(digest)
            if len(models) <= 1:
                models.add(decode_stub(asked.body).model)
        if len(problems) >= MAX_PROBLEMS:
            break
    if not found.total:
        problems.append(Problem("empty_file", "the file has no requests"))
    found.model = models.pop() if len(models) == 1 else None
    return found


def parsed(line: Line, endpoint: str, max_line_bytes: int) -> Asked | Problem:
    """A line of an input, or what is wrong with it."""
    number = line.number
    if line.data is None:
        return Problem("line_too_long", f"the line has more than {max_line_bytes} bytes", number)
    try:
        asked = decode_asked(line.data)
        stub = decode_stub(asked.body)
    except msgspec.ValidationError as error:
        return Problem("invalid_request", f"the line is no request: {error}", number)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Problem("invalid_json_line", "the line is not valid JSON", number)
    wrong = what_is_wrong(asked, stub, endpoint)
    if wrong is None:
        return asked
    code, param, message = wrong
    return Problem(code, f"{param} {message}", number, param)


def what_is_wrong(asked: Asked, stub: Stub, endpoint: str) -> tuple[str, str, str] | None:
    """Code, field and words for a request that cannot be part of a batch."""
    if not 0 < len(asked.custom_id) <= MAX_CUSTOM_ID:
        return "invalid_custom_id", "custom_id", f"must be a text of 1 to {MAX_CUSTOM_ID} characters"
    if asked.method != "POST":
        return "invalid_method", "method", f"is {asked.method[:32]!r}, but must be 'POST'"
    if asked.url != endpoint:
        return (
            "mismatched_url",
            "url",
            f"is {asked.url[:64]!r}, but must be the batch's endpoint, {endpoint!r}",
        )
    if stub.stream:
        return "invalid_request", "stream", "is true, but no line of a batch is streamed"
    return None


class Outputs:
    """The two files that a batch writes: a line for each request, in whichever order they are answered.

    The id of a line ends with the number of the line that it answers, so that the files themselves tell what is done.
    Blocking calls, from several worker threads.
    """

    def __init__(self, batch_id: str, output: Path, errors: Path, last_line: int) -> None:
        """Go on with what is there: a torn end is cut off, and what is answered is counted. Raises OSError."""
        self.answered = bytearray(last_line + 1)  # by line
        self.completed = 0
        self.failed = 0
        self.used = Used()
        self._prefix = f"batch_req_{batch_id.removeprefix('batch_')}_"
        with ExitStack() as opened:
            self.output = opened.enter_context(closing(Appender(output)))
            self.errors = opened.enter_context(closing(Appender(errors)))
            self.completed = self._recount(self.output)
            self.failed = self._recount(self.errors)
            opened.pop_all()

    @property
    def num_answered(self) -> int:
        return self.completed + self.failed

    def answer(self, number: int, custom_id: str, status: int, request_id: str, body: bytes) -> None:
        """What a request was answered. Raises OSError; nothing is written then."""
        is_good = OK <= status < NOT_OK
        response = {"status_code": status, "request_id": request_id or self._id(number)}
        file = self.output if is_good else self.errors
        self._write(number, custom_id, {**response, "body": on_one_line(body)}, None, file)
        self._count(body)
        self._mark(number, is_good=is_good)

    def give_up(self, several: Iterable[tuple[int, str]], code: str, message: str) -> None:
        """These were not asked for: line and name of each."""
        for number, custom_id in several:
            self._write(number, custom_id, None, {"code": code, "message": message}, self.errors)
            self._mark(number, is_good=False)

    def close(self) -> None:
        """On disk when this returns."""
        with closing(self.output), closing(self.errors):
            self.output.sync()
            self.errors.sync()

    def _id(self, number: int) -> str:
        return f"{self._prefix}{number}"

    def _write(self, number: int, custom_id: str, response: Any, error: Any, file: Appender) -> None:
        assert not self.answered[number], "nothing is answered twice"
        line = {"id": self._id(number), "custom_id": custom_id, "response": response, "error": error}
        file.append(encode(line))

    def _mark(self, number: int, *, is_good: bool) -> None:
        self.answered[number] = 1
        self.completed += is_good
        self.failed += not is_good

    def _count(self, body: bytes | msgspec.Raw) -> None:
        try:
            usage = decode_body(body).usage
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return  # no body of ours
        if usage is None:
            return
        details = usage.prompt_tokens_details
        self.used.input_tokens += usage.prompt_tokens
        self.used.output_tokens += usage.completion_tokens
        self.used.cached_tokens += details.cached_tokens if details is not None else 0

    def _recount(self, appender: Appender) -> int:
        """Mark what the file answers; behind the first line that is not ours as a whole it is cut off."""
        good_bytes = number = 0
        with appender.path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n") or not self._is_ours(line):
                    break
                good_bytes += len(line)
                number += 1
        appender.cut(good_bytes)
        return number

    def _is_ours(self, line: bytes) -> bool:
        try:
            written = decode_written(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return False
        place = written.id.removeprefix(self._prefix)
        if place == written.id or not place.isdigit() or int(place) >= len(self.answered):
            return False
        if self.answered[int(place)]:
            return False
        self.answered[int(place)] = 1
        if written.response is not None:
            self._count(written.response.body)
        return True


def on_one_line(body: bytes) -> Any:
    """The body of an answer, to be written as it is; as a text where it is no JSON."""
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body.decode("utf-8", "replace")
    return msgspec.Raw(body) if b"\n" not in body else found
