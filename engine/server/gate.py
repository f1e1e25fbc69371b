"""The gate before all routes of a port: who comes in, how many at a time, and errors in one shape."""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import ClassVar
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.routing import Match, Route, Router
from starlette.types import Scope

from engine.clock import Clock
from engine.errors import EngineError, Forbidden, NoReplica, NotFound, OverQuota, QueueFull, Unauthorised
from engine.server.answers import lines
from engine.server.client import SHOWN, Client, ClientGone, Exchange
from engine.server.disk import DiskFull, is_full
from engine.server.keys import Holder, Keyring
from engine.server.settings import DEFAULT_TENANT, LimitsSettings, is_loopback
from engine.telemetry import HttpAnswered, OwnCounts, Telemetry

Handler = Callable[[Client], Awaitable[None]]

NOBODY = Holder(id="", tenant=DEFAULT_TENANT, is_admin=True)
"""Who comes in where nobody is asked for a key."""

SAFE = ("GET", "HEAD", "OPTIONS")
"""Methods that start nothing."""

CUT_OFF = "the answer cannot be finished"

CLOSED = 499
"""Not sent to anybody: what nginx logs for a client that left."""


class NoRoute(NotFound):
    """Nothing is served at that path."""

    code = "not_found"


class WrongMethod(EngineError):
    """Not with that method, but with one of those `allowed`."""

    status = 405
    outcome = "rejected"
    reason = "method_not_allowed"
    type = "invalid_request_error"
    code = "method_not_allowed"

    def __init__(self, path: str, method: str, allowed: Iterable[str]) -> None:
        self.allowed = ", ".join(sorted(allowed))
        super().__init__(f"{_cut(path)} does not take {method}, but {self.allowed}")


class UnknownCoding(EngineError):
    """The body comes in a transfer coding that is not read: the parser takes `chunked` off, and nothing below it."""

    status = 501
    outcome = "rejected"
    reason = "unknown_transfer_coding"
    type = "invalid_request_error"
    code = "unknown_transfer_coding"


