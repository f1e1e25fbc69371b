"""Who serves: name, arm, session, strategy, fall back."""

from engine.routing.decisions import Candidate, Choice, replay
from engine.routing.router import Attempts, Router, RouterChange, check_strategy
from engine.routing.seats import Seat, Tools
from engine.routing.strategies import Costed, Strategy, strategy
from engine.routing.targets import Targets, Walk

__all__ = [
    "Attempts",
    "Candidate",
    "Choice",
    "Costed",
    "Router",
    "RouterChange",
    "Seat",
    "Strategy",
    "Targets",
    "Tools",
    "Walk",
    "check_strategy",
    "replay",
    "strategy",
]
