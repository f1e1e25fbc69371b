"""What the cache has to tell of itself: hits, moves and bytes by model, tenant and tier, and what it would regret."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, NamedTuple

from engine.cache.cache import TICK_NS, PrefixCache
from engine.cache.carrier import Carrier
from engine.cache.holders import Space
from engine.clock import NS_PER_S
from engine.figures import Figure, Values


class SharedPrefix(NamedTuple):
    """A prefix that many requests read. `saved_ns` is what computing it for each of them would have taken."""

    model: str
    tenant: str
    key: str
    tokens: int
    reads: int
    saved_tokens: int
    saved_ns: int


def jain_index(shares: list[float]) -> float | None:
    """(sum x)^2 / (k sum x^2): 1 when all k parts are equal, 1/k when one has everything (Jain et al., 1984)."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else None


def tables(cache: PrefixCache, carrier: Carrier | None = None) -> dict[str, Any]:
    """All figures, ready for JSON. Ratios are those of `docs/cache.md`; None where nothing was asked for.

    Jain's index is over the models' token hit ratios, `worst_model` the least of them.
    """
    names = [tier.name for tier in cache.tiers]
    by_model = {model: _ratios(spaces, names) for model, spaces in _by_model(cache).items()}
    asked = {
        model: row["token_hit_ratio"] for model, row in by_model.items() if row["token_hit_ratio"] is not None
    }
    worst = min(asked, key=lambda model: (asked[model], model), default=None)
    found: dict[str, Any] = {
        "all": _ratios(list(cache.spaces.values()), names),
        "by_model": by_model,
        "by_tenant": {tenant: _ratios(spaces, names) for tenant, spaces in _by_tenant(cache).items()},
        "jain_index_of_models": jain_index(list(asked.values())),
        "worst_model": worst,
        "worst_model_token_hit_ratio": asked.get(worst) if worst is not None else None,
        "tiers": {
            tier.name: {
                "capacity_bytes": tier.capacity_bytes,
                "used_bytes": tier.used_bytes,
                "copied_bytes": tier.copied_bytes,
                "blocks": tier.num_blocks,
                "by_model_bytes": {holder.key: holder.held_bytes[tier.rank] for holder in cache.holders},
                "compression_ratio": _compression(cache, tier.rank),
            }
            for tier in cache.tiers
        },
        "evicted_then_wanted": {
            model: {"count": count, "mean_gap_s": ticks * TICK_NS / NS_PER_S / count}
            for model, (count, ticks) in sorted(cache.wanted_again.items())
        },
        "lossy_blocks": len(cache.lossy),
        "models": {
            holder.key: {"block_bytes": holder.block_bytes, "recompute_ns": holder.recompute_ns}
            for holder in cache.holders
        },
        "regret": _regret(cache),
        "most_shared_prefixes": [each._asdict() for each in most_shared(cache)],
    }
    if carrier is not None:
        found["decisions"] = asdict(carrier.tally)
        found["ways"] = {
            tier.name: {
                "reads": way.num_reads,
                "read_bytes": way.read_bytes,
                "writes": way.num_writes,
                "written_bytes": way.written_bytes,
                "queued_bytes": way.queued_bytes,
                "waited_s": way.waited_ns / NS_PER_S,
            }
            for tier, way in zip(cache.tiers, carrier.ways, strict=True)
        }
    return found


