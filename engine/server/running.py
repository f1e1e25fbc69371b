"""Both ports in one process: from settings to a server that listens, and from SIGTERM to one that is gone."""

import asyncio
import secrets
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import uvicorn
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, Router

from engine import garbage
from engine.clock import NS_PER_S, WallClock, to_ns
from engine.engine import Engine
from engine.errors import BadSettings
from engine.server.admin import Admin
from engine.server.gate import NOBODY, Gate, Handler
from engine.server.jobs import Jobs, admin_routes, public_routes
from engine.server.keys import Holder, Keyring, KeysChanged
from engine.server.listening import Listener, bound
from engine.server.openapi import PATH, Pages, keys_of
from engine.server.public import Public
from engine.server.settings import ServerSettings
from engine.server.sight import Sight, logger
from engine.server.wire import bounded
from engine.settings import EngineSettings
from engine.telemetry import Sink

LAG_EVERY_S = 0.1
LOOK_S = 0.02
"""How often it is looked, when the server goes, whether anybody is still served."""

BACKLOG = 2048


class Server:
    """The whole server. Make it inside a running loop; `start` it, then `stop` it.

    `port` and `admin_port` are those that it listens on, once it does.
    """

    def __init__(self, settings: EngineSettings, server: ServerSettings, sinks: Sequence[Sink] = ()) -> None:
        """Raises BadSettings before anything listens."""
        self.settings = server
        self.port = 0
        self.admin_port: int | None = None
        self.clock = clock = WallClock()
        self.sight = Sight(server, clock, settings.seed, sinks)
        self.keyring = self._open_keys(server.keys_file)
        routing = settings.routing
        if server.traces.is_on and not routing.decision_log:
            routing = replace(routing, decision_log=1.0)  # a trace tells how its request was decided
        fleet = replace(settings.fleet, letters=True)  # clients send and read text
        readable = replace(settings, fleet=fleet, routing=routing)
        self.engine = Engine(readable, clock, self.sight.sinks)
        self.public = Public(
            self.engine,
            server,
            instance=secrets.token_hex(4),  # the answers of one process are not those of the next
            exposition=self.sight.exposition,
            trace_of=self.sight.ids.context,
            counts=self.sight.counts,
        )
        self.jobs = self._open_jobs()
        self.admin = Admin(self.engine, server, self.sight.audit, version())
        self.sight.watch(self.engine.figures, *([] if self.jobs is None else [self.jobs.figures]))
        self._gates: list[Gate] = []
        self._listeners: list[Listener] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Listen, and let the replicas serve. Raises BadSettings for a port that is taken."""
        server = self.settings
        doors = [bound("server.port", server.host, server.port)]
        if server.admin_port is not None:
            try:
                doors.append(bound("server.admin_port", server.admin_host, server.admin_port))
            except BadSettings:
                doors[0].close()
                raise
        self.port = doors[0].getsockname()[1]
        self.sight.start()
        self.engine.start()
        if self.jobs is not None:
            self.jobs.start()
        self._look_at_lag()
        await self._listen(self._gate(self.public.routes, self._cold_routes()), doors[0])
        if len(doors) > 1:
            self.admin_port = doors[1].getsockname()[1]
            open_to_all = {key: handler for key, handler in self.public.routes.items() if key[1] in OF_BOTH}
            await self._listen(self._gate(open_to_all, self._admin_routes(), for_admins=True), doors[1])

    async def stop(self, drain_s: float | None = None) -> None:
        """Take no more requests, let those that run end for a while, then let go of everything.

        The ports stay open for so long: whoever comes is told to come again, and who balances load that we go.
        """
        clock = self.clock
        patience_s = self.settings.drain_s if drain_s is None else drain_s
        until_ns = clock.now_ns() + to_ns(patience_s)
        self.public.is_draining = True
        for gate in self._gates:
            gate.is_draining = True
        for listener in self._listeners:
            listener.tell_to_close()
        while any(gate.in_flight for gate in self._gates) and clock.now_ns() < until_ns:
            await clock.sleep(to_ns(LOOK_S))
        left_s = max(0, until_ns - clock.now_ns()) / NS_PER_S
        for listener in self._listeners:
            listener.leave(left_s)
        await asyncio.gather(*self._tasks)
        if self.jobs is not None:
            await self.jobs.close()
        await self.clock.close()
        self.engine.close()
        await self.sight.close()

    def hurry(self) -> None:
        """Wait no more for those that run: whoever is served now is cut off."""
        for listener in self._listeners:
            listener.force_exit = True
            for task in list(listener.server_state.tasks):
                task.cancel()

    @property
    def is_running(self) -> bool:
        """Whether both ports are still served."""
        return not any(task.done() for task in self._tasks)

    def _gate(
        self, hot: dict[tuple[str, str], Handler], cold: list[BaseRoute], *, for_admins: bool = False
    ) -> Gate:
        title = "Modelyard, for operators" if for_admins else "Modelyard"
        pages = Pages(
            title,
            version(),
            keys_of(hot, cold),
            self.settings.limits,
            needs_key=self.keyring is not None,
        )
        hot = {**hot, ("GET", PATH): pages.show}
        gate = Gate(
            hot,
            Router(cold, redirect_slashes=False),
            keyring=self.keyring,
            limits=self.settings.limits,
            clock=self.clock,
            telemetry=self.engine.telemetry,
            name_request=self.public.name_request,
            for_admins=for_admins,
            is_private=not self.settings.allow_no_keys,
            counts=self.sight.counts,
            on_defect=_log_defect,
        )
        self._gates.append(gate)
        return gate

    async def _listen(self, gate: Gate, sock: socket.socket) -> None:
        limits = self.settings.limits
        config = uvicorn.Config(
            gate,  # our protocol has it take an exchange
            interface="asgi3",
            http=bounded(limits),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=int(limits.keep_alive_s),
            backlog=BACKLOG,
        )
        listener = Listener(config)
        self._listeners.append(listener)
        task = asyncio.get_running_loop().create_task(listener.serve([sock]))
        self._tasks.append(task)
        while not listener.started:
            if task.done():
                await task
            await asyncio.sleep(0.001)

    def _cold_routes(self) -> list[BaseRoute]:
        async def model(request: HttpRequest) -> Response:
            told = self.public.model_json(request.path_params["name"], request.state.holder)
            return Response(told, media_type="application/json")

        routes: list[BaseRoute] = [Route("/v1/models/{name:path}", model)]
        return routes if self.jobs is None else [*routes, *public_routes(self.jobs)]

    def _admin_routes(self) -> list[BaseRoute]:
        routes = self.admin.routes()
        return routes if self.jobs is None else [*routes, *admin_routes(self.jobs, self.sight.audit)]

    def _open_jobs(self) -> Jobs | None:
        settings = self.settings.jobs
        if not settings.enabled:
            return None
        folder = None if settings.folder is None else Path(settings.folder)
        return Jobs(
            folder,
            self.engine,
            self.clock,
            settings,
            self.public.ask,
            self._is_idle,
            limits=self.settings.limits,
            holder_of=self._holder_of,
        )

    def _is_idle(self) -> bool:
        """Whether offline batches may go on: nobody waits, and most places of the fleet are free."""
        engine = self.engine
        if engine.quotas.num_waiting or any(each.num_waiting for each in engine.replicas.values()):
            return False
        running = sum(each.num_running for each in engine.replicas.values())
        places = engine.settings.fleet.max_batch * max(1, len(engine.replicas))
        return running <= self.settings.jobs.batch_idle_below * places

    def _holder_of(self, key_id: str) -> Holder | None:
        """Whose key that is, as long as it opens something."""
        if self.keyring is None:
            return NOBODY if not key_id else None
        return self.keyring.holder(key_id)

    def _open_keys(self, file: str | None) -> Keyring | None:
        if file is None:
            return None
        return Keyring(Path(file), self.clock, self._keys_changed)

    def _keys_changed(self, change: KeysChanged) -> None:
        if change.problem is not None:
            logger.error("the keys stay as they were: %s", change.problem)
        if self.sight.audit is not None:
            outcome = "done" if change.problem is None else change.problem
            self.sight.audit.write("system", "keys.read", "keys", after=change, outcome=outcome)

    def _look_at_lag(self) -> None:
        """How late the loop comes to a callback, again and again: what a step in the loop would cost everybody."""
        due_ns = self.clock.now_ns() + to_ns(LAG_EVERY_S)

        def look() -> None:
            self.sight.counts.lagged(max(0, self.clock.now_ns() - due_ns))
            self._look_at_lag()

        self.clock.call_later(to_ns(LAG_EVERY_S), look)


async def serve(server: Server, say: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C comes: then drain. A second one stops at once."""
    loop, told = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    loop.add_signal_handler(signal.SIGHUP, server.sight.reopen)
    await server.start()
    garbage.settle()
    say(f"clients: http://{_address(server.settings.host, server.port)}/v1")
    if server.admin_port is not None:
        say(f"operators: http://{_address(server.settings.admin_host, server.admin_port)}/admin/status")
    await told.wait()
    told.clear()
    say(f"draining, {server.settings.drain_s:g} s at most; once more stops at once")
    stopping = loop.create_task(server.stop())
    hurry = loop.create_task(told.wait())
    await asyncio.wait([stopping, hurry], return_when=asyncio.FIRST_COMPLETED)
    if not stopping.done():
        server.hurry()
    await stopping
    hurry.cancel()


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


OF_BOTH = ("/health", "/ready", "/metrics")


def version() -> str:
    """Of this package, as it is installed."""
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415

    try:
        return version("modelyard")
    except PackageNotFoundError:
        return "unknown"


def _log_defect(error: BaseException, request_id: str) -> None:
    logger.error("request %s failed", request_id, exc_info=error)
