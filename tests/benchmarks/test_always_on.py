"""What it costs that the books of every run are looked at: a share of the run itself, in one process."""

from statistics import median
from time import process_time

import pytest

from engine.telemetry import Arrived, Ended
from sim.audit import Census, audit
from sim.stage import SAMPLES, Stage
from sim.traffic import draw
from tests.benchmarks.test_simulation import W

INSIDE = 8  # requests at a time, for the census alone
MOST = 0.03


def seconds(work):
    begun_s = process_time()
    work()
    return process_time() - begun_s


def counted(requests):
    """The events of so many requests, as a census is told of them."""
    events = []
    for number in range(requests + INSIDE):
        if number < requests:
            events.append(Arrived(number, number, "t", None, "m", 5, 1))
        if number >= INSIDE:
            events.append(Ended(number, number - INSIDE, "t", None, "m", 0, 5, "completed"))
    return events


def parts_of(stage):
    """What each part takes of a run that has been played."""
    events, census = counted(len(stage.trace)), Census()
    return {
        "census": seconds(lambda: [census.emit(event) for event in events]),
        "points": seconds(lambda: [stage.census.check(stage.engine) for _ in range(SAMPLES)]),
        "audit": seconds(lambda: audit(stage.engine, stage.recorder, stage.census, stage.trace)),
    }


@pytest.mark.benchmark(group="simulation")
def test_always_on_checks(settings, report):
    """On W: the census at every arrival and end, a look at every point of the time series, the audit at the end."""
    run, shares = settings(*W, "workload.requests=8000"), []
    for _ in range(3):
        stage = Stage(run.engine, draw(run.workload, run.seed, [run.engine.fleet.models[0].name]))
        whole_s = seconds(stage.play)
        shares.append({name: took_s / whole_s for name, took_s in parts_of(stage).items()})
        stage.close()
    told = {name: median([each[name] for each in shares]) for name in shares[0]}
    report(percent_of_run=100 * sum(told.values()), **{name: 100 * share for name, share in told.items()})
    assert sum(told.values()) < MOST
