"""What traces and the log cost of a request's time: next to nothing where a request has neither."""

import io
from statistics import median
from time import process_time_ns

import pytest

from engine.telemetry import Asked, Ended, PrefixFound, Routed
from engine.telemetry.context import TraceIds
from engine.telemetry.logs import log_sink
from engine.telemetry.spans import Sampling, SpanBuilder
from engine.telemetry.traces import JsonTraces

REQUESTS = 2_000
GOALS_US = {"not sampled": 4.0, "sampled": 60.0, "to JSON": 150.0, "logged": 40.0, "log limited": 4.0}
ROOM = 2.0

pytestmark = pytest.mark.benchmark(group="frequent")


def facts():
    """What a server tells of so many ordinary requests."""
    names, loads = tuple("abcde"), (100, 200, 300, 400, 500)
    told = []
    for number in range(REQUESTS):
        end = Ended(
            900, number, "acme", "s", "llama", 100, 512, "completed", None, "llama@1.0.0", "a", None, 0, 1,
            110, 130, 130, 170, 250, 410, 128,
        )  # fmt: skip
        end.finish_reason = "stop"
        told.append(
            (
                Asked(90, number, "chat", f"{number + 1:032x}"),
                Routed(100, number, 1, "least_loaded", "a", names, loads, "llama", "strategy", "llama@1.0.0"),
                PrefixFound(170, number, "a", 64),
                end,
            )
        )
    return told


def us_each(told, sink):
    """Microseconds of the processor a request, the median of five rounds."""
    rounds = []
    for _ in range(5):
        begun_ns = process_time_ns()
        for events in told:
            for event in events:
                if type(event) in sink.kinds:
                    sink.emit(event)
        rounds.append((process_time_ns() - begun_ns) / REQUESTS / 1e3)
    return median(rounds)


def test_what_a_trace_and_a_line_cost(clock, report, pace):
    told, ids = facts(), TraceIds(1, 0)
    log = {"stream": io.StringIO(), "level": "info"}
    took = {
        "not sampled": us_each(told, SpanBuilder(lambda trace: None, ids, Sampling(share=0))),
        "sampled": us_each(told, SpanBuilder(lambda trace: None, ids, Sampling())),
        "to JSON": us_each(told, SpanBuilder(JsonTraces(lambda line: None).export, ids, Sampling())),
        "logged": us_each(told, log_sink(clock, max_per_s=None, **log)),
        "log limited": us_each(told, log_sink(clock, max_per_s=1, **log)),
    }
    at_pace = pace()
    report(**{f"{name.replace(' ', '_')}_us": each for name, each in took.items()}, pace=at_pace)
    for name, each_us in took.items():
        assert each_us * min(1.0, at_pace) < ROOM * GOALS_US[name], name
