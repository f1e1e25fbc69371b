"""HTTP/1.1 on the wire: uvicorn's protocol, with bounds that it does not have itself.

Headers that never end, a line without an end, a connection that sends nothing, and one connection too many are
answered before any of our code runs, and cost no task. A client that reads nothing is let go, and what it did not
read with it. Who serves a request may do it straight on the connection, where a whole answer is one write.
"""

import asyncio
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser, parse_url
from uvicorn import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from engine.errors import BadRequest, EngineError, QueueFull, openai_answer
from engine.server.answers import encode, lines
from engine.server.settings import LimitsSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvicorn._types import HTTPScope


class HeadersTooLarge(EngineError):
    """More headers than are read."""

    status = 431
    outcome = "rejected"
    reason = "headers_too_large"
    type = "invalid_request_error"
    code = "headers_too_large"


class HeadTooSlow(EngineError):
    """The headers did not come in time."""

    status = 408
    outcome = "rejected"
    reason = "headers_timeout"
    type = "invalid_request_error"
    code = "request_timeout"


PHRASES = {
    400: b"Bad Request",
    408: b"Request Timeout",
    431: b"Request Header Fields Too Large",
    503: b"Service Unavailable",
}


REST_OF_BODY_S = 2.0
"""How long a body is still read whose request has been answered with the last that its connection is told."""

LOOK_AGAIN_S = 0.05
"""A client that sends one request after the other is not read from for so long: then it is seen if it has left."""


CLOSE = b"connection: close\r\n"
END_AND_CLOSE = CLOSE + b"\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n\r\n"
LENGTH = b"content-length: %d\r\n"

PLAIN_URL = re.compile(rb"/[\w./-]*")
"""A path without a query, and without anything that stands for something else."""


def path_of(url: bytes) -> str:
    """The path that a request asks for."""
    return url.decode() if PLAIN_URL.fullmatch(url) else unquote(parse_url(url).path.decode("ascii"))


short_path_of = lru_cache(maxsize=256)(path_of)
"""The same of few bytes: most ask for the same few, and nobody shall have us keep long ones."""

FEW_BYTES = 128


