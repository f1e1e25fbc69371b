"""A replica: the loop, its death, its return, and callers that leave."""

import numpy as np
import pytest
import simpy

from engine.errors import DeadlinePassed, GenerationFailed, ReplicaLost
from engine.execution import Replica, Scheduler, StepResult
from engine.execution.replica import Work
from engine.request import Stream

STEP_NS = 1000


class Steady:
    """Every step takes `step_ns`; the tokens of a sequence count up. Notes what it is asked to do."""

    def __init__(self, clock, step_ns=STEP_NS):
        self.clock = clock
        self.step_ns = step_ns
        self.is_stepping = False
        self.seen = []
        self.retired = []
        self.released = []
        self.resets = []
        self.error = None
        self.failing = set()

    async def step(self, batch):
        assert not self.is_stepping, "called concurrently"
        self.is_stepping = True
        self.seen.append([each.id for each in (*batch.decodes, *[chunk.sequence for chunk in batch.chunks])])
        try:
            await self.clock.sleep(self.step_ns)
        finally:
            self.is_stepping = False
        if self.error is not None:
            raise self.error
        errors = {number: GenerationFailed("no valid scores") for number in self.failing}
        tokens = [each.new_tokens[-1] + 1 for each in batch.decodes]
        chunks = [
            (chunk.sequence.new_tokens or [0])[-1] + 1 if chunk.is_last else None for chunk in batch.chunks
        ]
        return StepResult(self.step_ns, chunks, tokens, errors=errors)

    def retire(self, sequence, first_block, last_block, block_tokens):
        self.retired.append(sequence.id)
        return [f"KV {number}" for number in range(first_block, last_block)]

    def release(self, sequence):
        self.released.append(sequence.id)

    def reset(self):
        assert not self.is_stepping, "reset while it steps"
        self.resets.append(self.clock.now_ns())


class World:
    """One replica over a steady executor, and what became of each caller."""

    def __init__(self, clock, **options):
        self.clock = clock
        self.executor = Steady(clock)
        self.scheduler = Scheduler(
            **{"max_batch": 4, "step_tokens": 16, "kv_capacity_tokens": 100, **options}
        )
        self.replica = Replica("a", "llama", self.executor, self.scheduler, clock, 4)
        self.replica.start()
        self.ended = {}
        self.streams = {}

    def ask(self, name, prompt=8, new=3, deadline_ns=None, prefix=()):
        self.streams[name] = Stream()
        tokens = np.zeros(prompt, dtype=np.int32)
        work = Work(tokens, new, list(prefix), 4 * len(prefix), deadline_ns)
        return self.clock.spawn(self._ask(name, work))

    async def _ask(self, name, work):
        try:
            answer = await self.replica.generate(work, self.streams[name])
            self.ended[name] = (self.clock.now_ns(), answer)
        except (DeadlinePassed, GenerationFailed, ReplicaLost, simpy.Interrupt) as error:
            self.ended[name] = (self.clock.now_ns(), type(error).__name__)

    def probe(self, name, timeout_ns=STEP_NS * 10):
        async def probe():
            answered = await self.replica.probe(timeout_ns)
            self.ended[name] = (self.clock.now_ns(), answered)

        return self.clock.spawn(probe())

    def run(self, until_ns=None):
        self.clock.env.run(until=until_ns)

    def is_idle(self):
        return self.scheduler.kv_used_tokens == self.replica.num_running == self.replica.num_in_hand == 0


@pytest.fixture
def world(clock):
    return World(clock)


def test_one_request_alone_costs_exactly_the_sum_of_its_steps(world):
    world.ask("x", prompt=40, new=3)
    world.run()
    finished_ns, answer = world.ended["x"]
    assert (
        finished_ns == world.replica.busy_ns == 5 * STEP_NS
    )  # three chunks, the last gives a token; two decodes
    assert world.replica.num_steps == 5
    assert world.streams["x"].tokens == [1, 2, 3]
    assert (world.streams["x"].first_token_ns, world.streams["x"].last_token_ns) == (3 * STEP_NS, 5 * STEP_NS)
    assert (answer.started_ns, answer.computed_tokens) == (0, 42)
    assert world.is_idle()


