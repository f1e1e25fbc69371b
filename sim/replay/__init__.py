"""Replay: traffic run through the cache alone, without an engine around it, and what the cache found."""

from sim.replay.bounds import clairvoyant, endless
from sim.replay.compare import Comparison, ReplaySettings, compare
from sim.replay.outcome import Outcome
from sim.replay.reference import replay_reference
from sim.replay.replay import replay

__all__ = [
    "Comparison",
    "Outcome",
    "ReplaySettings",
    "clairvoyant",
    "compare",
    "endless",
    "replay",
    "replay_reference",
]
