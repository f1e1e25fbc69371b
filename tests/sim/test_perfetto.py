"""The trace: valid, complete, and no two slices of a slot in each other's way."""

import gzip
import json
from collections import defaultdict
from itertools import pairwise

import pytest

from sim.perfetto import write_trace


@pytest.fixture
def events(request, tmp_path):
    run = request.getfixturevalue(request.param)
    write_trace(run, tmp_path / "trace.json.gz")
    loaded = json.loads(gzip.decompress((tmp_path / "trace.json.gz").read_bytes()))
    assert loaded["displayTimeUnit"] == "ms"
    return loaded["traceEvents"]


def slices(events):
    return [event for event in events if event["ph"] == "X"]


def ns(us):
    """Three decimals of a microsecond are kept, so nanoseconds come back whole."""
    return round(us * 1_000)


@pytest.mark.parametrize("events", ["five", "played"], indirect=True)
def test_no_two_slices_of_a_slot_overlap(events):
    by_slot = defaultdict(list)
    for event in slices(events):
        assert event["dur"] > 0
        by_slot[event["pid"], event["tid"]].append((ns(event["ts"]), ns(event["ts"]) + ns(event["dur"])))
    for spans in by_slot.values():
        spans.sort()
        for (_, end), (begin, _) in pairwise(spans):
            assert end <= begin


@pytest.mark.parametrize("events", ["five"], indirect=True)
def test_the_phases_of_a_request_sum_to_its_latency(events):
    total_us = defaultdict(float)
    names = defaultdict(list)
    for event in slices(events):
        total_us[event["args"]["request_id"]] += event["dur"]
        names[event["args"]["request_id"]].append(event["name"])
    assert dict(total_us) == {0: 6e6, 1: 2e6, 2: 8e6, 4: 1e6}
    assert names[0] == ["queue", "prefill", "decode"]
    assert names[1] == ["queue", "prefill"]
    assert names[2] == ["queue", "decode"]  # carried on after a lost replica: its first token came before
    assert names[4] == ["queue"]


@pytest.mark.parametrize("events", ["five"], indirect=True)
def test_processes_marks_and_counters_are_there(events):
    named = {event["args"]["name"]: event["pid"] for event in events if event["ph"] == "M"}
    assert named == {"engine": 0, "replica a": 1, "replica b": 2}
    marks = [(event["name"], event["pid"], event["ts"]) for event in events if event.get("s") == "p"]
    assert marks == [("crash", 1, 5e6), ("unhealthy", 1, 5e6), ("recover", 1, 7e6), ("healthy", 1, 8e6)]
    counters = {(event["name"], event["pid"]) for event in events if event["ph"] == "C"}
    assert counters == {
        ("running", 1),
        ("waiting", 1),
        ("tokens_in_flight", 1),
        ("running", 2),
        ("cache bytes", 0),
        ("quota in_service", 0),
    }


def test_the_same_run_gives_the_same_bytes(played, tmp_path):
    write_trace(played, tmp_path / "one")
    write_trace(played, tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert (tmp_path / "one").read_bytes() == (played.path / "trace.json.gz").read_bytes()


def test_a_run_without_requests_is_a_valid_trace(make_run, tmp_path):
    write_trace(make_run(), tmp_path / "trace.json.gz")
    loaded = json.loads(gzip.decompress((tmp_path / "trace.json.gz").read_bytes()))
    assert slices(loaded["traceEvents"]) == []


@pytest.mark.parametrize("events", ["played"], indirect=True)
def test_the_phases_of_every_request_sum_to_its_latency_to_the_nanosecond(events, played):
    phases = defaultdict(list)
    for event in slices(events):
        phases[event["args"]["request_id"]].append((ns(event["ts"]), ns(event["dur"])))
    requests = played.requests.set_index("request_id")
    assert set(phases) == set(requests.index)
    for number, spans in phases.items():
        row = requests.loc[number]
        assert spans[0][0] == row["arrival_ns"]
        assert all(begin + length == after for (begin, length), (after, _) in pairwise(spans))
        assert sum(length for _, length in spans) == row["finished_ns"] - row["arrival_ns"]


@pytest.mark.parametrize("events", ["played"], indirect=True)
def test_requests_are_on_the_replica_that_served_them(events, played):
    pids = {event["pid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    replicas = played.requests.set_index("request_id")["replica"]
    for event in slices(events):
        assert pids[event["pid"]] == f"replica {replicas[event['args']['request_id']]}"


@pytest.mark.parametrize("events", ["five"], indirect=True)
def test_a_refusal_is_a_moment_in_the_engine(events):
    (refusal,) = [event for event in events if event.get("s") == "t"]
    assert (refusal["name"], refusal["pid"], refusal["ts"]) == ("rejected", 0, 3e6)
    assert refusal["args"]["request_id"] == 3


@pytest.mark.parametrize("events", ["five"], indirect=True)
def test_counters_have_the_values_of_the_samples(events):
    values = [event["args"]["value"] for event in events if event["name"] == "tokens_in_flight"]
    assert values == [100.0 * at for at in range(10)]


@pytest.mark.slow
def test_20_000_requests_are_a_trace_too(many, tmp_path):
    write_trace(many, tmp_path / "trace.json.gz")
    loaded = json.loads(gzip.decompress((tmp_path / "trace.json.gz").read_bytes()))
    assert len(slices(loaded["traceEvents"])) == 3 * 20_000
