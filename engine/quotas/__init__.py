"""The guard: what models, tenants, and both together may use, who waits for it, and how service degrades."""

from engine.quotas.books import Book, Crossing, Ledger, ModeChange
from engine.quotas.quotas import Grant, Quotas, duration

__all__ = ["Book", "Crossing", "Grant", "Ledger", "ModeChange", "Quotas", "duration"]