def test_an_answer_brings_the_full_blocks_that_were_not_cached(world):
    world.ask("cold", prompt=8, new=6)
    world.ask("warm", prompt=8, new=6, prefix=["KV"])
    world.run()
    assert world.ended["cold"][1].blocks == ["KV 0", "KV 1", "KV 2"]
    assert world.ended["warm"][1].blocks == ["KV 1", "KV 2"]


def test_a_second_request_joins_at_the_next_step(world):
    world.ask("first", new=5)
    world.run(STEP_NS + 1)
    world.ask("second", new=1)
    world.run()
    assert world.ended["second"][0] == 3 * STEP_NS
    assert world.executor.seen == [[1], [1], [1, 2], [1], [1]]


def test_an_idle_replica_waits_and_wakes(world):
    world.run(10 * STEP_NS)
    assert world.replica.num_steps == 0
    world.ask("x", new=1)
    world.run()
    assert world.ended["x"][0] == 11 * STEP_NS


def test_one_that_is_preempted_gives_its_kv_back_and_misses_no_token(clock):
    world = World(clock, kv_capacity_tokens=60, step_tokens=64)
    world.ask("first", prompt=10, new=40)
    world.ask("second", prompt=10, new=40)
    world.run()
    assert world.executor.released == [2]
    assert world.replica.num_preemptions == 1
    assert [stream.tokens for stream in world.streams.values()] == [list(range(1, 41))] * 2
    assert world.ended["first"][0] < world.ended["second"][0]
    assert world.is_idle()


def test_a_preemption_is_told_with_what_it_costs(clock):
    world, told = World(clock, kv_capacity_tokens=60, step_tokens=64), []
    for number in range(2):
        work = Work(
            np.zeros(10, dtype=np.int32), 40, preempted=lambda lost, name=number: told.append((name, lost))
        )
        clock.spawn(world.replica.generate(work, Stream()))
    world.run()
    assert told == [(1, 31)]


def test_generation_ends_when_the_one_who_reads_along_says_so(world):
    read = []

    def stops(token):
        read.append(token)
        return token == 3

    work, stream = Work(np.zeros(8, dtype=np.int32), 50, stops=stops), Stream()
    answers = []

    async def ask():
        answers.append(await world.replica.generate(work, stream))

    world.clock.spawn(ask())
    world.ask("other", new=6)
    world.run()
    assert stream.tokens == read == [1, 2, 3]
    assert answers[0].is_stopped
    assert world.streams["other"].tokens == [1, 2, 3, 4, 5, 6]
    assert not world.ended["other"][1].is_stopped
    assert world.is_idle()


def test_a_sequence_without_a_valid_token_fails_alone(world):
    world.executor.failing = {1}
    world.ask("ill", new=6)
    world.ask("well", new=6)
    world.run()
    assert world.ended["ill"] == (STEP_NS, "GenerationFailed")
    assert world.streams["ill"].tokens == []
    assert world.streams["well"].tokens == [1, 2, 3, 4, 5, 6]
    assert world.is_idle()


def test_a_crash_fails_everybody_in_hand_at_once(world):
    for number in range(6):
        world.ask(number, new=50)
    world.run(3 * STEP_NS + 1)
    assert (world.replica.num_in_hand, world.replica.num_running, world.replica.num_waiting) == (6, 4, 2)
    world.replica.crash()
    world.run(4 * STEP_NS)
    assert set(world.ended.values()) == {(3 * STEP_NS + 1, "ReplicaLost")}
    assert world.is_idle()


def test_a_dead_replica_refuses_at_once(world):
    world.replica.crash()
    world.replica.crash()
    world.ask("x")
    world.probe("probe")
    world.run()
    assert world.ended == {"x": (0, "ReplicaLost"), "probe": (0, False)}


def test_what_a_dead_device_still_computed_reaches_nobody(world):
    world.ask("x")
    world.run(STEP_NS + 1)
    world.replica.crash()
    world.run()
    assert world.streams["x"].tokens == [1]
    assert (world.replica.num_steps, world.executor.retired) == (1, [])


