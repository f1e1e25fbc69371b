"""Whole answers, straight on the connection: what HTTP wants of each, and when the connection ends."""

import gc
import json
import time

import pytest

from engine.server.answers import lines
from engine.server.settings import LimitsSettings
from engine.server.wire import Exchange
from tests.engine.server.conftest import modelled
from tests.engine.server.raw import (
    HELLO,
    answers_from,
    asked,
    connected,
    get,
    head,
    is_closed,
    one,
    post,
    quiet,
    until,
)

KEEP_ALIVE_S = 1
OK = '{"status":"ok"}'


@pytest.fixture(scope="module")
def held(serving):
    limits = LimitsSettings(keep_alive_s=KEEP_ALIVE_S)
    with serving(modelled(), quiet(limits=limits)) as found:
        yield found


def test_the_answer_to_head_has_a_length_and_no_body(held):
    with connected(held.server.port) as sock:
        sock.sendall(head("HEAD /health HTTP/1.1"))
        time.sleep(0.05)
        told = sock.recv(1 << 16).decode()
        assert told.startswith("HTTP/1.1 200 OK\r\n")
        assert f"content-length: {len(OK)}\r\n" in told
        assert told.endswith("\r\n\r\n")
        sock.sendall(head("GET /health HTTP/1.1"))  # and nothing of the first is in the way of the next
        (answer,) = answers_from(sock)
        assert answer.body.decode() == OK


def test_every_answer_has_a_date_and_its_own_length(held):
    first, second = asked(held.server.port, post() + post({**HELLO, "max_tokens": 9}), 2)
    for answer in (first, second):
        assert answer.headers["date"].endswith("GMT")
        assert int(answer.headers["content-length"]) == len(answer.body)
    assert len(second.json["choices"][0]["message"]["content"]) > len(
        first.json["choices"][0]["message"]["content"]
    )


@pytest.mark.parametrize(
    "data", [post(headers=["connection: close"]), post(b"{}", headers=["connection: close"])]
)
def test_who_asks_for_the_end_gets_it_after_the_answer(held, data):
    with connected(held.server.port) as sock:
        sock.sendall(data)
        (answer,) = answers_from(sock)
        assert answer.headers["connection"] == "close"
        assert is_closed(sock)


def test_a_refusal_before_the_body_does_not_keep_the_next_request_waiting(held):
    several = post({**HELLO, "model": "nobody"}) + post()
    assert [each.status for each in asked(held.server.port, several, 2)] == [404, 200]


def test_a_connection_is_idle_from_its_last_answer_on(held):
    with connected(held.server.port) as sock:
        sock.sendall(post())
        answers_from(sock)
        time.sleep(0.6 * KEEP_ALIVE_S)
        begun_s = time.monotonic()
        sock.sendall(post())
        (answer,) = answers_from(sock)
        assert answer.status == 200
        assert is_closed(sock)
        assert time.monotonic() - begun_s > 0.95 * KEEP_ALIVE_S


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("/v1/models?limit=1", 200),
        ("/v1/%6dodels", 200),
        ("/v1/models#top", 200),
        ("http://test/v1/models", 200),
        ("/v1/models/llama?x=1", 200),
        ("/v1/models/ll%61ma@1.0.0", 200),
        ("/v1//models", 404),
        ("/V1/models", 404),
    ],
)
def test_a_path_is_found_however_it_is_written(held, url, status):
    assert get(held.server.port, url).status == status


def test_who_is_served_when_the_server_hurries_is_cut_off(serving):
    with serving(modelled(overhead_us=20_000), quiet()) as running, connected(running.server.port) as sock:
        sock.sendall(post({**HELLO, "max_tokens": 500}))
        (replica,) = running.server.engine.replicas.values()
        assert until(lambda: replica.num_running == 1)
        running.call(running.server.hurry)
        assert answers_from(sock) == []
        assert until(lambda: replica.num_running == 0)


@pytest.mark.parametrize("value", ["a\r\nx-more: 1", "a\nb", "a\0", "\x7f"], ids=repr)
def test_no_name_of_ours_can_end_a_header(value):
    """Settings refuse such names of replicas and models; whatever came past them would end there."""
    with pytest.raises(ValueError, match="the header x-modelyard-replica has a control character in it"):
        lines([(b"x-modelyard-replica", value.encode())])


@pytest.mark.slow
@pytest.mark.parametrize("body", [HELLO, {**HELLO, "stream": True}], ids=["whole", "streamed"])
def test_what_was_answered_does_not_wait_for_the_garbage_collector(held, body):
    gc.collect()
    gc.disable()
    before = num_exchanges()
    try:
        with connected(held.server.port) as sock:
            for _ in range(9):
                sock.sendall(post(body))
                answers_from(sock)
            for _ in range(100):  # timers of streams that are over hold theirs for some milliseconds
                if (left := num_exchanges() - before) <= 2:
                    break
                time.sleep(0.01)
    finally:
        gc.enable()
    assert left <= 2  # the connection's last


def num_exchanges():
    return sum(
        type(each) is Exchange for each in gc.get_objects()
    )  # `isinstance` would ask proxies who they are


@pytest.fixture(scope="module")
def paced(serving):
    """A step takes longer than news are held back, so that each token is told by itself."""
    with serving(modelled(overhead_us=5_000), quiet()) as found:
        yield found


def events(running, monkeypatch, *, has_room):
    """The events of an answer without what is another's in each, and in how many chunks they came at once."""
    chunks, put = [], Exchange.put
    monkeypatch.setattr(Exchange, "put", lambda self, data: (chunks.append(data), put(self, data)))
    if not has_room:
        monkeypatch.setattr(Exchange, "has_room", False)
    asked_for = {**HELLO, "stream": True, "max_tokens": 9, "stream_options": {"include_usage": True}}
    told = one(running.server.port, post(asked_for)).body.decode().split("\n\n")
    monkeypatch.undo()
    whole = [json.loads(each.removeprefix("data: ")) for each in told if each.startswith("data: {")]
    return [{**each, "id": "", "created": 0} for each in whole], told[-2:], len(chunks)


def test_events_are_the_same_where_nobody_waits_and_where_somebody_has_to(paced, monkeypatch):
    events(paced, monkeypatch, has_room=True)  # from now on, its prompt is in the cache
    *short, at_once = events(paced, monkeypatch, has_room=True)
    *long, none = events(paced, monkeypatch, has_room=False)
    assert short == long
    assert at_once > 0
    assert none == 0
