"""The prefix cache: KV blocks found by the hash of all that leads up to them."""

from engine.cache.blocks import BlockChain, namespace
from engine.cache.cache import Prefix, PrefixCache
from engine.cache.eviction import Eviction, eviction

__all__ = ["BlockChain", "Eviction", "Prefix", "PrefixCache", "eviction", "namespace"]
