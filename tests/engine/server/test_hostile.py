"""What nobody should send: refused in OpenAI's words by the right status, at no cost to anybody else."""

import json
import socket
import time

import pytest

from engine.server.bodies import depth_of
from engine.server.settings import LimitsSettings
from engine.settings import AllowanceSettings, QuotaSettings
from tests.engine.server.conftest import modelled
from tests.engine.server.raw import (
    CHAT,
    HELLO,
    Answers,
    answers_from,
    asked,
    connected,
    figures,
    head,
    is_closed,
    lets_in,
    one,
    post,
    quiet,
    settled,
    until,
)

KIB, MIB = 1 << 10, 1 << 20
LIMITS = LimitsSettings(body_timeout_s=0.5, keep_alive_s=5, max_body_bytes=MIB)


@pytest.fixture(scope="module")
def held(serving):
    """A server with a budget, so that whatever is spent shows."""
    quotas = QuotaSettings(limits=[AllowanceSettings(model="*", hourly_tokens=10**9)])
    settings = quiet(limits=LIMITS)
    with serving(modelled(dict.fromkeys("ab", "llama"), quotas=quotas), settings) as found:
        assert lets_in(found)
        yield found


@pytest.fixture
def unmoved(held):
    """Nothing in the server has changed by what a test did to it, and the next client is answered at once."""
    before = figures(held)
    yield held
    assert settled(held, before) == before
    assert lets_in(held)


def raw_chat(fields):
    return b'{"model": "llama", "messages": [{"role": "user", "content": "hello"}], ' + fields + b"}"


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        (b'"n": 1000000000', 400, "n is 1000000000, but must be from 1 to 16"),
        (b'"n": 0', 400, "n is 0, but must be from 1 to 16"),
        (b'"n": 1e9', 400, "n is 1000000000.0, but must be int or null"),
        (b'"n": true', 400, "n is true, but must be int or null"),
        (b'"max_tokens": -1', 400, "max_tokens is -1, but must be 1 or more"),
        (b'"max_tokens": 0', 400, "max_tokens is 0, but must be 1 or more"),
        (b'"max_tokens": 9223372036854775808', 400, "output tokens do not fit"),
        (b'"temperature": NaN', 400, "the body is not JSON"),
        (b'"temperature": Infinity', 400, "the body is not JSON"),
        (b'"temperature": 1e400', 400, "Number out of range"),
        (b'"temperature": 1e308', 400, "temperature is 1e+308, but must be from 0 to 2"),
        (b'"temperature": -0.1', 400, "temperature is -0.1, but must be from 0 to 2"),
        (b'"temperature": "1"', 400, 'temperature is "1", but must be float or null'),
        (b'"top_k": -2', 400, "top_k is -2, but must be 0 (no limit) or more"),
        (b'"top_p": 0', 400, "top_p is 0.0, but must be above 0 and at most 1"),
        (b'"min_p": 2', 400, "min_p is 2.0, but must be from 0 to 1"),
        (b'"repetition_penalty": 0', 400, "repetition_penalty is 0.0, but must be a number above 0"),
        (b'"user": "\xff\xfe"', 400, "the body is not JSON"),
        (b'"user": "\xed\xa0\x80"', 400, "the body is not JSON"),
        (b'"user": "\\ud800"', 400, "the body is not JSON"),
        (b'"user": "\\udc00\\ud800"', 400, "the body is not JSON"),
        (b'"user": "a\x00b"', 400, "the body is not JSON"),
        (b'\x00"user": "a"', 400, "the body is not JSON"),
        (b'"user": ["a"]', 400, 'user is ["a"], but must be str or null'),
        (b'"stop": ["\\u0000", ""]', 400, "stop is "),
        (b'"stop": {}', 400, "stop is {}, but must be str or array or null"),
        (b'"surprise\\u0000": 1', 400, "is not a field of this request"),
        (b'"model": "\\u0000"', 404, "no model is called '\\x00'"),
        (b'"model": "../../etc/passwd"', 404, "no model is called '../../etc/passwd'"),
        (b'"model": "' + b"m" * 100_000 + b'"', 404, "no model is called 'mmm"),
        (b'"model": {"$ref": "#"}', 400, 'model is {"$ref":"#"}, but must be str'),
        (b'"' + b"k" * 100_000 + b'": 1', 400, "kkk... is not a field of this request"),
        (b'"k\\n' + b"k" * 100_000 + b'": 1', 400, "kkk... is not a field of this request"),
        (b'"stream_options": {"' + b"k" * 100_000 + b'": 1}', 400, "kkk... is not a field of this request"),
        (b'"metadata": ' + b"[" * 10_000 + b"]" * 10_000, 400, "nested more than 64 deep"),
        (b'"metadata": ' + b'{"a":' * 10_000, 400, "nested more than 64 deep"),
        (b'"seed": ' + b"9" * 5_000, 400, ""),
        (
            b'"max_tokens": [], "user": "\xff"',
            400,
            "max_tokens is no good: Expected `int | null`, got `array`",
        ),
        (b'"max_tokens": [], "user": "\xed\xa0\x80"', 400, "max_tokens is no good: Expected"),
        (b'"logit_bias": {"a`] - at `$.x": 1, "b": "c"}', 400, "logit_bias[...] is"),
    ],
    ids=lambda value: repr(value[:28]) if isinstance(value, bytes) else "",
)
def test_values_that_cannot_be_are_refused_by_name(unmoved, fields, status, message):
    answer = one(unmoved.server.port, post(raw_chat(fields)))
    assert answer.status == status, answer.body[:300]
    assert message in answer.error["message"]
    assert len(answer.body) < 1_000, "what was sent is not sent back whole"


