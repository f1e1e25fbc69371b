"""All known models, loaded or not: what lies on disk, who is in memory, and how their replicas are doing."""

from engine.registry.discovery import Changes, Discovery, Found, discover, rescan
from engine.registry.health import Health, HealthChange, HealthMonitor
from engine.registry.lifecycle import Hold, Lifecycle
from engine.registry.model import Model
from engine.registry.registry import Registry
from engine.registry.store import Store

__all__ = [
    "Changes",
    "Discovery",
    "Found",
    "Health",
    "HealthChange",
    "HealthMonitor",
    "Hold",
    "Lifecycle",
    "Model",
    "Registry",
    "Store",
    "discover",
    "rescan",
]
