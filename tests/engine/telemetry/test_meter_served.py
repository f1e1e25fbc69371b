"""What is counted of requests, under vLLM's names: times worked out by hand here."""

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from engine.telemetry import (
    Ended,
    FellBack,
    HttpAnswered,
    Meter,
    ModeChanged,
    ModelMoved,
    Objective,
    OwnCounts,
    RouterChanged,
    StoreFailed,
)

MS = 1_000_000
S = 1_000 * MS


def ended(outcome="completed", **changes):
    """Arrived at 1 s, let in after 20 ms, in line 30 ms later, begun after 50, first token after 150, 400 in all."""
    facts = {
        "at_ns": S + 400 * MS,
        "request_id": 1,
        "tenant": "t",
        "session": None,
        "model_requested": "whatever a client writes",
        "arrival_ns": S,
        "prompt_tokens": 100,
        "outcome": outcome,
        "model": "llama@1.0.0",
        "replica": "a",
        "loaded_ns": S + 5 * MS,
        "admitted_ns": S + 20 * MS,
        "queued_ns": S + 30 * MS,
        "started_ns": S + 50 * MS,
        "first_token_ns": S + 150 * MS,
        "output_tokens": 6,
        "finish_reason": "stop" if outcome == "completed" else None,
    }
    return Ended(**facts | changes)


def seen(*events, meter=None):
    """Every sample by name and labels, the values of labels in the order of their names."""
    meter = Meter() if meter is None else meter
    for event in events:
        meter.emit(event)
    return {
        (sample.name, *[sample.labels[label] for label in sorted(sample.labels)]): sample.value
        for family in parse(meter.exposition())
        for sample in family.samples
    }


@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        ("vllm:time_to_first_token_seconds", 0.150),
        ("vllm:e2e_request_latency_seconds", 0.400),
        ("vllm:request_queue_time_seconds", 0.020),
        ("vllm:request_prefill_time_seconds", 0.100),
        ("vllm:request_decode_time_seconds", 0.250),
        ("vllm:request_inference_time_seconds", 0.350),
        ("vllm:request_time_per_output_token_seconds", 0.050),
        ("modelyard:quota_wait_seconds", 0.015),
    ],
)
def test_each_phase_of_a_request_is_its_own_histogram(name, seconds):
    told = seen(ended())
    assert told[f"{name}_sum", "llama@1.0.0"] == pytest.approx(seconds)
    assert told[f"{name}_count", "llama@1.0.0"] == 1


def test_gaps_between_tokens_count_as_often_as_there_are_gaps():
    told = seen(ended(), ended(output_tokens=1, at_ns=S + 150 * MS))
    assert told["vllm:inter_token_latency_seconds_count", "llama@1.0.0"] == 5
    assert told["vllm:inter_token_latency_seconds_sum", "llama@1.0.0"] == pytest.approx(0.25)
    assert told["vllm:request_time_per_output_token_seconds_count", "llama@1.0.0"] == 1, (
        "one token has no gap"
    )
    assert told["vllm:inter_token_latency_seconds_bucket", "0.05", "llama@1.0.0"] == 5
    assert told["vllm:inter_token_latency_seconds_bucket", "0.025", "llama@1.0.0"] == 0


def test_a_request_without_a_wait_is_not_among_those_who_waited_for_a_quota():
    told = seen(ended(admitted_ns=S + 5 * MS))
    assert told["modelyard:quota_wait_seconds_count", "llama@1.0.0"] == 0


def test_a_first_token_from_a_replica_that_was_lost_is_no_negative_prefill():
    told = seen(ended(started_ns=S + 200 * MS, queued_ns=S + 190 * MS))
    assert told["vllm:request_prefill_time_seconds_sum", "llama@1.0.0"] == 0
    assert told["vllm:time_to_first_token_seconds_sum", "llama@1.0.0"] == pytest.approx(0.150)


def test_sizes_of_requests_stand_in_powers_of_two():
    told = seen(ended(), ended(prompt_tokens=129, output_tokens=1))
    sizes = "vllm:request_prompt_tokens_bucket"
    assert [told[sizes, bound, "llama@1.0.0"] for bound in ("64.0", "128.0", "256.0")] == [0, 1, 2]
    assert told["vllm:request_generation_tokens_bucket", "1.0", "llama@1.0.0"] == 1


@pytest.mark.parametrize(
    ("outcome", "finish", "expected"),
    [
        ("completed", "stop", {"stop": 1}),
        ("completed", "length", {"length": 1}),
        ("timed_out", None, {"abort": 1}),
        ("cancelled", None, {"abort": 1}),
        ("failed", None, {"error": 1}),
        ("rejected", None, {}),
    ],
)
def test_who_was_let_in_ends_for_one_of_vllms_reasons(outcome, finish, expected):
    told = seen(ended(outcome, finish_reason=finish))
    reasons = {key[1]: value for key, value in told.items() if key[0] == "vllm:request_success_total"}
    assert reasons == expected