def test_a_recovered_replica_starts_empty_and_serves(world):
    world.ask("lost", new=50)
    world.run(STEP_NS + 1)
    world.replica.crash()
    world.run(5 * STEP_NS)
    world.replica.recover()
    world.ask("new", new=2)
    world.run()
    assert world.executor.resets == [5 * STEP_NS]
    assert world.ended["new"][0] == 7 * STEP_NS
    assert world.executor.seen[-2:] == [[2], [2]]


def test_recovering_a_replica_that_is_well_changes_nothing(world):
    world.ask("x")
    world.run(STEP_NS + 1)
    world.replica.recover()
    world.run()
    assert world.streams["x"].tokens == [1, 2, 3]
    assert world.executor.resets == []


@pytest.mark.parametrize("times", [1, 2, 3])
def test_the_step_of_an_earlier_life_never_meets_the_new_one(world, times):
    world.ask("lost", new=50)
    world.run(STEP_NS + 100)
    for _ in range(times):
        world.replica.crash()
        world.replica.recover()
    world.ask("new", new=2)
    world.run()
    assert world.streams["lost"].tokens == [1]
    assert world.streams["new"].tokens == [1, 2]
    assert world.ended["new"][0] == 4 * STEP_NS  # the device was busy until 2 STEP_NS
    assert world.executor.seen[2:] == [[2], [2]]
    assert world.executor.resets == [2 * STEP_NS]
    assert world.is_idle()


def test_a_crash_before_the_new_life_could_begin_ends_it(world):
    world.ask("lost", new=50)
    world.run(100)
    world.replica.crash()
    world.replica.recover()
    world.ask("lost too")
    world.run(200)
    world.replica.crash()
    world.run()
    assert world.ended["lost too"] == (200, "ReplicaLost")
    assert world.executor.resets == []
    assert len(world.executor.seen) == 1


def test_a_device_that_is_lost_in_a_step_is_a_crash(world):
    world.executor.error = ReplicaLost("gone")
    world.ask("x")
    world.run()
    assert world.ended["x"] == (STEP_NS, "ReplicaLost")
    assert not world.replica.is_alive


def test_a_defect_in_a_step_is_told_and_leaves_nobody_waiting(world):
    world.executor.error = ZeroDivisionError("a defect")
    world.ask("x")
    with pytest.raises(ZeroDivisionError):
        world.run()
    world.run()
    assert world.ended["x"] == (STEP_NS, "ReplicaLost")
    assert not world.replica.is_alive


def test_an_error_in_the_last_step_of_an_earlier_life_ends_no_other(world):
    world.executor.error = ReplicaLost("gone")
    world.ask("lost")
    world.run(100)
    world.replica.crash()
    world.replica.recover()
    world.run(STEP_NS + 1)
    world.executor.error = None
    world.ask("new", new=1)
    world.run()
    assert world.streams["new"].tokens == [1]


@pytest.mark.parametrize("at_ns", [1, STEP_NS + 1, 2 * STEP_NS + 1])
def test_a_caller_that_leaves_is_dropped_and_its_kv_is_free(world, at_ns):
    leaver = world.ask("leaver", new=20)
    world.ask("stayer", new=5)
    world.run(at_ns)
    leaver.interrupt()
    world.run()
    assert world.ended["leaver"] == (at_ns, "Interrupt")
    assert world.streams["stayer"].tokens == [1, 2, 3, 4, 5]
    assert len(world.streams["leaver"].tokens) == at_ns // STEP_NS
    assert world.is_idle()


def test_a_caller_that_leaves_the_line_never_runs(clock):
    world = World(clock, max_batch=1)
    world.ask("first")
    leaver = world.ask("leaver")
    world.run(10)
    leaver.interrupt()
    world.run()
    assert world.executor.seen == [[1], [1], [1]]
    assert world.is_idle()


