"""Service times: of the right law, the same for every strategy, one request at a time."""

import numpy as np
import pytest

from engine.clock import NS_PER_S
from engine.errors import BadSettings
from engine.execution import Machine, executors
from engine.execution.executor import Batch, Chunk, Sequence
from engine.execution.law import LAWS, LawExecutor, LawOptions, chance_of
from engine.request import Stream
from engine.settings import HardwareSettings, ModelSettings

SCV = {"exponential": 1.0, "deterministic": 0.0, "uniform": 1 / 3, "erlang2": 0.5, "lognormal": 4.0}


def executor(clock, seed=1, **options):
    hardware = HardwareSettings(
        name="x", flops=1, memory_bytes=1, memory_bytes_per_s=1, link_bytes_per_s=1, source="none"
    )
    machine = Machine(ModelSettings(name="m", architecture=None), hardware, clock, 1, seed)
    return LawExecutor(machine, LawOptions(**options))


def sequence(clock, number):
    tokens = np.array([number, 1, 2, 3], dtype=np.int32)
    return Sequence(number, tokens, 1, Stream(), clock.signal())


@pytest.mark.parametrize("law", sorted(LAWS))
def test_service_times_have_the_mean_and_the_spread_of_their_law(clock, law):
    options = {"scv": 4.0} if law == "lognormal" else {}
    made = executor(clock, law=law, mean_s=2.0, **options)
    times_s = np.array([made.service_ns(sequence(clock, number)) for number in range(40_000)]) / NS_PER_S
    assert times_s.mean() == pytest.approx(2.0, rel=0.04)
    assert times_s.var() / times_s.mean() ** 2 == pytest.approx(SCV[law], rel=0.2, abs=1e-9)


@pytest.mark.parametrize("law", sorted(LAWS))
def test_the_rarest_draws_have_a_service_time_too(law):
    least, most = chance_of(0), chance_of(2**64 - 1)
    assert 0 < least < most < 1
    assert 0 <= LAWS[law](least, 4.0) <= LAWS[law](0.5, 4.0) <= LAWS[law](most, 4.0) < np.inf


@pytest.mark.parametrize(
    ("law", "median"),
    [("exponential", np.log(2)), ("uniform", 1.0), ("erlang2", 0.839173495), ("lognormal", 5**-0.5)],
)
def test_half_of_all_are_served_within_the_median(law, median):
    assert LAWS[law](0.5, 4.0) == pytest.approx(median, rel=1e-8)


def test_a_service_time_depends_on_the_request_and_the_seed_and_on_nothing_else(clock):
    one, other, third = executor(clock), executor(clock), executor(clock, seed=2)
    times = [one.service_ns(sequence(clock, number)) for number in range(50)]
    assert [other.service_ns(sequence(clock, number)) for number in reversed(range(50))] == times[::-1]
    assert third.service_ns(sequence(clock, 0)) != times[0]
    assert len(set(times)) == 50


def test_a_step_lasts_as_long_as_the_services_that_end_in_it(clock):
    made = executor(clock, law="deterministic", mean_s=3.0)
    chunks = [Chunk(sequence(clock, 1), 4), Chunk(sequence(clock, 2), 2)]
    done = []

    async def step():
        done.append(await made.step(Batch(chunks=chunks)))

    clock.spawn(step())
    clock.env.run()
    assert clock.now_ns() == done[0].duration_ns == 3 * NS_PER_S
    assert done[0].chunk_tokens == [1, None]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"law": "pareto"}, "executor.law is 'pareto', but must be one of exponential"),
        ({"mean_s": 0}, "executor.mean_s is 0, but must be from 1e-06 to 31,536,000 (a year)"),
        ({"mean_s": 1e300}, "executor.mean_s is 1e+300"),
        ({"mean_s": float("nan")}, "executor.mean_s is nan"),
        ({"law": "lognormal", "scv": 0}, "executor.scv is 0, but must be above 0"),
        ({"scv": 2.0}, "executor.scv is 2.0, but must be 1: only lognormal has one"),
    ],
)
def test_laws_that_make_no_sense_are_refused(options, message):
    with pytest.raises(BadSettings) as caught:
        LawOptions(**options)
    assert message in str(caught.value)


def test_it_is_asked_for_by_name():
    assert executors.find("law") is LawExecutor