@pytest.mark.parametrize(
    ("first_ms", "last_ms", "good"), [(100, 300, 1), (101, 301, 0), (100, 301, 0), (1, 201, 1)]
)
def test_an_answer_is_good_when_both_objectives_are_met(first_ms, last_ms, good):
    end = ended(first_token_ns=S + first_ms * MS, at_ns=S + last_ms * MS, output_tokens=5)
    told = seen(end, meter=Meter(Objective(ttft_s=0.1, tpot_s=0.05)))
    assert told["modelyard:requests_within_slo_total", "llama@1.0.0"] == good


def test_what_clients_write_is_no_label():
    told = seen(
        ended("rejected", model=None, replica=None, reason="not_found", model_requested="x" * 200),
        ended("cancelled", model=None, replica=None, reason="cancelled", tenant="one of many", session="s"),
    )
    assert set(told) == {
        ("modelyard:requests_total", "unknown", "rejected"),
        ("modelyard:requests_total", "unknown", "cancelled"),
        ("vllm:request_success_total", "abort", "unknown"),
        ("modelyard:request_failures_total", "rejected", "not_found"),
        ("modelyard:request_failures_total", "cancelled", "cancelled"),
    }


def test_arms_are_told_apart_by_how_their_requests_ended():
    told = seen(ended(arm="size/large"), ended("timed_out", arm="size/small", reason="deadline_passed"))
    assert told["modelyard:experiment_outcomes_total", "large", "size", "completed"] == 1
    assert told["modelyard:experiment_outcomes_total", "small", "size", "timed_out"] == 1


def test_a_load_takes_from_asked_for_to_serving():
    told = seen(
        ModelMoved(1 * S, "a@1.0.0", "unloaded", "loading", "asked for"),
        ModelMoved(2 * S, "b@1.0.0", "unloaded", "loading", "asked for"),
        ModelMoved(4 * S, "b@1.0.0", "loading", "unhealthy", "no such file"),
        ModelMoved(9 * S, "a@1.0.0", "loading", "healthy", "loaded"),
        ModelMoved(12 * S, "a@1.0.0", "healthy", "degraded", "slow"),
    )
    loads = {key: value for key, value in told.items() if key[0].startswith("modelyard:model_load_seconds")}
    assert loads["modelyard:model_load_seconds_sum", "a@1.0.0"] == 8
    assert loads["modelyard:model_load_seconds_count", "a@1.0.0"] == 1
    assert not any("b@1.0.0" in key for key in loads)


def test_rare_events_are_counted_each_under_its_name():
    told = seen(
        FellBack(1, 1, "a", "b", "no_replica"),
        RouterChanged(1, "a-1", "ejected", "too slow"),
        ModeChanged(1, "m", None, "normal", "warning", "soft limit"),
        StoreFailed(1, "ssd", "disk /var/full"),
    )
    assert told == {
        ("modelyard:router_fallbacks_total", "b", "no_replica"): 1,
        ("modelyard:router_changes_total", "ejected", "a-1"): 1,
        ("modelyard:quota_mode_changes_total", "warning", "normal"): 1,
        ("modelyard:cache_store_failures_total", "ssd"): 1,
    }


def test_answers_are_counted_by_route_and_never_by_path():
    told = seen(
        HttpAnswered(1, "r1", "POST", "/v1/chat/completions", 200, 250 * MS),
        HttpAnswered(1, "r2", "POST", "/v1/chat/completions", 429, 1 * MS, is_aborted=True),
        HttpAnswered(1, "r3", "GET", "", 404, 1 * MS),
    )
    assert told["modelyard:http_requests_total", "POST", "/v1/chat/completions", "200"] == 1
    assert told["modelyard:http_requests_total", "POST", "/v1/chat/completions", "429"] == 1
    assert told["modelyard:http_requests_total", "GET", "unknown", "404"] == 1
    assert told["modelyard:http_aborted_total", "/v1/chat/completions"] == 1
    assert told["modelyard:http_request_duration_seconds_sum", "/v1/chat/completions"] == pytest.approx(0.251)


def test_a_servers_own_counts_are_a_source_like_any_other():
    own, meter = OwnCounts(), Meter()
    meter.sources.append(own.figures)
    own.http_in_flight += 3
    own.asked(2, 64)
    own.asked(1, None)
    own.lagged(7 * MS)
    told = seen(meter=meter)
    assert told["modelyard:http_requests_in_flight",] == 3
    assert told["vllm:request_params_n_sum",] == 3
    assert told["vllm:request_params_max_tokens_count",] == 1
    assert told["modelyard:loop_lag_seconds_bucket", "0.01"] == 1
    assert told["modelyard:loop_lag_seconds_bucket", "0.005"] == 0
    assert told["modelyard:loop_lag_latest_seconds",] == pytest.approx(0.007)
