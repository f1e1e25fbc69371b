"""Speed is told twice: in seconds of this machine, and in turns of a plain loop timed in the same process."""

from statistics import median
from time import perf_counter_ns, process_time

import numpy as np
import pytest
import simpy

from engine.clock import NS_PER_S
from engine.request import Request
from sim.config import read

LOOP_TURNS = 10_000
CALLS = 1_000  # of one round: a mean below a microsecond is not seen by a clock that costs 50 ns to read
SINGLES = 10_000  # calls timed one by one, for p99
JOBS = 20_000
ROOM = 2.0  # times a goal of microseconds: what misses it by so much fails
TRIES = 3
JOBS_PER_S = 120_000  # of the queue below, on the machine for which goals of simulated requests are set

FIGURES = pytest.StashKey[list]()
RATIOS = pytest.StashKey[list]()


def pytest_configure(config):
    config.stash[FIGURES] = []
    config.stash[RATIOS] = []


def pytest_terminal_summary(terminalreporter, config):
    """What the table of pytest-benchmark cannot say: one unit for all, ratios to the loop and to others."""
    if config.stash[RATIOS]:
        terminalreporter.section("beside others, in one run")
        for name, figures in config.stash[RATIOS]:
            told = "  ".join(f"{key} {value:,.2f}" for key, value in figures.items())
            terminalreporter.write_line(f"{name}: {told}")
    if not config.stash[FIGURES]:
        return
    terminalreporter.section("one operation")
    terminalreporter.write_line(f"{'':<44}{'median us':>12}{'p99 us':>10}{'ratio to loop':>15}")
    for name, info in config.stash[FIGURES]:
        rates = " ".join(f"{value:,.0f} {key}" for key, value in info.items() if key.endswith("per_wall_s"))
        p99 = f"{info['p99_us']:.2f}" if "p99_us" in info else ""
        terminalreporter.write_line(
            f"{name:<44}{info['each_us']:>12.3f}{p99:>10}{info['ratio_to_loop']:>15.1f}  {rates}".rstrip()
        )


def loop_ns():
    """One turn of a plain Python loop, the best of 20 rounds."""
    rounds = []
    for _ in range(20):
        total, begun_ns = 0, perf_counter_ns()
        for number in range(LOOP_TURNS):
            total += number
        rounds.append((perf_counter_ns() - begun_ns) / LOOP_TURNS)
    return min(rounds)


def p99_ns(operation):
    """The 99th percentile of single calls, what it costs to look at the clock taken off."""
    looks_ns, calls_ns = np.empty(SINGLES), np.empty(SINGLES)
    for number in range(SINGLES):
        begun_ns = perf_counter_ns()
        looks_ns[number] = perf_counter_ns() - begun_ns
    for number in range(SINGLES):
        begun_ns = perf_counter_ns()
        operation()
        calls_ns[number] = perf_counter_ns() - begun_ns
    return float(np.percentile(calls_ns, 99) - np.median(looks_ns))


def with_processes(gaps, services):
    """A queue and a server in SimPy alone, as its tutorial has it: a process for each job. The sum of the waits."""
    env = simpy.Environment()
    server = simpy.Resource(env)
    waited = 0

    def job(service):
        nonlocal waited
        came = env.now
        with server.request() as turn:
            yield turn
            waited += env.now - came
            yield env.timeout(service)

    def arrivals():
        for gap, service in zip(gaps, services, strict=True):
            yield env.timeout(gap)
            env.process(job(service))

    env.process(arrivals())
    env.run()
    return waited


@pytest.fixture
def simpy_queue():
    """SimPy's M/M/1, with processes."""
    return with_processes


@pytest.fixture
def pace():
    """How fast this core is just now, in terms of the machine that goals were set for: SimPy's M/M/1 at 0.8.

    A machine that others use too is slower by the minute: what is held against a goal is taken at this pace, of the
    same minute.
    """
    jobs = np.random.default_rng(0).exponential(1, (2, JOBS)) * NS_PER_S / np.array([[0.8], [1.0]])
    gaps, services = jobs.astype(np.int64).tolist()

    def taken():
        begun_s = process_time()
        with_processes(gaps, services)
        return JOBS / (process_time() - begun_s) / JOBS_PER_S

    return taken


@pytest.fixture
def within(pace, report):
    """Medians beside their goals, in microseconds; it fails where the best of the rounds is beyond `room` times one.

    The best, at the pace of the machine that the goals were set for: what else uses the cores can only add to it. It
    may turn between the rounds, which `measured` makes, and the look at that pace: what fails is measured again.
    """

    def told(measured, goals_us, room=ROOM):
        for _ in range(TRIES):
            figures, beyond = {}, []
            rounds_ns = measured()
            at_pace = pace()
            for name, each_ns, goal_us in zip(("us", "p99_us"), rounds_ns, goals_us, strict=True):
                best_us = min(each_ns) / 1e3
                figures |= {name: median(each_ns) / 1e3, f"best_{name}": best_us, f"goal_{name}": goal_us}
                beyond += [name] if best_us * min(1.0, at_pace) >= room * goal_us else []
            if not beyond:
                break
        report(**figures, pace=at_pace)
        assert beyond == [], figures

    return told


@pytest.fixture
def report(benchmark, pytestconfig):
    """Figures of a comparison that times itself, for the record and for the summary."""

    def told(**figures):
        benchmark.extra_info.update(figures)
        benchmark.pedantic(lambda: None, rounds=1)
        pytestconfig.stash[RATIOS].append((benchmark.name, figures))

    return told


@pytest.fixture
def measure(benchmark, pytestconfig):
    """Time `operation`, `calls` to a round; `units` of work in one call stand for what one figure is of."""

    def timed(operation, *, calls=CALLS, rounds=50, units=1, with_p99=False):
        before_ns = loop_ns()
        result = benchmark.pedantic(operation, rounds=rounds, iterations=calls, warmup_rounds=1)
        loop = min(before_ns, loop_ns())
        if benchmark.stats is not None:  # None under --benchmark-disable
            each_ns = benchmark.stats.stats.median * NS_PER_S / units
            benchmark.extra_info |= {
                "each_us": each_ns / 1e3,
                "loop_turn_ns": loop,
                "ratio_to_loop": each_ns / loop,
            }
            if with_p99:
                benchmark.extra_info["p99_us"] = median(p99_ns(operation) for _ in range(3)) / 1e3
            pytestconfig.stash[FIGURES].append((benchmark.name, benchmark.extra_info))
        return result

    return timed


@pytest.fixture
def settings():
    """The settings of a small run on the roofline executor, with any override lines."""

    def made(*lines):
        return read(["scenario=steady", "executor=roofline", *lines])

    return made


@pytest.fixture
def request_of():
    """A request with so many prompt tokens."""

    def made(prompt_tokens=256, number=0):
        tokens = np.random.default_rng(number).integers(0, 4096, prompt_tokens, dtype=np.int32)
        return Request(number, "llama-3.2-1b", tokens, 64, 0)

    return made
