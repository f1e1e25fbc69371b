"""The engine's own cache under a trace: what it decides about each request, in order of arrival."""

import numpy as np

from engine.cache import PrefixCache, Space
from engine.cache.blocks import KEY_BYTES
from engine.settings import GIB, CacheSettings, TierSettings
from sim.replay.outcome import Outcome
from sim.traffic import Chains

BLOCK_BYTES = 65_536
LOOKS = 256
"""So often, evenly over a trace, what each model holds is noted."""

WEIGHTS_ID = "replay"


def unit_cache(capacity_blocks: int, block_tokens: int, **settings: object) -> PrefixCache:
    """A cache of one tier for so many blocks of BLOCK_BYTES; `settings` are those of CacheSettings.

    Raises BadSettings or UnknownName.
    """
    tier = TierSettings(gib=capacity_blocks * BLOCK_BYTES / GIB)
    return PrefixCache(CacheSettings(block_tokens=block_tokens, ram=tier, **settings))  # type: ignore[arg-type]


def replay(chains: Chains, cache: PrefixCache, *, block_bytes: int = BLOCK_BYTES) -> Outcome:
    """Look up every prompt, then keep its chain, at the time of its arrival: answers take none.

    Names of blocks serve as keys as they are. About 35 us a request of 35 blocks.
    """
    assert cache.block_tokens == chains.block_tokens, "the cache's blocks are those of the trace"
    spaces = [cache.space(model, WEIGHTS_ID, "", block_bytes) for model in chains.models]
    hits = np.zeros((len(chains), max(1, len(cache.tiers))), np.int32)
    held = np.zeros(len(spaces))
    every = -(-len(chains) // LOOKS)
    columns = (chains.arrival_ns, chains.model, chains.prompt_tokens, chains.prompt_blocks)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    for index, (now_ns, model, prompt_tokens, prompt_blocks) in enumerate(rows):
        keys = [block.to_bytes(KEY_BYTES, "big") for block in chains.chain(index)]
        with cache.find(spaces[model], keys[:prompt_blocks], prompt_tokens, now_ns) as prefix:
            hits[index] = prefix.blocks_by_tier
        cache.keep(spaces[model], keys, now_ns=now_ns)
        if index % every == 0:
            held += _held(spaces)
    evictions = sum(sum(space.stats.evicted_blocks) for space in spaces)
    return Outcome(chains=chains, hits=hits, evictions=evictions, held=held / -(-len(chains) // every))


def _held(spaces: list[Space]) -> list[float]:
    """What part of all that is held is each model's."""
    held = [int(sum(space.held_bytes)) for space in spaces]
    total = sum(held)
    return [part / total if total else 0.0 for part in held]
