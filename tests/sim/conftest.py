"""Runs to look at: one that was played, and one made of a few rows by hand."""

import pandas as pd
import pytest

import sim
from sim.checks import Check
from sim.recorder import COLUMNS, DECISION_COLUMNS, SERIES_COLUMNS, Numbers
from sim.runs import FACT_COLUMNS, Run

MANIFEST = {
    "scenario": "made",
    "seed": 3,
    "overrides": ["executor=roofline", "workload.path=a b.csv"],
    "executor": "roofline",
    "strategy": "round_robin",
    "replicas": ["a", "b"],
    "interrupted": False,
    "digest": "d" * 64,
    "trace": {"source": "by hand"},
    "in_flight": 0,
    "virtual_s": 12.0,
    "wall_s": 0.5,
}


def table(rows):
    """The requests table of a few rows; what a row does not say is missing, or 0 for a count of cached tokens."""
    filled = []
    for number, row in enumerate(rows):
        cached = {f"cached_tokens_{tier}": 0 for tier in ("gpu", "ram", "ssd", "network", "cloud")}
        filled.append(
            {
                "request_id": number,
                "attempts": 1,
                "tenant": "t",
                "model": "m",
                "output_tokens": 0,
                **cached,
                **row,
            }
        )
    columns = {}
    for name, _, kind in COLUMNS:
        values = [row.get(name) for row in filled]
        columns[name] = pd.array(values, dtype="Int64" if kind is Numbers else "str")
    return pd.DataFrame(columns)


@pytest.fixture
def make_run(tmp_path):
    def make(rows=(), series=(), checks=(), **manifest):
        return Run(
            tmp_path,
            {"seed": 3, "scenario": {"name": "made"}},
            {**MANIFEST, **manifest},
            table(rows),
            pd.DataFrame(list(series), columns=list(SERIES_COLUMNS)).astype(SERIES_COLUMNS),
            pd.DataFrame([], columns=list(DECISION_COLUMNS)).astype(DECISION_COLUMNS),
            list(checks),
        )

    return make


@pytest.fixture
def make_facts():
    """The table of rare facts of one kind: when in s, whose, and the detail."""

    def make(kind, rows):
        return pd.DataFrame(
            [(at_s * S, kind, -1, subject, 0, detail) for at_s, subject, detail in rows],
            columns=list(FACT_COLUMNS),
        ).astype(FACT_COLUMNS)

    return make


S = 1_000_000_000
FIVE_ROWS = [
    {
        "outcome": "completed", "replica": "a", "arrival_ns": 0, "admitted_ns": 0, "started_ns": 1 * S,
        "first_token_ns": 2 * S, "finished_ns": 6 * S, "prompt_tokens": 100, "output_tokens": 5,
        "cached_tokens_ram": 64,
    },
    {
        "outcome": "completed", "replica": "b", "arrival_ns": 1 * S, "admitted_ns": 2 * S, "started_ns": 2 * S,
        "first_token_ns": 3 * S, "finished_ns": 3 * S, "prompt_tokens": 50, "output_tokens": 1,
    },
    {
        "outcome": "completed", "replica": "b", "arrival_ns": 2 * S, "admitted_ns": 2 * S, "started_ns": 4 * S,
        "first_token_ns": 3 * S, "finished_ns": 10 * S, "prompt_tokens": 50, "output_tokens": 3, "attempts": 2,
    },
    {"outcome": "rejected", "reason": "over_quota", "arrival_ns": 3 * S, "finished_ns": 3 * S, "prompt_tokens": 9},
    {
        "outcome": "failed", "reason": "replica_lost", "replica": "a", "arrival_ns": 4 * S, "admitted_ns": 4 * S,
        "finished_ns": 5 * S, "prompt_tokens": 9,
    },
]  # fmt: skip
MARKS = [
    (5 * S, "a", "crash", 1.0),
    (5 * S, "a", "unhealthy", 1.0),
    (7 * S, "a", "recover", 1.0),
    (8 * S, "a", "healthy", 1.0),
]
SAMPLES = [
    (at * S, subject, metric, float(value))
    for at in range(10)
    for subject, metric, value in [
        ("a", "running", at % 3),
        ("a", "waiting", 0),
        ("a", "tokens_in_flight", 100 * at),
        ("b", "running", 1),
        ("cache", "bytes", at * 2**20),
        ("cache", "capacity_bytes", 20 * 2**20),
        ("quota", "in_service", 2),
    ]
]


@pytest.fixture
def five(make_run):
    checks = [Check("nothing lost", 2, "<=", 0, "fail", "n=5"), Check("quick | <b>", 0.5, "<=", 1.0, "pass")]
    return make_run(FIVE_ROWS, [*SAMPLES, *MARKS], checks)


@pytest.fixture(scope="session")
def played(tmp_path_factory):
    """A failover of 600 requests, its whole run folder."""
    folder = tmp_path_factory.mktemp("played")
    return sim.run("failover", ["executor=roofline", "workload.requests=600", f"report.folder={folder}"])


@pytest.fixture
def many(make_run):
    """20,000 requests in 2,000 s, 10 a second, and a sample of each replica four times a second."""
    row = {"outcome": "completed", "prompt_tokens": 9, "output_tokens": 4}
    times = ("arrival_ns", "admitted_ns", "started_ns", "first_token_ns", "finished_ns")
    rows = [
        {**row, "replica": "ab"[n % 2], **{name: n * S // 10 + i * S // 7 for i, name in enumerate(times, 1)}}
        for n in range(20_000)
    ]
    series = [
        (at * S // 4, subject, metric, float(at % 7))
        for at in range(8_000)
        for subject in "ab"
        for metric in ("running", "waiting", "tokens_in_flight")
    ]
    return make_run(rows, series, virtual_s=2001.0)
