"""Who is probed: replicas of which nothing else has shown for a while that they are well."""

import numpy as np
import pytest

from engine.clock import NS_PER_S
from engine.engine import Engine
from engine.execution import Replica
from engine.execution.loops import Leaping
from engine.request import Request


class Watched:
    """One replica under probes that are counted."""

    def __init__(self, settings, clock, monkeypatch):
        self.probed_s, probe = [], Replica.probe

        async def counted(replica, timeout_ns):
            self.probed_s.append(clock.now_ns() / NS_PER_S)
            return await probe(replica, timeout_ns)

        monkeypatch.setattr(Replica, "probe", counted)
        settings.fleet.replicas = {"a": "llama"}
        self.clock = clock
        self.engine = Engine(settings, clock)
        self.engine.start()

    def ask(self, output):
        request = Request(1, "llama", np.arange(100, dtype=np.int32), output, self.clock.now_ns())
        return self.clock.spawn(self.engine.serve(request))

    def run(self, seconds):
        self.clock.env.run(until=self.clock.now_ns() + round(seconds * NS_PER_S))


@pytest.fixture
def watched(settings, clock, monkeypatch):
    return Watched(settings, clock, monkeypatch)


def test_an_idle_replica_is_probed_again_and_again(watched):
    watched.run(10.5)
    assert len(watched.probed_s) == 10


def test_one_that_finishes_steps_is_not_disturbed(watched):
    watched.run(0.5)
    watched.clock.env.run(until=watched.ask(output=600))
    busy_s = watched.clock.now_ns() / NS_PER_S
    assert busy_s > 5
    assert watched.probed_s == []
    watched.run(4)
    assert len(watched.probed_s) >= 2
    assert min(watched.probed_s) > busy_s


def test_one_that_hangs_under_load_is_found_by_the_probe_after_the_next_look(settings, clock, monkeypatch):
    settings.fleet.fast_forward = False
    watched = Watched(settings, clock, monkeypatch)
    watched.ask(output=3000)
    watched.run(3.5)
    monkeypatch.setattr(Leaping, "_begin", lambda _: None)  # its device forms no batch any more
    watched.run(2)
    assert len(watched.probed_s) == 1
    watched.run(12)
    assert not watched.engine.is_available("a")
