"""How many blocks of memory operations leave behind, results included: `sys.getallocatedblocks` before and after."""

import gc
import sys
from typing import Any

from sim.gate.operations import OPERATIONS, Kind
from sim.gate.worker import Tell

CALLS = 1_000
CALLS_OF_MANY = 20
"""Of operations that only come many at a time, or are long."""


def kept(tell: Tell, names: list[str], doubled: list[str]) -> None:
    """Tell the blocks of each operation."""
    for name in names:
        tell({"name": name, "blocks": blocks(OPERATIONS[name], 2 if name in doubled else 1)})


def blocks(kind: Kind, times: int = 1) -> int:
    """What so many calls leave behind, each `times` over. The result of the last one of each is kept."""
    assert kind.make is not None, "only what is done once has a result"
    operation = kind.make()
    calls = CALLS if kind.warm_calls >= CALLS_OF_MANY else CALLS_OF_MANY
    results: list[Any] = [None] * (calls * times)
    for _ in range(2):  # the second time nothing is done for the first time
        for index in range(calls * times):
            results[index] = operation()
        for index in range(calls * times):
            results[index] = None
    gc.collect()
    gc.disable()
    before = sys.getallocatedblocks()
    for index in range(calls * times):
        results[index] = operation()
    found = sys.getallocatedblocks() - before
    gc.enable()
    return found
