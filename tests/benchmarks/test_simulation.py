"""How fast virtual time passes: one event of the clock, and a whole scenario."""

import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter_ns, process_time

import pytest

from engine.clock import NS_PER_S
from sim.stage import Stage
from sim.traffic import draw
from sim.workers import Job, play_all
from sim.world import SimClock

SLEEPS = 2_000
WORKERS = 2
LEAST_GAIN, MOST_TURNS = 2 / 3, 3  # of what a second core is worth to a plain loop
SET_UP_GOAL_S = 2.0

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

TIERS_GIB = {"gpu": 24, "ram": 64, "ssd": 256, "network": 512, "cloud": 1024}

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
    *(f"tiers.{name}.gib={gib}" for name, gib in TIERS_GIB.items()),
)

SPEED = {  # the load, its goal in requests a second, and how far from it fails
    "w": (
        (*W, "workload.requests=6000"),
        25_000,
        4.0,
    ),  # up to twice off in plain Python, and twice that fails
    "mix_b_five_models_five_tiers": (MIX_B, 8_000, 7.0),  # up to three times off in plain Python
}

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

PLAIN = "total = 0\nfor number in range(15_000_000): total += number"

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
@pytest.mark.parametrize("name", SPEED)
def test_requests_per_second(name, settings, report, pace):
    """The whole engine in the loop, with full metrics: the processor's time of one core, and its goal.

    `at_goals_pace` is what the machine for which the goal was set would do (see `pace`).
    """
    load, goal_per_s, room = SPEED[name]
    run = settings(*load)
    rates, paced, stage = [], [], None
    for _ in range(3):
        before = pace()
        stage, taken_s = played(run)
        rates.append(stage.census.ended / taken_s)
        paced.append(rates[-1] / ((before + pace()) / 2))
    report(
        requests_per_core_s=max(rates),
        at_goals_pace=median(paced),
        goal=goal_per_s,
        events_per_request=stage.events / stage.census.ended,
    )
    assert max(paced) > goal_per_s / room


@pytest.mark.benchmark(group="simulation")
def test_fast_forward_beside_one_step_at_a_time(settings, report):
    """By turns, W: the same requests table, and how many times as fast."""
    ratios, digests = [], set()
    for _ in range(3):
        took_s = {}
        for ahead in ("true", "false"):
            run = settings(*W, "workload.requests=1500", f"fleet.fast_forward={ahead}")
            stage, took_s[ahead] = played(run)
            digests.add(stage.recorder.digest())
        ratios.append(took_s["false"] / took_s["true"])
    report(ratio=median(ratios))
    assert len(digests) == 1
    assert median(ratios) > 1.5


@pytest.mark.skipif((os.cpu_count() or 1) < WORKERS, reason="needs a core for each worker")
@pytest.mark.benchmark(group="simulation")
def test_replications_on_two_cores(report, tmp_path):
    """By turns, four runs of W by one process and by two: the same digests in the same order, and the speed-up.

    `speed_up` has the start of the processes in it, `of_runs` has not. What a second core is worth just now, two
    processes of a plain loop tell in the same turn: `of_a_loop`. Runs that wait for each other come to half of that,
    in every turn; one turn in which nobody disturbs is enough to show that ours do not.
    """
    turns, digests = [], set()
    for turn in range(MOST_TURNS):
        took_s = {}
        for name, count, workers in (
            ("alone", 1_800, 1),
            ("start", 10, WORKERS),
            ("together", 1_800, WORKERS),
        ):
            took_s[name], played = replicated(tmp_path / f"{turn}-{name}", count, workers)
            digests |= {played} if count > 10 else set()
        runs_s = max(took_s["together"] - took_s["start"], took_s["alone"] / WORKERS)
        turns.append((took_s["alone"] / runs_s / gain_of_a_loop(), took_s, took_s["alone"] / runs_s))
        if turns[-1][0] > LEAST_GAIN:
            break
    beside_loop, took_s, of_runs = max(turns, key=lambda each: each[0])
    report(
        speed_up=took_s["alone"] / took_s["together"],
        of_runs=of_runs,
        of_a_loop=of_runs / beside_loop,
        seconds_alone=took_s["alone"],
    )
    assert len(digests) == 1
    assert all(next(iter(digests)))
    assert beside_loop > LEAST_GAIN


