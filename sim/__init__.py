"""The engine on a virtual clock: traffic, faults, checks and reports around the same coroutines.

    import sim
    run = sim.run("failover", overrides=["strategy=least_loaded", "seed=7"])
    run.requests, run.summary, run.checks, run.findings, run.path
    sim.load("runs/**")

What is exported here stays; modules below may move.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sim.compare import compare
    from sim.detectors import Finding, findings
    from sim.hindsight import regret
    from sim.play import run
    from sim.replicate import replicate
    from sim.runs import Run, load, open_run
    from sim.sweep import sweep

__all__ = ["Finding", "Run", "compare", "findings", "load", "open_run", "regret", "replicate", "run", "sweep"]

_HOMES = {
    "Finding": "sim.detectors",
    "Run": "sim.runs",
    "compare": "sim.compare",
    "findings": "sim.detectors",
    "load": "sim.runs",
    "open_run": "sim.runs",
    "regret": "sim.hindsight",
    "replicate": "sim.replicate",
    "run": "sim.play",
    "sweep": "sim.sweep",
}

# `python -m sim...` is about to import for a second, in which there is nothing to tell of Ctrl-C.
if sys.argv[:1] == ["-m"] and sys.orig_argv[-len(sys.argv)].partition(".")[0] == __name__:
    from sim.early import leave_on_ctrl_c

    leave_on_ctrl_c()


def __getattr__(name: str) -> Any:
    """Import what is asked for only then: a module of `sim` should not cost the import of all of them."""
    if name not in _HOMES:
        raise AttributeError(f"module 'sim' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