@pytest.mark.parametrize("deadline_ns", [STEP_NS // 2, 2 * STEP_NS + 1])
def test_the_deadline_comes_to_one_that_runs(world, deadline_ns):
    world.ask("x", new=50, deadline_ns=deadline_ns)
    world.run()
    assert world.ended["x"] == (deadline_ns, "DeadlinePassed")
    assert len(world.streams["x"].tokens) == deadline_ns // STEP_NS
    assert world.is_idle()


def test_the_deadline_comes_to_one_that_waits(clock):
    world = World(clock, max_batch=1)
    world.ask("first", new=10)
    world.ask("x", deadline_ns=STEP_NS)
    world.run()
    assert world.ended["x"] == (STEP_NS, "DeadlinePassed")
    assert world.streams["x"].tokens == []


def test_whoever_ends_in_time_hears_nothing_of_the_deadline(world):
    world.ask("x", deadline_ns=3 * STEP_NS + 1)
    world.run()
    assert world.streams["x"].tokens == [1, 2, 3]


def test_a_crash_at_the_deadline_does_not_change_how_the_request_ended(world):
    world.ask("x", new=50, deadline_ns=100)
    world.run(1)
    world.clock.call_later(99, world.replica.crash)  # due after the deadline's own timer, in the same instant
    world.run()
    assert world.ended["x"] == (100, "DeadlinePassed")


def test_a_deadline_at_the_moment_of_a_crash_changes_nothing_any_more(world):
    world.clock.call_later(100, world.replica.crash)
    world.ask("x", new=50, deadline_ns=100)
    world.run()
    assert world.ended["x"] == (100, "ReplicaLost")
    assert world.is_idle()


def test_a_probe_is_answered_by_a_replica_that_is_well(world):
    world.probe("probe")
    world.run(10)
    assert world.replica.num_in_hand == 0
    world.run()
    assert world.ended["probe"] == (STEP_NS, True)
    assert world.is_idle()


def test_a_probe_goes_before_everybody_who_waits(clock):
    world = World(clock, max_batch=1)
    world.ask("first", new=2)
    world.ask("second", new=2)
    world.run(10)
    world.probe("probe")
    world.run()
    assert world.ended["probe"] == (3 * STEP_NS, True)
    assert world.ended["second"][0] == 5 * STEP_NS


@pytest.mark.parametrize(("step_ns", "answered"), [(STEP_NS, True), (100 * STEP_NS, False)])
def test_a_full_replica_answers_a_probe_by_the_steps_it_finishes(clock, step_ns, answered):
    world = World(clock, max_batch=1)
    world.executor.step_ns = step_ns
    world.ask("long", new=50)
    world.run(10)
    world.probe("probe", timeout_ns=5 * STEP_NS)
    world.run()
    assert world.ended["probe"] == (10 + 5 * STEP_NS, answered)
    assert len(world.streams["long"].tokens) == 50
    assert world.is_idle()


def test_a_probe_that_is_not_answered_in_time_has_failed(world):
    world.executor.step_ns = 100 * STEP_NS
    world.probe("probe", timeout_ns=STEP_NS)
    world.run()
    assert world.ended["probe"] == (STEP_NS, False)
    assert world.is_idle()


def test_probes_that_wait_together_are_late_each_in_its_time(world):
    world.executor.step_ns = 100 * STEP_NS
    for name, steps in (("patient", 9), ("hasty", 2), ("as hasty", 2), ("last", 50)):
        world.probe(name, timeout_ns=steps * STEP_NS)
    world.run(4 * STEP_NS)
    world.probe("late", timeout_ns=3 * STEP_NS)
    world.run()
    told = {name: ended_ns / STEP_NS for name, (ended_ns, _) in world.ended.items()}
    assert told == {"patient": 9, "hasty": 2, "as hasty": 2, "last": 50, "late": 7}
    assert not any(answered for _, answered in world.ended.values())


def test_probes_that_are_answered_leave_one_timer_behind(world):
    for number in range(20):
        world.probe(f"probe {number}", timeout_ns=1_000 * STEP_NS)
        world.run((number + 1) * 10 * STEP_NS)
    assert all(answered for _, answered in world.ended.values())
    assert len(world.ended) == 20
    world.run()
    assert world.clock.now_ns() == 1_000 * STEP_NS


def test_a_probe_in_the_hands_of_a_dying_replica_has_failed(world):
    world.probe("probe")
    world.run(10)
    world.replica.crash()
    world.run()
    assert world.ended["probe"] == (10, False)