def most_shared(cache: PrefixCache, count: int = 10) -> list[SharedPrefix]:
    """The resident prefixes that saved most: those where ways part, or where requests ended, read at least twice.

    O(blocks): for a report, not for every scrape.
    """
    table = cache.table
    depth: dict[int, int] = {0: 0}
    reads: dict[int, int] = {}
    most: dict[int, int] = {}  # the reads of each block's most read child
    slots = list(table.slots.values())  # who comes first in a chain comes first here
    for slot in slots:
        depth[slot] = depth[table.parent[slot]] + 1
    for slot in reversed(slots):
        total = reads[slot] = reads.get(slot, 0) + table.reads[slot]
        parent = table.parent[slot]
        reads[parent] = reads.get(parent, 0) + total
        most[parent] = max(most.get(parent, 0), total)
    ends = [slot for slot in slots if reads[slot] > max(1, most.get(slot, 0))]
    ends.sort(key=lambda slot: (-reads[slot] * depth[slot], table.keys[slot]))
    found = []
    for slot in ends[:count]:
        space, key = cache.space_of(slot), table.keys[slot]
        assert key is not None
        saved = reads[slot] * depth[slot]
        found.append(
            SharedPrefix(
                space.holder.key,
                space.tenant,
                key.hex(),
                depth[slot] * cache.block_tokens,
                reads[slot],
                saved * cache.block_tokens,
                round(saved * space.holder.recompute_ns),
            )
        )
    return found


def figures(cache: PrefixCache, carrier: Carrier) -> Iterator[Figure]:
    """What a scrape gets, a sum over all tenants. They are no label: their number has no bound."""
    labels = ("model_name", "tier")
    stats = {model: [space.stats for space in found] for model, found in _by_model(cache).items()}
    for name, help_text in (
        ("hit_tokens", "Prompt tokens found, by the tier in which they were."),
        ("evicted_blocks", "Blocks gone for good, by the tier in which they were."),
        ("demoted_blocks", "Blocks sent down, by the tier to which they went."),
        ("promoted_blocks", "Blocks brought up, by the tier from which they came."),
    ):
        values: Values = {
            (model, tier.name): sum([getattr(each, name)[rank] for each in found])
            for model, found in stats.items()
            for rank, tier in enumerate(cache.tiers)
        }
        yield Figure(f"modelyard:cache_{name}", help_text, labels, values)
    asked: Values = {
        (model,): float(sum([each.prompt_tokens for each in found])) for model, found in stats.items()
    }
    yield Figure(
        "modelyard:cache_prompt_tokens", "Prompt tokens that the cache was asked for.", ("model_name",), asked
    )
    held: Values = {(each.key, tier.name): 0.0 for each in cache.holders for tier in cache.tiers}
    for each in cache.holders:
        for tier in cache.tiers:
            held[each.key, tier.name] += int(each.held_bytes[tier.rank])
    yield Figure("modelyard:cache_bytes", "What a model holds of a tier.", labels, dict(held), is_gauge=True)
    yield from _divided(cache)
    yield from _tiers(cache)
    usage: Values = {
        (tier.name,): tier.used_bytes / tier.capacity_bytes for tier in cache.tiers if tier.capacity_bytes
    }
    yield Figure(
        "vllm:kv_cache_usage_perc",
        "The part of a tier that is in use; 1 is all.",
        ("tier",),
        usage,
        is_gauge=True,
        largest=True,
    )
    tally: Values = {(name,): float(value) for name, value in asdict(carrier.tally).items()}
    yield Figure("modelyard:cache_decisions", "Load or compute, and what became of it.", ("outcome",), tally)
    ways = [(tier.name, way) for tier, way in zip(cache.tiers, carrier.ways, strict=True)]
    moved: Values = {(name, "read"): float(way.read_bytes) for name, way in ways}
    moved |= {(name, "write"): float(way.written_bytes) for name, way in ways}
    yield Figure(
        "modelyard:cache_transfer_bytes", "Bytes over the way to a tier.", ("tier", "direction"), moved
    )
    waited: Values = {(name,): way.waited_ns / NS_PER_S for name, way in ways}
    yield Figure(
        "modelyard:cache_transfer_wait_seconds",
        "How long transfers waited.",
        ("tier",),
        waited,
    )
    again: Values = {(model,): float(count) for model, (count, _) in cache.wanted_again.items()}
    yield Figure("modelyard:cache_evicted_then_wanted", "Evicted too early.", ("model_name",), again)


