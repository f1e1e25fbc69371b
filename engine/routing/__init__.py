"""Who serves: name, arm, session, strategy, fall back."""

from engine.routing.decisions import LOAD, MODEL, NAME, Candidate, Choice, replay
from engine.routing.experiments import Arm, Experiments
from engine.routing.router import Attempts, Router, RouterChange, check_strategy
from engine.routing.seats import Seat, Tools
from engine.routing.strategies import Costed, Strategy, strategy
from engine.routing.targets import Targets, Walk
from engine.routing.timing import DecisionTimer

__all__ = [
    "LOAD",
    "MODEL",
    "NAME",
    "Arm",
    "Attempts",
    "Candidate",
    "Choice",
    "Costed",
    "DecisionTimer",
    "Experiments",
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
