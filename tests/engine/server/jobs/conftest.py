"""A jobs folder, a runner over it on the virtual clock, and what tests say of jobs."""

from itertools import repeat

import pytest

from engine.clock import to_ns
from engine.server.jobs.database import Database
from engine.server.jobs.runner import Lane, Runner
from engine.server.jobs.store import JobStore
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
