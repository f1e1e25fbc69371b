"""Both ports in one process: from a deployment to a server that listens, and from SIGTERM to one that is gone."""

import asyncio
import logging
import secrets
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, Router

from engine.clock import NS_PER_S, WallClock, to_ns
from engine.engine import Engine
from engine.errors import BadSettings
from engine.server.gate import Gate
from engine.server.keys import Keyring
from engine.server.public import Public
from engine.server.settings import ServerSettings
from engine.server.wire import bounded
from engine.settings import EngineSettings
from engine.telemetry import Meter, Sink
render=lambda m,a:(m.exposition().encode(),"text/plain")

LAG_EVERY_S = 0.1
BACKLOG = 2048


class Listener(uvicorn.Server):
    """uvicorn, told when to stop by us and by no signal of its own."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Server:
    """The whole server. Make it inside a running loop; `start` it, then `stop` it."""

    def __init__(self, settings: EngineSettings, server: ServerSettings, sinks: Sequence[Sink] = ()) -> None:
        """Raises BadSettings before anything listens."""
        self.settings = server
        self.clock = WallClock()
        self.meter = Meter()
        keys_file = server.keys_file
        self.keyring = None if keys_file is None else Keyring(_path(keys_file), self.clock)
        self.engine = Engine(settings, self.clock, [self.meter, *sinks])
        self.meter.sources.append(self.engine.figures)
        self.public = Public(
            self.engine,
            server,
            instance=secrets.token_hex(4),  # the answers of one process are not those of the next
            exposition=lambda accept: render(self.meter, accept),
            trace_of=lambda _: ("", "", None),
        )
        self._listeners: list[Listener] = []
        self._tasks: list[asyncio.Task[None]] = []
        self.port = 0
        self.admin_port: int | None = None

    async def start(self) -> None:
        """Listen, and let the replicas serve. Raises BadSettings for a port that is taken."""
        server = self.settings
        sockets = [_bound("server", server.host, server.port)]
        self.port = sockets[0].getsockname()[1]
        self.engine.start()
        gate = Gate(
            self.public.routes,
            Router(self._cold_routes()),
            keyring=self.keyring,
            limits=server.limits,
            clock=self.clock,
            telemetry=self.engine.telemetry,
            name_request=self.public.name_request,
            on_defect=_log_defect,
        )
        await self._listen(gate, sockets[0])

    async def _listen(self, app: Gate, sock: socket.socket) -> None:
        limits = self.settings.limits
        config = uvicorn.Config(
            app,
            http=bounded(limits),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
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

    async def stop(self, drain_s: float | None = None) -> None:
        """Take no more requests, let those that run end for a while, then let go of everything."""
        self.public.is_draining = True
        for listener in self._listeners:
            listener.config.timeout_graceful_shutdown = drain_s if drain_s is not None else self.settings.drain_s  # type: ignore[assignment]
            listener.should_exit = True
        await asyncio.gather(*self._tasks)
        await self.clock.close()
        self.engine.close()

    def _cold_routes(self) -> list[BaseRoute]:
        async def model(request: HttpRequest) -> Response:
            told = self.public.model_json(request.path_params["name"], request.state.holder)
            return Response(told, media_type="application/json")

        return [Route("/v1/models/{name:path}", model)]


def _path(text: str) -> Any:
    from pathlib import Path  # noqa: PLC0415

    return Path(text)


def _bound(what: str, host: str, port: int) -> socket.socket:
    """A socket that is ours. Raises BadSettings when it cannot be."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
    except OSError as error:
        raise BadSettings(f"{what} cannot listen on {host}:{port}: {error.strerror or error}") from error
    return sock


def _log_defect(error: BaseException, request_id: str) -> None:
    logging.getLogger("modelyard.server").error("request %s failed", request_id, exc_info=error)
