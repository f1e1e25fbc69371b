"""A server that goes: who is served is served to the end, and whoever comes is told so, by an answer."""

import asyncio
import socket
import time
from dataclasses import dataclass

import pytest

from tests.engine.server.conftest import Running, modelled
from tests.engine.server.raw import (
    HELLO,
    answers_from,
    connected,
    gates,
    get,
    head,
    is_closed,
    post,
    quiet,
    until,
)

LONG = {**HELLO, "max_tokens": 400}
STEP_US = 500


@dataclass
class Going:
    """A server that is asked to go while it serves two requests: one computes, one waits for the end of its body.

    So it goes when the test has sent that. `kept` is a connection that was answered before and asks for nothing.
    """

    running: Running
    computing: socket.socket
    halfway: socket.socket
    kept: socket.socket

    @property
    def port(self):
        return self.running.server.port

    def finish(self):
        """Both are answered as ever."""
        self.halfway.sendall(post()[-1:])
        for sock, tokens in ((self.computing, LONG["max_tokens"]), (self.halfway, HELLO["max_tokens"])):
            (answer,) = answers_from(sock)
            assert answer.status == 200
            assert answer.json["usage"]["completion_tokens"] == tokens
            assert answer.headers["connection"] == "close"
            assert is_closed(sock)


@pytest.fixture
def going(serving):
    with (
        serving(modelled(overhead_us=STEP_US), quiet()) as running,
        connected(running.server.port) as sock,
        connected(running.server.port) as halfway,
        connected(running.server.port) as kept,
    ):
        kept.sendall(head("GET /health HTTP/1.1"))
        answers_from(kept)
        halfway.sendall(post()[:-1])
        assert until(lambda: gates(running)[running.server.port].in_flight == 1)
        sock.sendall(post(LONG))
        (replica,) = running.server.engine.replicas.values()
        assert until(lambda: replica.num_running == 1)
        running.stop()
        assert until(lambda: running.server.public.is_draining)
        yield Going(running, sock, halfway, kept)


def test_whoever_comes_is_told_to_come_again(going):
    with connected(going.port) as newcomer:
        for sock in (newcomer, going.kept):
            sock.sendall(post())
            (answer,) = answers_from(sock)
            assert answer.status == 503
            assert answer.headers["retry-after"] == "1"
            assert answer.headers["connection"] == "close"
            assert "shutting down" in answer.error["message"]
            assert is_closed(sock)
    going.finish()


def test_who_looks_at_it_sees_that_it_goes(going):
    port, admin_port = going.port, going.running.server.admin_port
    for each in (port, admin_port):
        ready = get(each, "/ready")
        assert (ready.status, ready.json["status"]) == (503, "draining")
        assert get(each, "/health").status == 200
        assert get(each, "/metrics").status == 200
    assert get(port, "/v1/models").json["data"][0]["id"]
    assert get(admin_port, "/admin/status").status == 200
    going.finish()


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/files", "/v1/batches", "/v1/nowhere"])
def test_nothing_new_is_begun_at_any_route(going, path):
    with connected(going.port) as newcomer:
        newcomer.sendall(post(path=path))
        (answer,) = answers_from(newcomer)
        assert answer.status == 503
    going.finish()


def test_a_refusal_arrives_though_its_request_is_still_being_sent(going):
    """What is sent to a closed connection is answered with a reset, which can take the answer along."""
    with connected(going.port) as newcomer:
        begun = post(length=3 << 20)
        newcomer.sendall(begun)
        (answer,) = answers_from(newcomer)
        assert answer.status == 503
        rest = (3 << 20) - len(begun.partition(b"\r\n\r\n")[2])
        newcomer.sendall(b" " * rest + post())  # and one more, which is not answered
        assert newcomer.recv(1) == b""
    going.finish()


def test_a_request_that_never_comes_whole_does_not_hold_the_server(going):
    with connected(going.port) as newcomer:
        newcomer.sendall(post(length=100_000))
        assert answers_from(newcomer)[0].status == 503
        going.finish()
        assert is_closed(newcomer)  # or it waits for a minute, and fails
    assert until(lambda: is_refused(going.port))


def test_the_port_is_closed_when_the_last_has_been_served(going):
    time.sleep(0.3)
    assert not is_refused(going.port)
    going.finish()
    assert is_closed(going.kept)  # it has asked for nothing since
    assert until(lambda: is_refused(going.port))


def test_whom_the_system_has_let_in_is_answered_too(serving):
    """Connections that nobody has accepted when the port is closed, and requests that come after that."""
    with serving(modelled(), quiet()) as running:
        port = running.server.port
        (listener, _) = running.server._listeners
        gates(running)[port].is_draining = True

        async def close():
            here = [connect(port) for _ in range(6)]  # and the loop has no turn before it is closed
            for each in here[:3]:
                each.sendall(post())
            asyncio.get_running_loop().call_later(0.1, lambda: [each.sendall(post()) for each in here[3:]])
            with listener.servers[0].sockets[0].dup() as door:
                await listener.shutdown([door])
            return here

        for each in running.call(close):
            with each:
                (answer,) = answers_from(each)
                assert answer.status == 503
                assert is_closed(each)
        assert is_refused(port)


def is_refused(port):
    try:
        connect(port).close()
    except ConnectionRefusedError:
        return True
    return False


def connect(port):
    return socket.create_connection(("127.0.0.1", port), timeout=60)