@pytest.mark.parametrize("cut", [b"", b', "user": "\xff"'], ids=["alone", "before something worse"])
def test_a_wrong_entry_is_blamed_on_the_field_that_has_it(unmoved, cut):
    answer = one(unmoved.server.port, post(raw_chat(b'"logit_bias": {"7": "much"}' + cut)))
    assert (answer.status, answer.error["param"]) == (400, "logit_bias")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"0",
        b'"a"',
        b"{}",
        b"{",
        b"\xff\xfe{\x00}\x00",
        b"\xef\xbb\xbf{}",
        b"{} {}",
        b"\x00" * 99,
    ],
    ids=repr,
)
@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_a_body_that_is_no_request_is_refused(unmoved, path, body):
    assert one(unmoved.server.port, post(body, path=path)).error["type"] == "invalid_request_error"


def test_of_a_field_that_is_given_twice_the_last_counts(held):
    """As in most parsers of JSON. A proxy that looks at the first one judges another request: it must not."""
    twice = raw_chat(b'"max_tokens": 100000, "max_tokens": 3')
    assert one(held.server.port, post(twice)).json["usage"]["completion_tokens"] == 3


def test_brackets_in_a_text_are_no_nesting(held):
    escaped = '\\"[{' * 40_000 + "\\\\"
    assert depth_of(b'{"a": "' + escaped.encode() + b'", "b": [[{}]]}') == 4
    assert depth_of(b"[{}, [" * 30_000) == 60_000
    assert depth_of(b'["\\\\", [], "\\"["]') == 2
    assert depth_of(b"") == 0
    answer = one(held.server.port, post({**HELLO, "messages": [{"role": "user", "content": "[{" * 500}]}))
    assert answer.status == 200


def test_a_body_that_is_said_to_be_too_large_is_refused_unread(unmoved):
    with connected(unmoved.server.port) as sock:
        sock.sendall(post(b"", length=100 * MIB))
        (answer,) = answers_from(sock)
    assert answer.status == 413
    assert answer.error["message"] == f"the body is larger than {MIB} bytes, the most that is read"


