"""HTTP/1.1 on the wire: uvicorn's protocol, with bounds that it does not have itself.

Headers that never end, a line without an end, a connection that sends nothing, and one connection too many are
answered before any of our code runs, and cost no task. A client that reads nothing is let go, and what it did not
read with it. Who serves a request may do it straight on the connection, where a whole answer is one write.
"""

import asyncio
from typing import TYPE_CHECKING, Any

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import (
    HEADER_VALUE_RE,
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from engine.errors import BadRequest, EngineError, QueueFull, openai_answer
from engine.server.answers import encode
from engine.server.settings import LimitsSettings

if TYPE_CHECKING:
    from collections.abc import Callable


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


LOOK_AGAIN_S = 0.05
"""A client that sends one request after the other is not read from for so long: then it is seen if it has left."""


class Exchange:
    """One request on a connection, for who serves it to take and answer without a message for each part of it."""

    __slots__ = ("_cycle", "is_followed", "tell")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self.is_followed = False  # by another request, before it is answered
        self.tell: Callable[[], object] | None = None  # who wants to know that the client has left

    @property
    def is_lost(self) -> bool:
        """Whether the client has left before its answer was complete."""
        return self._cycle.disconnected and not self._cycle.response_complete

    def body(self) -> bytes | None:
        """The body, if all of it is there by now."""
        cycle = self._cycle
        if cycle.more_body or cycle.disconnected or cycle.response_complete or cycle.waiting_for_100_continue:
            return None
        cycle.flow.resume_reading()
        cycle.message_event.clear()
        body, cycle.body = bytes(cycle.body), bytearray()
        return body

    def answer(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> bool:
        """Send a whole answer, its length included. False: it has to wait, and goes the long way.

        The headers are ours: names are known to be fit, and no value has a line's end in it.
        """
        cycle = self._cycle
        if cycle.disconnected:
            return True
        if cycle.flow.write_paused or cycle.response_started:
            return False
        told = [b"%b: %b\r\n" % each for each in (*cycle.default_headers, *headers)]
        if HEADER_VALUE_RE.search(b"".join([value for _, value in headers])):
            raise ValueError("a header has a control character in it")
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        end = b"" if cycle.keep_alive else b"connection: close\r\n"
        shown = b"" if cycle.scope["method"] == "HEAD" else body
        length = b"content-length: %d\r\n" % len(body)
        cycle.transport.write(b"".join([STATUS_LINE[status], *told, length, end, b"\r\n", shown]))
        cycle.message_event.set()
        if end:
            cycle.transport.close()
        cycle.on_response()
        return True

    @property
    def has_room(self) -> bool:
        """Whether an answer has begun that comes in chunks, and its client takes another one."""
        cycle = self._cycle
        return (
            bool(cycle.chunked_encoding)
            and not cycle.flow.write_paused
            and not cycle.disconnected
            and not cycle.response_complete
        )

    def put(self, data: bytes) -> None:
        """Send a chunk of it, not the last one and not empty."""
        self._cycle.transport.write(b"%x\r\n%b\r\n" % (len(data), data))


class Bounded(HttpToolsProtocol):
    """One connection. `limits` are set by the class that `bounded` makes."""

    limits: LimitsSettings

    def __init__(self, config: Config, *arguments: Any, **named: Any) -> None:
        super().__init__(config, *arguments, **named)
        self._idle_bytes = 0  # that came since a message began, or since the last of a body
        self._told_bytes = 0  # of whole headers
        self._num_trailers = 0
        self._is_in_head = False
        self._refusal: EngineError | None = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._unread_bytes = 0  # that the client had not read when it was looked at last
        self._read_timer: asyncio.TimerHandle | None = None
        self._served: RequestResponseCycle | None = None
        self._exchange: Exchange | None = None
        self._idle_since_s: float | None = None  # nothing is served and nothing comes

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            most = self.limits.max_connections
            self._give_up(QueueFull(f"{most} connections are open, as many as may be at a time"))
            return
        self._head_timer = self.loop.call_later(self.limits.body_timeout_s, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_timer()
        self._forget_reader()
        super()._unset_keepalive_if_required()
        served, exchange = self._served, self._exchange
        if served is not None and not served.response_complete:  # not the last, where requests are pipelined
            served.disconnected = True
            served.message_event.set()
        self.pipeline.clear()
        super().connection_lost(exc)
        if exchange is not None and exchange.is_lost and exchange.tell is not None:
            exchange.tell()

    def data_received(self, data: bytes) -> None:
        if self._refusal is not None or self.transport.is_closing():
            return
        if self._idle_bytes > self.limits.max_header_bytes:  # a line or a chunk's extension without an end
            self._give_up(self._too_large())
            return
        self._idle_bytes += len(data)
        self._idle_since_s = None
        try:
            self.parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            self._stay_with_http(data[upgrade.args[0] :])
        except HttpParserError:
            self._give_up(BadRequest("the request is not HTTP/1.1"))
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
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
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

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._served = cycle
        self._exchange = Exchange(cycle)
        cycle.scope["modelyard.exchange"] = self._exchange  # type: ignore[typeddict-unknown-key]
        super()._start_asgi_task(cycle, app)

    def on_message_begin(self) -> None:
        self._is_in_head, self._idle_bytes, self._told_bytes, self._num_trailers = True, 0, 0, 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > self.limits.max_header_bytes:
            self._give_up(self._too_large())

    def on_header(self, name: bytes, value: bytes) -> None:
        self._told_bytes += len(name) + len(value)
        if self._is_in_head:
            name = name.lower()
            if name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True
            self.headers.append((name, value))
        else:
            # counted, and never taken for headers: who stands before us has not seen them
            self._num_trailers += 1
        limits = self.limits
        count = len(self.headers) + self._num_trailers
        if self._told_bytes > limits.max_header_bytes or count > limits.max_headers:
            self._give_up(self._too_large())

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._forget_timer()
        if self._is_heard:
            super().on_headers_complete()
        if self.pipeline and self._exchange is not None and not self._exchange.is_followed:
            self._exchange.is_followed = True
            self.loop.call_later(LOOK_AGAIN_S, self.flow.resume_reading)

    def on_body(self, body: bytes) -> None:
        self._idle_bytes = 0
        if self._is_heard:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._is_heard:
            super().on_message_complete()

    @property
    def _is_heard(self) -> bool:
        return self._refusal is None and not self.parser.should_upgrade()

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
        """Answer with that error and close. An answer that has begun is cut off."""
        if self._refusal is not None:
            return
        self._refusal = error
        self._forget_timer()
        if not self.transport.is_closing() and not (self.cycle and self.cycle.response_started):
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
