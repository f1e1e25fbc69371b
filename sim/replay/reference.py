"""The plainest caches there can be, to compare with: a dict in order of use, or counts of uses. Sizes are equal."""

from collections import OrderedDict
from collections.abc import Callable, Container, Sequence
from heapq import heappop, heappush
from typing import Protocol

import numpy as np

from sim.replay.outcome import Outcome
from sim.traffic import Chains


class Plain(Protocol):
    """A cache of so many blocks. A chain's tail always leaves before its head."""

    evictions: int

    def __len__(self) -> int: ...

    def found(self, blocks: Sequence[int]) -> int:
        """How many of a chain's blocks are there, from its head."""

    def keep(self, blocks: Sequence[int]) -> None:
        """Make all of a chain the last used, and let others leave."""


class PlainLRU:
    """Least recently used leaves first. Chains are touched from the tail, so that heads are the last used."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._line: OrderedDict[int, None] = OrderedDict()
        self.evictions = 0

    def __len__(self) -> int:
        return len(self._line)

    def found(self, blocks: Sequence[int]) -> int:
        return _leading(self._line, blocks)

    def keep(self, blocks: Sequence[int]) -> None:
        line = self._line
        for block in reversed(blocks):
            line[block] = None
            line.move_to_end(block)
        while len(line) > self._capacity:
            line.popitem(last=False)
            self.evictions += 1


class PlainLFU:
    """Least often used leaves first, of those the least recently used; who left is forgotten."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._uses: dict[int, tuple[int, int]] = {}  # how often, and which of all uses was the last
        self._heap: list[tuple[int, int, int]] = []
        self._clock = 0
        self.evictions = 0

    def __len__(self) -> int:
        return len(self._uses)

    def found(self, blocks: Sequence[int]) -> int:
        return _leading(self._uses, blocks)

    def keep(self, blocks: Sequence[int]) -> None:
        for block in reversed(blocks):
            self._clock += 1
            uses = self._uses.get(block, (0, 0))[0] + 1
            self._uses[block] = (uses, self._clock)
            heappush(self._heap, (uses, self._clock, block))
        while len(self._uses) > self._capacity:
            uses, clock, block = heappop(self._heap)
            if self._uses.get(block) == (uses, clock):  # else it was used since
                del self._uses[block]
                self.evictions += 1


def replay_reference(
    chains: Chains,
    capacity_blocks: int,
    make: Callable[[int], Plain] = PlainLRU,
    shares: Sequence[float] | None = None,
) -> Outcome:
    """What such a cache finds; with `shares`, each model has one of its own with its share of the capacity."""
    if shares is None:
        whole = make(capacity_blocks)
        caches = [whole] * len(chains.models)
    else:
        caches = [make(int(capacity_blocks * share)) for share in shares]
    hits = np.zeros((len(chains), 1), np.int32)
    model_of, prompt_blocks = chains.model.tolist(), chains.prompt_blocks.tolist()
    for index, model in enumerate(model_of):
        blocks = chains.chain(index)
        hits[index] = caches[model].found(blocks[: prompt_blocks[index]])
        caches[model].keep(blocks)
    evictions = sum(cache.evictions for cache in {id(cache): cache for cache in caches}.values())
    return Outcome(chains=chains, hits=hits, evictions=evictions, held=np.empty(0))


def _leading(resident: Container[int], blocks: Sequence[int]) -> int:
    count = 0
    for block in blocks:
        if block not in resident:
            return count
        count += 1
    return count
