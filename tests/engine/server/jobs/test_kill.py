"""A real process that is killed in the middle of its work, and the next one, which finishes it."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PROCESS = '''
import asyncio, json, os, sys
from pathlib import Path
from engine.clock import WallClock, to_ns
from engine.engine import Engine
from engine.server.jobs import Jobs
from engine.server.jobs.kinds import Arguments, kinds
from engine.server.jobs.runner import Lane
from engine.server.keys import Holder
from engine.server.public import Public
from engine.server.settings import JobSettings, ServerSettings
from engine.telemetry import OwnCounts
from engine.settings import (
    Architecture, EngineSettings, ExecutorSettings, FleetSettings, HardwareSettings, ModelSettings
)

folder = Path(sys.argv[1])
effects = os.open(folder / "effects", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

@kinds("count")
class Count:
    """Leaves a mark for each of its parts."""
    takes, lane, by_hand = Arguments, Lane(), True
    def __init__(self, tools, arguments): pass
    async def run(self, course):
        for part in range(course.checkpoint or 0, 40):
            await course.pause(to_ns(0.01))
            os.write(effects, b"part %d\\n" % part)
            await course.save(part + 1, 40, checkpoint=part + 1)
        return {}

async def main():
    shape = Architecture(
        layers=1, hidden=64, heads=4, kv_heads=2, head_dim=16, ffn=64, vocab=50_000, context_tokens=4096
    )
    hardware = HardwareSettings(
        name="fast", source="none", flops=1e21, memory_bytes=24e9, memory_bytes_per_s=1e18,
        link_bytes_per_s=1e18,
    )
    settings = EngineSettings(
        fleet=FleetSettings(
            models=[ModelSettings(name="llama", architecture=shape)], replicas={"a": "llama"}, letters=True
        ),
        executor=ExecutorSettings(name="roofline", options={"overhead_us": 500.0}),
        hardware=hardware,
    )
    clock = WallClock()
    engine = Engine(settings, clock)
    engine.start()
    own = {"counts": OwnCounts(), "exposition": None, "trace_of": None}
    public = Public(engine, ServerSettings(), instance="t", **own)
    async def ask(path, body, holder):
        answer = await public.ask(path, body, holder)
        os.write(effects, b"asked " + json.loads(body)["messages"][0]["content"].encode() + b"\\n")
        return answer
    chosen = JobSettings(batch_check_every_s=0.02, batch_concurrency=4)
    jobs = Jobs(folder / "jobs", engine, clock, chosen, ask, lambda: True)
    jobs.start()
    if len(sys.argv) > 2:
        data = Path(sys.argv[2]).read_bytes()
        upload = jobs.files.begin("acme", len(data))
        upload.write(data)
        file = upload.publish("in.jsonl", "batch", 0, None)
        upload.close()
        holder = Holder(id="k", tenant="acme")
        await jobs.create_batch(holder, "/v1/chat/completions", file.id)
        await jobs.submit("count", {})
    print("begun", flush=True)
    while any(job.state in ("queued", "running") for job in jobs.store.page()):
        await asyncio.sleep(0.02)
    (batch,), _ = jobs.batches.page("acme")
    print(json.dumps([batch.status, batch.completed, batch.output_file_id]), flush=True)
    await jobs.close()
    await clock.close()
    engine.close()

asyncio.run(main())
'''


def begin(folder, *more):
    return subprocess.Popen(
        [sys.executable, "-c", PROCESS, str(folder), *map(str, more)], stdout=subprocess.PIPE, text=True
    )


def effects(folder):
    path = folder / "effects"
    return path.read_text().splitlines() if path.exists() else []


def test_a_process_that_is_killed_again_and_again_answers_each_line_once(tmp_path, request_line):
    names = [f"request-{number}" for number in range(200)]
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"\n".join(request_line(name, tokens=4) for name in names))
    more = [source]
    for life in range(1, 4):
        process = begin(tmp_path, *more)
        more = []
        try:
            assert process.stdout.readline() == "begun\n"
            while len(effects(tmp_path)) < 40 * life:
                assert process.poll() is None, "it has ended before it was killed"
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            process.stdout.close()
    last = begin(tmp_path)
    out, _ = last.communicate(timeout=120)
    assert last.returncode == 0
    begun, told = out.splitlines()
    status, completed, output = json.loads(told)
    assert (begun, status, completed) == ("begun", "completed", 200)
    lines = Path(tmp_path, "jobs", "files", output).read_text().splitlines()
    assert sorted(json.loads(each)["custom_id"] for each in lines) == sorted(names)
    seen = Counter(effects(tmp_path))
    asked = sum(count for what, count in seen.items() if what.startswith("asked"))
    assert 200 <= asked <= 200 + 3 * 4, "only what was under way was asked for again"
    parts = sum(count for what, count in seen.items() if what.startswith("part"))
    assert {f"part {part}" for part in range(40)} <= set(seen)
    assert parts <= 40 + 3, "only the part whose save was cut off"
