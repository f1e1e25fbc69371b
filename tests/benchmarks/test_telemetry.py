"""What metrics cost: counting one request, and a scrape of a fleet of 500 models that have all answered."""

from time import process_time_ns

import pytest

from engine.clock import NS_PER_S
from engine.telemetry import Ended, Meter, render

pytestmark = pytest.mark.benchmark(group="frequent")

MS = 1_000_000
MODELS = 500
LINES_A_MODEL = 150  # at least
EVENTS = 2_000
TURNS = 100_000
GOAL_COUNT_TURNS = 300  # of a plain loop, some 40 ns each
GOAL_LINE_TURNS = 60


def end_of(model):
    return Ended(
        at_ns=NS_PER_S + 400 * MS,
        request_id=1,
        tenant="t",
        session=None,
        model_requested=model,
        arrival_ns=NS_PER_S,
        prompt_tokens=512,
        outcome="completed",
        model=model,
        replica="a",
        loaded_ns=NS_PER_S + 1,
        admitted_ns=NS_PER_S + 2,
        queued_ns=NS_PER_S + 3,
        started_ns=NS_PER_S + 50 * MS,
        first_token_ns=NS_PER_S + 90 * MS,
        output_tokens=128,
        finish_reason="stop",
    )


def processor_us(work, times=1, rounds=5):
    """What the processor spends on one time, the best of some rounds: others who use the machine do not count."""
    spent = []
    for _ in range(rounds):
        begun_ns = process_time_ns()
        work()
        spent.append((process_time_ns() - begun_ns) / times / 1e3)
    return min(spent)


def loop():
    total = 0
    for number in range(TURNS):
        total += number
    return total


def test_counting_a_request(report):
    meter, end = Meter(), end_of("llama@1.0.0")

    def count():
        for _ in range(EVENTS):
            meter.emit(end)

    turn_us, each_us = processor_us(loop, TURNS), processor_us(count, EVENTS)
    report(each_us=each_us, turns_of_a_loop=each_us / turn_us)
    assert each_us / turn_us < GOAL_COUNT_TURNS


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text"], ids=["plain", "open"])
def test_a_scrape_of_500_models(report, accept):
    meter = Meter()
    for number in range(MODELS):
        meter.emit(end_of(f"model-{number}@1.0.0"))
    lines = render(meter, accept)[0].count(b"\n")
    assert lines > LINES_A_MODEL * MODELS
    turn_us, line_us = processor_us(loop, TURNS), processor_us(lambda: render(meter, accept), lines, rounds=3)
    report(lines=lines, whole_ms=line_us * lines / 1e3, line_us=line_us, turns_of_a_loop=line_us / turn_us)
    assert line_us / turn_us < GOAL_LINE_TURNS
