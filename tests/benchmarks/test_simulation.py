"""How fast virtual time passes: one event of the clock, and a whole scenario."""

from statistics import median

import pytest

from sim.stage import Stage
from sim.traffic import draw
from sim.world import SimClock

SLEEPS = 2_000


@pytest.mark.benchmark(group="frequent")
def test_clock_event(measure):
    """`each_us` is of one sleep of one coroutine: made, waited for, woken from."""

    async def sleeper(clock):
        for _ in range(SLEEPS):
            await clock.sleep(1)

    def sleep_on():
        clock = SimClock()
        clock.spawn(sleeper(clock))
        clock.env.run()
        return clock.now_ns()

    assert measure(sleep_on, calls=1, units=SLEEPS) == SLEEPS


@pytest.mark.benchmark(group="simulation")
def test_steady_scenario(measure, settings, benchmark):
    """600 requests of chat on three replicas: the loop alone, without tables; `each_us` is of a request."""
    run = settings("workload=chat", "workload.requests=600")
    trace = draw(run.workload, run.seed, [run.engine.fleet.models[0].name])

    def play():
        stage = Stage(run.engine, trace, run.report.sample_every_s)
        stage.play()
        stage.close()
        return stage

    stage = measure(play, calls=1, rounds=10, units=len(trace))
    assert stage.census.ended == len(trace)
    if benchmark.stats is not None:
        wall_s = median(benchmark.stats.stats.data)
        benchmark.extra_info["requests_per_wall_s"] = len(trace) / wall_s
        benchmark.extra_info["events_per_wall_s"] = stage.events / wall_s
        benchmark.extra_info["events"] = stage.events
