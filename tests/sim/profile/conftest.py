"""A small model to measure, and points that nobody measured: of costs that are known."""

from dataclasses import replace

import numpy as np
import pytest

from engine.execution.terms import TERMS, counts
from engine.settings import Architecture, CacheSettings, ExecutorSettings, FleetSettings, ModelSettings
from sim.profile.grid import Limits, grid
from sim.profile.points import Points, Visit
from sim.profile.rig import counted
from sim.streams import stream

SHAPE = Architecture(
    layers=1, hidden=32, heads=2, kv_heads=1, head_dim=16, ffn=64, vocab=128, context_tokens=512
)
LIMITS = Limits(step_tokens=256, max_batch=16, context_tokens=1024, kv_tokens=20_000)
YARD_NS = 1_000_000
COSTS = dict.fromkeys(TERMS, 0.0) | {
    "step": 400_000.0,
    "chunk": 90_000.0,
    "prefill_token": 21_000.0,
    "prefill_pair": 30.0,
    "decode_step": 150_000.0,
    "decode": 40_000.0,
    "rack_token": 55.0,
}


@pytest.fixture
def small(settings):
    """The fleet of the other tests with a model that is quickly measured, on torch."""
    model = ModelSettings(name="llama", architecture=None, stand_in=SHAPE)
    return replace(
        settings,
        fleet=FleetSettings(models=[model], replicas={"a": "llama"}, max_batch=4, step_tokens=64),
        executor=ExecutorSettings(name="torch", options={}),
        cache=CacheSettings(),
    )


@pytest.fixture
def planted():
    return COSTS


@pytest.fixture
def make_points():
    """Points of the costs above. `spread` is that of single steps; `slow`: how slow the machine was at a visit."""

    def make(spread=0.0, visits=4, slow=lambda number: 1.0, seed=1, outliers=0):
        cells, chance = grid(LIMITS, seed), stream(seed, "test.points")
        units = [counts(counted(cell)) for cell in cells]
        costs = np.array([*COSTS.values()])
        order = np.tile(np.arange(len(cells)), visits)
        bad = chance.choice(len(order), outliers, replace=False)
        made = []
        for number, cell in enumerate(order.tolist()):
            truth = float(np.dot(units[cell], costs)) * slow(number) * (8 if number in bad else 1)
            took = truth * np.exp(spread * chance.normal(size=3))
            made.append(
                Visit(
                    cell=cell,
                    durations_ns=np.rint(took).astype(int).tolist(),
                    yard_ns=[round(YARD_NS * slow(number))] * 4,
                )
            )
        return Points(
            model="llama",
            shape=SHAPE,
            weights="float32",
            weights_bytes=4 * SHAPE.parameters,
            kv_capacity_tokens=1000,
            kv_value_bytes=4.0,
            kv_bytes_per_token=128,
            machine={"id": "feed"},
            measured={"seed": seed},
            cells=cells,
            counts=units,
            visits=made,
        )

    return make
