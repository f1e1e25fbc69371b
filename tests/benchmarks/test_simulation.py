"""How fast virtual time passes: one event of the clock, and a whole scenario."""

import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter_ns, process_time

import pytest

from engine.clock import NS_PER_S
from sim.stage import Stage
from sim.traffic import draw
from sim.world import SimClock

SLEEPS = 2_000

# 6 requests/s, 512 prompt and 128 output tokens, one replica, nothing shared
W = (
    "hardware=a100",
    "tiers=off",
    "fleet.replicas=1",
    "fleet.step_tokens=2048",
    "workload=bare",
    "workload.rate=6",
    "workload.vocab=4096",
    *(f"workload.prompt_{name}_tokens=512" for name in ("min", "median", "max")),
    *(f"workload.output_{name}_tokens=128" for name in ("min", "median", "max")),
)

# five models behind one cache of five tiers, conversations, quotas that count, the router that looks for prefixes
MIX_B = (
    "fleet=reference_five",
    "hardware=h100",
    "workload=mix_b",
    "workload.model_zipf=1",
    "workload.rate=2",
    "workload.requests=2000",
    "strategy=cache_aware",
    "fleet.step_tokens=2048",
    "tiers=five",
    "tiers.block_tokens=64",
    *(f"tiers.{name}.gib={gib}" for name, gib in (("gpu", 24), ("ram", 64), ("ssd", 256))),
    *(f"tiers.{name}.gib={gib}" for name, gib in (("network", 512), ("cloud", 1024))),
)

MEMORY = """
import sys
from pathlib import Path
from sim.config import read
from sim.stage import Stage
from sim.traffic import draw

run = read(sys.argv[1:])
trace = draw(run.workload, run.seed, [run.engine.fleet.models[0].name])
stage = Stage(run.engine, trace)
stage.play()
assert stage.census.ended == len(trace)
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(status["VmHWM"].split()[0])
"""

SET_UP = """
import sys
from sim.config import read
from sim.stage import Stage
from sim.traffic import draw

run = read(sys.argv[1:])
Stage(run.engine, draw(run.workload, run.seed, [run.engine.fleet.models[0].name]))
"""


def played(run):
    """A run's stage after its loop, and what the loop took of the processor's time, in seconds."""
    trace = draw(run.workload, run.seed, [model.name for model in run.engine.fleet.models])
    stage = Stage(run.engine, trace)
    begun_s = process_time()
    stage.play()
    taken_s = process_time() - begun_s
    stage.close()
    assert stage.census.ended == len(trace)
    return stage, taken_s


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


@pytest.mark.benchmark(group="simulation")
@pytest.mark.parametrize("load", [W, MIX_B], ids=["w", "mix_b_five_models_five_tiers"])
def test_requests_per_second(load, settings, report):
    """The whole engine in the loop, with full metrics; the processor's time of one core."""
    run = settings(*load, *(("workload.requests=10000",) if load is W else ()))
    best, stage = 0.0, None
    for _ in range(3):
        stage, taken_s = played(run)
        best = max(best, stage.census.ended / taken_s)
    report(requests_per_core_s=best, events_per_request=stage.events / stage.census.ended)


@pytest.mark.benchmark(group="simulation")
@pytest.mark.parametrize("rate", [6, 60], ids=["at_6_a_second", "at_saturation"])
def test_a_request_costs_the_same_in_a_long_run(rate, settings, report):
    """Ten times the requests: each costs what it cost in the short run."""
    lengths = (5_000, 50_000)
    each_us = dict.fromkeys(lengths, float("inf"))
    for count in (*lengths, lengths[0]):  # the short one around the long one: a busy machine slows both
        run = settings(*W, f"workload.rate={rate}", f"workload.requests={count}")
        each_us[count] = min(each_us[count], played(run)[1] / count * 1e6)
    report(
        short_us=each_us[lengths[0]],
        long_us=each_us[lengths[1]],
        ratio=each_us[lengths[1]] / each_us[lengths[0]],
    )
    assert each_us[lengths[1]] < 1.5 * each_us[lengths[0]]


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="only Linux tells what a process took at most"
)
@pytest.mark.benchmark(group="simulation")
def test_memory_of_a_million_requests(report):
    """From two shorter runs: what a run takes at all, and what each request adds. The goal is 400 MiB.

    A million in one run took 361; told from shorter ones it comes out up to a tenth higher.
    """
    lengths = (100_000, 300_000)
    used_mib = [memory_mib(count) for count in lengths]
    each_bytes = (used_mib[1] - used_mib[0]) * 2**20 / (lengths[1] - lengths[0])
    million_mib = used_mib[0] + each_bytes * (1_000_000 - lengths[0]) / 2**20
    report(bytes_per_request=each_bytes, mib_at_a_million=million_mib)
    assert million_mib < 1.1 * 400


def memory_mib(count):
    lines = ("scenario=steady", "executor=roofline", *W, f"workload.requests={count}", "workload.rate=60")
    told = subprocess.run([sys.executable, "-c", MEMORY, *lines], capture_output=True, check=True, text=True)
    return int(told.stdout) / 1024


@pytest.mark.benchmark(group="simulation")
def test_import_and_set_up(report):
    """From nothing to the first event, in a process of its own; beside a bare interpreter with numpy and pandas."""
    lines = ("scenario=steady", "executor=roofline", *W, "workload.requests=1000")
    whole_s = min(seconds_of(SET_UP, *lines) for _ in range(3))
    bare_s = min(seconds_of("import numpy, pandas") for _ in range(3))
    report(seconds=whole_s, beside_numpy_and_pandas=whole_s / bare_s)


def seconds_of(code, *lines):
    begun_ns = perf_counter_ns()
    subprocess.run([sys.executable, "-c", code, *lines], check=True)
    return (perf_counter_ns() - begun_ns) / NS_PER_S
