"""The stage: traffic walks in, faults strike on time, the books add up."""

from dataclasses import replace

import pytest

from engine.errors import BadSettings
from engine.request import Stream
from sim.audit import Broken, Census, audit
from sim.config import read
from sim.faults import crash, recover
from sim.stage import Stage
from sim.traffic import draw

LINES = ["scenario=steady", "executor=roofline", "workload.requests=60", "workload.rate=20"]


def make_stage(*lines):
    settings = read([*LINES, *lines])
    return Stage(settings.engine, draw(settings.workload, settings.seed, ["llama-3.2-1b"]), 1.0)


@pytest.fixture
def stage():
    stage = make_stage()
    yield stage
    stage.close()


def marks(stage, *metrics):
    series = stage.recorder.timeseries()
    return [(row.metric, row.subject) for row in series.itertuples() if row.metric in metrics]


def test_every_request_of_the_trace_ends_once(stage):
    stage.play()
    requests = stage.recorder.requests()
    assert sorted(requests["request_id"]) == list(range(60))
    assert set(requests["outcome"]) == {"completed"}
    assert len(stage.recorder) == 60


def test_requests_arrive_when_the_trace_says_whatever_becomes_of_those_before(stage):
    stage.play()
    requests = stage.recorder.requests().sort_values("request_id")
    assert list(requests["arrival_ns"]) == list(stage.trace.arrival_ns)


def test_faults_strike_at_their_time_and_leave_a_mark(stage):
    stage.at(0.5, crash("b"), "test")
    stage.at(1.25, recover("b"), "test")
    stage.play()
    series = stage.recorder.timeseries()
    struck = series[series["metric"].isin(["crash", "recover"])]
    assert list(struck["at_ns"]) == [500_000_000, 1_250_000_000]
    assert marks(stage, "crash", "recover") == [("crash", "b"), ("recover", "b")]


def test_a_crash_may_wait_for_the_moment_at_which_it_hurts(stage):
    stage.at(0.0, crash("a", holding=2, patience_s=5), "test")
    stage.play()
    series = stage.recorder.timeseries()
    in_hand = series.loc[series["metric"] == "requests_in_hand", "value"]
    assert in_hand.iloc[0] >= 2
    assert (stage.recorder.requests()["attempts"] > 1).sum() >= 2


def test_a_crash_does_not_wait_longer_than_its_patience(stage):
    stage.at(0.0, crash("a", holding=10_000, patience_s=0.5), "test")
    stage.play()
    series = stage.recorder.timeseries()
    crashed_ns = series.loc[series["metric"] == "crash", "at_ns"].iloc[0]
    assert crashed_ns == 500_000_000


def test_a_fault_on_a_replica_that_does_not_exist_is_refused(stage):
    with pytest.raises(
        BadSettings, match=r"scenario\.victim is 'z', but must be a replica of the fleet: a, b, c"
    ):
        stage.at(1.0, crash("z"), "scenario.victim")


def test_a_watcher_can_stop_the_run_and_what_finished_stays():
    stage = make_stage("workload.requests=600")
    stage.play(lambda now_ns, ended, events: ended >= 20)
    assert stage.stopped
    assert 20 <= len(stage.recorder) < 600
    assert stage.census.in_flight > 0
    stage.close()
    assert len(stage.recorder) < 600


def test_requests_that_are_refused_have_an_end_too():
    stage = make_stage("quotas.max_concurrent_requests=1", "quotas.queue_capacity=2", "workload.rate=200")
    stage.play()
    requests = stage.recorder.requests()
    stage.close()
    assert set(requests["outcome"]) == {"completed", "rejected"}
    assert set(requests.loc[requests["outcome"] == "rejected", "reason"]) == {"over_quota"}
    assert len(requests) == 60


def test_little_s_law_holds_to_the_nanosecond(stage):
    stage.play()
    requests = stage.recorder.requests()
    assert stage.census.area_ns == int((requests["finished_ns"] - requests["arrival_ns"]).sum())


def break_census(stage):
    stage.census.area_ns += 1


def break_end(stage):
    stage.census.arrived += 1


def break_order(stage):
    stage.recorder.columns["admitted_ns"].data[0] = stage.clock.now_ns() * 2


def break_start(stage):
    stage.recorder.columns["started_ns"].data[3] = 0


def break_first(stage):
    stage.recorder.columns["first_token_ns"].data[3] = -1


def break_cached(stage):
    stage.recorder.columns["cached_tokens_ram"].data[2] = 10**6


def break_prompt(stage):
    stage.recorder.columns["prompt_tokens"].data[1] += 1


def break_answer(stage):
    stage.recorder.columns["output_tokens"].data[1] += 1


def break_model(stage):
    stage.trace.model = "another"


def break_quota(stage):
    stage.engine.quotas.reserve(stage.trace.request(0), "llama-3.2-1b", 1, 0)


def break_load(stage):
    stage.engine.router.seat("a").tokens_in_flight += 1


def break_busy(stage):
    stage.engine.replicas["a"]._loop.busy_ns = stage.clock.now_ns() + 1


def break_cache(stage):
    stage.engine.cache.tiers[0].used_bytes += 1


@pytest.mark.parametrize(
    ("breakage", "message"),
    [
        (break_census, "Little"),
        (break_end, "1 requests have no end"),
        (break_order, "tried_ns lies before admitted_ns"),
        (break_start, "started_ns lies before queued_ns"),
        (break_first, "tokens without a first one"),
        (break_cached, "more tokens were cached than there are"),
        (break_prompt, "prompt tokens were lost or made"),
        (break_answer, "an answer is longer than asked for"),
        (break_model, "60} ended of"),
        (break_quota, "quota slot"),
        (break_load, "still counts a load"),
        (break_busy, "longer than the run"),
        (break_cache, "cache's books"),
    ],
)
def test_the_audit_sees_each_breach(stage, breakage, message):
    stage.play()
    audit(stage.engine, stage.recorder, stage.census, stage.trace)
    breakage(stage)
    with pytest.raises(Broken, match=message):
        audit(stage.engine, stage.recorder, stage.census, stage.trace)


def test_a_clock_that_goes_back_is_seen_at_once(stage):
    stage.play()
    census = Census(now_ns=stage.clock.now_ns() + 1)
    stage.engine.telemetry.add(census)
    with pytest.raises(Broken, match="the clock went back"):
        stage.engine.telemetry.follow(stage.trace.request(0), Stream()).__enter__()


@pytest.mark.parametrize("lines", [[], ["strategy=random"], ["strategy=cache_aware", "tiers=five"]])
def test_a_model_that_nobody_asks_for_changes_nothing_else(lines):
    run = read(["scenario=steady", "executor=roofline", "workload=chat", "workload.requests=120", *lines])
    alone = digest_of(run)
    fleet = run.engine.fleet
    fleet.models.append(replace(fleet.models[0], name="idle"))
    fleet.replicas["z"] = "idle"
    assert digest_of(run) == alone


def digest_of(run):
    stage = Stage(run.engine, draw(run.workload, run.seed, [run.engine.fleet.models[0].name]))
    stage.play()
    stage.close()
    return stage.recorder.digest()
