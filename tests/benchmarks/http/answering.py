"""A server to be measured: `modelyard` with executors that answer at once, or `bare` Starlette with one route.

Both under uvloop and httptools. It says its port, and serves until SIGTERM.
"""

import socket
import sys

import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from engine.server.running import Server, serve
from engine.server.settings import JobSettings, LogSettings, ServerSettings
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
ENGINE = EngineSettings(
    fleet=FleetSettings(
        models=[ModelSettings(name="llama", architecture=TINY)],
        replicas=dict.fromkeys(("a", "b", "c"), "llama"),
        letters=True,
        max_batch=64,
        step_tokens=4096,
    ),
    executor=ExecutorSettings(name="roofline", options={"overhead_us": 0.0}),
    hardware=AT_ONCE,
    routing=RoutingSettings(slow_start_s=0.0),
)
SERVER = ServerSettings(
    port=0, admin_port=None, log=LogSettings(level="off"), jobs=JobSettings(enabled=False)
)
ANSWER = b'{"status":"ok"}'


def tell(port):
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()


async def modelyard():
    server = Server(ENGINE, SERVER)
    await serve(server, lambda line: tell(server.port) if line.startswith("clients") else None)


async def bare():
    async def answer(request):
        await request.body()
        return Response(ANSWER, media_type="application/json")

    app = Starlette(routes=[Route("/v1/completions", answer, methods=["POST"])])
    config = uvicorn.Config(app, http="httptools", lifespan="off", log_config=None, access_log=False)
    door = socket.create_server(("127.0.0.1", 0))
    tell(door.getsockname()[1])
    await uvicorn.Server(config).serve([door])


uvloop.run({"modelyard": modelyard, "bare": bare}[sys.argv[1]]())
