"""Who may come in: every route of both ports for no key, a wrong one and a right one, as the file has them by now."""

import json
import re
from dataclasses import replace

import pytest

from engine.clock import NS_PER_S
from engine.server.key_file import read_keys, revoke_key
from engine.server.keys import MAX_KEY
from engine.server.openapi import keys_of
from engine.server.settings import LimitsSettings
from tests.engine.server.conftest import modelled
from tests.engine.server.raw import (
    HELLO,
    bearer,
    connected,
    figures,
    gates,
    get,
    head,
    new_key,
    one,
    post,
    quiet,
    settled,
    until,
)

OPEN = {"/health", "/ready"}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("keys") / "keys.jsonl"


@pytest.fixture(scope="module")
def keys(file):
    return {
        "acme": new_key(file),
        "operator": new_key(file, "ops", admin=True),
        "mistral only": new_key(file, "small", models=["mistral"]),
        "expired": new_key(file, expires="2020-01-01"),
    }


@pytest.fixture(scope="module")
def locked(serving, file, keys):
    """Both ports behind keys, and two models."""
    assert len(read_keys(file)) == len(keys)
    settings = quiet(keys_file=str(file), limits=LimitsSettings(body_timeout_s=1))
    with serving(modelled(models=("llama", "mistral")), settings) as found:
        yield found


def routes(running, port):
    """Method and path of all there are, with names in the places of names; and one that is not there."""
    gate = gates(running)[port]
    found = keys_of(gate._hot, gate._rest.routes)
    return [
        re.sub(r"\{\w+\}", "llama", key).split(" ") for key in [*found, "GET /nowhere", "POST /admin/nowhere"]
    ]


def asked_for(port, method, path, *headers):
    """The status, and the code of the error if it is one."""
    with connected(port) as sock:
        sock.sendall(head(f"{method} {path} HTTP/1.1", "connection: close", *headers))
        data = b"".join(iter(lambda: sock.recv(1 << 16), b""))
    first, _, rest = data.partition(b"\r\n")
    body = rest.partition(b"\r\n\r\n")[2]
    code = json.loads(body)["error"]["code"] if body and body.startswith(b'{"error"') else None
    return int(first.split()[1]), code, data


WRONG = {
    "none": [],
    "empty": ["authorization: "],
    "no bearer": ["authorization: Basic YTpi"],
    "bearer of nothing": ["authorization: Bearer "],
    "unknown": [bearer("my-" + "A" * 43)],
    "too long": [bearer("a" * (MAX_KEY + 1))],
    "not ASCII": [bearer("\xe9\xff")],
    "another header": ["x-api-key: my-x"],
}


@pytest.mark.parametrize("kind", [*WRONG, "expired", "almost"])
@pytest.mark.parametrize("door", ["port", "admin_port"])
def test_no_route_is_open_without_a_key_that_is_known(locked, keys, door, kind):
    port = getattr(locked.server, door)
    almost = keys["acme"][:-1] + ("A" if keys["acme"][-1] != "A" else "B")
    headers = {**WRONG, "expired": [bearer(keys["expired"])], "almost": [bearer(almost)]}[kind]
    before, seen = figures(locked), set()
    for method, path in routes(locked, port):
        status, code, data = asked_for(port, method, path, *headers)
        if path in OPEN:
            assert status == 200, path
            continue
        seen.add(path)
        assert status == 401, (method, path)
        assert code == "invalid_api_key"
        assert b"www-authenticate: Bearer" in data
        assert keys["acme"].encode() not in data
    assert len(seen) > (5 if door == "port" else 15), "there are routes to ask for"
    assert settled(locked, before) == before


def test_operators_have_a_door_that_other_keys_do_not_open(locked, keys):
    port = locked.server.admin_port
    for method, path in routes(locked, port):
        status, code, _ = asked_for(port, method, path, bearer(keys["acme"]))
        assert (status, code) == ((200, None) if path in OPEN else (403, "forbidden")), (method, path)
    status, _, _ = asked_for(port, "GET", "/admin/status", bearer(keys["operator"]))
    assert status == 200


def test_nothing_for_operators_is_behind_the_other_door(locked, keys):
    for method, path in routes(locked, locked.server.admin_port):
        if path.startswith("/admin"):
            status, code, _ = asked_for(locked.server.port, method, path, bearer(keys["operator"]))
            assert (status, code) == (404, "not_found"), path


def test_a_refusal_at_the_door_reads_no_body(locked):
    """Who has no key cannot make the server read: not even to the end of what it sends."""
    wire = post(b"", length=8 << 20)
    assert one(locked.server.port, wire).status == 401