class Exchange(RequestResponseCycle):
    """One request on a connection, for who serves it to take and answer without a message for each part of it.

    It is uvicorn's cycle, for those who speak ASGI. What only they want is made when they ask for it: a request of
    ours costs what stands in `__init__`, the rest is here.
    """

    access_log = False
    response_started = False
    chunked_encoding: bool | None = None
    expected_content_length = 0
    is_followed = False  # by another request, before it is answered
    knows_chunks = True  # HTTP/1.0 does not: an answer ends with its connection there
    body: bytes | bytearray  # type: ignore[assignment] # that has come and was not taken yet
    tell: "Callable[[], object] | None"  # who wants to know that the client has left
    task: "asyncio.Task[None] | None"  # that serves it
    _scope: "HTTPScope | None" = None
    _event: asyncio.Event | None

    def __init__(
        self, protocol: "Bounded", method: str, path: str, headers: dict[bytes, bytes], *, keep_alive: bool
    ) -> None:
        self.method = method
        self.path = path
        self.headers = headers  # of several with one name, the last
        self.all_headers = protocol.headers
        self.url = protocol.url
        self.transport = protocol.transport
        self.flow = protocol.flow
        self.keep_alive = keep_alive
        self.address = protocol.address
        self._protocol = protocol
        # here and not in the class: what stands there takes a search
        self.body = b""
        self.more_body = True
        self.disconnected = self.response_complete = self.waiting_for_100_continue = False
        self.tell = self.task = self._event = None

    def is_lost(self) -> bool:
        """Whether the client has left before its answer was complete."""
        return self.disconnected and not self.response_complete

    def take(self) -> bytes | None:
        """The body, if all of it is there by now."""
        if self.more_body or self.disconnected or self.response_complete or self.waiting_for_100_continue:
            return None
        if self.flow.read_paused:
            self.flow.resume_reading()
        if self._event is not None:
            self._event.clear()
        body, self.body = bytes(self.body), b""
        return body

    def is_full(self) -> bool:
        """Whether the client has to take what it was sent before it is sent more."""
        return self.flow.write_paused and not self.disconnected

    async def room(self) -> None:
        """Return when the client takes more, or has left."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()

    def answer(self, status: int, lines: bytes, body: bytes) -> None:
        """Send a whole answer, its length included; it needs no room. `lines`: its headers."""
        if self.disconnected:
            return
        self.response_started = self.response_complete = True
        end = b"\r\n" if self.keep_alive else END_AND_CLOSE
        shown = b"" if self.method == "HEAD" else body
        first_lines = self._protocol.first_lines()
        told = (STATUS_LINE[status], first_lines, lines, LENGTH % len(body), end, shown)
        self.transport.write(b"".join(told))
        self._is_answered()

    def start(self, status: int, lines: bytes) -> None:
        """Begin an answer that comes in chunks."""
        if self.disconnected:
            return
        self.response_started, self.chunked_encoding = True, self.knows_chunks
        self.waiting_for_100_continue = False
        end = b"" if self.keep_alive else CLOSE
        parts = CHUNKED if self.knows_chunks else b"\r\n"
        told = (STATUS_LINE[status], self._protocol.first_lines(), lines, end, parts)
        self.transport.write(b"".join(told))

    @property
    def has_room(self) -> bool:
        """Whether an answer has begun that comes in chunks, and its client takes another one."""
        return (
            self.chunked_encoding is True
            and not self.flow.write_paused
            and not self.disconnected
            and not self.response_complete
        )

    def put(self, data: bytes) -> None:
        """Send a chunk of it, not the last one and not empty, to who `has_room`."""
        self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    def write(self, data: bytes, *, more: bool) -> None:
        """Send a piece of it, or nothing more than that this was all."""
        if self.disconnected:
            return
        if self.knows_chunks:
            data = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
            self.transport.write(data if more else data + b"0\r\n\r\n")
        elif data:
            self.transport.write(data)
        if not more:
            self.response_complete = True
            self._is_answered()

    def _is_answered(self) -> None:
        if self._event is not None:
            self._event.set()
        if not self.keep_alive:
            self._protocol.close_after(self)
        self._protocol.on_response_complete()

    def heard(self) -> None:
        """Something has happened that whoever waits for the body should look at."""
        if self._event is not None:
            self._event.set()

    def end(self, error: BaseException | None) -> None:
        """Who serves it has done so, or has failed with that. What is not answered then never will be."""
        if self.task is not None:
            self._protocol.tasks.discard(self.task)
            self.task = None
        if error is not None:
            self._protocol.logger.error("an answer was cut off", exc_info=error)
        if not self.response_complete and not self.disconnected:
            self.transport.close()

    # for those who speak ASGI

    @property
    def on_response(self) -> "Callable[[], None]":  # type: ignore[override]
        return self._protocol.on_response_complete

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:  # type: ignore[override]
        return self._protocol.server_state.default_headers

    @property
    def scope(self) -> "HTTPScope":  # type: ignore[override]
        if self._scope is None:
            self._scope = self._protocol.scope_of(self)
        return self._scope

    @property
    def message_event(self) -> asyncio.Event:  # type: ignore[override]
        if self._event is None:
            self._event = asyncio.Event()
            if self.body or not self.more_body or self.disconnected or self.response_complete:
                self._event.set()
        return self._event


class Bounded(HttpToolsProtocol):
    """One connection. `limits` are set by the class that `bounded` makes."""

    limits: LimitsSettings
    cycle: Exchange

    def __init__(self, config: Config, *arguments: Any, **named: Any) -> None:
        super().__init__(config, *arguments, **named)
        self._most_headers, self._most_bytes = self.limits.max_headers, self.limits.max_header_bytes
        self._idle_bytes = 0  # that came since a message began, or since the last of a body
        self._come_bytes = 0  # on this connection
        self._before_bytes = 0  # of which those before the last
        self._begun_bytes = 0  # and those before this message, at most
        self._trailer_bytes = 0
        self._num_trailers = 0
        self._is_in_head = False
        self._is_heard = True  # what comes belongs to a request that is served
        self._first: list[tuple[bytes, bytes]] | None = None  # headers of every answer
        self._first_lines = b""  # the same, as they stand on the wire
        self._refusal: EngineError | None = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._unread_bytes = 0  # that the client had not read when it was looked at last
        self._read_timer: asyncio.TimerHandle | None = None
        self._served: Exchange | None = None
        self._idle_since_s: float | None = None  # nothing is served and nothing comes
        self.address: str | None = None  # of the client

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.address = None if self.client is None else str(self.client[0])
        if len(self.connections) > self.limits.max_connections:
            most = self.limits.max_connections
            self._give_up(QueueFull(f"{most} connections are open, as many as may be at a time"))
            return
        self._head_timer = self.loop.call_later(self.limits.body_timeout_s, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_timer()
        self._forget_reader()
        super()._unset_keepalive_if_required()
        served = self._served
        if served is not None and not served.response_complete:  # not the last, where requests are pipelined
            served.disconnected = True
            served.heard()
        self.pipeline.clear()
        super().connection_lost(exc)
        if served is not None and served.is_lost() and served.tell is not None:
            served.tell()
        self.cycle = self._served = None  # type: ignore[assignment] # a ring would wait for the garbage collector

    def data_received(self, data: bytes) -> None:
        if self._refusal is not None or self.transport.is_closing():
            return
        if self._idle_bytes > self._most_bytes:  # a line or a chunk's extension without an end
            self._give_up(self._too_large())
            return
        num_bytes = len(data)
        self._idle_bytes += num_bytes
        self._before_bytes = self._come_bytes
        self._come_bytes += num_bytes
        self._idle_since_s = None
        try:
            self.parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            self._stay_with_http(data[upgrade.args[0] :])
        except HttpParserError:
            self._give_up(BadRequest("the request is not HTTP/1.1"))
        if self._is_in_head and len(self.headers) > self._most_headers:
            self._give_up(self._too_large())
        is_next = self.cycle is None or self.cycle.response_complete  # of a connection that is kept alive
        if is_next and self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(self.limits.body_timeout_s, self._head_is_late)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._forget_reader()

    def on_response_complete(self) -> None:
        """As uvicorn has it, but for the timer, which is one for many answers."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            self._watch_reader()
            return
        if self.flow.read_paused:
            self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        if self._refusal is not None:
            self._refuse(self._refusal)
            return
        self._idle_since_s = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._look_at_idle_after(self.timeout_keep_alive)

    def _unset_keepalive_if_required(self) -> None:
        """The timer goes on, and finds that the connection is not idle."""
        self._idle_since_s = None

    def _look_at_idle_after(self, delay_s: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(delay_s, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        """The timer has gone off. Whoever has been idle for less is looked at again when it is time."""
        self.timeout_keep_alive_task = None
        if self._idle_since_s is None:
            return
        left_s = self._idle_since_s + self.timeout_keep_alive - self.loop.time()
        if left_s > 0:
            self._look_at_idle_after(left_s)
            return
        super().timeout_keep_alive_handler()
        self._watch_reader()

    @property
    def is_new(self) -> bool:
        """Whether no request has come on it yet."""
        return self._served is None

    def close_after(self, exchange: Exchange) -> None:
        """Close when all of a request has come that has been answered.

        What comes on a connection that is closed is answered with a reset, which may take the answer with it.
        """
        if exchange.more_body and not exchange.waiting_for_100_continue:
            self.loop.call_later(REST_OF_BODY_S, self.transport.close)
        else:
            self.transport.close()

    def first_lines(self) -> bytes:
        """Headers of every answer. They have the date in them: uvicorn makes new ones every second."""
        first = self.server_state.default_headers
        if first is not self._first:
            self._first, self._first_lines = first, lines(first)
        return self._first_lines

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        """Have it served, by who takes the exchange itself where others take what ASGI makes of it.

        The last that it does is to end the exchange: a callback of the task would be another turn of the loop.
        """
        self._served = cycle
        # as the loop does it, but for the name: a number for each takes as long as all else about a task
        cycle.task = task = asyncio.Task(app(cycle), loop=self.loop, name="exchange")
        self.tasks.add(task)

    def on_message_begin(self) -> None:
        self.url, self.headers = b"", []
        self._is_in_head, self._idle_bytes, self._trailer_bytes, self._num_trailers = True, 0, 0, 0
        self._begun_bytes = self._before_bytes

    def on_url(self, url: bytes) -> None:
        self.url += url
        if len(self.url) > self._most_bytes:
            self._give_up(self._too_large())

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_in_head:
            self.headers.append((name.lower(), value))
            return
        # counted, and never taken for headers: who stands before us has not seen them
        self._num_trailers += 1
        self._trailer_bytes += len(name) + len(value)
        if not self._is_in_bounds():
            self._give_up(self._too_large())

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        if self._head_timer is not None:
            self._forget_timer()
        is_short = self._come_bytes - self._begun_bytes <= self._most_bytes  # all of it, and more, is no more
        if not (is_short and len(self.headers) <= self._most_headers) and not self._is_in_bounds():
            self._give_up(self._too_large())
        parser = self.parser
        self._is_heard = self._refusal is None and not parser.should_upgrade()
        if self._is_heard:
            self._begin(parser.get_method().decode("ascii"), parser.should_keep_alive())

    def _is_in_bounds(self) -> bool:
        """Whether headers and trailers are neither too many nor too large."""
        limits, headers = self.limits, self.headers
        if len(headers) + self._num_trailers > limits.max_headers:
            return False
        told_bytes = sum([len(name) + len(value) for name, value in headers])
        return told_bytes + self._trailer_bytes <= limits.max_header_bytes

    def _begin(self, method: str, keep_alive: bool) -> None:
        """Have the request served whose headers have come, now or after those before it."""
        headers = dict(self.headers)
        is_old = (not keep_alive or b"connection" in headers) and self.parser.get_http_version() == "1.0"
        if is_old:
            keep_alive = False
        before = self._served
        if before is not None and before.response_complete and not before.keep_alive:
            return  # it has been told that nothing more is answered here
        path = short_path_of(self.url) if len(self.url) <= FEW_BYTES else path_of(self.url)
        self.cycle = cycle = Exchange(self, method, path, headers, keep_alive=keep_alive)
        if is_old:
            cycle.knows_chunks = False
        if b"expect" in headers:
            cycle.waiting_for_100_continue = headers[b"expect"].lower() == b"100-continue"
        if before is None or before.response_complete:
            self._start_asgi_task(cycle, self.app)
            return
        self.flow.pause_reading()
        self.pipeline.appendleft((cycle, self.app))
        if not before.is_followed:
            before.is_followed = True
            self.loop.call_later(LOOK_AGAIN_S, self.flow.resume_reading)

    def scope_of(self, exchange: Exchange) -> "HTTPScope":
        """What ASGI wants to know of a request."""
        parsed = parse_url(exchange.url)
        return {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": "1.1",
            "method": exchange.method,
            "scheme": self.scheme or "http",
            "path": exchange.path,
            "raw_path": parsed.path,
            "query_string": parsed.query or b"",
            "root_path": "",
            "headers": exchange.all_headers,
            "client": self.client,
            "server": self.server,
            "state": self.app_state.copy(),
        }

    def on_body(self, body: bytes) -> None:
        self._idle_bytes = 0
        cycle = self.cycle
        if not self._is_heard or cycle.response_complete:
            return
        if not cycle.body:
            cycle.body = body
        else:
            cycle.body = bytearray(cycle.body) if type(cycle.body) is bytes else cycle.body
            cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        if cycle._event is not None:  # noqa: SLF001  a call less for each request
            cycle.heard()

    def on_message_complete(self) -> None:
        cycle = self.cycle
        if not self._is_heard:
            return
        cycle.more_body = False
        if cycle.response_complete:
            if not cycle.keep_alive:
                self.transport.close()
        elif cycle._event is not None:  # noqa: SLF001
            cycle.heard()

    def _stay_with_http(self, rest: bytes) -> None:
        """Some ask for HTTP/2 or a websocket beside. The parser takes the rest for that; it is a body like any other.

        So the head is read once more without the wish, which HTTP leaves to the server. The connection ends with the
        answer.
        """
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._give_up(BadRequest("the request is not HTTP/1.1"))
            return
        lines = [b"%b %b HTTP/%b" % (method, self.url, self.parser.get_http_version().encode())]
        lines += [b"%b: %b" % each for each in self.headers if each[0] not in (b"connection", b"upgrade")]
        self.parser = HttpRequestParser(self)
        self.data_received(b"\r\n".join([*lines, b"connection: close", b"", rest]))

    def _too_large(self) -> HeadersTooLarge:
        limits = self.limits
        return HeadersTooLarge(
            f"the headers are more than {limits.max_headers} or larger than {limits.max_header_bytes} bytes"
        )

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._is_in_head:
            self._give_up(HeadTooSlow(f"the headers have not come within {self.limits.body_timeout_s:g} s"))
        else:
            self.transport.close()

    def _forget_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _watch_reader(self) -> None:
        """What has been written has to be read: some of it each time that somebody looks."""
        self._forget_reader()
        self._unread_bytes = self.transport.get_write_buffer_size()
        if self._unread_bytes:
            self._read_timer = self.loop.call_later(self.limits.write_timeout_s, self._look_at_reader)

    def _look_at_reader(self) -> None:
        before = self._unread_bytes
        self._watch_reader()
        if self._unread_bytes >= before:
            self.transport.abort()

    def _forget_reader(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None

    def _give_up(self, error: EngineError) -> None:
        """Answer with that error and close, when the requests before it are answered.

        An answer that has begun to what is no good itself is cut off.
        """
        if self._refusal is not None:
            return
        self._refusal, self._is_heard = error, False
        self._forget_timer()
        cycle, served = self.cycle, self._served
        if cycle is not None and cycle.more_body:  # it is the body of the last one that is no good
            if cycle is served:
                self._refuse(None if cycle.response_started else error)
                return
            self.pipeline.popleft()
        if served is None or served.response_complete:
            self._refuse(error)

    def _refuse(self, error: EngineError | None) -> None:
        """Close, with that error as the last answer if there is one."""
        if error is not None and not self.transport.is_closing():
            answer = openai_answer(error)
            body = encode(answer.body)
            told = "".join(f"{name}: {value}\r\n" for name, value in answer.headers.items()).encode()
            self.transport.write(
                b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\nconnection: close\r\n%b"
                b"content-length: %d\r\n\r\n%b" % (error.status, PHRASES[error.status], told, len(body), body)
            )
        self.transport.close()
        self._watch_reader()


def bounded(limits: LimitsSettings) -> type[Bounded]:
    """The protocol with these bounds."""
    return type("BoundedHttp", (Bounded,), {"limits": limits})
