"""Everything at once, and its twins: each breaks one part of the engine, or one sink, and one check says so."""

import pytest

import sim
from engine.execution.roofline import RooflineExecutor
from engine.quotas.books import Ledger
from engine.telemetry import JsonLines, Meter
from engine.telemetry.events import Ended
from engine.telemetry.spans import SpanBuilder

FEW = ("workload.requests=400", "scenario.min_requests=400")
SERVED = "requests that did not complete"
SEEN = "parts of the engine seen at work"
LEDGER = "largest used share of a limit, by the ledger"
RECOUNT = "limits that were exceeded, by a recount"
LOG = "requests without exactly one end in the log"
TRACES = "requests without exactly one whole trace"
METRICS = "metrics that do not add up to the requests"
P99 = "p99 TTFT of all requests, s"


def failed(run):
    return [check.name for check in run.checks if check.verdict == "fail"]


def leaky(emit, every):
    """A sink's method that does not hear of every so-many-th end."""

    def heard(self, event):
        if type(event) is not Ended or event.request_id % every:
            emit(self, event)

    return heard


def test_all_of_it_holds_together_and_nothing_is_left_out_of_three_reports(play, monkeypatch):
    for sink, hears in ((JsonLines, "emit"), (SpanBuilder, "emit"), (Meter, "_take_end")):
        monkeypatch.setattr(sink, hears, leaky(getattr(sink, hears), 50))
    run = play(*FEW, "scenario.max_p99_ttft_s=5")
    assert failed(run) == [LOG, TRACES, METRICS]
    assert [check.value for check in run.checks if check.name in (LOG, TRACES)] == [8, 8]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_a_thousand_requests_meet_everything(play, seed):
    run = play(f"seed={seed}")
    assert failed(run) == []
    assert run.whole.count == 1000
    assert next(check for check in run.checks if check.name == P99).value > 0.01


@pytest.mark.slow
def test_real_passes_meet_it_too(tmp_path):
    run = sim.run(
        "cross_component", ["size=small", f"report.folder={tmp_path}", "scenario.max_p99_ttft_s=60"]
    )
    assert failed(run) == []
    assert run.manifest["executor"] == "torch"


@pytest.mark.slow
def test_twin_whose_quota_lets_everybody_in(play, monkeypatch):
    reserve = Ledger.reserve

    def open_door(self, tokens, now_ns):
        admitted = reserve(self, tokens, now_ns)
        if not admitted:
            for book in self.books:
                book.spent_tokens, book.spent_requests = book.spent_tokens + tokens, book.spent_requests + 1
                book.in_service += 1
                book.arrival += book.gap_request + tokens * book.gap_token
        return True

    monkeypatch.setattr(Ledger, "reserve", open_door)
    lines = ("quotas.limits=[{model: '*', concurrent_requests: 4}]", "workload.parts.code.rate=40")
    assert failed(play(*FEW, *lines, "scenario.max_p99_ttft_s=60")) == [LEDGER, RECOUNT]


@pytest.mark.slow
def test_twin_that_neither_marks_the_dead_nor_tries_again(play):
    lines = ("routing.max_attempts=1", "routing.fallbacks=null", "health.enabled=false")
    assert SERVED in failed(play(*FEW, *lines))


@pytest.mark.slow
def test_twin_on_slow_accelerators(play, monkeypatch):
    ticks, ramp = RooflineExecutor.ticks, RooflineExecutor.ramp
    monkeypatch.setattr(RooflineExecutor, "ticks", lambda *each: 9 * ticks(*each))
    monkeypatch.setattr(
        RooflineExecutor, "ramp", lambda *each: (*(9 * value for value in ramp(*each)[:3]), ramp(*each)[3])
    )
    assert P99 in failed(play(*FEW))


@pytest.mark.slow
def test_a_part_that_has_nothing_to_do_is_named(play):
    run = play(*FEW, "routing.sessions=false", "scenario.max_p99_ttft_s=5")
    seen = next(check for check in run.checks if check.name == SEEN)
    assert seen.verdict == "inconclusive"
    assert "sessions" in seen.note
