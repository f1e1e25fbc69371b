"""What an engine's parts count for a scrape, and that it is the same in every run."""

from contextlib import suppress

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from engine.engine import Engine
from engine.errors import EngineError
from engine.request import Request
from engine.settings import CacheSettings, TierSettings
from engine.telemetry import Meter
from sim.world import SimClock

S = 1_000_000_000
PROMPT = np.arange(64, dtype=np.int32)


class World:
    """An engine with a meter, and requests one after the other."""

    def __init__(self, settings):
        self.clock, self.meter, self.number = SimClock(), Meter(), 0
        self.engine = Engine(settings, self.clock, [self.meter])
        self.meter.sources.append(self.engine.figures)
        self.engine.start()

    async def _ask(self, request):
        with suppress(EngineError):
            await self.engine.serve(request)

    def ask(self, model="llama", session=None, for_s=1):
        self.number += 1
        now_ns = self.clock.now_ns()
        request = Request(self.number, model, PROMPT, 8, now_ns, session=session)
        self.clock.spawn(self._ask(request))
        self.clock.env.run(until=now_ns + int(for_s * S))

    def seen(self, name):
        """The samples of a name, by the values of their labels in the order of the labels' names."""
        return {
            tuple(sample.labels[label] for label in sorted(sample.labels)): sample.value
            for family in parse(self.meter.exposition())
            for sample in family.samples
            if sample.name == name
        }


@pytest.fixture
def world():
    """`world(settings)`, as many as are wanted."""
    made = []

    def make(settings):
        made.append(World(settings))
        return made[-1]

    yield make
    for each in made:
        each.engine.telemetry.clear()
        each.clock.close()
        each.engine.close()


def test_reasons_of_decisions_add_up_although_the_short_way_counts_none(world, settings):
    settings.routing.decision_log = 0.0
    here = world(settings)
    for session in ("s", "s", "s", None, "t"):
        here.ask(session=session)
    reasons = here.seen("modelyard:router_decision_reasons_total")
    assert reasons == {("session",): 2, ("strategy",): 3}
    here.engine.replicas["b"].crash()
    for _ in range(3):
        here.ask()
    told = here.seen("modelyard:router_decision_reasons_total")
    assert told["another try",] == 1
    assert sum(told.values()) == sum(here.seen("modelyard:router_decisions_total").values()) == 9


def test_decisions_on_record_have_the_same_reasons(world, settings):
    logged = world(settings)
    settings.routing.decision_log = 0.0
    short = world(settings)
    for here in (logged, short):
        for session in ("s", "s", None, "t", "s"):
            here.ask(session=session)
    name = "modelyard:router_decision_reasons_total"
    assert logged.seen(name) == short.seen(name) == {("session",): 2, ("strategy",): 3}


def test_health_and_states_are_those_of_this_moment(world, settings):
    here = world(settings)
    here.ask()
    assert here.seen("modelyard:model_state") == {("llama@1.0.0", "healthy"): 1}
    here.engine.replicas["a"].crash()
    here.ask(for_s=6)
    assert here.seen("modelyard:replica_health") == {
        ("llama@1.0.0", "a", "unhealthy"): 1,
        ("llama@1.0.0", "b", "healthy"): 1,
        ("llama@1.0.0", "c", "healthy"): 1,
    }
    assert here.seen("modelyard:router_open")["llama@1.0.0", "a"] == 0


def test_what_runs_and_waits_is_told_while_it_does(world, settings):
    settings.fleet.max_batch = 1
    here = world(settings)
    for _ in range(6):
        here.ask(for_s=1e-6)
    here.clock.env.run(until=here.clock.now_ns() + 1_000_000)
    assert sum(here.seen("vllm:num_requests_running").values()) == 3
    assert sum(here.seen("vllm:num_requests_waiting").values()) == 3
    here.clock.env.run(until=here.clock.now_ns() + 5 * S)
    assert sum(here.seen("vllm:num_requests_running").values()) == 0
    assert sum(here.seen("modelyard:replica_busy_seconds_total").values()) > 0


def test_what_a_model_holds_is_sure_or_borrowed(world, settings):
    settings.cache = CacheSettings(ram=TierSettings(gib=0.25), allocation="fair")
    here = world(settings)
    here.ask()
    held = here.seen("modelyard:cache_bytes")["llama@1.0.0", "ram"]
    sure = here.seen("modelyard:cache_sure_bytes")["llama@1.0.0", "ram"]
    assert here.seen("modelyard:cache_borrowed_bytes")["llama@1.0.0", "ram"] == max(0, held - sure)
    assert here.seen("modelyard:cache_tier_bytes")["ram",] == held > 0
    assert here.seen("modelyard:cache_capacity_bytes")["ram",] == 2**28
    assert here.seen("modelyard:cache_tier_open")["ram",] == 1
    assert here.seen("modelyard:cache_prompt_tokens_total")["llama@1.0.0",] == 64


def test_one_decision_in_so_many_is_timed_and_none_unless_it_is_switched_on(world, settings):
    plain = world(settings)
    plain.ask()
    assert not plain.seen("modelyard:router_decision_duration_seconds_count")
    assert plain.engine._attempts == plain.engine.router.attempts, "what is off costs nothing"
    settings.routing.time_every = 3
    timed = world(settings)
    for _ in range(7):
        timed.ask()
    assert timed.seen("modelyard:router_decision_duration_seconds_count") == {(): 3}
    assert timed.seen("modelyard:router_decision_duration_seconds_sum")[()] > 0


def test_two_runs_leave_the_same_bytes(world, settings):
    texts = []
    for _ in range(2):
        here = world(settings)
        for session in ("s", None, "s"):
            here.ask(session=session)
        texts.append(here.meter.exposition())
    assert texts[0] == texts[1]
