"""From settings to stores: opened, and what they hold from before taken into the cache's books."""

from collections.abc import Container, Iterable

from engine.cache.cache import PrefixCache
from engine.cache.carrier import MEMORY
from engine.cache.stores import ExtentStore, Found, StoreFault, open_store
from engine.cache.tier import Tier
from engine.errors import BadSettings

VALUE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def open_stores(cache: PrefixCache, *, is_real: bool) -> dict[str, ExtentStore]:
    """The stores behind the tiers, by name. `is_real`: whether there are payloads to store at all.

    Raises BadSettings for a store that is missing, not wanted, in use, or does not answer.
    """
    stores: dict[str, ExtentStore] = {}
    for tier in cache.tiers:
        settings = tier.settings
        where = settings.path or settings.url
        if tier.name in MEMORY:
            continue
        if not is_real and where is not None:
            key = "path" if settings.path else "url"
            raise BadSettings(
                f"tiers.{tier.name}.{key} is {where!r}, but must be null with an executor that makes no KV to store"
            )
        if is_real and where is None:
            key = "path" if tier.name != "cloud" else "url"
            raise BadSettings(
                f"tiers.{tier.name}.{key} is None, but must say where this executor's KV is stored"
            )
    if not is_real:
        return stores
    try:
        for tier in cache.tiers:
            if tier.name not in MEMORY:
                stores[tier.name] = _open(tier)
    except BaseException:
        close_stores(stores)
        raise
    return stores


def close_stores(stores: dict[str, ExtentStore]) -> None:
    """Let others have them."""
    for store in stores.values():
        store.close()


def found_in(store: ExtentStore) -> list[Found]:
    """What a store holds from before, the newest of each block. A store that fails at this is taken for empty."""
    newest: dict[bytes, Found] = {}
    try:
        for found in store.scan():
            known = newest.get(found.key)
            if known is None or known.seq < found.seq:
                newest[found.key] = found
    except StoreFault:
        return []
    return list(newest.values())


def closed(found: Iterable[Found], is_known: Container[bytes]) -> list[Found]:
    """Those that can be reached from the start of their namespace, or from a block that is known; heads first."""
    children: dict[bytes, list[Found]] = {}
    starts: list[Found] = []
    for each in found:
        if each.parent == each.space or each.parent in is_known:
            starts.append(each)
        else:
            children.setdefault(each.parent, []).append(each)
    ordered, line = [], sorted(starts, key=lambda each: -each.seq)
    while line:
        each = line.pop()
        ordered.append(each)
        line += children.pop(each.key, [])
    return ordered


def _open(tier: Tier) -> ExtentStore:
    settings = tier.settings
    try:
        return open_store(
            path=settings.path,
            url=settings.url,
            endpoint=settings.endpoint,
            timeout_s=settings.timeout_s,
            is_shared=tier.name == "network",
        )
    except StoreFault as error:
        raise BadSettings(f"tiers.{tier.name} cannot be opened: {error}") from error
