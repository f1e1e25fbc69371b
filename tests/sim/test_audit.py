"""What holds in every run: each invariant is broken once on purpose, and seen."""

from array import array
from functools import cache

import numpy as np
import pytest

from engine.request import Stream
from engine.telemetry import Arrived, Ended
from sim.audit import CACHED, Broken, Census, _check_tokens, audit, covered_ns
from sim.config import read
from sim.stage import Stage
from sim.traffic import draw

LINES = ["scenario=steady", "executor=roofline", "workload.requests=60", "workload.rate=20"]
QUIET = ["health.enabled=false"]  # without probes a replica's time is that of its requests alone


@cache
def configured(*lines):
    return read([*LINES, *lines])


def make_stage(*lines):
    settings = configured(*lines)
    return Stage(settings.engine, draw(settings.workload, settings.seed, ["llama-3.2-1b"]), 1.0)


def checked(stage):
    audit(stage.engine, stage.recorder, stage.census, stage.trace)


@pytest.fixture
def stage():
    stage = make_stage(*QUIET, "quotas.limits=[{model: '*', concurrent_tokens: 1000000}]")
    stage.play()
    yield stage
    stage.close()


def column(stage, name):
    return stage.recorder.columns[name].data


def break_area(stage):
    stage.census.stays_ns += 1


def break_end(stage):
    stage.census.arrived += 1


def break_outcome(stage):
    stage.census.outcomes["completed"] -= 1


def break_inside(stage):
    stage.census.inside[60] = None


def break_in_hand(stage):
    stage.engine.replicas["a"].num_in_hand += 1


def break_twice(stage):
    column(stage, "request_id")[5] = column(stage, "request_id")[6]


def break_order(stage):
    column(stage, "admitted_ns")[0] = stage.clock.now_ns() * 2


def break_start(stage):
    column(stage, "started_ns")[3] = 0


def break_first(stage):
    column(stage, "first_token_ns")[3] = -1


def break_cached(stage):
    numbers = stage.recorder.columns["cached_tokens_ram"]
    numbers.data = array("q", numbers.data)  # as wide as the lie
    numbers.data[2] = 10**6


def break_prompt(stage):
    column(stage, "prompt_tokens")[1] += 1


def break_answer(stage):
    column(stage, "output_tokens")[1] += 1


def break_model(stage):
    stage.trace.model = "another"


def break_quota(stage):
    stage.engine.quotas.reserve(stage.trace.request(0), "llama-3.2-1b", 1, 0)


def break_ledger(stage):
    stage.engine.quotas._granted_tokens += 1


def break_ledger_back(stage):
    stage.engine.quotas._given_back_tokens += 1


def break_load(stage):
    stage.engine.router.seat("a").tokens_in_flight += 1


def break_busy(stage):
    stage.engine.replicas["a"]._loop.busy_ns = stage.clock.now_ns() + 1


def break_utilisation(stage):
    stage.engine.replicas["a"]._loop.busy_ns += 1


def break_service(stage):
    stage.engine.replicas["b"]._loop.busy_ns -= 1


def break_capacity(stage):
    stage.engine.cache.tiers[0].used_bytes = -1


def break_cache(stage):
    stage.engine.cache.tiers[0].used_bytes += 1


def break_references(stage):
    cache = stage.engine.cache
    cache.pins[next(iter(cache.table.slots.values()))] = 1


@pytest.mark.parametrize(
    ("breakage", "message"),
    [
        (break_area, "Little: area"),
        (break_end, "1 requests have no end, 0 are inside"),
        (break_outcome, "60 requests have ended, 59 in some way"),
        (break_inside, "0 requests have no end, 1 are inside"),
        (break_in_hand, "1 requests are in the hands of replicas or in line, of 0 inside"),
        (break_twice, "a request has two ends, or none"),
        (break_order, "tried_ns lies before admitted_ns"),
        (break_start, "started_ns lies before queued_ns"),
        (break_first, "tokens without a first one"),
        (break_cached, "more tokens were cached than there are"),
        (break_prompt, "prompt tokens were lost or made"),
        (break_answer, "an answer is longer than asked for"),
        (break_model, "60} ended of"),
        (break_quota, "quota slot"),
        (break_ledger, "the quota holds 1 tokens for nobody"),
        (break_ledger_back, "the quota holds -1 tokens for nobody"),
        (break_load, "still counts a load"),
        (break_busy, "a was busy for"),
        (break_utilisation, "utilisation: a was busy"),
        (break_service, "utilisation: b was busy"),
        (break_capacity, "tier ram holds -1 bytes"),
        (break_cache, "cache's books"),
        (break_references, "1 blocks are held for requests that are gone"),
    ],
)
def test_each_breach_is_seen(stage, breakage, message):
    checked(stage)
    breakage(stage)
    with pytest.raises(Broken, match=message):
        checked(stage)


