"""From settings to stores: opened, and what they hold from before taken into the cache's books."""

from engine.cache.cache import PrefixCache
from engine.cache.carrier import MEMORY
from engine.cache.stores import ExtentStore, StoreFault, open_store
from engine.cache.tier import Tier
from engine.errors import BadSettings


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
