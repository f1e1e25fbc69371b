"""HTTP/1.1 on the wire: uvicorn's protocol, with bounds that it does not have itself.

Headers that never end, a line without an end, a connection that sends nothing, and one connection too many are
answered before any of our code runs, and cost no task.
"""

import asyncio
from typing import Any

from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from engine.errors import BadRequest, EngineError, QueueFull, openai_answer
from engine.server.answers import encode
from engine.server.settings import LimitsSettings


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


class Bounded(HttpToolsProtocol):
    """One connection. `limits` are set by the class that `bounded` makes."""

    limits: LimitsSettings

    def __init__(self, config: Config, *arguments: Any, **named: Any) -> None:
        super().__init__(config, *arguments, **named)
        self._head_bytes = 0  # as they came, while there was no end of the headers
        self._told_bytes = 0  # of whole headers
        self._is_in_head = False
        self._refusal: EngineError | None = None
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            most = self.limits.max_connections
            self._give_up(QueueFull(f"{most} connections are open, as many as may be at a time"))
            return
        self._head_timer = self.loop.call_later(self.limits.body_timeout_s, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refusal is not None or self.transport.is_closing():
            return
        is_next = self.cycle is None or self.cycle.response_complete  # of a connection that is kept alive
        if is_next and self._head_timer is None:
            self._head_timer = self.loop.call_later(self.limits.body_timeout_s, self._head_is_late)
        if self._is_in_head:
            self._head_bytes += len(data)
            self._check_head()
        super().data_received(data)

    def on_message_begin(self) -> None:
        self._is_in_head, self._head_bytes, self._told_bytes = True, 0, 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > self.limits.max_header_bytes:
            self._give_up(self._too_large())

    def on_header(self, name: bytes, value: bytes) -> None:
        self._told_bytes += len(name) + len(value)
        super().on_header(name, value)
        self._check_head()

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._forget_timer()
        if self._refusal is None:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self._refusal is None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._refusal is None:
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP at all is told so in our words."""
        self._give_up(BadRequest("the request is not HTTP/1.1"))

    def _check_head(self) -> None:
        limits = self.limits
        size = max(self._head_bytes, self._told_bytes)
        if size > limits.max_header_bytes or len(self.headers) > limits.max_headers:
            self._give_up(self._too_large())

    def _too_large(self) -> HeadersTooLarge:
        limits = self.limits
        return HeadersTooLarge(
            f"the headers are more than {limits.max_headers} or larger than {limits.max_header_bytes} bytes"
        )

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._is_in_head or self._head_bytes:
            self._give_up(HeadTooSlow(f"the headers have not come within {self.limits.body_timeout_s:g} s"))
        else:
            self.transport.close()

    def _forget_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self, error: EngineError) -> None:
        """Answer with that error and close. An answer that has begun is cut off."""
        if self._refusal is not None:
            return
        self._refusal = error
        self._forget_timer()
        if not self.transport.is_closing() and not (self.cycle and self.cycle.response_started):
            body = encode(openai_answer(error).body)
            self.transport.write(
                b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\nconnection: close\r\n"
                b"content-length: %d\r\n\r\n%b" % (error.status, PHRASES[error.status], len(body), body)
            )
        self.transport.close()


def bounded(limits: LimitsSettings) -> type[Bounded]:
    """The protocol with these bounds."""
    return type("BoundedHttp", (Bounded,), {"limits": limits})