def test_a_body_that_turns_out_to_be_too_large_is_refused_where_it_does(unmoved):
    """A hundred megabytes in chunks: the answer comes after the first, and the connection ends."""
    chunk = b"%x\r\n" % (256 * KIB) + b" " * (256 * KIB) + b"\r\n"
    sent, found = 0, Answers()
    with connected(unmoved.server.port) as sock:
        sock.sendall(
            head(f"POST {CHAT} HTTP/1.1", "content-type: application/json", "transfer-encoding: chunked")
        )
        sock.setblocking(False)
        deadline = time.monotonic() + 60
        while not found.num_whole and sent < 100 * MIB and time.monotonic() < deadline:
            for step in (lambda: sock.send(chunk), lambda: found.feed(sock.recv(1 << 16))):
                try:
                    sent += step() or 0
                except BlockingIOError:
                    time.sleep(0.001)
        assert found.all[0].status == 413
        assert sent < 10 * MIB
        sock.settimeout(60)
        assert is_closed(sock), "what still comes is not read for ever"


@pytest.mark.parametrize(
    "data",
    [
        b"GARBAGE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /health HTTP/9.9\r\nhost: a\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET /v1/\xff HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET http:// HTTP/1.1\r\nhost: a\r\n\r\n",
        b"CONNECT a:443 HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: a\r\nx: 1\r\n folded\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost : a\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: a\x00b\r\n\r\n",
        b"GET /health HTTP/1.1\nhost: a\n\n",
        post(headers=["content-length: 3"]),
        post(headers=["transfer-encoding: chunked"]),
        post(length="-1"),
        post(length="+5"),
        post(length="0x10"),
        post(length="9" * 400),
        head(f"POST {CHAT} HTTP/1.1", "transfer-encoding: chunked, identity") + b"0\r\n\r\n",
        head(f"POST {CHAT} HTTP/1.1", "transfer-encoding: xchunked") + b"0\r\n\r\n",
        head(f"POST {CHAT} HTTP/1.1", "transfer-encoding: chunked") + b"zz\r\n",
        head(f"POST {CHAT} HTTP/1.1", "transfer-encoding: chunked") + b"-1\r\n",
        head(f"POST {CHAT} HTTP/1.1", "transfer-encoding: chunked") + b"1ffffffffffffffff\r\n",
    ],
    ids=lambda data: repr(data[-44:]),
)
def test_what_is_no_http_is_told_so_and_the_connection_ends(unmoved, data):
    with connected(unmoved.server.port) as sock:
        sock.sendall(data)
        (answer,) = answers_from(sock)
        assert answer.status == 400
        assert answer.headers["connection"] == "close"
        assert answer.error["message"] == "the request is not HTTP/1.1"
        assert is_closed(sock)


CODED = b"2\r\n{}\r\n0\r\n\r\n"


@pytest.mark.parametrize("path", [CHAT, "/v1/files", "/health"])
@pytest.mark.parametrize(
    "lines",
    [
        ["transfer-encoding: gzip, chunked"],
        ["transfer-encoding: gzip", "transfer-encoding: chunked"],
        ["transfer-encoding: \xe9,chunked"],
    ],
    ids=["one line", "two lines", "no name at all"],
)
def test_a_transfer_coding_that_is_not_read_is_told_so_and_the_next_request_is_answered(unmoved, lines, path):
    coded = head(f"POST {path} HTTP/1.1", "content-type: application/json", *lines) + CODED
    first, second = asked(unmoved.server.port, coded + head("GET /health HTTP/1.1"), count=2)
    assert (first.status, first.error["code"]) == (501, "unknown_transfer_coding")
    assert "must be 'chunked' or left out" in first.error["message"]
    assert second.status == 200


def test_chunks_are_read_however_they_are_called(held):
    body = json.dumps(HELLO).encode()
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    told = ("content-type: application/json", "transfer-encoding: Chunked ")
    assert one(held.server.port, head(f"POST {CHAT} HTTP/1.1", *told) + chunks).status == 200