class NoSuchPart(EngineError):
    """Nothing that was asked for lies within the `num_bytes` that there are."""

    status = 416
    outcome = "rejected"
    reason = "range_not_satisfiable"
    type = "invalid_request_error"
    code = "range_not_satisfiable"

    def __init__(self, given: str, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        super().__init__(
            f"the header range is {_cut(given)!r}, but must be within the {num_bytes} bytes of the file"
        )


class InternalError(EngineError):
    """A defect of ours. The message tells the client nothing of it; the log does."""

    reason = "internal_error"
    type = "server_error"
    code = "internal_error"


class Gate:
    """One port: `hot` routes by method and path, all others in `rest`.

    Every route asks for a key but those in `OPEN`; on the operators' port (`for_admins`) for an operator's. One that
    asks for none because only its own machine reaches it (`is_private`) serves no pages of other sites either, which
    somebody looks at on that machine.
    """

    OPEN: ClassVar[frozenset[str]] = frozenset({"/health", "/ready"})

    def __init__(
        self,
        hot: Mapping[tuple[str, str], Handler],
        rest: Router,
        *,
        keyring: Keyring | None,
        limits: LimitsSettings,
        clock: Clock,
        telemetry: Telemetry,
        name_request: Callable[[], str],
        counts: OwnCounts,
        for_admins: bool = False,
        is_private: bool = False,
        on_defect: Callable[[BaseException, str], None] | None = None,
    ) -> None:
        self._hot = hot
        self._methods: dict[str, list[str]] = {}
        for method, path in hot:
            self._methods.setdefault(path, []).append(method)
        self._rest = rest
        self._keyring = keyring
        self._limits = limits
        self._clock = clock
        self._telemetry = telemetry
        self._name_request = name_request
        self._for_admins = for_admins
        self._is_private = is_private
        self._counts = counts
        self._on_defect = on_defect
        self._of_key: Counter[str] = Counter()
        self.in_flight = 0
        self.is_draining = False

    async def __call__(self, exchange: Exchange) -> None:
        """One request, to its end. What goes wrong when an answer has begun cuts it off there."""
        begun_ns = self._clock.now_ns()
        client = Client(exchange, self._limits, NOBODY)
        counts, cut_off = self._counts, None
        if is_late := self.is_draining:
            exchange.keep_alive = False
        else:
            self.in_flight += 1
        counts.http_in_flight += 1
        try:
            given = client.headers.get(b"x-request-id")
            client.request_id = self._name_request() if given is None else self._request_id(given)
            await self._let_in(client)(client)
        except EngineError as error:
            cut_off = await self._refuse(client, DiskFull() if is_full(error) else error)
        except ClientGone:
            pass
        except Exception as error:  # noqa: BLE001  the client is told nothing of it, the log everything
            cut_off = await self._refuse(client, self._fault(error, client.request_id))
        finally:
            if client.counted is not None:
                self._leave(client.counted)
            client.stop_watching()
            if not is_late:
                self.in_flight -= 1
            counts.http_in_flight -= 1
            self._note(client, begun_ns)
            exchange.end(cut_off)

    def _let_in(self, client: Client) -> Handler:
        """The route that the request may take. Raises an EngineError where it may take none."""
        exchange = client.exchange
        method, path = exchange.method, exchange.path
        handler = self._hot.get((method, path))
        if b"transfer-encoding" in client.headers:
            _check_coding(exchange.scope["headers"])
        if path in self.OPEN:
            client.route = path
            if handler is None:
                raise WrongMethod(path, method, self._methods.get(path, ()))
            return handler
        self._admit(client)
        if self.is_draining and not self._for_admins and method not in SAFE:
            raise NoReplica("the server is shutting down")
        if handler is None:
            if path in self._methods:
                raise WrongMethod(path, method, self._methods[path])
            return self._cold
        client.route = path
        if self.in_flight > self._limits.max_requests:
            raise QueueFull(
                f"{self._limits.max_requests} requests are being served, as many as are at a time"
            )
        most = self._limits.max_requests_per_key
        if most is not None:
            client.counted = self._enter(client.holder.id, most)
        return handler

    def _enter(self, key: str, most: int) -> str:
        """Count one request more of that key. Raises OverQuota."""
        if self._of_key[key] >= most:
            raise OverQuota(f"{most} requests of this key are being served, as many as may be at a time", 1.0)
        self._of_key[key] += 1
        return key

    def _leave(self, key: str) -> None:
        self._of_key[key] -= 1
        if not self._of_key[key]:
            del self._of_key[key]

    def _admit(self, client: Client) -> None:
        """Find out who it is. Raises Unauthorised, Forbidden."""
        if self._keyring is not None:
            client.holder = self._holder(client, self._keyring)
        elif self._is_private and b"origin" in client.headers:
            _check_origin(client.headers[b"origin"])
        if self._for_admins and not client.holder.is_admin:
            raise Forbidden("the key is not an operator's, but must be for this port")

    async def _cold(self, client: Client) -> None:
        """What Starlette routes: with its sends watched, so that an error is not sent after an answer."""
        scope = client.exchange.scope
        scope["state"] = {**scope.get("state", {}), "holder": client.holder, "client": client}
        scope["app"] = self  # so that Starlette raises what it would otherwise answer in its own words
        try:
            await self._rest(scope, *client.pipes())
        except HTTPException as error:
            if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
                raise WrongMethod(scope["path"], scope["method"], self._methods_of(scope)) from None
            raise NoRoute(f"nothing is served at {_cut(scope['path'])!r}") from None
        finally:
            if (route := scope.get("route")) is not None:
                client.route = route.path

    def _methods_of(self, scope: Scope) -> set[str]:
        """All that are served at that path: Starlette tells of the first route only."""
        here = [each for each in self._rest.routes if each.matches(scope)[0] is not Match.NONE]
        return {method for each in here if isinstance(each, Route) for method in each.methods or ()}

    def _holder(self, client: Client, keyring: Keyring) -> Holder:
        """Whose key it is. Raises Unauthorised."""
        shown = client.headers.get(b"authorization", b"")
        kind, _, key = shown.partition(b" ")
        if kind.lower() != b"bearer" or not key:
            raise Unauthorised("no API key is given: send it as Authorization: Bearer KEY")
        holder = keyring.find(key.decode("latin-1").strip())
        if holder is None:
            raise Unauthorised("the API key is not known here")
        return holder

    def _request_id(self, given: bytes) -> str:
        """The client's own name for the request, if it is one, or ours."""
        if given and len(given) <= self._limits.max_id_chars and given.isascii():
            name = given.decode()
            if name.isprintable():
                return name
        return self._name_request()

    def _fault(self, error: Exception, request_id: str) -> EngineError:
        """What a client is told of what nobody expected."""
        if self._on_defect is not None:
            self._on_defect(error, request_id)
        if is_full(error):
            return DiskFull()
        return InternalError("something went wrong on our side; the log tells it by request id")

    async def _refuse(self, client: Client, error: EngineError) -> Exception | None:
        """Answer with the error. Where an answer has begun: with what it is cut off."""
        if client.status:
            return ConnectionAbortedError(CUT_OFF) if isinstance(error, InternalError) else error
        client.error = error.code or error.reason
        with suppress(ClientGone):
            await client.refuse(
                error, lines([(b"x-request-id", client.request_id.encode()), *_told_by(error)])
            )
        return None

    def _note(self, client: Client, begun_ns: int) -> None:
        takers = self._telemetry.takers[HttpAnswered]
        if takers:
            status = CLOSED if client.is_gone else client.status
            now_ns, holder = self._clock.now_ns(), client.holder
            answered = HttpAnswered(
                now_ns,
                client.request_id,
                client.exchange.method,
                client.route,
                status,
                now_ns - begun_ns,
                client.read_bytes,
                client.sent_bytes,
                client.is_stream,
                client.is_gone,
                holder.tenant,
                holder.id or None,
                client.exchange.address,
                client.error,
                client.engine_id,
                client.trace_id,
            )
            for take in takers:
                take(answered)


def _told_by(error: EngineError) -> list[tuple[bytes, bytes]]:
    """What HTTP wants to be said beside some errors."""
    if isinstance(error, WrongMethod):
        return [(b"allow", error.allowed.encode())]
    if isinstance(error, NoSuchPart):
        return [(b"content-range", b"bytes */%d" % error.num_bytes)]
    return [(b"www-authenticate", b"Bearer")] if isinstance(error, Unauthorised) else []


def _check_coding(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Raise UnknownCoding for a body that is more than in chunks (RFC 9112, 6.1)."""
    told = b", ".join([value for name, value in headers if name == b"transfer-encoding"]).decode("latin-1")
    if told.strip().lower() != "chunked":
        raise UnknownCoding(f"transfer-encoding is {_cut(told)!r}, but must be 'chunked' or left out")


def _check_origin(origin: bytes) -> None:
    """Raise Forbidden for a page that is not of this machine."""
    shown = origin.decode("latin-1")
    try:
        host = urlsplit(shown).hostname
    except ValueError:
        host = None
    if host is None or not is_loopback(host):
        raise Forbidden(
            f"the header origin is {_cut(shown)!r}, but must be of this machine where nobody is asked for a key"
        )


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."
