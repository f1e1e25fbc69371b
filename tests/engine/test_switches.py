"""Each part can be switched off by itself, and what is off costs nothing: none of its code runs for a request."""

import sys
from collections import Counter

import numpy as np
import pytest

from engine.clock import NS_PER_S
from engine.engine import Engine
from engine.request import Request
from engine.settings import ArmSettings, ExperimentSettings

PARTS = {
    "cache": "engine/cache/",
    "quotas": "engine/quotas/",
    "health": "engine/registry/health.py",
    "sessions": "engine/routing/sessions.py",
    "experiments": "engine/routing/experiments.py",
}


def switch(settings, part, *, on):
    """Everything on or off but `part`, which is the other way round."""
    arms = [ArmSettings(name=name, target="llama", weight=0.5) for name in "xy"]
    experiment = ExperimentSettings(name="which", on="llama", arms=arms)
    settings.cache.enabled = (part == "cache") is on
    settings.quotas.enabled = (part == "quotas") is on
    settings.health.enabled = (part == "health") is on
    settings.routing.sessions = (part == "sessions") is on
    settings.routing.experiments = [experiment] if (part == "experiments") is on else []
    settings.routing.decision_log = 0.0
    return settings


def request(number, clock):
    return Request(
        number, "llama", np.arange(100, dtype=np.int32), 4, clock.now_ns(),
        session=f"session {number % 5}", tenant=f"tenant {number % 3}",
    )  # fmt: skip


def calls_of(part, settings, clock):
    """How often any code of that part was called while thirty requests were served, one after the other."""
    engine = Engine(settings, clock)
    engine.start()
    for number in range(10):
        clock.env.run(until=clock.spawn(engine.serve(request(number, clock))))
    calls = Counter()

    def note(frame, event, _):
        if event == "call" and PARTS[part] in frame.f_code.co_filename:
            calls[frame.f_code.co_name] += 1

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        for number in range(10, 40):
            clock.env.run(until=clock.spawn(engine.serve(request(number, clock))))
    finally:
        sys.setprofile(before)
    return calls


@pytest.mark.parametrize("part", PARTS)
def test_what_is_off_is_not_called_by_any_request(settings, clock, part):
    assert calls_of(part, switch(settings, part, on=False), clock) == Counter()


@pytest.mark.parametrize("part", PARTS)
def test_what_is_on_works_without_all_the_others(settings, clock, part):
    assert calls_of(part, switch(settings, part, on=True), clock).total() >= 30


def test_with_everything_off_nothing_is_kept_and_no_timer_runs(settings, clock):
    for part in ("cache", "quotas", "health"):
        getattr(settings, part).enabled = False
    settings.routing.sessions = False
    settings.routing.slow_start_s = 0.0
    engine = Engine(settings, clock)
    engine.start()
    for number in range(30):
        done = clock.env.run(until=clock.spawn(engine.serve(request(number, clock))))
        assert len(done.tokens) == 4
    ended_ns = clock.now_ns()
    clock.env.run()  # to its end: there is one, for nobody looks again and again
    assert clock.now_ns() == ended_ns
    assert (len(engine.cache), engine.cache.spaces, engine.cache.holders) == (0, {}, [])
    assert (engine.quotas.in_service, engine.quotas._ledgers, engine.quotas._models) == (0, {}, {})
    assert len(engine.router.sessions) == 0
    assert all(home.spaces == {} for home in engine.fleet.homes.values())


def test_probes_are_what_keeps_time_going(settings, clock):
    """The twin of the test above: with health on, there is no end."""
    engine = Engine(settings, clock)
    engine.start()
    clock.env.run(until=60 * NS_PER_S)
    assert clock.env.peek() < float("inf")


def test_quotas_that_an_operator_switches_on_hold_from_then_on(settings, clock):
    settings.quotas.enabled = False
    engine = Engine(settings, clock)
    engine.start()
    waiting = [clock.spawn(engine.serve(request(number, clock))) for number in range(5)]
    clock.env.run(until=clock.now_ns() + 1)
    assert engine.quotas.in_service == 0
    settings.quotas.enabled = True
    waiting.append(clock.spawn(engine.serve(request(9, clock))))
    clock.env.run(until=clock.now_ns() + 1)
    assert engine.quotas.in_service == 1
    settings.quotas.enabled = False  # what was granted is given back all the same
    for each in waiting:
        clock.env.run(until=each)
    assert engine.quotas.in_service == 0
    engine.quotas.check_integrity()