@pytest.mark.parametrize(
    "data",
    [
        b"GET /" + b"a" * 300 * KIB,
        b"GET /health HTTP/1.1\r\nhost: a\r\n" + b"x: a\r\n" * 10_000 + b"\r\n",
        b"GET /health HTTP/1.1\r\nhost: a\r\nx: " + b"a" * 64 * KIB + b"\r\n\r\n",
        head(f"POST {CHAT} HTTP/1.1", "transfer-encoding: chunked")
        + b"2\r\n{}\r\n0\r\n"
        + b"x: a\r\n" * 10_000,
    ],
    ids=["url", "ten thousand headers", "one large header", "ten thousand trailers"],
)
def test_headers_that_are_too_many_or_too_large_are_refused(unmoved, data):
    answer = one(unmoved.server.port, data)
    assert answer.status == 431
    assert answer.error["message"] == "the headers are more than 100 or larger than 32768 bytes"


@pytest.mark.parametrize("first", [35, 24, 12, 1])
@pytest.mark.parametrize(("size", "number"), [(KIB, 36), (4, 105)], ids=["too large", "too many"])
def test_headers_that_come_in_pieces_are_counted_together(unmoved, first, size, number):
    lines = [b"x: " + b"a" * size + b"\r\n"] * number
    with connected(unmoved.server.port) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nhost: a\r\n" + b"".join(lines[:first]))
        time.sleep(0.02)
        sock.sendall(b"".join(lines[first:]) + b"\r\n")
        (answer,) = answers_from(sock)
        assert answer.status == 431


def test_headers_before_a_large_body_may_be_as_many_as_ever(held):
    """What is counted is the head alone, and each one by itself."""
    body = b" " * 64 * KIB + json.dumps(HELLO).encode()
    large = post(body, headers=[f"x: {'a' * 20 * KIB}"])
    with connected(held.server.port) as sock:
        sock.sendall(large + large)
        assert [each.status for each in answers_from(sock, 2)] == [200, 200]


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (b"GET /health HTTP/1.1\r\nx: ", b"a" * KIB),
        (b"GET /health HTTP/1.1\r\nhost: a\r\n", b"a" * KIB),
        (b"GET /", b"a" * KIB),
        (head(f"POST {CHAT} HTTP/1.1", "transfer-encoding: chunked") + b"1;", b"a" * KIB),
        (head(f"POST {CHAT} HTTP/1.1", "transfer-encoding: chunked") + b"2\r\n{}\r\n0\r\nx: ", b"a" * KIB),
    ],
    ids=["value", "name", "url", "extension of a chunk", "trailer"],
)
def test_a_line_without_an_end_is_not_kept(unmoved, begin, more):
    """Sent in pieces: what came is counted, not only what ends."""
    sent, found = 0, Answers()
    with connected(unmoved.server.port) as sock:
        sock.sendall(begin)
        while not found.all and sent < 64 * MIB:
            try:
                sock.sendall(more * 64)
            except (BrokenPipeError, ConnectionResetError):
                break
            sent += 64 * KIB
            sock.settimeout(0.002)
            try:
                found.feed(sock.recv(1 << 16))
            except TimeoutError:
                pass
            finally:
                sock.settimeout(60)
        assert sent < 16 * MIB, "it is refused long before"
        if found.all:
            assert found.all[0].status == 431


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", None),
        (b"\r\n" * 8, None),
        (b"GET /hea", "the headers have not come within 0.5 s"),
        (b"GET /health HTTP/1.1\r\nhos", "the headers have not come within 0.5 s"),
        (post(b"", length=10), "the body has not come within 0.5 s, the most that is waited for it"),
        (post(b'{"mod', length=10), "the body has not come within 0.5 s, the most that is waited for it"),
        (
            head(f"POST {CHAT} HTTP/1.1", "transfer-encoding: chunked") + b"5\r\n{",
            "the body has not come within 0.5 s, the most that is waited for it",
        ),
        (
            head("GET /health HTTP/1.1") + post(b"", length=10),
            "the body has not come within 0.5 s, the most that is waited for it",
        ),
    ],
    ids=["nothing", "empty lines", "url", "header", "no body", "half a body", "half a chunk", "pipelined"],
)
def test_who_stops_sending_is_let_go(unmoved, data, message):
    with connected(unmoved.server.port) as sock:
        sock.sendall(data)
        answers = answers_from(sock, 2 if b"/health HTTP/1.1\r\nhost: test" in data else 1)
        if message is None:
            assert answers == []
            return
        assert answers[-1].status == 408
        assert answers[-1].error["message"] == message