def _divided(cache: PrefixCache) -> Iterator[Figure]:
    """What models are sure of where tiers are divided, and what they hold beyond it; guests are sure of nothing."""
    sure: Values = {}
    borrowed: Values = {}
    for tier in cache.tiers:
        for part in tier.parts:
            if part.holder is not None:
                names = (part.holder.key, tier.name)
                beyond = int(part.holder.held_bytes[tier.rank]) - part.sure_bytes
                sure[names] = sure.get(names, 0.0) + part.sure_bytes
                borrowed[names] = borrowed.get(names, 0.0) + max(0, beyond)
    labels = ("model_name", "tier")
    yield Figure(
        "modelyard:cache_sure_bytes", "What a model cannot lose to others.", labels, sure, is_gauge=True
    )
    yield Figure(
        "modelyard:cache_borrowed_bytes", "What it holds beyond that.", labels, borrowed, is_gauge=True
    )


def _tiers(cache: PrefixCache) -> Iterator[Figure]:
    """How large tiers are, how full, and whether anything new comes to them."""
    tiers, label = cache.tiers, ("tier",)
    used: Values = {(tier.name,): float(tier.used_bytes) for tier in tiers}
    capacity: Values = {(tier.name,): float(tier.capacity_bytes) for tier in tiers}
    is_open: Values = {(tier.name,): float(tier.is_open) for tier in tiers}
    yield Figure("modelyard:cache_tier_bytes", "What lies in a tier.", label, used, is_gauge=True)
    yield Figure("modelyard:cache_capacity_bytes", "What a tier holds.", label, capacity, is_gauge=True)
    yield Figure(
        "modelyard:cache_tier_open", "0: closed after faults of its store.", label, is_open, is_gauge=True
    )


def _by_model(cache: PrefixCache) -> dict[str, list[Space]]:
    found: dict[str, list[Space]] = {}
    for space in cache.spaces.values():
        found.setdefault(space.holder.key, []).append(space)
    return found


def _by_tenant(cache: PrefixCache) -> dict[str, list[Space]]:
    found: dict[str, list[Space]] = {}
    for space in cache.spaces.values():
        found.setdefault(space.tenant, []).append(space)
    return found


def _ratios(spaces: list[Space], names: list[str]) -> dict[str, Any]:
    """The hit ratios of some namespaces together, and what became of their blocks."""
    stats = [space.stats for space in spaces]
    requests, tokens = sum(each.requests for each in stats), sum(each.prompt_tokens for each in stats)
    blocks = sum(each.prompt_blocks for each in stats)
    by_tier = {
        name: {
            column: sum(getattr(each, column)[rank] for each in stats)
            for column in ("hit_tokens", "hit_blocks", "evicted_blocks", "demoted_blocks", "promoted_blocks")
        }
        for rank, name in enumerate(names)
    }
    hit_tokens = sum(row["hit_tokens"] for row in by_tier.values())
    hit_blocks = sum(row["hit_blocks"] for row in by_tier.values())
    hits = sum(each.request_hits for each in stats)
    return {
        "requests": requests,
        "prompt_tokens": tokens,
        "token_hit_ratio": hit_tokens / tokens if tokens else None,
        "block_hit_ratio": hit_blocks / blocks if blocks else None,
        "request_hit_ratio": hits / requests if requests else None,
        "inserted_blocks": sum(each.inserted_blocks for each in stats),
        "refused_blocks": sum(each.refused_blocks for each in stats),
        "by_tier": by_tier,
    }


def _regret(cache: PrefixCache) -> dict[str, Any] | None:
    """What plain LRU and a clairvoyant cache of the same size would have found, blocks taken for equally large."""
    if not len(cache) or not cache.used_bytes:
        return None
    found = cache.sample.regret(cache.capacity_bytes * len(cache) / cache.used_bytes)
    return None if found is None else found._asdict()


def _compression(cache: PrefixCache, rank: int) -> float | None:
    """How many times smaller a tier's blocks are than as they were made; None for an empty one."""
    tier = cache.tiers[rank]
    made = sum(
        cache.space_of(slot).holder.raw_bytes
        for slot in cache.table.slots.values()
        if cache.table.home[slot] == rank or slot in tier.copies
    )
    return made / tier.used_bytes if tier.used_bytes else None
