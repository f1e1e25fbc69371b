"""The counted side of class B: forks of one process do an operation N times and 2N times, and end.

Imports and set-up cost ten thousand times what an operation does. Forks share them, and the difference of two forks
is free of them: valgrind writes what each fork has counted into a file of its own.
"""

import gc
import os
from importlib import import_module

from sim.gate.operations import OPERATIONS, Kind
from sim.gate.worker import Tell

NEEDS = {
    "route": ("engine.routing", "engine.request", "engine.settings"),
    "quota": ("engine.quotas", "engine.settings", "sim.world"),
    "cache": ("engine.cache", "engine.settings"),
    "registry": ("engine.registry",),
    "simulation": ("sim.gate.fleet", "sim.stage"),
}
"""What operations import, by the first word of their names; only who needs it pays for it."""


def count(tell: Tell, names: list[str], doubled: list[str], repeats: int) -> None:
    """Tell of each operation the processes that did it N times and 2N times, by turns, and N."""
    for name in names:
        for module in NEEDS[name.partition("_")[0]]:
            import_module(module)
    gc.collect()
    gc.freeze()
    gc.disable()
    for name in names:
        kind = OPERATIONS[name]
        calls = kind.counted_calls * (2 if name in doubled else 1)
        processes = []
        for times in (calls, 2 * calls) * repeats:
            processes.append(forked(kind, times))
            _, status = os.waitpid(processes[-1], 0)
            if status:
                raise RuntimeError(f"{name} ended with status {status}")
        tell({"name": name, "processes": processes, "calls": kind.counted_calls})


def forked(kind: Kind, times: int) -> int:
    """A process that does it so many times; its number."""
    process = os.fork()
    if process:
        return process
    try:
        work = kind.work()
        if kind.warm_calls:
            work(kind.warm_calls)
        work(times)
    except BaseException:
        os._exit(1)
        raise
    os._exit(0)
