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


@pytest.mark.parametrize("events", ["five", "played"], indirect=True)
def test_no_two_slices_of_a_slot_overlap(events):
    by_slot = defaultdict(list)
    for event in slices(events):
        assert event["dur"] > 0
        by_slot[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    for spans in by_slot.values():
        spans.sort()
        for (_, end), (begin, _) in pairwise(spans):
            assert end <= begin + 1e-6


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
    marks = [(event["name"], event["pid"], event["ts"]) for event in events if event["ph"] == "i"]
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
