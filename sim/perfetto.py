"""A run as a trace for https://ui.perfetto.dev: a process a replica, a thread a slot, a slice a phase.

Chrome's trace event format: `ph` X is a slice, i a mark, C a counter, M a name; times are microseconds.
"""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd

from sim.plots import MARKS, pack
from sim.runs import Run

ENGINE_PID = 0
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
    for row, slot in zip(requests.itertuples(), pack(arrival_ns, finished_ns), strict=True):
        args = {
            "request_id": int(row.request_id),
            "attempts": int(row.attempts),
            "prompt_tokens": int(row.prompt_tokens),
            "cached_tokens": int(row.cached_tokens_ram),
            "output_tokens": int(row.output_tokens),
            "outcome": row.outcome,
        }
        begin_ns = int(row.arrival_ns)
        for name, end_ns in (
            ("queue", row.started_ns),
            ("prefill", row.first_token_ns),
            ("decode", row.finished_ns),
        ):
            end = begin_ns if end_ns is pd.NA else max(begin_ns, int(end_ns))
            if name == "decode" and row.first_token_ns is pd.NA:
                name = "queue" if row.started_ns is pd.NA else "prefill"  # noqa: PLW2901  it ended in that phase
            if end > begin_ns:
                yield _slice(name, pid, int(slot) + 1, begin_ns, end, args)
            begin_ns = end


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


def _marks(series: pd.DataFrame, pids: dict[str, int]) -> Iterator[Event]:
    for row in series[series["metric"].isin(list(MARKS))].itertuples():
        pid = pids[row.subject]
        yield {"ph": "i", "s": "p", "name": row.metric, "pid": pid, "tid": 0, "ts": row.at_ns / 1_000}


def _counters(series: pd.DataFrame, pids: dict[str, int]) -> Iterator[Event]:
    for row in series[series["metric"].isin(COUNTERS)].itertuples():
        pid = pids.get(row.subject, ENGINE_PID)
        name = row.metric if row.subject in pids else f"{row.subject} {row.metric}"
        yield {"ph": "C", "name": name, "pid": pid, "ts": row.at_ns / 1_000, "args": {"value": row.value}}