@pytest.mark.parametrize("part", ["head", "body"])
def test_who_sends_byte_by_byte_is_let_go(unmoved, part):
    """However steadily: the whole of it has its time."""
    data = post() if part == "head" else post(b" " * 1_000)
    begin = 0 if part == "head" else data.index(b"\r\n\r\n") + 4
    found = Answers()
    with connected(unmoved.server.port) as sock:
        sock.sendall(data[:begin])
        sock.settimeout(0.02)
        for place in range(begin, len(data)):
            try:
                sock.send(data[place : place + 1])
                found.feed(sock.recv(1 << 16))
                break
            except TimeoutError:
                continue
    assert found.all[0].status == 408


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("//v1/models", 404, "nothing is served at '//v1/models'"),
        ("/v1/../v1/models", 404, "nothing is served at '/v1/../v1/models'"),
        ("/v1/%2e%2e/admin/status", 404, "nothing is served at '/v1/../admin/status'"),
        ("/v1/models/%2e%2e/%2e%2e/etc/passwd", 404, "no model is called '../../etc/passwd'"),
        ("/v1/models/..%2f..%2fetc", 404, "no model is called '../../etc'"),
        ("/v1/models/%00", 404, "no model is called '\\x00'"),
        ("/v1/models/%ff%fe", 404, "no model is called"),
        ("/v1/models/", 404, "no model is called ''"),
        ("/v1/models%20", 404, "nothing is served at"),
        ("/v1/models;a=b", 404, "nothing is served at"),
        ("/V1/MODELS", 404, "nothing is served at"),
        ("/health/", 404, "nothing is served at"),
        ("/health%00", 404, "nothing is served at"),
        ("/admin/status", 404, "nothing is served at '/admin/status'"),
        ("/" + "a" * 9_000, 404, "nothing is served at '/aaaa"),
        ("*", 404, "nothing is served at '*'"),
    ],
)
def test_paths_are_what_they_are(unmoved, path, status, message):
    answer = one(unmoved.server.port, head(f"GET {path} HTTP/1.1"))
    assert answer.status == status
    assert message in answer.error["message"]
    assert len(answer.body) < 500


SERVED = {
    CHAT: "POST",
    "/v1/models": "GET",
    "/v1/models/llama": "GET, HEAD",
    "/health": "GET, HEAD",
    "/v1/batches": "GET, HEAD, POST",
    "/v1/files/file-1": "DELETE, GET, HEAD",
}
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND")


@pytest.mark.parametrize(
    ("method", "path"),
    [(method, path) for path in SERVED for method in METHODS if method not in SERVED[path].split(", ")],
)
def test_other_methods_are_refused_with_those_there_are(unmoved, method, path):
    served = SERVED[path]
    with connected(unmoved.server.port) as sock:
        sock.sendall(head(f"{method} {path} HTTP/1.1", "connection: close"))
        if method == "HEAD":
            assert sock.recv(1 << 16).startswith(b"HTTP/1.1 405 ")
            return
        (answer,) = answers_from(sock)
    assert (answer.status, answer.headers["allow"]) == (405, served)
    assert answer.error["message"] == f"{path} does not take {method}, but {served}"


