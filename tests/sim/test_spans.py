"""A simulated run as traces: one a request, whole, and in agreement with the run's own tables."""

import json

import numpy as np
import pytest

import sim
from engine.telemetry.spans import SpanBuilder
from sim.breakdown import PHASES

TABLES = ["executor=roofline", "report=tables", "report.spans=true", "workload.requests=120"]

RUNS = {
    "failover": ["failover", *TABLES],
    "nobody ends at the one that dies": [
        "steady", *TABLES, "scenario.max_not_completed=1000", "faults=[{fault: crash, replica: a, at_s: 0.03}]",
        "workload.rate=50",
    ],
    "a group whose models are lost": [
        "steady", *TABLES, "scenario.max_not_completed=1000", "fleet=reference_five", "hardware=a100",
        "routing.groups={any: [phi-4, gemma-2-9b-it]}", "routing.fallbacks={Llama-3.3-70B-Instruct: [any]}",
        "quotas.max_wait_s=0.5",
        "quotas.limits=[{model: Llama-3.3-70B-Instruct, requests_per_s: 2.0, burst_requests: 2}]",
        "faults=[{fault: crash, replica: phi, at_s: 0.5}]",
    ],
    "five tiers": ["steady", *TABLES, "tiers=five", "tiers.gpu.gib=0.01", "tiers.ram.gib=0.01"],
    "refused by a quota": [
        "steady", *TABLES, "scenario.max_not_completed=1000", "quotas.max_concurrent_requests=2",
        "quotas.queue_capacity=3", "workload.rate=200",
    ],
}  # fmt: skip
QUICK = ("failover", "nobody ends at the one that dies")


def played(lines, folder):
    scenario, *more = lines
    return sim.run(scenario, [*more, f"report.folder={folder}"])


@pytest.fixture(scope="module")
def failover(tmp_path_factory):
    return played(RUNS["failover"], tmp_path_factory.mktemp("runs"))


def spans_of(text):
    """The spans of a file of OTLP's JSON, attributes as plain values."""
    spans = []
    for line in text.splitlines():
        (resource,) = json.loads(line)["resourceSpans"]
        (scope,) = resource["scopeSpans"]
        spans += scope["spans"]
    for span in spans:
        span["attributes"] = {each["key"]: plain(each["value"]) for each in span["attributes"]}
        span["begin"], span["end"] = int(span["startTimeUnixNano"]), int(span["endTimeUnixNano"])
    return spans


def plain(value):
    ((kind, given),) = value.items()
    if kind == "arrayValue":
        return [plain(item) for item in given["values"]]
    return int(given) if kind == "intValue" else given


def traces_of(run):
    """By the request's number: its root, and its children in order."""
    spans = spans_of((run.path / "spans.jsonl").read_text())
    roots = {span["spanId"]: span for span in spans if not span["parentSpanId"]}
    children = {name: [] for name in roots}
    for span in spans:
        if span["parentSpanId"]:
            root = roots[span["parentSpanId"]]  # no child without its parent
            assert span["traceId"] == root["traceId"]
            children[span["parentSpanId"]].append(span)
    assert len({span["traceId"] for span in spans}) == len(roots)
    assert len({span["spanId"] for span in spans}) == len(spans)
    numbers = [root["attributes"]["modelyard.request.id"] for root in roots.values()]
    assert len(set(numbers)) == len(numbers)
    return dict(zip(numbers, [(root, children[name]) for name, root in roots.items()], strict=True))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in RUNS]
)
def test_each_request_has_one_trace_that_says_what_the_tables_say(name, tmp_path, failover):
    run = failover if name == "failover" else played(RUNS[name], tmp_path)
    check(name, run)


