"""One port: bound before anything else starts, and left so that nobody who came in time is cut off."""

import asyncio
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import uvicorn

from engine.errors import BadSettings
from engine.server.wire import Bounded

NUM_LOOKS, LOOK_S = 25, 0.02
"""How long it is waited for who has been let in at the last moment to say what for."""


class Listener(uvicorn.Server):
    """uvicorn, told when to stop by us and by no signal of its own."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def tell_to_close(self) -> None:
        """Have those who wait for an answer read in its head that this connection ends with it."""
        for connection in self._connections():
            if connection.cycle is not None and not connection.cycle.response_started:
                connection.cycle.keep_alive = False

    def leave(self, within_s: float) -> None:
        """Close the port; those who are inside are served to their end, but no longer than that."""
        self.config.timeout_graceful_shutdown = within_s  # type: ignore[assignment]
        self.should_exit = True

    async def shutdown(self, sockets: Sequence[socket.socket] | None = None) -> None:
        """Let in whom the system has let in by now, close the port, then do as uvicorn does.

        A port that is closed with somebody before it resets their connection, and a connection that is closed before
        its first request has come resets it when that comes: either looks like a crash.
        """
        late = [each for sock in sockets or () for each in _leave(sock)]
        for server in self.servers:
            server.close()
        loop = asyncio.get_running_loop()
        for each in late:
            each.setblocking(False)
            with suppress(OSError):
                await loop.connect_accepted_socket(self._protocol, each)
        for _ in range(NUM_LOOKS):
            if not any(each.is_new for each in self._connections()):
                break
            await asyncio.sleep(LOOK_S)
        await super().shutdown()

    def _protocol(self) -> asyncio.Protocol:
        kind = self.config.http_protocol_class
        made: asyncio.Protocol = kind(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made

    def _connections(self) -> list[Bounded]:
        return [each for each in self.server_state.connections if isinstance(each, Bounded)]


def _leave(sock: socket.socket) -> list[socket.socket]:
    """Who stands before that port, which takes nobody any more; in between there is time for one reset at most."""
    late = []
    with suppress(OSError):
        while True:
            late.append(sock.accept()[0])
    with suppress(OSError):  # not every system takes it of a port; then it ends when it is closed
        sock.shutdown(socket.SHUT_RDWR)
    return late


def bound(what: str, host: str, port: int) -> socket.socket:
    """A socket that is ours. Raises BadSettings when it cannot be."""
    try:
        (family, kind, number, _, address), *_ = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise BadSettings(f"{what}: {host!r} is no address of this machine: {error.strerror}") from error
    sock = socket.socket(family, kind, number)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise BadSettings(
            f"{what} is {port}, but {host}:{port} cannot be listened on: {error.strerror}"
        ) from error
    return sock
