"""Short requests that wait for long ones while places are free are told, and where they lost their time."""

import numpy as np
import pytest

from sim.detectors.blocking import Spans, detect
from sim.history import History

S = 1_000_000_000
TWO_KINDS = [
    "workload=generated", "workload.prompt.law=histogram", "workload.prompt.median=null",
    "workload.prompt.sigma=null", "+workload.prompt.edges=[32,64,8000,8192]", "workload.output.median=20",
    "fleet.replicas=1", "workload.rate=10",
]  # fmt: skip


def blocked(run):
    return [finding for finding in run.findings if finding.detector == "head-of-line blocking"]


def row(queued, started, first, finished, prompt):
    times = {"arrival_ns": queued, "queued_ns": queued, "started_ns": started}
    times |= {"first_token_ns": first, "finished_ns": finished}
    rest = {"outcome": "completed", "replica": "a", "prompt_tokens": prompt, "output_tokens": 2}
    return {name: round(value * S) for name, value in times.items()} | rest


def history_of(make_run, rows, places):
    run = make_run(rows)
    run.config["fleet"] = {"max_batch": places}
    return History(run)


def test_by_hand_the_wait_behind_a_prefill_counts_where_places_are_free(make_run):
    long = row(0, 0, 10, 11, 1000)
    shorts = [row(1 + n / 100, 1 + n / 100, 11, 12, 10) for n in range(30)]
    (finding,) = detect(history_of(make_run, [long, *shorts], places=64))
    waited = sum(9 - n / 100 for n in range(30))  # until the long one had its first token, at 10
    whole = sum(11 - n / 100 for n in range(30))
    assert finding.severity == pytest.approx(waited / whole)
    assert "behind a long prefill" in finding.says
    assert finding.count == 30
    assert finding.requests[0] == 1  # it waited longest
    assert detect(history_of(make_run, [long, *shorts], places=1)) == []  # there was no place for them
    assert detect(history_of(make_run, [row(0, 0, 10, 11, 70), *shorts], places=64)) == []  # that is not long


def test_by_hand_the_wait_behind_a_head_that_does_not_fit_counts(make_run):
    largest = row(0, 0, 0.5, 1, 3000)  # so much the KV holds
    full = row(1, 1, 1.5, 50, 2000)
    long = row(2, 50, 51, 60, 1500)  # the head of the line until it fits
    shorts = [row(3 + n / 100, 50, 50.5, 55, 10) for n in range(30)]
    (finding,) = detect(history_of(make_run, [largest, full, long, *shorts], places=64))
    assert "did not fit" in finding.says
    assert finding.severity > 0.5
    without = [largest, full, *[row(3, 3, 3.5, 4, 10)] * 30]
    assert detect(history_of(make_run, without, places=64)) == []


def test_stretches_are_joined_where_they_overlap():
    spans = Spans.of(np.array([5, 0, 8]), np.array([9, 4, 12]))
    assert spans.begins.tolist() == [0, 5]
    assert spans.ends.tolist() == [4, 12]
    assert spans.within(np.array([2, 0, 13]), np.array([6, 20, 20])).tolist() == [3, 11, 0]


@pytest.mark.slow
def test_a_step_that_takes_whole_prompts_blocks_and_ordinary_traffic_does_not(steady):
    lines = [*TWO_KINDS, "workload.requests=600"]
    run = steady(*lines, "fleet.step_tokens=9000", "+workload.prompt.weights=[0.95,0,0.05]")
    (finding,) = blocked(run)
    assert finding.subject == "replica a"
    shown = run.requests.set_index("request_id").loc[list(finding.requests)]
    assert (shown["prompt_tokens"] < 64).all()
    assert blocked(steady(*lines, "fleet.step_tokens=512", "+workload.prompt.weights=[1.0,0,0]")) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_chunks_of_a_prompt_block_less_than_the_whole_at_once(steady, seed):
    lines = [*TWO_KINDS, "workload.requests=800", "+workload.prompt.weights=[0.97,0,0.03]", f"seed={seed}"]
    whole = blocked(steady(*lines, "fleet.step_tokens=9000"))
    chunks = blocked(steady(*lines, "fleet.step_tokens=512"))
    assert whole
    assert not chunks or chunks[0].severity < whole[0].severity