def test_a_point_of_the_time_series_is_a_look_at_the_books(monkeypatch):
    """What goes wrong in the middle is seen there, and not only in what is left at the end."""
    stage = make_stage()
    stage.clock.call_later(
        10**9, lambda: monkeypatch.setattr(stage.engine.replicas["b"], "num_in_hand", 10**6)
    )
    with pytest.raises(Broken, match="requests are in the hands of replicas"):
        stage.play()
    assert stage.census.in_flight > 0
    stage.close()


def arrived(at_ns, number=1, tokens=5, model="m"):
    return Arrived(at_ns, number, "t", None, model, tokens, 1)


def ended(at_ns, number=1, tokens=5, model="m"):
    return Ended(at_ns, number, "t", None, model, 0, tokens, "completed")


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([arrived(5), arrived(6)], "request 1 has arrived twice"),
        ([arrived(5), ended(6), ended(7)], "request 1 ends, and is not inside"),
        ([ended(6)], "request 1 ends, and is not inside"),
        ([arrived(5), ended(6, tokens=4)], "request 1 arrived as Arrived.*prompt_tokens=5"),
        ([arrived(5), ended(6, model="n")], "and ends as Ended.*model_requested='n'"),
        ([arrived(5), ended(4)], "the clock went back from 5 ns to 4 ns"),
    ],
)
def test_events_that_do_not_fit_are_seen_at_once(events, message):
    census = Census()
    for event in events[:-1]:
        census.emit(event)
    with pytest.raises(Broken, match=message):
        census.emit(events[-1])


def test_a_clock_that_goes_back_is_seen_at_once(stage):
    census = Census()
    census.now_ns = stage.clock.now_ns() + 1
    stage.engine.telemetry.add(census)
    with pytest.raises(Broken, match="the clock went back"):
        stage.engine.telemetry.follow(stage.trace.request(0), Stream()).__enter__()


@pytest.mark.parametrize(
    "lines",
    [
        ["fleet.fast_forward=false"],
        ["fleet.max_batch=2", "quotas.max_concurrent_requests=4", "quotas.queue_capacity=2"],
        ["health.enabled=true"],
        ["faults=[{fault: crash, replica: a, at_s: 1}]", "health.enabled=true"],
        ["scenario=queue", "executor=law", "workload.requests=60", "fleet.max_batch=3", "workload.rate=2"],
    ],
)
def test_utilisation_is_a_law_whatever_a_replica_does(lines):
    stage = make_stage(*QUIET, *lines)
    stage.play()
    requests = stage.recorder.requests()
    stage.close()
    assert (requests["outcome"] == "completed").sum() > 0


@pytest.mark.torch
def test_measured_time_is_busy_time_too():
    stage = make_stage(*QUIET, "executor=torch", "workload.requests=12", "fleet.replicas=1")
    stage.play()
    assert stage.engine.replicas["a"].busy_ns > 0
    stage.close()


def test_spans_cover_time_once():
    begin, end = np.array([5, 0, 7, 20], np.int32), np.array([8, 2, 7, 21], np.int32)
    assert covered_ns(begin, end) == 2 + 3 + 1
    assert covered_ns(begin[:0], end[:0]) == 0
    random = np.random.default_rng(1)
    begin = random.integers(0, 300, 60)
    end = begin + random.integers(0, 9, 60)
    naive = len(
        {ns for first, last in zip(begin.tolist(), end.tolist(), strict=True) for ns in range(first, last)}
    )
    assert covered_ns(begin, end) == naive


def test_tokens_of_narrow_columns_are_added_without_wrapping_around():
    """30,000 prompt and 10,000 output tokens fit two bytes each, and their sum does not."""
    short = {name: np.array([0], dtype=np.int8) for name in CACHED}
    columns = {
        **short,
        "cached_tokens_ram": np.array([29_999], dtype=np.int16),
        "prompt_tokens": np.array([30_000], dtype=np.int16),
        "output_tokens": np.array([10_000], dtype=np.int16),
        "first_token_ns": np.array([5], dtype=np.int8),
    }
    _check_tokens(columns)
    columns["cached_tokens_ssd"] = np.array([30_000], dtype=np.int16)
    with pytest.raises(Broken, match="more tokens were cached"):
        _check_tokens(columns)