def replicated(folder, requests, workers):
    """Seconds of the wall's time for four runs of W, and their digests."""
    lines = ("scenario=steady", "executor=roofline", "report=tables", *W, f"workload.requests={requests}")
    folder.mkdir()
    jobs = [Job(seed, (*lines, f"seed={seed}"), folder / f"seed-{seed}") for seed in range(1, 5)]
    begun_ns = perf_counter_ns()
    done = play_all(jobs, workers)
    return (perf_counter_ns() - begun_ns) / NS_PER_S, tuple(each.digest for each in done)


def gain_of_a_loop():
    """How many times as fast two plain loops are done in two processes at once as one after the other."""

    def seconds(at_once):
        begun_ns = perf_counter_ns()
        for process in [subprocess.Popen([sys.executable, "-S", "-c", PLAIN]) for _ in range(at_once)]:
            assert process.wait() == 0
        return (perf_counter_ns() - begun_ns) / NS_PER_S

    before_s, together_s, after_s = seconds(1), seconds(WORKERS), seconds(1)
    return min(float(WORKERS), (before_s + after_s) / together_s)


@pytest.mark.benchmark(group="simulation")
@pytest.mark.parametrize("rate", [6, 60], ids=["at_6_a_second", "at_saturation"])
def test_a_request_costs_the_same_in_a_long_run(rate, settings, report):
    """Ten times the requests: each costs what it cost in the short run."""
    lengths = (3_000, 30_000)
    each_us = dict.fromkeys(lengths, float("inf"))
    for count in (*lengths, lengths[0]):  # the short one around the long one: a busy machine slows both
        run = settings(*W, f"workload.rate={rate}", f"workload.requests={count}")
        each_us[count] = min(each_us[count], played(run)[1] / count * 1e6)
    report(
        short_us=each_us[lengths[0]],
        long_us=each_us[lengths[1]],
        ratio=each_us[lengths[1]] / each_us[lengths[0]],
    )
    assert (
        each_us[lengths[1]] < 2 * each_us[lengths[0]]
    )  # a cost that grew with the run would be ten times as much


@pytest.mark.benchmark(group="simulation")
@pytest.mark.parametrize("rate", [6], ids=["at_saturation"])
def test_a_request_of_mix_b_costs_the_same_in_a_long_run(rate, settings, report):
    """Five models and five tiers, half as large: ten times the requests, long after every tier is full."""
    lengths, halved = (750, 7_500), [f"tiers.{name}.gib={gib // 2}" for name, gib in TIERS_GIB.items()]
    each_us = dict.fromkeys(lengths, float("inf"))
    for count in (*lengths, lengths[0]):  # the short one around the long one: a busy machine slows both
        long_enough = f"workload.duration_s={3 * count // rate + 600}"
        run = settings(*MIX_B, *halved, f"workload.rate={rate}", f"workload.requests={count}", long_enough)
        each_us[count] = min(each_us[count], played(run)[1] / count * 1e6)
    short_us, long_us = (each_us[count] for count in lengths)
    report(short_us=short_us, long_us=long_us, ratio=long_us / short_us)
    assert long_us < 2 * short_us  # when the last tier is full, blocks leave it too


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="only Linux tells what a process took at most"
)
@pytest.mark.benchmark(group="simulation")
def test_memory_of_a_million_requests(report):
    """From two shorter runs: what a run takes at all, and what each request adds. The goal is 400 MiB.

    From 100,000 and 300,000 it comes out at the same, within a fiftieth.
    """
    lengths = (20_000, 60_000)
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
def test_import_and_set_up(report, pace):
    """From nothing to the first event, in a process of its own; beside a bare interpreter with numpy and pandas."""
    lines = ("scenario=steady", "executor=roofline", *W, "workload.requests=1000")
    rounds = [(seconds_of(SET_UP, *lines), seconds_of("import numpy, pandas")) for _ in range(2)]
    whole_s, bare_s = (min(seconds) for seconds in zip(*rounds, strict=True))
    report(seconds=whole_s, goal=SET_UP_GOAL_S, beside_numpy_and_pandas=whole_s / bare_s)
    assert whole_s * min(1.0, pace()) < SET_UP_GOAL_S


def seconds_of(code, *lines):
    """Of the processor: on a core that nobody else uses, also what the clock on the wall says."""
    begun = os.times()
    subprocess.run([sys.executable, "-c", code, *lines], check=True)
    ended = os.times()
    return sum(getattr(ended, part) - getattr(begun, part) for part in ("children_user", "children_system"))
