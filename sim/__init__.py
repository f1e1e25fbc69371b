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
    from sim.play import run
    from sim.runs import Run, load, open_run

__all__ = ["Run", "load", "open_run", "run"]

_HOMES = {"Run": "sim.runs", "load": "sim.runs", "open_run": "sim.runs", "run": "sim.play"}


def __getattr__(name: str) -> Any:
    """Import what is asked for only then: a module of `sim` should not cost the import of all of them."""
    if name not in _HOMES:
        raise AttributeError(f"module 'sim' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
