"""All known models, loaded or not, and how their replicas are doing."""

from engine.registry.health import Health, HealthMonitor
from engine.registry.registry import Registry

__all__ = ["Health", "HealthMonitor", "Registry"]