def check(name, run):
    traces = traces_of(run)
    requests = run.requests.set_index("request_id")
    assert set(traces) == set(requests.index)
    parts = run.parts.set_index(run.requests["request_id"])
    for number, (root, children) in traces.items():
        row, facts = requests.loc[number], root["attributes"]
        assert (root["begin"], root["end"]) == (row["arrival_ns"], row["finished_ns"])
        assert (facts["modelyard.outcome"], facts["gen_ai.usage.output_tokens"]) == (
            row["outcome"],
            row["output_tokens"],
        )
        edges = [root["begin"], *[child["end"] for child in children]]
        assert [child["begin"] for child in children] == edges[:-1]  # no gap and no overlap
        assert edges[-1] == root["end"]
        took = {child["name"]: child["end"] - child["begin"] for child in children}
        due = parts.loc[number]
        assert took == {phase: due[f"{phase}_ns"] for phase in took}
        assert all(due[f"{phase}_ns"] == 0 for phase in PHASES if phase not in took)
    seen = {child["name"] for _, children in traces.values() for child in children}
    assert {"load", "admit", "transfer", "queue", "prefill", "decode"} <= seen
    seconds = parts.sum()
    if name == "a group whose models are lost":
        assert "route" in seen
        assert seconds["route_ns"] > 0
    if name in QUICK:
        assert "retry" in seen
        assert seconds["retry_ns"] > 0
        assert seconds["route_ns"] == 0  # nobody turned to another model


def test_what_was_lost_and_decided_on_the_way_stands_in_the_root(failover):
    run = failover
    traces = traces_of(run)
    lost = run.facts[run.facts["kind"] == "attempt_lost"]
    assert len(lost) > 0
    for number, at_ns, replica in lost[["request_id", "at_ns", "subject"]].itertuples(index=False):
        (event,) = [each for each in traces[number][0]["events"] if each["name"] == "attempt_lost"]
        assert int(event["timeUnixNano"]) == at_ns
        assert {each["key"]: plain(each["value"]) for each in event["attributes"]}[
            "modelyard.replica"
        ] == replica
    last = run.decisions.drop_duplicates("request_id", keep="last").set_index("request_id")
    for number, (root, _) in traces.items():
        facts, row = root["attributes"], last.loc[number]
        assert facts["modelyard.routing.chosen"] == row["chosen"]
        assert ",".join(facts["modelyard.routing.candidates"]) == row["candidates"]
        assert ",".join(map(str, facts["modelyard.routing.loads"])) == row["loads"]
        routed = [each for each in root.get("events", ()) if each["name"] == "request_routed"]
        assert len(routed) == (run.decisions["request_id"] == number).sum() - 1


def test_the_same_seed_gives_the_same_bytes_and_spans_change_nothing_else(tmp_path):
    lines = [*RUNS["failover"], "workload.requests=40"]
    one, two = played(lines, tmp_path / "1"), played(lines, tmp_path / "2")
    assert (one.path / "spans.jsonl").read_bytes() == (two.path / "spans.jsonl").read_bytes()
    without = played([*lines, "report.spans=false"], tmp_path / "3")
    assert not (without.path / "spans.jsonl").exists()
    assert one.manifest["digest"] == without.manifest["digest"]
    assert (one.path / "events.jsonl").read_bytes() == (without.path / "events.jsonl").read_bytes()


def test_a_twin_that_forgets_the_phases_is_seen(tmp_path, monkeypatch):
    """The comparison above is worth something: a trace whose phases are off by a nanosecond fails it."""
    honest = SpanBuilder._phases

    def late(self, end, notes, root):
        for span in honest(self, end, notes, root):
            span.end_ns += span.name == "prefill"
            yield span

    monkeypatch.setattr(SpanBuilder, "_phases", late)
    with pytest.raises(AssertionError):
        check("failover", played([*RUNS["failover"], "workload.requests=40"], tmp_path))


def test_times_are_nanoseconds_of_the_virtual_clock(failover):
    spans = spans_of((failover.path / "spans.jsonl").read_text())
    assert min(span["begin"] for span in spans) == failover.requests["arrival_ns"].min()
    assert max(span["end"] for span in spans) == failover.requests["finished_ns"].max()
    assert np.all([span["kind"] == 1 for span in spans])  # internal: nobody called from elsewhere
