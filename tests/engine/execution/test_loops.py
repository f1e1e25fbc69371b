"""Leaps over many steps, and one step at a time: the same to the nanosecond, whatever comes in between."""

import random

import numpy as np
import pytest

from engine.errors import EngineError
from engine.execution import Machine, Replica, Scheduler, executors
from engine.execution.modelled import times
from engine.execution.replica import Work
from engine.execution.roofline import RooflineOptions
from engine.request import Stream
from engine.settings import Architecture, HardwareSettings, ModelSettings
from sim.agenda import LATE
from sim.world import SimClock

SHAPE = Architecture(
    layers=2, hidden=32, heads=4, kv_heads=2, head_dim=8, ffn=16, vocab=400, context_tokens=4096
)
HARDWARE = HardwareSettings(
    # so that no step takes whole nanoseconds
    name="toy",
    flops=0.97e9,
    memory_bytes=1e6,
    memory_bytes_per_s=1.03e9,
    link_bytes_per_s=1e9,
    source="by hand",
)


class World:
    """Replicas that get the same requests at the same times, and what became of each request."""

    def __init__(self, leap_steps, replicas=2, **options):
        self.clock = SimClock()
        model = ModelSettings(name="tiny", architecture=SHAPE, stand_in=SHAPE)
        machine = Machine(model, HARDWARE, self.clock, 4, 1, {})
        self.executors = [executors.make("roofline", machine, RooflineOptions()) for _ in range(replicas)]
        limits = {"max_batch": 4, "step_tokens": 64, "kv_capacity_tokens": 600, **options}
        self.replicas = [
            Replica(
                str(rank), "tiny", each, Scheduler(**limits), self.clock, 16, rank=rank, leap_steps=leap_steps
            )
            for rank, each in enumerate(self.executors)
        ]
        self.told = []
        for replica in self.replicas:
            replica.start()

    def ask(self, number, replica, prompt, new, deadline_ns=None):
        tokens = (np.arange(prompt, dtype=np.int32) * 7 + number) % 400
        work = Work(
            tokens, new, deadline_ns=deadline_ns, preempted=lambda lost: self.tell(number, "lost", lost)
        )
        return self.clock.spawn(self._ask(number, replica, work))

    async def _ask(self, number, replica, work):
        stream = Stream()
        try:
            answer = await replica.generate(work, stream)
            self.tell(number, answer.started_ns, answer.computed_tokens, len(answer.blocks))
        except EngineError as error:
            self.tell(number, error.reason)
        self.tell(number, stream.first_token_ns, stream.last_token_ns, tuple(stream.tokens))

    def tell(self, *what):
        self.told.append((self.clock.now_ns(), *what))

    def counts(self):
        return [(each.busy_ns, each.num_steps, each.num_preemptions) for each in self.replicas]


def life(world, seed):
    """Requests, deadlines, crashes and looks at the counts, at times that often fall together."""
    draw, seen = random.Random(seed), []  # noqa: S311
    for number in range(60):
        at_ns = draw.randrange(40) * 500_000
        replica = draw.choice(world.replicas)
        prompt, new = draw.randint(1, 90), draw.choice([1, 2, 30, 200])
        deadline_ns = at_ns + draw.randrange(1, 20_000_000) if draw.random() < 0.3 else None
        world.clock.call_later(
            at_ns, lambda *_, told=(number, replica, prompt, new, deadline_ns): world.ask(*told)
        )
    for _ in range(3):
        victim, at_ns = draw.choice(world.replicas), draw.randrange(30) * 500_000
        world.clock.call_later(at_ns, victim.crash)
        world.clock.call_later(at_ns + draw.randrange(4_000_000), victim.recover)
    for _ in range(20):
        world.clock.call_later(draw.randrange(20_000_000), lambda: seen.append(world.counts()))
    world.clock.env.run()
    return seen, world.counts(), world.told


@pytest.mark.parametrize("seed", range(12))
def test_leaps_give_what_single_steps_give(seed):
    leaping, stepping = life(World(256), seed), life(World(1), seed)
    assert leaping == stepping
    assert len(stepping[2]) >= 120


def test_most_steps_need_no_event():
    world = World(256, replicas=1)
    world.ask(0, world.replicas[0], 8, 200)
    events = 0
    while world.clock.queue:
        events += world.clock.advance(1)
    assert (world.replicas[0].num_steps, events < 20) == (200, True)


def test_one_that_reads_along_gets_each_token_when_it_comes():
    world, seen = World(256, replicas=1), []
    stream = Stream(listener=lambda: seen.append(world.clock.now_ns()))
    work = Work(np.arange(8, dtype=np.int32), 50)
    world.clock.spawn(world.replicas[0].generate(work, stream))
    world.clock.env.run()
    assert len(seen) == len(set(seen)) == len(stream.tokens) == 50
    assert (seen[0], seen[-1]) == (stream.first_token_ns, stream.last_token_ns)


