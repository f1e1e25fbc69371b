"""A jobs folder, a runner over it on the virtual clock, and an engine whose batches run beside its requests."""

import json
from contextlib import suppress
from itertools import repeat

import pytest

from engine.clock import to_ns
from engine.engine import Engine
from engine.server.jobs import Jobs
from engine.server.jobs.database import Database
from engine.server.jobs.runner import Lane, Runner
from engine.server.jobs.store import JobStore
from engine.server.keys import Holder
from engine.server.public import Public
from engine.server.settings import JobSettings, ServerSettings
from engine.settings import HealthSettings
from engine.telemetry import OwnCounts
from sim.world import SimClock

LANES = {"work": Lane(), "twins": Lane(at_once=2), "batch": Lane(at_once=2, is_aside=True)}


class Life:
    """A process that has the folder, until it is cut off or ends well."""

    def __init__(self, folder, perform, *, at_s=0.0, max_waiting=1000, **options):
        self.clock = SimClock()
        self.clock.env.run(until=max(1, to_ns(at_s)))
        self.database = Database(folder)
        self.store = JobStore(self.database, max_waiting)
        chosen = {"workers": 2, "max_attempts": 3, "retry_after_s": 5.0, **options}
        lanes = chosen.pop("lanes", LANES)
        chance = chosen.pop("chance", repeat(0.5).__next__)
        self.runner = Runner(
            self.store, self.clock, perform, lanes, chance, life=self.database.life, **chosen
        )
        self.max_attempts = chosen["max_attempts"]

    def start(self):
        self.runner.start()
        return self

    def add(self, kind="work", arguments=None, **options):
        options.setdefault("max_attempts", self.max_attempts)
        job = self.store.add(kind, arguments or {}, self.runner.unix_ns(), **options)
        self.runner.call()
        return job.id

    def pass_s(self, seconds):
        self.clock.env.run(until=self.clock.now_ns() + to_ns(seconds))

    def state(self, number):
        return self.store.find(number).state

    def do(self, work):
        """Let a coroutine run to its end."""
        return self.clock.env.run(until=self.clock.spawn(work))

    def cut_off(self):
        """The process is gone from one moment to the next: nothing more is written."""
        self.database.close()
        self.clock.close()

    def end(self):
        self.do(self.runner.close(5.0))
        self.cut_off()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "jobs"


@pytest.fixture
def lives(folder):
    """Makes lives, one after the other, of the same folder."""
    made = []

    def begun(perform, **options):
        life = Life(folder, perform, **options)
        made.append(life)
        return life

    yield begun
    for life in made:
        life.clock.close()


OWN = Holder(id="key-1", tenant="acme")


class Yard:
    """An engine on the virtual clock, and jobs beside it in one folder. What is asked for is counted."""

    def __init__(self, settings, folder, *, at_s=0.0, limits=None, holder_of=None, **options):
        self.clock = SimClock()
        self.clock.env.run(until=max(1, to_ns(at_s)))
        settings.fleet.letters = True
        settings.health = HealthSettings(enabled=False)  # a day of probes is long
        self.engine = Engine(settings, self.clock)
        self.engine.start()
        server = ServerSettings()
        own = {"counts": OwnCounts(), "exposition": None, "trace_of": None}
        self.public = Public(self.engine, server, instance="t", **own)
        self.is_idle = True
        self.asked = []
        self.flying = self.most_flying = 0
        chosen = JobSettings(**{"batch_check_every_s": 0.5, **options})
        self.jobs = Jobs(
            folder,
            self.engine,
            self.clock,
            chosen,
            self.ask,
            lambda: self.is_idle,
            limits=limits,
            holder_of=holder_of,
        )
        self.jobs.start()

    async def ask(self, path, body, holder):
        self.asked.append((json.loads(body)["messages"][0]["content"], holder))
        self.flying += 1
        self.most_flying = max(self.most_flying, self.flying)
        try:
            return await self.public.ask(path, body, holder)
        finally:
            self.flying -= 1

    def names(self):
        """Of what was asked for."""
        return [name for name, _ in self.asked]

    def pass_s(self, seconds):
        self.clock.env.run(until=self.clock.now_ns() + to_ns(seconds))

    def do(self, work):
        """Let a coroutine run to its end."""
        return self.clock.env.run(until=self.clock.spawn(work))

    def upload(self, *lines, tenant="acme"):
        """A file of these lines: bytes as they are, names as requests that are good."""
        data = b"".join((each if isinstance(each, bytes) else line(each)) + b"\n" for each in lines)
        upload = self.jobs.files.begin(tenant, len(data))
        upload.write(data)
        file = upload.publish("in.jsonl", "batch", self.now_s(), None)
        upload.close()
        return file.id

    def now_s(self):
        return self.jobs.unix_ns() // 10**9

    def batch(self, *lines, holder=OWN, **options):
        file = self.upload(*lines, tenant=holder.tenant)
        work = self.jobs.create_batch(holder, "/v1/chat/completions", file, **options)
        return self.do(work).id

    def find(self, batch_id):
        return self.jobs.batches.find(batch_id)

    def status(self, batch_id):
        return self.find(batch_id).status

    def read(self, file_id):
        """The lines of a file."""
        path = self.jobs.files.path(file_id)
        return [json.loads(each) for each in path.read_text().splitlines()] if path.exists() else []

    def output(self, batch_id):
        return self.read(self.find(batch_id).output_file_id)

    def errors(self, batch_id):
        return self.read(self.find(batch_id).error_file_id)

    def cut_off(self):
        """The process is gone from one moment to the next."""
        self.jobs._database.close()
        self.clock.close()


def line(name, tokens=20, **changed):
    body = {
        "model": "llama",
        "messages": [{"role": "user", "content": name}],
        "max_completion_tokens": tokens,
        **changed.pop("body", {}),
    }
    asked = {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body, **changed}
    return json.dumps(asked).encode()


@pytest.fixture
def yards(settings, folder):
    """Makes yards, one after the other, in the same folder."""
    made = []

    def begun(**options):
        yard = Yard(settings, folder, **options)
        made.append(yard)
        return yard

    yield begun
    for yard in made:
        yard.clock.close()
        with suppress(Exception):
            yard.jobs._database.close()
        yard.engine.close()


@pytest.fixture
def yard(yards):
    return yards()


@pytest.fixture
def request_line():
    return line
