"""The client of one HTTP request, over ASGI: what it sends, within bounds, and whether it is still there."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

from engine.errors import BadRequest, EngineError, TooLarge, openai_answer
from engine.server.answers import JSON, encode
from engine.server.keys import Holder
from engine.server.settings import LimitsSettings

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]


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

    tell: Callable[[], object] | None
    """Called when the client leaves before its answer is complete."""

    @property
    def is_lost(self) -> bool:
        """Whether it has."""

    def body(self) -> bytes | None:
        """The body, if all of it is there by now."""

    def answer(self, status: int, headers: Headers, body: bytes) -> bool:
        """Send a whole answer, its length included. False: it has to wait, and goes the long way."""

    @property
    def has_room(self) -> bool:
        """Whether an answer has begun that comes piece by piece, and its client takes another one."""

    def put(self, data: bytes) -> None:
        """Send a piece of it, not the last one and not empty."""


class Client:
    """Who waits at the other end. `holder` is whose key it has shown."""

    __slots__ = (
        "_exchange",
        "_is_over",
        "_receive",
        "_send",
        "_tell",
        "_watch",
        "engine_id",
        "error",
        "headers",
        "holder",
        "is_gone",
        "is_stream",
        "limits",
        "read_bytes",
        "request_id",
        "scope",
        "sent_bytes",
        "status",
        "trace_id",
    )

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, limits: LimitsSettings, holder: Holder
    ) -> None:
        self.scope = scope
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.holder = holder
        self.limits = limits
        self.request_id = ""
        self.engine_id: int | None = None  # of the first choice
        self.trace_id: str | None = None
        self.error: str | None = None  # its code, where it was refused
        self.is_gone = False
        self.is_stream = False
        self.read_bytes = 0
        self.status = 0  # that has been sent
        self.sent_bytes = 0
        self._receive = receive
        self._send = send
        self._tell: Callable[[], object] | None = None
        self._watch: asyncio.Task[None] | None = None
        # taken out of it: what it belongs to has the scope, and in a ring they would wait for the garbage collector
        self._exchange: Exchange | None = scope.pop("modelyard.exchange", None)
        self._is_over = False

    @property
    def address(self) -> str | None:
        """Where it is."""
        address = self.scope.get("client")
        return None if address is None else str(address[0])

    def header(self, name: bytes) -> str | None:
        """The last value of a header, if there is one. Raises BadRequest for one that is not ASCII."""
        value = self.headers.get(name)
        if value is None:
            return None
        try:
            return value.decode("ascii")
        except UnicodeDecodeError:
            raise BadRequest(f"the header {name.decode()} is {value!r}, but must be ASCII") from None

    async def body(self) -> bytes:
        """All of it, which is JSON or nothing. Raises TooLarge, TooSlow, NotJson, ClientGone."""
        most = self.limits.max_body_bytes
        told = self.headers.get(b"content-length")
        if told is not None and told.isdigit() and int(told) > most:
            raise _too_large(most)
        whole = None if self._exchange is None else self._exchange.body()
        if whole is None:
            whole = await self._parts(most)
        else:
            self.read_bytes += len(whole)
            if len(whole) > most:
                raise _too_large(most)
        if whole:
            self._check_type()
        return whole

    async def _parts(self, most: int) -> bytes:
        """A body that comes piece by piece."""
        parts: list[bytes] = []
        left, more = most, True
        try:
            async with asyncio.timeout(self.limits.body_timeout_s):
                while more:
                    message = await self._receive()
                    parts.append(self._part(message, left))
                    left -= len(parts[-1])
                    more = message.get("more_body", False)
        except TimeoutError:
            allowed = f"{self.limits.body_timeout_s:g} s"
            raise TooSlow(f"the body has not come within {allowed}, the most that is waited for it") from None
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _check_type(self) -> None:
        """Raise NotJson for a body that is said to be something else.

        That a browser asks before it sends JSON to another site, and never before it sends text or a form, is what
        keeps pages that somebody looks at from using a server on the same machine.
        """
        kind = self.headers.get(b"content-type", b"")
        if kind != b"application/json" and kind.partition(b";")[0].strip().lower() != b"application/json":
            raise NotJson(f"content-type is {_shown(kind)}, but must be 'application/json'")
        coding = self.headers.get(b"content-encoding", b"identity")
        if coding.lower() != b"identity":
            raise NotJson(f"content-encoding is {_shown(coding)}, but must be left out: nothing is decoded")

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
            await self._send(message)

        async def receive() -> MutableMapping[str, Any]:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.is_gone = not self._is_over
            self.read_bytes += len(message.get("body", b""))
            return message

        return receive, send

    def when_gone(self, tell: Callable[[], object]) -> None:
        """Watch the client from now on."""
        self._tell = tell
        exchange = self._exchange
        if exchange is None:
            self._watch = asyncio.get_running_loop().create_task(self._look())
            return
        exchange.tell = self._has_left
        if exchange.is_lost:
            self._has_left()

    def cancel_when_gone(self) -> None:
        """Cancel this task when the client is seen to have left; ClientGone is what it should raise then."""
        task = asyncio.current_task()
        assert task is not None, "a request is served by a task"
        self.when_gone(task.cancel)

    def stop_watching(self) -> None:
        """The work is done."""
        self._tell = None
        if self._exchange is not None:
            self._exchange.tell = None
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    async def _look(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._has_left()

    def _has_left(self) -> None:
        if not self._is_over:
            self.is_gone = True
            if self._tell is not None:
                self._tell()

    async def answer(self, status: int, headers: Headers, body: bytes) -> None:
        """Answer in one piece."""
        if self._exchange is not None and self._exchange.answer(status, headers, body):
            self.status, self.sent_bytes, self._is_over = status, len(body), True
            return
        await self.start(status, [*headers, (b"content-length", b"%d" % len(body))])
        await self.write(body, more=False)

    async def start(self, status: int, headers: Headers) -> None:
        """Status and headers; the body comes piece by piece."""
        self.status = status
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, data: bytes, *, more: bool = True) -> None:
        """A piece of the body. Returns when there is room for more; a client that does not read is let go."""
        self.sent_bytes += len(data)
        self._is_over = not more
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    def put(self, piece: Callable[[], bytes]) -> bool:
        """Send a piece of the body, not the last one, if there is room for it now; False: it is not asked for."""
        exchange = self._exchange
        if exchange is None or not exchange.has_room:
            return False
        if data := piece():
            self.sent_bytes += len(data)
            exchange.put(data)
        return True

    async def refuse(self, error: EngineError, headers: Headers = ()) -> None:  # type: ignore[assignment]
        """Answer with an error in OpenAI's shape."""
        answer = openai_answer(error)
        told = [(name.encode(), value.encode()) for name, value in answer.headers.items()]
        await self.answer(answer.status, [JSON, *headers, *told], encode(answer.body))


SHOWN = 64  # characters of what a client sent that an error repeats


def _shown(value: bytes) -> str:
    return repr(value[:SHOWN].decode("latin-1"))


def _too_large(most: int) -> TooLarge:
    return TooLarge(f"the body is larger than {most} bytes, the most that is read")
