"""Who waits and who does not: turns and users come after answers, open arrivals come when they come."""

import numpy as np
import pytest

from sim.config import read
from sim.stage import Stage
from sim.traffic import ClosedWorkload, GeneratedWorkload, MixWorkload, TraceWorkload, draw
from sim.traffic.generator import SessionSettings

SEEDS = (1, 2)


def played(workload, seed, *lines):
    """The trace, and when each of its requests came and was done, on a server that takes half a second each."""
    run = read(["scenario=steady", "executor=roofline", "fleet=three_small", "fleet.max_batch=1", *lines])
    trace = draw(workload, seed, [run.engine.fleet.models[0].name])
    stage = Stage(run.engine, trace)
    stage.play()
    rows = stage.recorder.requests().sort_values("request_id")
    stage.close()
    assert len(rows) == len(trace)
    return trace, rows["arrival_ns"].to_numpy(np.int64), rows["finished_ns"].to_numpy(np.int64)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "trace.csv"
    rows = [
        f"{number * 0.05:.2f},m,t,{40 + number},60,s{number % 7},{1 + number // 7}" for number in range(120)
    ]
    path.write_text(
        "timestamp_s,model,tenant,input_tokens,output_tokens,session_id,turn\n" + "\n".join(rows) + "\n"
    )
    return str(path)


def workload(name, file, wait):
    if name == "mix":
        return MixWorkload(mix="C", rate=20.0, duration_s=60.0, requests=120, model_zipf=None, wait=wait)
    if name == "generated":
        sessions = SessionSettings(mean_turns=4.0, think_median_s=0.5, think_sigma=1.0, wait=wait)
        return GeneratedWorkload(rate=30.0, requests=120, sessions=sessions)
    return TraceWorkload(path=file, wait=wait)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["mix", "generated", "trace"])
def test_the_next_turn_comes_a_time_to_think_after_the_answer(name, seed, file):
    trace, arrival_ns, finished_ns = played(workload(name, file, wait=True), seed)
    turns = np.flatnonzero(trace.after >= 0)
    assert len(turns) > 30
    before = trace.after[turns]
    assert (trace.session[turns] == trace.session[before]).all()
    assert (arrival_ns[turns] == finished_ns[before] + trace.think_ns[turns]).all()
    assert (arrival_ns[turns] > trace.arrival_ns[turns]).any()  # the system is slow, and it matters
    starts = np.flatnonzero(trace.after < 0)
    assert (arrival_ns[starts] == trace.arrival_ns[starts]).all()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["mix", "generated", "trace"])
def test_open_arrivals_wait_for_nobody_however_slow_the_system_is(name, seed, file):
    trace, arrival_ns, finished_ns = played(workload(name, file, wait=False), seed)
    assert trace.after is None
    assert (arrival_ns == trace.arrival_ns).all()
    order = np.argsort(trace.session, kind="stable")
    follows = np.diff(trace.session[order]) == 0
    overtaken = arrival_ns[order[1:]][follows] < finished_ns[order[:-1]][follows]
    assert overtaken.any()  # somebody asked again before the answer was there


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("users", [1, 5])
def test_a_closed_loop_never_has_more_requests_than_users(users, seed):
    settings = ClosedWorkload(users=users, requests=100, think_s=0.1)
    trace, arrival_ns, finished_ns = played(settings, seed)
    changes = np.concatenate((np.ones(len(trace), np.int64), -np.ones(len(trace), np.int64)))
    at_ns = np.concatenate((arrival_ns, finished_ns))
    order = np.lexsort((changes, at_ns))  # who is done in an instant goes first
    assert np.cumsum(changes[order]).max() <= users
    turns = np.flatnonzero(trace.after >= 0)
    assert len(turns) == 100 - users
    assert (arrival_ns[turns] == finished_ns[trace.after[turns]] + trace.think_ns[turns]).all()