@pytest.mark.parametrize(
    ("model", "status", "code"),
    [
        ("mistral", 200, None),
        ("mistral@1.0.0", 200, None),
        ("llama", 403, "forbidden"),
        ("llama@1.0.0", 403, "forbidden"),
        ("auto", 403, "forbidden"),
        ("nope", 404, "model_not_found"),
    ],
)
def test_a_key_for_some_models_opens_no_other(locked, keys, model, status, code):
    """403 where there is such a model: that there is one is no secret, the operator has named it in a list."""
    before, key = figures(locked), keys["mistral only"]
    answer = one(locked.server.port, post({**HELLO, "model": model}, headers=[bearer(key)]))
    assert answer.status == status
    if code is not None:
        assert answer.error["code"] == code
        assert settled(locked, before) == before


def test_models_that_a_key_may_not_use_are_not_listed_to_it(locked, keys):
    listed = get(locked.server.port, "/v1/models", bearer(keys["mistral only"])).json
    assert [card["id"] for card in listed["data"]] == ["mistral"]
    assert get(locked.server.port, "/v1/models/llama", bearer(keys["mistral only"])).status == 403
    assert get(locked.server.port, "/v1/models/mistral", bearer(keys["mistral only"])).status == 200
    told = get(locked.server.port, "/v1/models/phi", bearer(keys["mistral only"]))
    assert (told.status, told.error["message"]) == (404, "no model is called 'phi'; this key may use mistral")
    told = get(locked.server.port, "/v1/models/mistral@9", bearer(keys["mistral only"]))
    assert "the newest versions of 'mistral' are 1.0.0" in told.error["message"]


def test_a_key_that_is_revoked_opens_nothing_from_then_on(locked, file, keys):
    """The file is read again when it has changed; a new key is known as soon as it stands there."""
    key = new_key(file, "passing")
    known = lambda: get(locked.server.port, "/v1/models", bearer(key)).status  # noqa: E731
    assert until(lambda: known() == 200)
    entry = next(each for each in read_keys(file) if each.tenant == "passing")
    revoke_key(file, entry.id)
    assert until(lambda: known() == 401)
    assert get(locked.server.port, "/v1/models", bearer(keys["acme"])).status == 200


def test_a_key_that_expires_while_the_server_runs_opens_nothing_afterwards(locked, file):
    clock = locked.server.clock
    key = new_key(file, "short")
    assert until(lambda: get(locked.server.port, "/v1/models", bearer(key)).status == 200)
    keyring = locked.server.keyring
    (digest, holder) = next((d, h) for d, h in keyring._holders.items() if h.tenant == "short")
    soon = replace(holder, expires_ns=clock.epoch_ns + clock.now_ns() + NS_PER_S // 5)
    locked.call(keyring._holders.__setitem__, digest, soon)
    assert get(locked.server.port, "/v1/models", bearer(key)).status == 200
    assert until(lambda: get(locked.server.port, "/v1/models", bearer(key)).status == 401)


def test_a_file_of_keys_that_is_no_good_changes_nothing(locked, file, keys):
    good = file.read_bytes()
    try:
        file.write_bytes(good + b"{nonsense\n")
        locked.call(setattr, locked.server.keyring, "_look_ns", 0)
        assert get(locked.server.port, "/v1/models", bearer(keys["acme"])).status == 200
    finally:
        file.write_bytes(good)


def test_each_key_has_so_many_requests_at_a_time(serving, tmp_path):
    file = tmp_path / "keys.jsonl"
    one_key, other = new_key(file), new_key(file)
    settings = quiet(keys_file=str(file), limits=LimitsSettings(max_requests_per_key=1))
    with serving(modelled(overhead_us=20_000), settings) as found:
        port = found.server.port
        with connected(port) as sock:
            sock.sendall(post({**HELLO, "max_tokens": 2_000, "stream": True}, headers=[bearer(one_key)]))
            assert until(lambda: figures(found)["replicas"] == [(1, 0)])
            refused = one(port, post(headers=[bearer(one_key)]))
            assert refused.status == 429
            assert refused.headers["retry-after"] == "1"
            assert refused.error["message"] == (
                "1 requests of this key are being served, as many as may be at a time"
            )
            assert one(port, post(headers=[bearer(other)])).status == 200
        assert until(lambda: one(port, post(headers=[bearer(one_key)])).status == 200)


def test_a_priority_is_at_most_that_of_the_key(locked, file):
    key = new_key(file, "humble", max_priority=2)
    assert until(lambda: get(locked.server.port, "/v1/models", bearer(key)).status == 200)
    holder = locked.call(locked.server.keyring.find, key)
    public = locked.server.public
    for asked, given in ((b"9", 2), (b"1", 1), (b"-5", -5)):
        assert public._priority({b"x-priority": asked}, holder) == given
    assert one(locked.server.port, post(headers=[bearer(key), "x-priority: 999"])).status == 200
