"""Clients that leave, and clients that do not read: what they had is given back at once, and once only."""

import socket
import struct
from contextlib import contextmanager

import pytest

from engine.server.settings import LimitsSettings
from engine.settings import AllowanceSettings, QuotaSettings
from engine.telemetry import Ended, HttpAnswered
from tests.engine.server.conftest import modelled
from tests.engine.server.raw import (
    HELLO,
    answers_from,
    connected,
    figures,
    head,
    is_closed,
    lets_in,
    one,
    post,
    quiet,
    until,
)

LONG = {**HELLO, "max_tokens": 1_000}
BUDGET = 10**7


class Heard:
    """What was told of requests that have ended."""

    kinds = (Ended, HttpAnswered)

    def __init__(self):
        self.ended, self.answered = [], []

    def emit(self, event):
        (self.ended if isinstance(event, Ended) else self.answered).append(event)


@pytest.fixture(scope="module")
def slow(serving):
    """A step takes 20 ms, so that there is a middle to leave in; two at a time, others wait for their turn."""
    quotas = QuotaSettings(
        max_concurrent_requests=8, limits=[AllowanceSettings(model="*", hourly_tokens=BUDGET)]
    )
    heard = Heard()
    limits = LimitsSettings(body_timeout_s=5, write_timeout_s=0.5)
    with serving(modelled(overhead_us=20_000, quotas=quotas), quiet(limits=limits), [heard]) as found:
        found.heard = heard
        yield found


def replica(running):
    (found,) = running.server.engine.replicas.values()
    return found


def books(running):
    """Tokens that were granted and neither settled nor given back; grants that are held; what is spent."""
    quotas = running.server.engine.quotas

    def look():
        quotas.check_integrity()
        held = quotas._granted_tokens - quotas._settled_tokens - quotas._given_back_tokens
        return held, quotas.in_service, quotas.num_waiting, quotas._settled_tokens

    return running.call(look)


@contextmanager
def begun(running, body, *, count=1, more=b""):
    """A request that is being served when the block begins."""
    with connected(running.server.port) as sock:
        sock.sendall(post(body) + more)
        assert until(lambda: replica(running).num_running == count)
        yield sock


def leave(sock, how):
    """Go, one way or another."""
    if how == "half":
        sock.shutdown(socket.SHUT_WR)
        return
    if how == "reset":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def assert_nothing_is_held(running, before):
    """All that the request had is free again; it has paid for what it used, and got the rest back once."""
    assert until(lambda: books(running)[:3] == (0, 0, 0)), books(running)
    now = until(lambda: figures(running)["replicas"] == [(0, 0)] and figures(running))
    assert now["loads"][0][:2] == (0, 0)
    assert now["pins, blocks, namespaces"][0] == 0
    assert until(lambda: sum(figures(running)["http"]) == 0)
    return books(running)[3] - before[3]


@pytest.mark.parametrize("how", ["close", "reset", "half"])
@pytest.mark.parametrize(
    "body",
    [{**LONG, "stream": True}, LONG, {**LONG, "n": 3, "stream": True}, {**LONG, "n": 3}],
    ids=["streamed", "whole", "several streamed", "several whole"],
)
def test_who_leaves_in_the_middle_is_served_no_longer(slow, body, how):
    """Who closes only its own half has left as well: nobody can tell the two apart who does not write."""
    count, before = body.get("n", 1), books(slow)
    num_ended, num_answered = len(slow.heard.ended), len(slow.heard.answered)
    with begun(slow, body, count=count) as sock:
        begin = replica(slow).num_steps
        assert until(lambda: replica(slow).num_steps > begin + 1)
        steps = replica(slow).num_steps
        leave(sock, how)
        assert until(lambda: replica(slow).num_running == 0)
        assert replica(slow).num_steps - steps <= 10, "a step or two, of a thousand"
    spent = assert_nothing_is_held(slow, before)
    ended = slow.heard.ended[num_ended:]
    assert [event.outcome for event in ended] == ["cancelled"] * count
    made = sum(event.output_tokens for event in ended)
    assert 0 < made < 100
    assert spent <= sum(event.prompt_tokens for event in ended) + made + count, "the rest was given back"
    assert until(lambda: len(slow.heard.answered) > num_answered)
    answered = slow.heard.answered[-1]
    assert (answered.is_aborted, answered.status) == (True, 499)
    assert lets_in(slow)


def test_who_leaves_before_anything_was_generated_costs_nothing(slow):
    before, num, num_answered = books(slow), len(slow.heard.ended), len(slow.heard.answered)
    for _ in range(20):
        with connected(slow.server.port) as sock:
            sock.sendall(post({**LONG, "stream": True}))
    assert until(lambda: len(slow.heard.answered) == num_answered + 20), (
        "each has been seen, and seen to leave"
    )
    assert_nothing_is_held(slow, before)
    assert {event.outcome for event in slow.heard.ended[num:]} <= {"cancelled"}
    assert lets_in(slow)


