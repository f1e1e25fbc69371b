"""Who serves: filter, pick, fall back."""

from engine.routing.router import Route, Router
from engine.routing.strategies import Replica, Strategy, strategy

__all__ = ["Replica", "Route", "Router", "Strategy", "strategy"]
