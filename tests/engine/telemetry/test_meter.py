"""The meter: counted by hand here, by integers there, and read back as Prometheus reads it."""

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from engine.clock import to_ns
from engine.telemetry import Arrived, AttemptLost, Ended, HealthChanged, Meter
from engine.telemetry.meter import LATENCY_BUCKETS_S, Histogram

MS = 1_000_000


def ended(outcome="completed", model="llama", replica="a", first_ms=None, last_ms=0, **counts):
    first_ns = None if first_ms is None else to_ns(1) + first_ms * MS
    return Ended(
        at_ns=to_ns(1) + last_ms * MS,
        request_id=1,
        tenant="t",
        session=None,
        model_requested="whatever a caller may write",
        arrival_ns=to_ns(1),
        prompt_tokens=counts.get("prompt", 0),
        outcome=outcome,
        model=model,
        replica=replica,
        first_token_ns=first_ns,
        output_tokens=counts.get("output", 0),
        cached_tokens_ram=counts.get("cached", 0),
    )


def samples(*events):
    """Every sample of the exposition by name and labels."""
    meter = Meter()
    for event in events:
        meter.emit(event)
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in parse(meter.exposition())
        for sample in family.samples
    }


def test_a_meter_that_saw_nothing_has_no_samples_but_can_be_read():
    assert samples() == {}
    assert {family.name for family in parse(Meter().exposition())} == {
        "vllm:prompt_tokens",
        "vllm:generation_tokens",
        "vllm:prefix_cache_hits",
        "vllm:time_to_first_token_seconds",
        "vllm:e2e_request_latency_seconds",
        "modelyard:requests",
        "modelyard:replica_requests",
        "modelyard:replica_lost_attempts",
        "modelyard:health_changes",
        "modelyard:model_states",
        "vllm:num_preemptions",
    }


def test_tokens_of_completed_requests_are_counted_by_model():
    seen = samples(
        ended(first_ms=1, last_ms=2, prompt=100, output=7, cached=64),
        ended(first_ms=1, last_ms=2, prompt=50, output=3),
        ended(first_ms=1, last_ms=2, prompt=1, output=1, model="qwen", replica="q"),
        ended("timed_out", first_ms=1, last_ms=2, prompt=10_000, output=10_000),
    )
    assert seen["vllm:prompt_tokens_total", "llama"] == 150
    assert seen["vllm:generation_tokens_total", "llama"] == 10
    assert seen["vllm:prefix_cache_hits_total", "llama"] == 64
    assert seen["vllm:prompt_tokens_total", "qwen"] == 1
    assert seen["modelyard:replica_requests_total", "a"] == 2
    assert seen["modelyard:replica_requests_total", "q"] == 1


def test_every_end_is_counted_by_outcome():
    seen = samples(
        ended(first_ms=1),
        ended("rejected"),
        ended("rejected", model=None, replica=None),
        ended("cancelled"),
        ended("rejected"),
    )
    assert seen["modelyard:requests_total", "completed", "llama"] == 1
    assert seen["modelyard:requests_total", "llama", "rejected"] == 2
    assert seen["modelyard:requests_total", "rejected", "unknown"] == 1
    assert seen["modelyard:requests_total", "cancelled", "llama"] == 1


def test_losses_and_changes_of_health_are_counted():
    seen = samples(
        Arrived(0, 1, "t", None, "llama", 3, 4),
        AttemptLost(1, 1, 1, "a", 0),
        AttemptLost(1, 1, 2, "b", 0),
        AttemptLost(2, 2, 1, "a", 5),
        HealthChanged(2, "a", "healthy", "unhealthy", "replica lost"),
        HealthChanged(3, "a", "unhealthy", "healthy", "probes answered"),
    )
    assert seen == {
        ("modelyard:replica_lost_attempts_total", "a"): 2,
        ("modelyard:replica_lost_attempts_total", "b"): 1,
        ("modelyard:health_changes_total", "a", "unhealthy"): 1,
        ("modelyard:health_changes_total", "a", "healthy"): 1,
    }


def test_latencies_are_counted_from_the_arrival_in_cumulative_buckets():
    seen = samples(
        *[ended(first_ms=first, last_ms=last) for first, last in ((1, 10), (3, 30), (4, 9_000), (80, 90_000))]
    )
    ttft = [seen["vllm:time_to_first_token_seconds_bucket", *labels(bound)] for bound in LATENCY_BUCKETS_S]
    assert ttft == [1, 1, 3, 3, 3, 3, 4, 4, 4, 4, 4, 4, 4, 4, 4]
    assert seen["vllm:time_to_first_token_seconds_count", "llama"] == 4
    assert seen["vllm:time_to_first_token_seconds_sum", "llama"] == pytest.approx(0.088)
    e2e = [seen["vllm:e2e_request_latency_seconds_bucket", *labels(bound)] for bound in LATENCY_BUCKETS_S]
    assert e2e == [0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3]
    assert seen["vllm:e2e_request_latency_seconds_bucket", "+Inf", "llama"] == 4


def labels(bound):
    return sorted((str(bound), "llama"))


@pytest.mark.parametrize("place", range(len(LATENCY_BUCKETS_S)))
def test_a_duration_on_the_bound_belongs_below_it(place):
    histogram = Histogram()
    bound_ns = to_ns(LATENCY_BUCKETS_S[place])
    histogram.observe(bound_ns)
    histogram.observe(bound_ns + 1)
    assert (histogram.counts[place], histogram.counts[place + 1]) == (1, 1)
    assert histogram.sum_ns == 2 * bound_ns + 1


def test_a_label_may_hold_any_text():
    strange = 'a "quoted"\nname \\ of a model'
    seen = samples(ended("rejected", model=strange))
    assert seen["modelyard:requests_total", *sorted((strange, "rejected"))] == 1


def test_many_requests_between_two_scrapes_are_all_counted():
    events = [ended(first_ms=number, last_ms=2 * number, prompt=number, output=3) for number in range(200)]
    events += [ended("rejected", model="other")] * 3
    told = samples(*events)
    assert told["modelyard:requests_total", "completed", "llama"] == 200
    assert told["modelyard:requests_total", "other", "rejected"] == 3
    assert told["vllm:prompt_tokens_total", "llama"] == sum(range(200))
    assert told["vllm:time_to_first_token_seconds_bucket", "0.1", "llama"] == 101
    assert told["vllm:e2e_request_latency_seconds_count", "llama"] == 200
