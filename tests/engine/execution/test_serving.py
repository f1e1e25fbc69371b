"""Servers of service times: what happens to those who are served when somebody leaves, dies or is worth more."""

import numpy as np
import pytest

from engine.clock import NS_PER_S
from engine.errors import EngineError
from engine.execution import Machine, Replica, Scheduler
from engine.execution.law import LawExecutor, LawOptions
from engine.execution.replica import Work
from engine.request import Stream
from engine.settings import HardwareSettings, ModelSettings
from sim.world import SimClock

HARDWARE = HardwareSettings(
    name="x", flops=1, memory_bytes=1, memory_bytes_per_s=1, link_bytes_per_s=1, source="none"
)
DISCIPLINES = ("fifo", "priority", "preemptive", "ps")


class World:
    """One replica with services of a second each, and what became of each request: when, and how."""

    def __init__(self, discipline, servers=1):
        self.clock, self.ends = SimClock(), {}
        machine = Machine(ModelSettings(name="m", architecture=None), HARDWARE, self.clock, servers, 1)
        executor = LawExecutor(machine, LawOptions(law="deterministic"))
        scheduler = Scheduler(
            servers, 512, executor.kv_capacity_tokens, by_priority=discipline in ("priority", "preemptive")
        )
        self.replica = Replica("a", "m", executor, scheduler, self.clock, 16, discipline=discipline)
        self.replica.start()

    def at(self, at_s, act):
        self.clock.call_later(round(at_s * NS_PER_S), act)

    def ask(self, name, at_s, priority=0, deadline_s=None):
        deadline_ns = None if deadline_s is None else round(deadline_s * NS_PER_S)
        work = Work(np.ones(4, np.int32), 1, deadline_ns=deadline_ns, priority=priority)
        self.at(at_s, lambda: self.clock.spawn(self._ask(name, work)))

    async def _ask(self, name, work):
        try:
            await self.replica.generate(work, Stream())
            how = "served"
        except EngineError as error:
            how = error.reason
        self.ends[name] = (round(self.clock.now_ns() / NS_PER_S, 6), how)

    def play(self, until_s=20):
        self.clock.env.run(until=until_s * NS_PER_S)
        return self.ends


@pytest.fixture(params=DISCIPLINES)
def world(request):
    return World(request.param, servers=2)


def test_a_crash_ends_everybody_and_the_next_life_begins_empty(world):
    for number in range(4):
        world.ask(number, 0.0)
    world.at(0.5, world.replica.crash)
    world.at(3, world.replica.recover)
    world.ask("after", 4)
    ends = world.play()
    assert [ends[number] for number in range(4)] == [(0.5, "replica_lost")] * 4
    assert ends["after"] == (5.0, "served")
    assert world.replica.busy_ns == 1.5 * NS_PER_S
    assert (world.replica.num_running, world.replica.num_waiting) == (0, 0)


def test_who_runs_out_of_time_leaves_the_server_to_the_next(world):
    world.ask("late", 0.0, deadline_s=0.5)
    world.ask("other", 0.0, deadline_s=0.5)
    world.ask("next", 0.25)
    ends = world.play()
    assert ends["late"] == ends["other"] == (0.5, "deadline_passed")
    assert ends["next"] == (1.5, "served")
    assert world.replica.busy_ns == 1.5 * NS_PER_S


def test_who_is_worth_more_takes_the_server_of_the_least_that_began_last():
    world = World("preemptive", servers=2)
    world.ask("old", 0.0, priority=1)
    world.ask("young", 0.25, priority=1)
    world.ask("first", 0.5, priority=2)
    assert world.play() == {"old": (1.0, "served"), "first": (1.5, "served"), "young": (1.75, "served")}
    assert world.replica.num_preemptions == 1
    assert world.replica.busy_ns == 1.75 * NS_PER_S


def test_nobody_gives_way_to_an_equal_nor_at_the_end_of_his_service():
    world = World("preemptive")
    world.ask("one", 0.0)
    world.ask("equal", 0.5)
    world.ask("more", 1.0, priority=1)
    assert world.play() == {"one": (1.0, "served"), "more": (2.0, "served"), "equal": (3.0, "served")}
    assert world.replica.num_preemptions == 0


def test_who_has_given_way_may_run_out_of_time_or_be_lost():
    world = World("preemptive")
    world.ask("late", 0.0, deadline_s=0.75)
    world.ask("more", 0.5, priority=1)
    world.ask("lost", 2.0)
    world.ask("most", 2.25, priority=1)
    world.at(2.5, world.replica.crash)
    ends = world.play()
    assert ends["late"] == (0.75, "deadline_passed")
    assert ends["more"] == (1.5, "served")
    assert ends["lost"] == ends["most"] == (2.5, "replica_lost")
    assert world.replica.busy_ns == 2.0 * NS_PER_S


def test_a_probe_is_a_service_like_others():
    world, answers = World("fifo"), []

    async def probe():
        answers.append(await world.replica.probe(2 * NS_PER_S))

    world.at(0.5, lambda: world.clock.spawn(probe()))
    world.ask("one", 0.0)
    assert world.play() == {"one": (1.0, "served")}
    assert answers == [True]