def test_who_leaves_in_the_middle_of_its_own_words_was_never_there(slow):
    before, num = figures(slow), len(slow.heard.ended)
    for part in (3, 40, -20, -1):
        with connected(slow.server.port) as sock:
            sock.sendall(post(LONG)[:part])
    assert until(lambda: figures(slow) == before)
    assert len(slow.heard.ended) == num
    assert lets_in(slow)


def test_who_leaves_in_the_queue_is_not_waited_for(slow):
    before = books(slow)
    with begun(slow, {**LONG, "n": 8}, count=8) as first:
        with connected(slow.server.port) as second:
            second.sendall(post(LONG))
            assert until(lambda: books(slow)[2] == 1), "it waits for a place"
        assert until(lambda: books(slow)[2] == 0), "its place in the queue is free"
        assert replica(slow).num_running == 8, "who is served stays"
        first.close()
        assert_nothing_is_held(slow, before)


def test_who_leaves_takes_along_what_it_asked_for_next(slow):
    """Of pipelined requests the first is served: it is that which has to end."""
    before, num = books(slow), len(slow.heard.ended)
    with begun(slow, {**LONG, "stream": True}, more=post(LONG) + head("GET /health HTTP/1.1")) as sock:
        sock.recv(64)
        leave(sock, "reset")
        assert until(lambda: replica(slow).num_running == 0, 15), "a thousand steps take twenty seconds"
    assert_nothing_is_held(slow, before)
    assert [event.outcome for event in slow.heard.ended[num:]] == ["cancelled"]


def test_who_stays_is_not_hurt_by_those_who_leave(slow):
    """Half of eight leave; the others are answered whole."""
    stay = [socket.create_connection(("127.0.0.1", slow.server.port), timeout=60) for _ in range(4)]
    go = [socket.create_connection(("127.0.0.1", slow.server.port), timeout=60) for _ in range(4)]
    for sock in stay:
        sock.sendall(post({**HELLO, "max_tokens": 12}))
    for sock in go:
        sock.sendall(post({**LONG, "stream": True}))
    assert until(lambda: replica(slow).num_running >= 4)
    for sock in go:
        leave(sock, "reset")
    for sock in stay:
        (answer,) = answers_from(sock)
        assert answer.json["usage"]["completion_tokens"] == 12
        sock.close()
    assert until(lambda: books(slow)[:3] == (0, 0, 0))


@pytest.fixture(scope="module")
def fast(serving):
    """It answers at once, more than anybody reads who does not."""
    heard = Heard()
    limits = LimitsSettings(write_timeout_s=0.4, keep_alive_s=1)
    with serving(modelled(), quiet(limits=limits), [heard]) as found:
        found.heard = heard
        yield found


def deaf(port):
    """Somebody who asks and does not listen, with as little room for answers as the kernel allows."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(20)
    sock.connect(("127.0.0.1", port))
    return sock


FLOOD = {**HELLO, "max_tokens": 1_500, "n": 16}


@pytest.mark.parametrize("kind", ["streamed", "whole"])
def test_who_does_not_read_is_let_go(fast, kind):
    """Its answer is more than the kernel keeps for it; what the server keeps of it is gone with it."""
    before = figures(fast)
    with deaf(fast.server.port) as sock:
        if kind == "streamed":
            sock.sendall(post({**FLOOD, "stream": True}))
        else:
            sock.sendall(head("GET /openapi.json HTTP/1.1") * 400)
        assert until(lambda: sum(figures(fast)["http"]) == 1)
        assert lets_in(fast), "others are answered meanwhile"
        assert until(lambda: sum(figures(fast)["http"]) == 0), "it is let go"
        assert is_closed(sock)
    assert until(lambda: figures(fast)["replicas"] == before["replicas"])
    assert figures(fast)["in service, waiting"] == (0, 0)
    assert until(lambda: not fast.server._listeners[0].server_state.connections), "nor is its connection kept"


def test_who_reads_slowly_but_reads_is_answered_whole(fast):
    """It takes longer than the time in which something has to be read, and something is read in each."""
    with deaf(fast.server.port) as sock:
        sock.sendall(post({**FLOOD, "n": 4, "stream": True}))
        data = bytearray()
        while b"data: [DONE]" not in data[-64:]:
            piece = sock.recv(1 << 14)
            assert piece, "let go in the middle"
            data += piece
    assert data.count(b'"finish_reason":"length"') == 4


def test_an_answer_that_is_not_read_to_its_end_does_not_keep_its_connection(fast):
    with deaf(fast.server.port) as sock:
        sock.sendall(head("GET /metrics HTTP/1.1"))
        assert is_closed(sock)
    assert one(fast.server.port, post()).status == 200
