"""The engine on a virtual clock: traffic, faults, checks and reports around the same coroutines.

    import sim
    run = sim.run("failover", overrides=["strategy=least_loaded", "seed=7"])
    run.requests, run.summary, run.checks, run.path
    sim.load("runs/**")

What is exported here stays; modules below may move.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sim.compare import compare
    from sim.play import run
    from sim.replicate import replicate
    from sim.runs import Run, load, open_run
    from sim.sweep import sweep

__all__ = ["Run", "compare", "load", "open_run", "replicate", "run", "sweep"]

_HOMES = {
    "Run": "sim.runs",
    "compare": "sim.compare",
    "load": "sim.runs",
    "open_run": "sim.runs",
    "replicate": "sim.replicate",
    "run": "sim.play",
    "sweep": "sim.sweep",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for only then: a module of `sim` should not cost the import of all of them."""
    if name not in _HOMES:
        raise AttributeError(f"module 'sim' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
