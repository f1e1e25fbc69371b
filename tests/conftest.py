"""A virtual clock, and a small fleet of three on the roofline executor: what most tests of the engine start from."""

import gc
import signal

import pytest

from engine.engine import Engine
from engine.settings import (
    Architecture,
    EngineSettings,
    ExecutorSettings,
    FleetSettings,
    HardwareSettings,
    RoutingSettings,
)
from engine.settings import ModelSettings as Model
from sim.world import SimClock

LAYERS = {"layers": 16, "hidden": 2048, "heads": 32, "kv_heads": 8, "head_dim": 64, "ffn": 8192}
SMALL = {"layers": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "head_dim": 8, "ffn": 64}
L4 = {"flops": 121e12, "memory_bytes": 24e9, "memory_bytes_per_s": 300e9, "link_bytes_per_s": 32e9}


LONGEST = ("test_readme.py", "test_compiling.py", "test_live.py", "test_resumed.py", "test_compare.py")


def pytest_configure():
    """Let Ctrl-C reach what tests start: a job of a script in the background ignores it, and hands that on."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """The longest first: what begins last keeps one core waiting for the other."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_collection_finish(session):
    """What is imported stays, so the collector need not look at it; benchmarks are left with what users have."""
    if "benchmark" not in session.config.option.markexpr.replace("not benchmark", ""):
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 20)


@pytest.fixture
def clock():
    clock = SimClock()
    yield clock
    clock.close()


@pytest.fixture
def settings():
    """Three replicas a, b, c of one model, `llama`; every field may be changed before an engine is made of it."""
    shape = Architecture(**LAYERS, vocab=128_256, context_tokens=131_072)
    stand_in = Architecture(**SMALL, vocab=64, context_tokens=512)
    model = Model(name="llama", architecture=shape, stand_in=stand_in)
    return EngineSettings(
        fleet=FleetSettings(models=[model], replicas=dict.fromkeys("abc", "llama")),
        executor=ExecutorSettings(name="roofline"),
        hardware=HardwareSettings(name="L4", source="datasheet", **L4),
        routing=RoutingSettings(decision_log=1.0, slow_start_s=0.0),
    )


@pytest.fixture
def engine(settings, clock):
    """That fleet under the virtual clock, started."""
    engine = Engine(settings, clock)
    engine.start()
    return engine
