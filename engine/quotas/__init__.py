"""The guard: how much of the fleet one model may use at a time."""

from engine.quotas.concurrency import ConcurrencyQuota, Grant

__all__ = ["ConcurrencyQuota", "Grant"]
