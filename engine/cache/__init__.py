"""The prefix cache: KV blocks found by the hash of all that leads up to them, over up to five tiers."""

from engine.cache.allocation import allocation
from engine.cache.blocks import BlockChain, Chain, Drawn, LineChain, LineNames, Origin, namespace
from engine.cache.cache import Prefix, PrefixCache
from engine.cache.carrier import Carrier, Decision, Packer
from engine.cache.holders import Holder, Space
from engine.cache.names import BlockNames
from engine.cache.opening import close_stores, open_stores
from engine.cache.orders import check_order, orders
from engine.cache.report import figures, most_shared, tables

__all__ = [
    "BlockChain",
    "BlockNames",
    "Carrier",
    "Chain",
    "Decision",
    "Drawn",
    "Holder",
    "LineChain",
    "LineNames",
    "Origin",
    "Packer",
    "Prefix",
    "PrefixCache",
    "Space",
    "allocation",
    "check_order",
    "close_stores",
    "figures",
    "most_shared",
    "namespace",
    "open_stores",
    "orders",
    "tables",
]