@pytest.mark.parametrize(
    ("kind", "headers", "message"),
    [
        (None, [], "content-type is '', but must be 'application/json'"),
        ("text/plain", [], "content-type is 'text/plain', but must be 'application/json'"),
        ("application/x-www-form-urlencoded", [], "content-type is 'application/x-www-form-urlencoded'"),
        ("application/jsonp", [], "content-type is 'application/jsonp'"),
        ("a" * 999, [], "content-type is 'aaaa"),
        ("application/json", ["content-encoding: gzip"], "content-encoding is 'gzip', but must be left out"),
    ],
)
def test_bodies_are_json_and_say_so(unmoved, kind, headers, message):
    answer = one(unmoved.server.port, post(kind=kind, headers=headers))
    assert answer.status == 415
    assert message in answer.error["message"]
    assert len(answer.body) < 500


@pytest.mark.parametrize(("name", "value"), [("content-type", "text/plain"), ("content-encoding", "gzip")])
def test_bodies_of_jobs_and_batches_have_to_say_that_they_are_json_too(held, name, value):
    headers = {"content-type": "application/json", name: value}
    batch = held.http().post("/v1/batches", content=b"{}", headers=headers)
    job = held.admin().post("/admin/jobs", content=b'{"kind": "tidy"}', headers=headers)
    schedule = held.admin().put(
        "/admin/jobs/schedules/s", content=b'{"kind": "tidy", "every_s": 60}', headers=headers
    )
    for answer in (batch, job, schedule):
        assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")
        assert name in answer.json()["error"]["message"]
    assert held.admin().get("/admin/jobs").json()["data"] == []


@pytest.mark.parametrize(
    "kind", ["application/json", "application/json; charset=utf-8", "Application/JSON ;x=y"]
)
def test_json_may_be_said_in_several_ways(held, kind):
    assert one(held.server.port, post(kind=kind)).status == 200


@pytest.mark.parametrize(
    "origin", ["https://example.com", "null", "http://localhost.example.com", "http://[x"]
)
@pytest.mark.parametrize("port", ["port", "admin_port"])
def test_pages_of_other_sites_get_nothing_from_a_server_without_keys(unmoved, origin, port):
    """A browser sends what a page asks it to, to this machine as well; and always says which page it was."""
    path = CHAT if port == "port" else "/admin/rescan"
    answer = one(getattr(unmoved.server, port), post(path=path, headers=[f"origin: {origin}"]))
    assert answer.status == 403
    assert f"the header origin is {origin!r}, but must be of this machine" in answer.error["message"]


@pytest.mark.parametrize("origin", ["http://localhost:3000", "http://127.0.0.1:8080", "http://[::1]:1"])
def test_pages_of_this_machine_are_answered(held, origin):
    assert one(held.server.port, post(headers=[f"origin: {origin}"])).status == 200


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("x-session-id", "a" * 257, "x-session-id has 257 characters, but may have 256"),
        ("x-session-id", "\xe9", "the header x-session-id is b'\\xe9', but must be ASCII"),
        (
            "x-priority",
            "1e9",
            "the header x-priority is '1e9', but must be a whole number from -1000 to 1000",
        ),
        ("x-priority", "9" * 5_000, "must be a whole number from -1000 to 1000"),
        ("x-priority", "--1", "must be a whole number from -1000 to 1000"),
        (
            "x-deadline-ms",
            "0",
            "the header x-deadline-ms is '0', but must be a whole number from 1 to 86400000",
        ),
        ("x-deadline-ms", "-5", "must be a whole number from 1 to 86400000"),
        ("x-deadline-ms", "nan", "must be a whole number from 1 to 86400000"),
        ("x-deadline-ms", "1\xb2", "the header x-deadline-ms is"),
    ],
)
def test_headers_of_ours_are_refused_by_name(unmoved, name, value, message):
    answer = one(unmoved.server.port, post(headers=[f"{name}: {value}"]))
    assert answer.status == 400
    assert message in answer.error["message"]
    assert len(answer.body) < 1_000


