"""A run as a trace for https://ui.perfetto.dev: a process a replica, a thread a slot, a slice a phase.

Chrome's trace event format: `ph` X is a slice, i a mark, C a counter, M a name; times are microseconds. A request
that ended in the moment it arrived (a refusal) is a mark in its slot.
"""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd

from sim.drawing import MARKS, pack
from sim.runs import Run

ENGINE_PID = 0
PHASE_ENDS = ("arrival_ns", "started_ns", "first_token_ns", "finished_ns")
FACTS = ("request_id", "attempts", "prompt_tokens", "cached_tokens_ram", "output_tokens", "outcome")
COUNTERS = ("running", "waiting", "tokens_in_flight", "in_service", "bytes")

Event = dict[str, Any]


def write_trace(run: Run, path: Path) -> None:
    """Write `path`, gzipped JSON, one event a line. The same run gives the same bytes."""
    pids = {replica: number for number, replica in enumerate(run.replicas, start=1)}
    with (
        path.open("wb") as file,
        gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0, compresslevel=6) as packed,
    ):
        _write(packed, _events(run, pids))


def _write(file: "gzip.GzipFile | IO[bytes]", events: Iterator[Event]) -> None:
    encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
    file.write(b'{"displayTimeUnit":"ms","traceEvents":[\n')
    before = b""
    for event in events:
        file.write(before + encode(event).encode())
        before = b",\n"
    file.write(b"\n]}\n")


def _events(run: Run, pids: dict[str, int]) -> Iterator[Event]:
    for name, pid in {
        "engine": ENGINE_PID,
        **{f"replica {replica}": pid for replica, pid in pids.items()},
    }.items():
        yield {"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": name}}
    yield from _marks(run.timeseries, pids)
    requests = run.requests.sort_values(["arrival_ns", "request_id"], kind="stable")
    for replica, pid in pids.items():
        yield from _slices(requests[(requests["replica"] == replica).fillna(value=False)], pid)
    yield from _slices(requests[requests["replica"].isna()], ENGINE_PID)
    yield from _counters(run.timeseries, pids)


def _slices(requests: pd.DataFrame, pid: int) -> Iterator[Event]:
    """Queue, prefill and decode of each request, in a slot of its own from arrival to end."""
    arrival_ns = requests["arrival_ns"].to_numpy(dtype=np.float64)
    finished_ns = requests["finished_ns"].to_numpy(dtype=np.float64)
    rows = zip(
        _rows(requests, *PHASE_ENDS), _rows(requests, *FACTS), pack(arrival_ns, finished_ns), strict=True
    )
    for (begin_ns, started_ns, first_token_ns, end_ns), facts, slot in rows:
        args = dict(zip(FACTS, facts, strict=True))
        if end_ns == begin_ns:
            yield _instant(args["outcome"], pid, int(slot) + 1, begin_ns) | {"s": "t", "args": args}
        for name, phase_begin_ns, phase_end_ns in _phases(begin_ns, started_ns, first_token_ns, end_ns):
            yield _slice(name, pid, int(slot) + 1, phase_begin_ns, phase_end_ns, args)


def _phases(
    begin_ns: int, started_ns: Any, first_token_ns: Any, end_ns: int
) -> Iterator[tuple[str, int, int]]:
    """The phases that a request went through, none of them empty; the last one lasts until its end.

    A request that carried on after a lost replica got its first token before its last start: no prefill is shown.
    """
    begun_ns = end_ns if started_ns is pd.NA else int(started_ns)
    answered_ns = end_ns if first_token_ns is pd.NA else int(first_token_ns)
    edges = (begin_ns, min(begun_ns, answered_ns), answered_ns, end_ns)
    for name, begin, end in zip(("queue", "prefill", "decode"), edges, edges[1:], strict=False):
        if end > begin:
            yield name, begin, end


def _slice(name: str, pid: int, tid: int, begin_ns: int, end_ns: int, args: Event) -> Event:
    return {
        "ph": "X",
        "name": name,
        "pid": pid,
        "tid": tid,
        "ts": begin_ns / 1_000,
        "dur": (end_ns - begin_ns) / 1_000,
        "args": args,
    }


def _instant(name: str, pid: int, tid: int, at_ns: int) -> Event:
    return {"ph": "i", "name": name, "pid": pid, "tid": tid, "ts": at_ns / 1_000}


def _marks(series: pd.DataFrame, pids: dict[str, int]) -> Iterator[Event]:
    marks = series[series["metric"].isin(list(MARKS))]
    for at_ns, subject, metric in _rows(marks, "at_ns", "subject", "metric"):
        pid, name = _named(metric, subject, pids)
        yield _instant(name, pid, 0, at_ns) | {"s": "p"}


def _counters(series: pd.DataFrame, pids: dict[str, int]) -> Iterator[Event]:
    points = series[series["metric"].isin(COUNTERS)]
    for at_ns, subject, metric, value in _rows(points, "at_ns", "subject", "metric", "value"):
        pid, name = _named(metric, subject, pids)
        yield {"ph": "C", "name": name, "pid": pid, "ts": at_ns / 1_000, "args": {"value": value}}


def _named(metric: str, subject: str, pids: dict[str, int]) -> tuple[int, str]:
    """In which process a metric stands, and as what: what is of no replica, as the engine's."""
    return (pids[subject], metric) if subject in pids else (ENGINE_PID, f"{subject} {metric}")


def _rows(table: pd.DataFrame, *names: str) -> Iterator[tuple[Any, ...]]:
    """Some columns, row by row, as plain Python values."""
    return zip(*(table[name].tolist() for name in names), strict=True)
