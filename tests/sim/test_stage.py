"""The stage: traffic walks in, faults strike on time, the books add up."""

from dataclasses import replace

import pytest

from engine.errors import BadSettings
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


def test_answers_are_kept_where_somebody_wants_them(stage):
    stage.answers = {}
    stage.play()
    rows = stage.recorder.requests().set_index("request_id")
    assert {number: len(tokens) for number, tokens in stage.answers.items()} == rows[
        "output_tokens"
    ].to_dict()


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


def test_a_fault_finds_nothing_to_take_from_a_model_that_is_not_in_memory():
    """It is known all the same, and dies like any other once it is there."""
    stage = make_stage("models.preload=false", "models.cold_median_s=1", "models.cold_p90_s=1")
    stage.at(0.0, crash("a"), "test")
    stage.at(0.5, recover("b"), "test")
    stage.at(0.75, crash("c", holding=1, patience_s=10), "test")
    stage.play()
    series = stage.recorder.timeseries()
    stage.close()
    in_hand = series[series["metric"] == "requests_in_hand"]
    assert list(in_hand["subject"]) == ["a", "b", "c"]
    assert list(in_hand["value"]) == [0, 0, in_hand["value"].iloc[-1]]
    assert in_hand["value"].iloc[-1] >= 1
    assert (stage.recorder.requests()["attempts"] > 1).any()


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


def test_who_falls_back_and_is_refused_there_has_no_times_of_the_model_before():
    """Its replica died under it; the model that it was sent to has used its hour up."""
    lines = ("fleet=three_models", "routing.fallbacks={model-a: [model-b]}", "workload.rate=200")
    run = read(
        [*LINES, *lines, "quotas.limits=[{model: model-b, hourly_requests: 1}]", "quotas.max_wait_s=0"]
    )
    stage = Stage(run.engine, draw(run.workload, run.seed, ["model-a"]), 1.0)
    stage.at(0.0, crash("a", holding=3, patience_s=1), "test")
    stage.play()
    stage.close()
    refused = stage.recorder.requests().query("reason == 'over_quota' and attempts == 1")
    assert len(refused) >= 2
    assert (refused["loaded_ns"] > refused["arrival_ns"]).all()
    assert refused[["admitted_ns", "tried_ns", "queued_ns"]].isna().all(axis=None)


def test_little_s_law_holds_to_the_nanosecond(stage):
    stage.play()
    requests = stage.recorder.requests()
    assert stage.census.area_ns == int((requests["finished_ns"] - requests["arrival_ns"]).sum())


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


def test_traffic_to_a_group_has_tokens_that_all_of_its_models_know(settings):
    """Here `auto`: both models of the fleet, of which the second one knows fewer."""
    small = replace(settings.fleet.models[0].architecture, vocab=500)
    models = [*settings.fleet.models, replace(settings.fleet.models[0], name="small", architecture=small)]
    replicas = {**settings.fleet.replicas, "d": "small"}
    settings = replace(settings, fleet=replace(settings.fleet, models=models, replicas=replicas))
    workload = read(LINES).workload
    with pytest.raises(BadSettings, match="at most 500, which 'small@1"):
        Stage(settings, replace(draw(workload, 1, ["auto"]), vocab=501))
    stage = Stage(settings, replace(draw(workload, 1, ["auto"]), vocab=500))
    stage.play()
    stage.close()
    assert set(stage.recorder.requests()["model"]) == {"llama@1.0.0", "small@1.0.0"}
