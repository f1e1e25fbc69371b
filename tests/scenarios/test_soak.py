"""A day of traffic, and its twins: engines that keep what they no longer need, or whose cache finds less and less."""

import numpy as np
import pytest

from engine.cache import PrefixCache, blocks, cache
from engine.engine import Engine
from scenarios.soak import slope

DAY = (
    "workload.rate=0.05", "workload.tenants.split=false", "tiers.ram.gib=0.2", "scenario.look_every_s=3600",
    "scenario.max_drift=0.015", "report.sample_every_s=3600", "health.probe_every_s=600",
)  # fmt: skip
DRIFT = "drift of the hit ratio, an hour"
OBJECTS, BYTES = (f"growth of live {what}, an hour, as a share" for what in ("objects", "bytes"))
SERVED = "requests that did not complete"
IN_FLIGHT = "requests in flight when somebody looked, at most"


@pytest.fixture(autouse=True)
def short_memory(monkeypatch):
    """What is remembered of blocks that left, and of names, is full after hours, not days: here few requests come."""
    monkeypatch.setattr(cache, "MIN_GHOSTS", 64)
    monkeypatch.setattr(blocks, "MOST_NAMES", 64)


def failed(run):
    return [check.name for check in run.checks if check.verdict == "fail"]


@pytest.mark.slow
def test_a_day_leaves_nothing_behind(play):
    run = play(*DAY)
    assert failed(run) == []
    verdicts = {check.name: check.verdict for check in run.checks}
    assert verdicts[OBJECTS] == verdicts[BYTES] == verdicts[DRIFT] == "pass"


@pytest.mark.slow
def test_twin_that_remembers_every_request_and_finds_ever_less(play, monkeypatch):
    def observe(self, replica, story, *rest):
        kept = vars(self).setdefault("remembered", [])
        kept.append([story.end.request_id, story.end.arrival_ns])
        observed(self, replica, story, *rest)

    def find(self, space, keys, num_tokens, now_ns):
        is_blind = keys[-1][0] < 256 * now_ns / 86_400e9
        return found(self, space, [] if is_blind else keys, num_tokens, now_ns)

    observed, found = Engine._observe, PrefixCache.find
    monkeypatch.setattr(Engine, "_observe", observe)
    monkeypatch.setattr(PrefixCache, "find", find)
    assert failed(play(*DAY, "scenario.max_drift=0.008")) == [DRIFT, OBJECTS, BYTES]


@pytest.mark.slow
def test_twin_with_limits_of_last_year(play):
    lines = (
        "scenario.hours=0.2",
        "workload.duration_s=720",
        "scenario.look_every_s=60",
        "scenario.max_in_flight=1",
    )
    run = play("workload.rate=4", *lines, "quotas.limits=[{model: '*', hourly_tokens: 1000000}]")
    assert {SERVED, IN_FLIGHT} <= set(failed(run))


def test_a_slope_is_told_from_what_the_load_explains():
    hours = np.arange(24.0)
    load = 10 + 5 * np.sin(hours / 24 * 2 * np.pi)
    noise = 0.001 * np.random.default_rng(1).normal(size=24)
    found = slope(hours, load, 0.5 + 0.02 * load + 0.003 * hours + noise)
    assert found.low < 0.003 < found.high
    assert found.half_width < 0.001
