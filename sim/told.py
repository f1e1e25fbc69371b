"""What the sinks of a run have written, read back from its folder: the log, the traces, the metrics."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from engine.telemetry import semconv

ENDED = "request_ended"


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    """All that the log has of that kind, in order."""
    sign = f'"event":"{kind}"'  # most lines are of others, and need not be read
    with (folder / "events.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if sign in line]


def ends(folder: Path) -> Counter[int]:
    """How many ends the log has of each request."""
    return Counter(event["request_id"] for event in events(folder, ENDED))


@dataclass(slots=True)
class TraceTold:
    """One trace: the request that its root is of, the times of all of its spans, and whether they hang together."""

    request_id: int
    outcome: str
    phases: list[str] = field(default_factory=list)
    is_whole: bool = True


def traces(folder: Path) -> list[TraceTold]:
    """The traces that were written, in order; one whose spans hang on another, or leave its time, is not whole."""
    roots: dict[str, TraceTold] = {}
    times: dict[str, tuple[str, int, int]] = {}
    found = []
    for span in _spans(folder):
        begin_ns, end_ns = int(span["startTimeUnixNano"]), int(span["endTimeUnixNano"])
        if not span.get("parentSpanId"):
            told = {each["key"]: next(iter(each["value"].values())) for each in span["attributes"]}
            root = TraceTold(int(told[semconv.REQUEST_ID]), str(told[semconv.OUTCOME]))
            roots[span["traceId"]], times[span["traceId"]] = root, (span["spanId"], begin_ns, end_ns)
            found.append(root)
            continue
        if span["traceId"] not in roots:
            continue  # a span of nobody: its trace has no root, and is missed by who counts roots
        parent, from_ns, until_ns = times[span["traceId"]]
        root = roots[span["traceId"]]
        root.phases.append(span["name"])
        fits = span["parentSpanId"] == parent and from_ns <= begin_ns <= end_ns <= until_ns
        root.is_whole = root.is_whole and fits
    return found


def _spans(folder: Path) -> Iterator[dict[str, Any]]:
    path = folder / "spans.jsonl"
    if not path.is_file():
        return
    with path.open("rb") as lines:
        for line in lines:
            for resource in json.loads(line)["resourceSpans"]:
                for scope in resource["scopeSpans"]:
                    yield from scope["spans"]


def counters(folder: Path) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """What was counted, by the name of the sample and by its labels in order."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families((folder / "metrics.prom").read_text(encoding="utf-8")):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def total(counted: dict[str, dict[tuple[tuple[str, str], ...], float]], name: str, **labels: str) -> float:
    """The sum of all samples of that name with those labels."""
    wanted = set(labels.items())
    return sum(value for named, value in counted.get(name, {}).items() if wanted <= set(named))
