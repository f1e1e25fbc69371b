"""What the engine adds to its kernel: M/M/1, the same jobs in SimPy alone and in `scenario=queue`."""

from collections import deque
from statistics import median
from time import process_time

import numpy as np
import pytest
import simpy

from sim.config import read
from sim.stage import Stage
from sim.traffic import draw

JOBS = 5_000
TURNS = 3


def with_callbacks(gaps, services):
    """A queue and a server with callbacks on timeouts, about the least that SimPy can do. The sum of the waits."""
    env = simpy.Environment()
    line, waits = deque(), []
    jobs = zip(gaps, services, strict=True)

    def begin():
        came, service = line[0]
        waits.append(env.now - came)
        env.timeout(service).callbacks.append(end)

    def end(_event):
        line.popleft()
        if line:
            begin()

    def await_next():
        gap, service = next(jobs, (None, None))
        if gap is not None:
            env.timeout(gap, service).callbacks.append(come)

    def come(event):
        line.append((env.now, event.value))
        if len(line) == 1:
            begin()
        await_next()

    await_next()
    env.run()
    return sum(waits)


def timed(operation, *arguments):
    begun_s = process_time()
    result = operation(*arguments)
    return result, process_time() - begun_s


@pytest.mark.benchmark(group="simulation")
def test_a_bare_queue_beside_simpy_alone(report, simpy_queue):
    """By turns: the same wait to the nanosecond, and jobs per second of the processor's time."""
    run = read(["scenario=queue", "workload.rate=0.8", f"workload.requests={JOBS}"])
    trace = draw(run.workload, run.seed, [model.name for model in run.engine.fleet.models])
    gaps = np.diff(trace.arrival_ns, prepend=0).tolist()
    took_s, waits = {"ours": [], "processes": [], "callbacks": []}, set()
    for _ in range(TURNS):
        stage = Stage(run.engine, trace)
        took_s["ours"].append(timed(stage.play)[1])
        rows = stage.recorder.requests().sort_values("request_id")
        stage.close()
        waits.add(int((rows["started_ns"] - rows["arrival_ns"]).sum()))
        services = (rows["finished_ns"] - rows["started_ns"]).tolist()
        for name, kernel in (("processes", simpy_queue), ("callbacks", with_callbacks)):
            waited, seconds = timed(kernel, gaps, services)
            took_s[name].append(seconds)
            waits.add(waited)
    report(**{f"{name}_per_s": JOBS / median(seconds) for name, seconds in took_s.items()})
    assert len(waits) == 1
    assert min(took_s["ours"]) < 20 * min(took_s["processes"])
