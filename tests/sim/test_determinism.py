"""The same bytes from the same seed, and nothing moves that nobody has touched."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.errors import BadSettings
from sim.config import read
from sim.stage import Stage
from sim.ties import shuffle
from sim.traffic import draw
from sim.traffic.fingerprint import fingerprint
from tests.sim.queues import error, fleet, law, played, servers

ROOT = Path(__file__).parents[2]
MIX_B = [
    "scenario=steady", "executor=roofline", "fleet=reference_five", "hardware=h100", "workload=mix_b",
    "workload.requests=120", "workload.model_zipf=1.0", "workload.tenants=true", "strategy=cache_aware",
    "allocation=dynamic", "quotas=degrading", "tiers=five", "tiers.gpu.gib=0.5", "tiers.ram.gib=0.5",
    "tiers.ssd.gib=0.5", "tiers.network.gib=0.5", "report=tables",
]  # fmt: skip


@pytest.fixture(scope="module")
def mix_b():
    return read(MIX_B)


def digest(run, ties_seed=None):
    """`ties_seed`: with random order at equal times."""
    names = [model.name for model in run.engine.fleet.models][:5]
    stage = Stage(run.engine, draw(run.workload, run.seed, names))
    if ties_seed is not None:
        shuffle(stage.clock, ties_seed)
    try:
        stage.play()
        return stage.recorder.digest()
    finally:
        stage.close()


@pytest.fixture(scope="module")
def alone(mix_b):
    return digest(mix_b)


def changed(run, **parts):
    return replace(run, engine=replace(run.engine, **parts))


@pytest.mark.slow
def test_the_whole_engine_gives_the_same_digest_in_another_process(alone):
    """Five models, five tiers, prefixes, quotas, fifty tenants; and sets of words in another order."""
    code = f"from tests.sim.test_determinism import *; print(digest(read({MIX_B!r})))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PYTHONHASHSEED": "4711", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{alone}\n"


def test_another_seed_moves_it(mix_b, alone):
    assert digest(replace(mix_b, seed=2)) != alone


def test_a_model_and_a_group_that_nobody_asks_for_move_nothing(mix_b, alone):
    settings = mix_b.engine.fleet
    idle = replace(settings.models[0], name="idle")
    more = replace(
        settings, models=[*settings.models, idle], replicas={**settings.replicas, "y": "idle", "z": "idle"}
    )
    routing = replace(mix_b.engine.routing, groups={"small": ["phi-4", "gemma-2-9b-it"]})
    assert digest(changed(mix_b, fleet=more, routing=routing)) == alone


def test_a_limit_that_nobody_reaches_moves_nothing(mix_b, alone):
    quotas = mix_b.engine.quotas
    rule = quotas.limits[-1]
    never = [
        replace(rule, tenant="nobody", hourly_tokens=1),
        replace(rule, tenant="t01", daily_tokens=10**12),
    ]
    assert digest(changed(mix_b, quotas=replace(quotas, limits=[*quotas.limits, *never]))) == alone


def test_the_end_of_a_longer_trace_moves_nothing_before_it():
    """What comes later has no influence, and nothing is drawn in the order of how much there is."""
    short, long = (played(*fleet(3, 0.7, "power_of_two"), requests=count) for count in (200, 400))
    before = long.end[:200] < long.arrival[200]
    np.testing.assert_array_equal(long.replica[:200], short.replica)
    np.testing.assert_array_equal(long.end[:200][before], short.end[before])


@pytest.mark.parametrize("strategy", ["least_loaded", "random"])
def test_time_has_no_unit(strategy):
    """All times a thousand times as long: everybody at the same replica, and a thousand times as long there."""
    lines = fleet(3, 0.8, strategy)
    slow = ("executor.mean_s=1000", "workload.rate=0.0024", "report.sample_every_s=1e7")
    base, scaled = played(*lines, requests=300), played(*lines, *slow, requests=300)
    np.testing.assert_array_equal(scaled.replica, base.replica)
    np.testing.assert_allclose(scaled.end / 1000, base.end, rtol=0, atol=300)  # a rounding of each, in ns


@pytest.mark.parametrize("lines", [servers(3, 0.8), fleet(3, 0.8, "least_loaded")])
def test_where_nothing_falls_together_the_order_of_ties_moves_nothing(lines):
    settings = read(["scenario=queue", *lines, "workload.requests=200"])
    assert digest(settings, ties_seed=5) == digest(settings)


def test_what_is_due_at_one_nanosecond_may_happen_in_any_order():
    """Users in step, whose answers fall together: others go first, and a mean changes by no more than chance."""
    lines = ["scenario=queue", *law("deterministic"), "fleet.replicas=3", "strategy=power_of_two"]
    settings = read(
        [*lines, "workload=closed", "workload.users=9", "workload.think=fixed", "workload.think_s=2"]
    )
    settings.workload.requests = 270
    means, digests = [], []
    for seed in range(7):
        stage = Stage(settings.engine, draw(settings.workload, 1, [settings.engine.fleet.models[0].name]))
        if seed:
            shuffle(stage.clock, seed)
        stage.play()
        columns = stage.recorder.columns
        means.append((columns["finished_ns"].values() - columns["arrival_ns"].values()).mean() / 1e9)
        digests.append(stage.recorder.digest())
        stage.close()
    assert len(set(digests)) == 7
    assert abs(means[0] - np.mean(means[1:])) < 4 * error(means[1:]) * np.sqrt(7) + 0.01 * means[0]


def test_ties_are_one_of_two_ways():
    with pytest.raises(BadSettings, match="ties is 'any', but must be one of first_come, shuffled"):
        read(["scenario=queue", "ties=any"])


def test_a_trace_has_a_name_of_its_own():
    """By which two runs are known to have met the same traffic."""
    settings = read(["scenario=queue", "workload.requests=50"])
    one, same, other = (draw(settings.workload, seed, ["m"]) for seed in (1, 1, 2))
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)
    same.arrival_ns[-1] += 1
    assert fingerprint(one) != fingerprint(same)
