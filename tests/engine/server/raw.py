"""HTTP without a client's manners: bytes as they are, the answers to them, and what a server holds meanwhile."""

import json
import socket
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import httptools

from engine.server.key_file import add_key
from engine.server.settings import LogSettings, ServerSettings

HELLO = {"model": "llama", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
CHAT = "/v1/chat/completions"


@dataclass
class Answer:
    """One answer, as it came."""

    status: int = 0
    headers: dict = field(default_factory=dict)
    body: bytes = b""
    is_whole: bool = False

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        """What went wrong; in OpenAI's shape, or it fails."""
        assert set(self.json) == {"error"}
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert all(isinstance(error[name], str) for name in ("message", "type", "code"))
        assert "Traceback" not in error["message"]
        assert "/engine/" not in error["message"]
        return error


class Answers:
    """All answers that come over one connection."""

    def __init__(self):
        self.all = []
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data):
        self._parser.feed_data(data)

    def on_message_begin(self):
        self.all.append(Answer())

    def on_header(self, name, value):
        self.all[-1].headers[name.decode().lower()] = value.decode("latin-1")

    def on_headers_complete(self):
        self.all[-1].status = self._parser.get_status_code()

    def on_body(self, body):
        self.all[-1].body += body

    def on_message_complete(self):
        self.all[-1].is_whole = True

    @property
    def num_whole(self):
        return sum(each.is_whole and each.status >= 200 for each in self.all)


def post(body=None, *, path=CHAT, headers=(), kind="application/json", version="1.1", length=None):
    """A request as it goes over the wire."""
    body = json.dumps(HELLO if body is None else body).encode() if not isinstance(body, bytes) else body
    lines = [f"POST {path} HTTP/{version}", "host: test"]
    lines += [] if kind is None else [f"content-type: {kind}"]
    lines += [*headers, f"content-length: {len(body) if length is None else length}", "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def get(port, path, *headers):
    """What is answered to a GET."""
    return one(port, head(f"GET {path} HTTP/1.1", *headers))


def quiet(**changed):
    """Settings of a server that listens where it may and writes no log."""
    return ServerSettings(**{"port": 0, "admin_port": 0, "log": LogSettings(level="off"), **changed})


def new_key(path, tenant="acme", **about):
    """A key that is in the file from now on."""
    return add_key(path, tenant, created="2026-01-01", **about)[0]


def bearer(key):
    return f"authorization: Bearer {key}"


def gates(running):
    """Those of the ports, by port: what is served there."""
    return {
        listener.servers[0].sockets[0].getsockname()[1]: listener.config.app
        for listener in running.server._listeners
    }


def head(first, *headers):
    return "\r\n".join([first, "host: test", *headers, "", ""]).encode("latin-1")


@contextmanager
def connected(port):
    with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
        yield sock


def answers_from(sock, count=1):
    """The next answers; fewer where the connection ends before."""
    found = Answers()
    while found.num_whole < count:
        try:
            data = sock.recv(1 << 16)
        except ConnectionResetError:
            break
        if not data:
            break
        found.feed(data)
    return [each for each in found.all if each.status >= 200]


def asked(port, data, count=1):
    """What is answered to some bytes. The other end may have heard enough before all of them are sent."""
    with connected(port) as sock:
        with suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(data)
        return answers_from(sock, count)


def one(port, data):
    (answer,) = asked(port, data)
    return answer


def is_closed(sock):
    """Whether the other end lets go of the connection, however it does so."""
    try:
        while sock.recv(1 << 16):
            pass
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    return True


def figures(running):
    """What a server holds and has spent: what refusals must not change."""
    server = running.server
    engine, quotas = server.engine, server.engine.quotas

    def look():
        quotas.check_integrity()
        engine.cache.check_integrity()
        engine.lifecycle.check_integrity()
        return {
            "granted, settled, given back": (
                quotas._granted_tokens,
                quotas._settled_tokens,
                quotas._given_back_tokens,
            ),
            "grants, freed": (quotas._num_granted, quotas._num_freed),
            "in service, waiting": (quotas.in_service, quotas.num_waiting),
            "tenants": sorted({tenant for _, tenant in quotas._ledgers}),
            "loads": [
                (seat.tokens_in_flight, seat.requests_in_flight, seat.num_routed)
                for seat in map(engine.router.seat, engine.replicas)
            ],
            "replicas": [(each.num_running, each.num_waiting) for each in engine.replicas.values()],
            "pins, blocks, namespaces": (
                len(engine.cache.pins),
                [tier.num_blocks for tier in engine.cache.tiers],
                len(engine.cache.spaces),
            ),
            "sessions": len(engine.router.sessions),
            "http": [listener.config.app.in_flight for listener in server._listeners],
        }

    return running.call(look)


def until(holds, patience_s=60.0):
    """Wait until something holds, and give it; the last that was seen if it never does."""
    deadline = time.monotonic() + patience_s
    while not (found := holds()) and time.monotonic() < deadline:
        time.sleep(0.005)
    return found


def settled(running, before):
    """What a server holds once it holds what it held before, or what it holds instead.

    What was seen last: a look later a probe of its own may be under way.
    """
    seen = []
    until(lambda: seen.append(figures(running)) or seen[-1] == before, 30.0)
    return seen[-1]


def lets_in(running, **headers):
    """Whether the next client is answered."""
    lines = [f"{name}: {value}" for name, value in headers.items()]
    return one(running.server.port, post(headers=lines)).status == 200
