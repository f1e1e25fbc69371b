"""What sinks have written is read back from a run's folder, and damage in it is seen."""

import json

import pytest

import sim
from sim import told


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    lines = ["executor=roofline", "report=tables", "report.spans=true", "workload.requests=20"]
    return sim.run("steady", [*lines, f"report.folder={tmp_path_factory.mktemp('told')}"]).path


def damaged(folder, tmp_path, change):
    """The traces of the run with every span changed."""
    with (tmp_path / "spans.jsonl").open("w") as file:
        for line in (folder / "spans.jsonl").read_text().splitlines():
            batch = json.loads(line)
            for resource in batch["resourceSpans"]:
                for scope in resource["scopeSpans"]:
                    scope["spans"] = [span for span in scope["spans"] if change(span) is not None]
            file.write(json.dumps(batch) + "\n")
    return told.traces(tmp_path)


def test_each_request_ends_once_in_the_log(folder):
    assert told.ends(folder) == dict.fromkeys(range(20), 1)
    assert {event["outcome"] for event in told.events(folder, told.ENDED)} == {"completed"}
    assert told.events(folder, "nothing of that kind") == []


def test_each_request_has_one_whole_trace(folder):
    traces = told.traces(folder)
    assert sorted(trace.request_id for trace in traces) == list(range(20))
    assert all(trace.is_whole and trace.outcome == "completed" for trace in traces)
    assert all("decode" in " ".join(trace.phases) for trace in traces)


def test_a_span_that_leaves_the_time_of_its_trace_breaks_it(folder, tmp_path):
    def later(span):
        if span.get("parentSpanId"):
            span["endTimeUnixNano"] = str(int(span["endTimeUnixNano"]) + 10**12)
        return span

    assert not any(trace.is_whole for trace in damaged(folder, tmp_path, later))


def test_a_span_that_hangs_on_another_one_breaks_it(folder, tmp_path):
    def adopted(span):
        if span.get("parentSpanId"):
            span["parentSpanId"] = "0" * 16
        return span

    assert not any(trace.is_whole for trace in damaged(folder, tmp_path, adopted))


def test_a_trace_without_its_root_is_missed(folder, tmp_path):
    assert damaged(folder, tmp_path, lambda span: span if span.get("parentSpanId") else None) == []


def test_a_run_without_traces_has_none(tmp_path):
    assert told.traces(tmp_path) == []


def test_what_was_counted_adds_up_by_name_and_label(folder):
    counted = told.counters(folder)
    everything = told.total(counted, "vllm:request_success_total")
    assert everything == 20
    assert told.total(counted, "vllm:request_success_total", finished_reason="length") <= everything
    assert told.total(counted, "nobody_counts_this") == 0
