"""What happened, told once: one event type per fact, and sinks that do something with it."""

from engine.telemetry.events import (
    Admitted,
    Arrived,
    AttemptLost,
    Ended,
    Event,
    HealthChanged,
    ModelMoved,
    Preempted,
    PrefixFound,
    Routed,
    StoreFailed,
)
from engine.telemetry.jsonlog import JsonLines
from engine.telemetry.meter import Meter
from engine.telemetry.telemetry import Sink, Story, Telemetry

__all__ = [
    "Admitted",
    "Arrived",
    "AttemptLost",
    "Ended",
    "Event",
    "HealthChanged",
    "JsonLines",
    "Meter",
    "ModelMoved",
    "Preempted",
    "PrefixFound",
    "Routed",
    "Sink",
    "StoreFailed",
    "Story",
    "Telemetry",
]
