import numpy as np
import pytest

from engine.errors import BadSettings
from sim.fidelity.cases import (
    CASES,
    SYSTEMS,
    TEMPLATES,
    arrivals,
    at_once,
    conversations,
    faults,
    run_settings,
    traffic,
)


@pytest.mark.parametrize("cv", [1.0, 3.0])
def test_arrivals_have_their_rate_and_their_burstiness(cv):
    gaps = np.diff(arrivals(200_000, 50.0, cv, seed=1)) / 1e9
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.03)


@pytest.mark.parametrize("name", CASES)
def test_every_case_can_be_set_up_at_the_rate_that_was_asked_for(name):
    case = CASES[name]
    run = run_settings(case, 300, [])
    trace = traffic(case, run, 300, 40.0, seed=3)
    assert len(trace) == 300
    assert 300 / (trace.arrival_ns[-1] / 1e9) == pytest.approx(40.0, rel=0.5)
    assert case.system in SYSTEMS
    assert (np.diff(trace.arrival_ns) >= 0).all()


def test_the_same_seed_gives_the_same_requests_and_another_one_others():
    case = CASES["conversations"]
    run = run_settings(case, 50, [])
    one, same, other = (traffic(case, run, 50, 10.0, seed) for seed in (1, 1, 2))
    assert (one.arrival_ns == same.arrival_ns).all()
    assert (one.request(7).prompt_tokens == np.asarray(same.request(7).prompt_tokens)).all()
    assert not (one.arrival_ns == other.arrival_ns).any()


def test_a_turn_begins_with_all_of_the_turn_before_it():
    trace = conversations(400, seed=1, model="m", vocab=4096)
    before = {}
    for number in range(len(trace)):
        session, prompt = int(trace.session[number]), np.asarray(trace.request(number).prompt_tokens)
        if session in before:
            assert (prompt[: len(before[session])] == before[session]).all()
            assert len(prompt) > len(before[session])
        before[session] = prompt
    assert len(before) < len(trace) / 2
    assert len({tuple(prompt[:64]) for prompt in before.values()}) == TEMPLATES


def test_a_burst_is_the_same_requests_at_once():
    case = CASES["poisson70"]
    trace = traffic(case, run_settings(case, 20, []), 20, 5.0, seed=1)
    burst = at_once(trace)
    assert burst.arrival_ns.tolist() == [0] * 20
    assert (burst.prompt_tokens == trace.prompt_tokens).all()


def test_in_failover_the_first_replica_dies_at_half_time_and_comes_back():
    case = CASES["failover"]
    run = run_settings(case, 100, [])
    trace = traffic(case, run, 100, 10.0, seed=1)
    dies, returns = faults(case, run, trace)
    assert dies.fault.replica == returns.fault.replica == "a"
    assert (dies.at_s, returns.at_s) == (trace.arrival_s(0.5), trace.arrival_s(0.75))
    assert faults(CASES["poisson50"], run, trace) == []


def test_traffic_that_waits_for_answers_is_refused():
    case = CASES["poisson70"]
    run = run_settings(case, 10, [])
    waiting = Waiting(run.workload)
    run.workload = waiting
    with pytest.raises(BadSettings, match="wait for no answer"):
        traffic(case, run, 10, 1.0, seed=1)


class Waiting:
    """A workload whose second request waits for the first."""

    kind, model_zipf = "waiting", None

    def __init__(self, inner):
        self._inner = inner

    def draw(self, seed, model):
        trace = self._inner.draw(seed, model)
        trace.after = np.full(len(trace), -1, np.int32)
        trace.after[1] = 0
        return trace
