"""Bounds: what no cache can exceed on a trace, and what none of that size can."""

from heapq import heappop, heappush

import numpy as np

from sim.replay.outcome import Outcome
from sim.traffic import Chains
from sim.traffic.chains import Ids


def endless(chains: Chains) -> Outcome:
    """What a cache without end would find: all that was ever left behind. About 3 us a request."""
    seen: set[int] = set()
    hits = np.zeros((len(chains), 1), np.int32)
    prompt_blocks = chains.prompt_blocks.tolist()
    for index in range(len(chains)):
        blocks = chains.chain(index)
        known = _known(seen, blocks)
        hits[index] = min(known, prompt_blocks[index])
        seen.update(blocks[known:])
    return Outcome(chains=chains, hits=hits, evictions=0, held=np.empty(0))


def clairvoyant(chains: Chains, capacity_blocks: int) -> Outcome:
    """What a cache that knows the future finds: whoever is wanted last leaves first (Belady 1966), new or old.

    With blocks of one size nothing finds more. A head is wanted no later than its tail, so tails leave first.
    """
    names, ends = chains.flat()
    wanted = next_wanted(chains, names, ends).tolist()
    resident: dict[int, int] = {}  # block -> the request that wants it next
    heap: list[tuple[int, int, int]] = []
    hits = np.zeros((len(chains), 1), np.int32)
    prompt_blocks, never, evictions, start = chains.prompt_blocks.tolist(), len(chains), 0, 0
    for index, end in enumerate(ends.tolist()):
        blocks = names[start:end].tolist()
        count = 0
        for block in blocks[: prompt_blocks[index]]:
            if block not in resident:
                break
            count += 1
        hits[index] = count
        for place, block in enumerate(blocks):
            at = wanted[start + place]
            if at == never:
                evictions += resident.pop(block, None) is not None
                continue
            resident[block] = at
            heappush(heap, (-at, -place, block))
        while len(resident) > capacity_blocks:
            at, _, block = heappop(heap)
            if resident.get(block) == -at:  # else it was wanted since
                del resident[block]
                evictions += 1
        start = end
    return Outcome(chains=chains, hits=hits, evictions=evictions, held=np.empty(0))


def next_wanted(chains: Chains, names: Ids, ends: Ids) -> Ids:
    """For each block of each chain, the next request whose prompt has it as a full block; len(chains) for none."""
    never = len(chains)
    length = np.diff(ends, prepend=0)
    request = np.repeat(np.arange(len(chains)), length)
    place = np.arange(len(names)) - np.repeat(ends - length, length)
    looks = place < chains.prompt_blocks[request]
    order = np.lexsort((request, names))
    _, group = np.unique(names[order], return_inverse=True)
    # later groups have larger values: a running minimum from behind never leaves a group for a value of the next
    value = group * (never + 1) + np.where(looks, request, never)[order]
    later = np.append(np.minimum.accumulate(value[::-1])[::-1][1:], (len(names) + 1) * (never + 1))
    wanted = np.empty(len(names), np.int64)
    wanted[order] = np.minimum(later - group * (never + 1), never)
    return wanted


def _known(seen: set[int], blocks: list[int]) -> int:
    """How many of a chain's blocks were seen, by bisection: who saw a block saw all before it."""
    low, high = 0, len(blocks)
    while low < high:
        middle = (low + high) // 2
        if blocks[middle] in seen:
            low = middle + 1
        else:
            high = middle
    return low
