"""The client of one HTTP request, over ASGI: what it sends, within bounds, and whether it is still there."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

from engine.errors import BadRequest, EngineError, TooLarge, openai_answer
from engine.server.answers import JSON, encode, lines
from engine.server.keys import Holder
from engine.server.settings import LimitsSettings

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class ClientGone(Exception):
    """Nobody is there to be answered."""


class TooSlow(EngineError):
    """The body did not come in time."""

    status = 408
    outcome = "rejected"
    reason = "body_timeout"
    type = "invalid_request_error"
    code = "request_timeout"


class NotJson(EngineError):
    """The body is of a kind that is not read."""

    status = 415
    outcome = "rejected"
    reason = "unsupported_media_type"
    type = "invalid_request_error"
    code = "unsupported_media_type"


class Exchange(Protocol):
    """One request straight on its connection: what ASGI says in several messages, in one."""

    method: str
    path: str
    headers: dict[bytes, bytes]
    scope: Any
    task: "asyncio.Task[None] | None"
    tell: Callable[[], object] | None
    """Called when the client leaves before its answer is complete."""

    address: str | None
    """Where the client is."""

    keep_alive: bool
    """Whether another request may follow on the same connection."""

    def is_lost(self) -> bool:
        """Whether the client has left before its answer was complete."""

    def take(self) -> bytes | None:
        """The body, if all of it is there by now."""

    def is_full(self) -> bool:
        """Whether the client has to take what it was sent before it is sent more."""

    async def room(self) -> None:
        """Return when the client takes more, or has left."""

    def answer(self, status: int, lines: bytes, body: bytes) -> None:
        """Send a whole answer, its length included."""

    def start(self, status: int, lines: bytes) -> None:
        """Begin an answer that comes in chunks."""

    @property
    def has_room(self) -> bool:
        """Whether an answer has begun that comes in chunks, and its client takes another one."""

    def put(self, data: bytes) -> None:
        """Send a chunk of it, not the last one and not empty, to who `has_room`."""

    def write(self, data: bytes, *, more: bool) -> None:
        """Send a chunk of it, or nothing more than that this was all."""

    def end(self, error: BaseException | None) -> None:
        """Who serves it has done so, or has failed with that."""

    async def receive(self) -> Any:
        """As ASGI has it."""

    async def send(self, message: Any) -> None:
        """As ASGI has it."""


class Client:
    """Who waits at the other end of an exchange. `holder` is whose key it has shown."""

    __slots__ = (
        "_is_over",
        "_tell",
        "counted",
        "engine_id",
        "error",
        "exchange",
        "headers",
        "holder",
        "is_gone",
        "is_stream",
        "limits",
        "read_bytes",
        "request_id",
        "route",
        "sent_bytes",
        "status",
        "trace_id",
    )

    def __init__(self, exchange: Exchange, limits: LimitsSettings, holder: Holder) -> None:
        self.exchange = exchange
        self.headers = exchange.headers
        self.limits = limits
        self.holder = holder
        self.request_id = ""
        self.route = "other"
        self.counted: str | None = None  # the key that it counts for, where only so many of one are served
        self.engine_id: int | None = None  # of the first choice
        self.trace_id: str | None = None
        self.error: str | None = None  # its code, where it was refused
        self.is_gone = self.is_stream = self._is_over = False
        self.read_bytes = self.sent_bytes = self.status = 0  # `status`: that has been sent
        self._tell: Callable[[], object] | None = None

    @property
    def address(self) -> str | None:
        """Where it is."""
        return self.exchange.address

    def header(self, name: bytes) -> str | None:
        """The last value of a header, if there is one. Raises BadRequest for one that is not ASCII."""
        value = self.headers.get(name)
        if value is None:
            return None
        try:
            return value.decode("ascii")
        except UnicodeDecodeError:
            raise BadRequest(f"the header {name.decode()} is {value!r}, but must be ASCII") from None

    def taken(self) -> bytes | None:
        """The body, which is JSON or nothing, if all of it is there by now. Raises TooLarge, NotJson."""
        whole = self.exchange.take()
        if whole:
            self.read_bytes = len(whole)
            if self.read_bytes > self.limits.max_body_bytes:
                raise _too_large(self.limits.max_body_bytes)
            check_type(self.headers.get(b"content-type", b""), self.headers.get(b"content-encoding"))
        return whole

    async def body(self) -> bytes:
        """The same when all of it has come. Raises TooLarge, TooSlow, NotJson, ClientGone."""
        whole = self.taken()
        if whole is None:
            whole = await self._parts(self.limits.max_body_bytes)
            if whole:
                check_type(self.headers.get(b"content-type", b""), self.headers.get(b"content-encoding"))
        return whole

    async def _parts(self, most: int) -> bytes:
        """A body that comes piece by piece."""
        told = self.headers.get(b"content-length")
        if told is not None and told.isdigit() and int(told) > most:
            raise _too_large(most)
        parts: list[bytes] = []
        left, more = most, True
        try:
            async with asyncio.timeout(self.limits.body_timeout_s):
                while more:
                    message = await self.exchange.receive()
                    parts.append(self._part(message, left))
                    left -= len(parts[-1])
                    more = message.get("more_body", False)
        except TimeoutError:
            allowed = f"{self.limits.body_timeout_s:g} s"
            raise TooSlow(f"the body has not come within {allowed}, the most that is waited for it") from None
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _part(self, message: MutableMapping[str, Any], most: int) -> bytes:
        if message["type"] == "http.disconnect":
            self.is_gone = True
            raise ClientGone
        part: bytes = message.get("body", b"")
        self.read_bytes += len(part)
        if len(part) > most:
            raise _too_large(self.limits.max_body_bytes)
        return part

    def pipes(self) -> tuple[Receive, Send]:
        """For an app that speaks ASGI itself: the client's own ends, with what is sent noted here."""

        async def send(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                self.status = message["status"]
            else:
                self.sent_bytes += len(message.get("body", b""))
                self._is_over = not message.get("more_body", False)
            await self.exchange.send(message)

        async def receive() -> MutableMapping[str, Any]:
            message: MutableMapping[str, Any] = await self.exchange.receive()
            if message["type"] == "http.disconnect":
                self.is_gone = not self._is_over
            self.read_bytes += len(message.get("body", b""))
            return message

        return receive, send

    def when_gone(self, tell: Callable[[], object]) -> None:
        """Watch the client from now on."""
        self._tell = tell
        self.exchange.tell = self._has_left
        if self.exchange.is_lost():
            self._has_left()

    def cancel_when_gone(self) -> None:
        """Cancel this task when the client is seen to have left; ClientGone is what it should raise then."""
        exchange, task = self.exchange, self.exchange.task
        assert task is not None, "a request is served by a task"
        self._tell, exchange.tell = task.cancel, self._has_left
        if exchange.is_lost():
            self._has_left()

    def stop_watching(self) -> None:
        """The work is done."""
        if self._tell is not None:
            self._tell = self.exchange.tell = None

    def _has_left(self) -> None:
        if not self._is_over:
            self.is_gone = True
            if self._tell is not None:
                self._tell()

    async def answer(self, status: int, lines: bytes, body: bytes) -> None:
        """Answer in one piece."""
        if self.exchange.is_full():
            await self.exchange.room()
        self.tell(status, lines, body)

    def tell(self, status: int, lines: bytes, body: bytes) -> None:
        """Answer in one piece, to who is not full."""
        self.exchange.answer(status, lines, body)
        self.status, self.sent_bytes, self._is_over = status, len(body), True

    async def start(self, status: int, lines: bytes) -> None:
        """Status and headers; the body comes piece by piece."""
        await self.exchange.room()
        self.status = status
        self.exchange.start(status, lines)

    async def write(self, data: bytes, *, more: bool = True) -> None:
        """A piece of the body. Returns when there is room for more; a client that does not read is let go."""
        await self.exchange.room()
        self.sent_bytes += len(data)
        self._is_over = not more
        self.exchange.write(data, more=more)

    def put(self, piece: Callable[[], bytes]) -> bool:
        """Send a piece of the body, not the last one, if there is room for it now; False: it is not asked for."""
        exchange = self.exchange
        if not exchange.has_room:
            return False
        if data := piece():
            self.sent_bytes += len(data)
            exchange.put(data)
        return True

    async def refuse(self, error: EngineError, more: bytes = b"") -> None:
        """Answer with an error in OpenAI's shape."""
        answer = openai_answer(error)
        told = [(name.encode(), value.encode()) for name, value in answer.headers.items()]
        await self.answer(answer.status, JSON + more + lines(told), encode(answer.body))


def check_type(kind: bytes, coding: bytes | None) -> None:
    """Raise NotJson for a body that is said to be something else, by its content-type and content-encoding.

    That a browser asks before it sends JSON to another site, and never before it sends text or a form, is what
    keeps pages that somebody looks at from using a server on the same machine.
    """
    if kind != b"application/json" and kind.partition(b";")[0].strip().lower() != b"application/json":
        raise NotJson(f"content-type is {_shown(kind)}, but must be 'application/json'")
    if coding is not None and coding.lower() != b"identity":
        raise NotJson(f"content-encoding is {_shown(coding)}, but must be left out: nothing is decoded")


SHOWN = 64  # characters of what a client sent that an error repeats


def _shown(value: bytes) -> str:
    return repr(value[:SHOWN].decode("latin-1"))


def _too_large(most: int) -> TooLarge:
    return TooLarge(f"the body is larger than {most} bytes, the most that is read")