def test_durations_foreseen_are_those_of_each_step():
    world = World(256, replicas=1)
    executor, loop = world.executors[0], world.replicas[0]._loop
    world.ask(0, world.replicas[0], 20, 300)
    world.ask(1, world.replicas[0], 9, 300)
    while loop._batch is None or loop._batch.chunks:
        world.clock.advance(1)
    batch = loop._batch
    loop._credit_all()
    batch.held_tokens = None  # each sequence is looked at
    foreseen = executor.decode_ns(batch, 40).tolist()
    for duration_ns in foreseen:
        assert executor.duration_ns(batch) == duration_ns
        for sequence in batch.decodes:
            sequence.computed_tokens += 1
    assert len(set(foreseen)) == 40
    world.clock.close()


@pytest.mark.parametrize(("vocab", "length"), [(400, 3), (32_000, 1), (262_144, 4095)])
def test_tokens_told_at_once_are_those_told_one_by_one(vocab, length):
    world = World(1, replicas=1)
    executor = world.executors[0]
    executor.vocab = vocab
    work = Work(np.arange(length, dtype=np.int32) % vocab, 600)
    last, expected = int(work.tokens[-1]), []
    for position in range(600):
        last = (last * 1_103_515_245 + (length + position) * 12_345 + 1) % vocab
        expected.append(last)
    assert executor.answer(work.tokens, length, 0, 600) == expected
    assert executor.answer(work.tokens, length, 250, 20) == expected[250:270]
    assert [executor.answer(work.tokens, length, place, 1)[0] for place in range(50)] == expected[:50]
    world.clock.close()


@pytest.mark.parametrize("seed", range(5))
def test_steps_that_are_over_are_counted_from_their_formula_as_one_by_one(seed):
    """Of a leap under way at any nanosecond, those on the edge of a step included."""
    draw = random.Random(seed)  # noqa: S311
    world = World(256, replicas=1)
    loop = world.replicas[0]._loop
    for _ in range(200):
        loop._at = draw.randrange(1 << 60)
        loop._first = draw.randrange(1, 1 << draw.randrange(4, 44))
        loop._growth = draw.choice([0, 1, draw.randrange(1 << 30)])
        loop._steps_ahead = draw.randrange(1, 257)
        ends_ns = [loop._after(steps) >> 24 for steps in range(1, loop._steps_ahead + 1)]
        for at_ns in {loop._at >> 24, *draw.choices(ends_ns, k=4), draw.choice(ends_ns) + 1, ends_ns[-1] + 9}:
            clock = world.clock
            clock.time_ns = at_ns
            for is_late in (False, True):
                clock.late_ns, clock.late_priority = (at_ns, LATE) if is_late else (-1, -1)
                over = sum(end < at_ns or (is_late and end == at_ns) for end in ends_ns)
                assert loop._num_over() == over
    clock.late_ns = -1
    world.clock.close()


@pytest.mark.parametrize("seed", range(5))
def test_a_step_that_ends_on_the_very_tick_is_over_and_one_that_ends_on_the_next_is_not(seed):
    """Where floats cannot tell: by numbers of up to 60 bits."""
    draw = random.Random(seed)  # noqa: S311
    world = World(256, replicas=1)
    loop = world.replicas[0]._loop
    loop._at_ns, loop._steps_ahead = 0, 1 << 40
    for _ in range(500):
        steps = draw.randrange(2, 257)
        loop._first, loop._growth = (
            draw.randrange(1 << 44, 1 << 52),
            draw.choice([1, draw.randrange(1, 1 << 40)]),
        )
        needed = steps * loop._first + loop._growth * (steps * (steps - 1) // 2)
        world.clock.time_ns = needed >> 23
        for room, over in ((needed, steps), (needed - 1, steps - 1)):
            loop._at = (world.clock.time_ns << 24) - 1 - room
            assert loop._num_over() == over
    world.clock.close()


def test_a_look_in_mid_leap_and_a_dropped_caller_see_what_was_decoded_by_then():
    """What a sequence has decoded is written when somebody asks: the same as if it were written at every step."""
    told = []
    for leap_steps in (1, 256):
        world = World(leap_steps, replicas=1)
        for number in range(4):
            world.ask(number, world.replicas[0], 20, 150, deadline_ns=3_000_000 + number * 700_000)
        world.clock.env.run()
        told.append((world.told, world.counts()))
    assert told[0] == told[1]
    assert any("deadline_passed" in event for event in told[0][0])


@pytest.mark.parametrize(
    "one", [0, 1, 3, 2**30 - 1, 2**30, 2**31 + 1, 2**46 + 5, 2**61, 2**62 - 1, 2**62, 2**80]
)
def test_products_of_ticks_are_exact_whatever_their_size(one):
    """Compiled, they are of machine numbers as long as they fit; around each limit and far beyond."""
    others = {
        0,
        1,
        2,
        10**6 + 3,
        2**31 - 1,
        2**63,
        *(max(0, 2**62 // max(1, one) + more) for more in range(-3, 4)),
    }
    for other in sorted(others):
        assert times(one, other) == times(other, one) == int(str(one)) * other
