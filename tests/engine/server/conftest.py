"""Real servers for tests: a process's own loop in a thread, ports of the machine's choice, real HTTP."""

import asyncio
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
import openai
import pytest

from engine.server.running import Server
from engine.server.settings import LogSettings, ServerSettings
from engine.settings import (
    Architecture,
    EngineSettings,
    ExecutorSettings,
    FleetSettings,
    HardwareSettings,
    ModelSettings,
    RoutingSettings,
)

TINY = Architecture(
    layers=1, hidden=64, heads=4, kv_heads=2, head_dim=16, ffn=64, vocab=50_000, context_tokens=4096
)
AT_ONCE = HardwareSettings(
    name="at once",
    flops=1e21,
    memory_bytes=24e9,
    memory_bytes_per_s=1e18,
    link_bytes_per_s=1e18,
    source="none: it answers as soon as it is asked",
)


def modelled(replicas=None, models=("llama",), overhead_us=0.0, **changed):
    """An engine that computes nothing: each step takes `overhead_us`, and letters come of it."""
    known = [ModelSettings(name=name, architecture=TINY) for name in models]
    return EngineSettings(
        fleet=FleetSettings(
            models=known,
            replicas=replicas or {name: name for name in models},
            letters=True,
            max_batch=64,
            step_tokens=4096,
        ),
        executor=ExecutorSettings(name="roofline", options={"overhead_us": overhead_us}),
        hardware=AT_ONCE,
        **{"routing": RoutingSettings(slow_start_s=0.0), **changed},
    )


@dataclass
class Running:
    """A server that runs, and what clients need of it. `call` runs a function in the server's loop."""

    server: Server
    loop: asyncio.AbstractEventLoop
    stopping: asyncio.Event
    opened: list = field(default_factory=list)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.port}"

    @property
    def admin_url(self):
        return f"http://127.0.0.1:{self.server.admin_port}"

    def http(self, **options):
        return self._kept(httpx.Client(**{"base_url": self.url, "timeout": 30, **options}))

    def admin(self, **options):
        return self._kept(httpx.Client(**{"base_url": self.admin_url, "timeout": 30, **options}))

    def openai(self, api_key="none", **options):
        options = {"max_retries": 0, **options}
        return self._kept(openai.OpenAI(base_url=f"{self.url}/v1", api_key=api_key, **options))

    def _kept(self, client):
        """Closed with the server: a test may take one and forget it."""
        self.opened.append(client)
        return client

    def call(self, function, *arguments):
        """What `function` gives, a coroutine included, in the server's loop."""

        async def run():
            found = function(*arguments)
            return await found if asyncio.iscoroutine(found) else found

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(60)

    def stop(self):
        """Have it go, as SIGTERM would. It is gone when the block ends."""
        self.loop.call_soon_threadsafe(self.stopping.set)


@contextmanager
def running(engine_settings, server_settings=None, sinks=()):
    """A server with these settings, until the block ends; it must stop cleanly then."""
    settings = server_settings or ServerSettings(port=0, admin_port=0, log=LogSettings(level="off"))
    started, over = threading.Event(), []
    made = {}

    async def live():
        made["loop"], made["stop"] = asyncio.get_running_loop(), asyncio.Event()
        server = made["server"] = Server(engine_settings, settings, sinks)
        await server.start()
        started.set()
        await made["stop"].wait()
        await server.stop(drain_s=5)

    def run():
        try:
            asyncio.run(live())
        except BaseException as error:
            over.append(error)
            raise
        finally:
            started.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    started.wait(60)
    if over:
        raise over[0]
    found = Running(made["server"], made["loop"], made["stop"])
    try:
        yield found
    finally:
        for client in found.opened:
            client.close()
        if not found.stopping.is_set():
            found.stop()
        thread.join(60)
    assert not thread.is_alive(), "the server did not stop"
    assert not over, over


@pytest.fixture(scope="module")
def serving():
    """`with serving(engine_settings, server_settings) as running`."""
    return running


@pytest.fixture(scope="module")
def plain():
    """One model that answers at once, three replicas, no keys; shared by the tests of a file."""
    with running(modelled(replicas=dict.fromkeys(("a", "b", "c"), "llama"))) as found:
        yield found