@pytest.mark.parametrize("name", ["a\tb", "\xe9", "a" * 300, ""])
def test_a_name_for_a_request_that_is_none_is_not_repeated(held, name):
    answer = one(held.server.port, post(headers=[f"x-request-id: {name}"]))
    assert answer.status == 200
    assert answer.headers["x-request-id"].startswith("req-")


def test_trailers_are_not_headers(held):
    """Whoever stands before the server and looks at headers has not seen them."""
    body = json.dumps(HELLO).encode()
    wire = head(f"POST {CHAT} HTTP/1.1", "transfer-encoding: chunked", "x-priority: 1")
    chunked = b"%x\r\n%b\r\n0\r\n%b\r\n"
    for trailer in (b"content-type: application/json\r\n", b"x-deadline-ms: nonsense\r\n"):
        answer = one(held.server.port, wire + chunked % (len(body), body, trailer))
        assert answer.status == 415, "no header says that it is JSON"
    whole = wire.replace(b"host: test", b"host: test\r\ncontent-type: application/json")
    assert (
        one(held.server.port, whole + chunked % (len(body), body, b"x-priority: nonsense\r\n")).status == 200
    )


def test_pipelined_requests_are_answered_in_their_order(held):
    wishes = [post({**HELLO, "max_tokens": tokens}) for tokens in (3, 1, 2)]
    found = asked(held.server.port, b"".join(wishes) + head("GET /health HTTP/1.1"), 4)
    assert [each.json["usage"]["completion_tokens"] for each in found[:3]] == [3, 1, 2]
    assert found[3].json == {"status": "ok"}


BAD = {
    "no HTTP": (b"NONSENSE\r\n\r\n", 400),
    "too large a head": (b"GET /health HTTP/1.1\r\nhost: a\r\nx: " + b"a" * 64 * KIB + b"\r\n\r\n", 431),
    "a bad chunk": (head(f"POST {CHAT} HTTP/1.1", "transfer-encoding: chunked") + b"zz\r\n", 400),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "streamed"])
def test_what_is_no_good_is_refused_behind_the_answers_to_what_is(held, is_stream, bad):
    data, status = BAD[bad]
    wishes = [post({**HELLO, "max_tokens": tokens, "stream": is_stream}) for tokens in (40, 2)]
    with connected(held.server.port) as sock:
        sock.sendall(b"".join(wishes) + data + post())
        found = answers_from(sock, 4)
        assert is_closed(sock)
    assert [each.status for each in found] == [200, 200, status]
    assert all(each.is_whole for each in found)
    assert found[2].headers["connection"] == "close"
    assert found[2].error["type"] == "invalid_request_error"


@pytest.mark.parametrize("bad", BAD)
def test_what_is_no_good_is_told_so_on_a_connection_that_has_been_used(held, bad):
    data, status = BAD[bad]
    with connected(held.server.port) as sock:
        sock.sendall(post())
        (answer,) = answers_from(sock)
        assert answer.status == 200
        sock.sendall(data)
        (answer,) = answers_from(sock)
        assert (answer.status, answer.headers["connection"]) == (status, "close")
        assert is_closed(sock)


def test_a_body_that_goes_bad_when_it_has_been_answered_is_answered_once(held):
    coded = head(f"POST {CHAT} HTTP/1.1", "content-type: text/plain", "transfer-encoding: chunked")
    with connected(held.server.port) as sock:
        sock.sendall(coded + b"2\r\n{}\r\n")
        sock.sendall(b"%x\r\n" % (2 * MIB) + b" " * 2 * MIB + b"\r\n")
        (answer,) = answers_from(sock)
        assert answer.status == 413
        sock.sendall(b"zz\r\n")
        assert sock.recv(1 << 16) == b""


@pytest.mark.parametrize("wish", [[], ["connection: keep-alive"]], ids=["", "whatever is wished"])
def test_http_1_0_is_answered_and_the_connection_ends(held, wish):
    with connected(held.server.port) as sock:
        sock.sendall(post(version="1.0", headers=wish))
        (answer,) = answers_from(sock)
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert is_closed(sock)


