"""`python -m sim.gate.worker TASK`: what a gate measures, in a process of its own; one line of JSON a result.

Not for people: `sim.gate` starts it, in an environment that is the same everywhere, and under valgrind to count.
"""

import json
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

Tell = Callable[[dict[str, Any]], None]

TASKS = {
    "runs": "sim.gate.runs",
    "kept": "sim.gate.kept",
    "count": "sim.gate.counting",
    "ratios": "sim.gate.timing",
    "absolute": "sim.gate.timing",
}
"""Where each stands: who counts instructions must not import what the others need."""


def tell(result: dict[str, Any]) -> None:
    """To whoever listens, at once."""
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Do the task of the command line."""
    task: dict[str, Any] = json.loads(sys.argv[1])
    kind = task.pop("task")
    do: Callable[..., None] = getattr(import_module(TASKS[kind]), kind)
    do(tell, **task)


if __name__ == "__main__":
    main()