@pytest.mark.parametrize("wish", [[], ["connection: keep-alive"]], ids=["", "whatever is wished"])
def test_http_1_0_is_streamed_to_until_the_connection_ends(held, wish):
    """It knows no chunks: RFC 9112, 6.1."""
    with connected(held.server.port) as sock:
        sock.sendall(post({**HELLO, "stream": True}, version="1.0", headers=wish))
        data = b""
        while piece := sock.recv(1 << 16):
            data += piece
    lines, _, body = data.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in lines
    assert b"connection: close" in lines
    events = body.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    said = [json.loads(each.removeprefix("data: "))["choices"][0] for each in events[:-2]]
    assert len("".join(each["delta"].get("content", "") for each in said)) == 4
    assert said[-1]["finish_reason"] == "length"


def test_who_expects_to_be_told_to_go_on_is_told(held):
    wire = post(headers=["expect: 100-continue"])
    end = wire.index(b"\r\n\r\n") + 4
    with connected(held.server.port) as sock:
        sock.sendall(wire[:end])
        assert sock.recv(64) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(wire[end:])
        assert answers_from(sock)[0].status == 200


def test_who_expects_to_be_told_to_go_on_is_refused_before_the_body_where_it_is_too_large(unmoved):
    with connected(unmoved.server.port) as sock:
        sock.sendall(post(b"", headers=["expect: 100-continue"], length=100 * MIB))
        assert answers_from(sock)[0].status == 413


@pytest.mark.parametrize("to", ["websocket", "h2c"])
def test_no_other_protocol_is_taken_up(held, to):
    """It is answered as if nothing else had been wished for, and that is the last of that connection."""
    more = ["connection: upgrade", f"upgrade: {to}", "sec-websocket-key: eA==", "sec-websocket-version: 13"]
    with connected(held.server.port) as sock:
        sock.sendall(head("GET /health HTTP/1.1", *more))
        (answer,) = answers_from(sock)
        assert (answer.status, answer.json) == (200, {"status": "ok"})
        assert answer.headers["connection"] == "close"
        assert is_closed(sock)
    assert one(held.server.port, post(headers=more[:2])).status == 200


def test_connections_beyond_the_limit_are_told_to_come_again(serving):
    limits = LimitsSettings(max_connections=3)
    with serving(modelled(), quiet(admin_port=None, limits=limits)) as found:
        port = found.server.port
        open_ones = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(3)]
        for sock in open_ones:
            sock.sendall(head("GET /health HTTP/1.1"))
            assert answers_from(sock)[0].status == 200
        refused = one(port, head("GET /health HTTP/1.1"))
        assert refused.status == 503
        assert refused.headers["retry-after"] == "1"
        assert refused.error["message"] == "3 connections are open, as many as may be at a time"
        open_ones.pop().close()
        assert until(lambda: one(port, head("GET /health HTTP/1.1")).status == 200)
        for sock in open_ones:
            sock.close()


def test_requests_beyond_the_limit_are_told_to_come_again(serving):
    limits = LimitsSettings(max_requests=2)
    settings = quiet(limits=limits)
    with serving(modelled(overhead_us=20_000), settings) as found:
        port, before = found.server.port, figures(found)
        with connected(port) as first, connected(port) as second:
            for sock in (first, second):
                sock.sendall(post({**HELLO, "max_tokens": 1_000, "stream": True}))
            assert until(lambda: figures(found)["replicas"] == [(2, 0)])
            refused = one(port, post())
            assert refused.status == 503
            assert refused.headers["retry-after"] == "1"
            assert refused.error["message"] == "2 requests are being served, as many as are at a time"
            assert one(port, head("GET /health HTTP/1.1")).status == 200, "probes are always answered"
            assert one(found.server.admin_port, head("GET /metrics HTTP/1.1")).status == 200
        now = until(lambda: figures(found)["http"] == before["http"])
        assert now
        assert lets_in(found)
