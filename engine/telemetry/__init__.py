"""What happened, told once: one event type per fact, and sinks that do something with it."""

from engine.telemetry.events import (
    Admitted,
    Arrived,
    Asked,
    AttemptLost,
    Content,
    Ended,
    Event,
    Evicted,
    FellBack,
    HealthChanged,
    HttpAnswered,
    ModeChanged,
    ModelMoved,
    Preempted,
    PrefixFound,
    Routed,
    RouterChanged,
    SoftLimitPassed,
    StoreFailed,
)
from engine.telemetry.jsonlog import JsonLines
from engine.telemetry.meter import Meter, render
from engine.telemetry.own import OwnCounts
from engine.telemetry.served import Objective
from engine.telemetry.telemetry import Sink, Story, Telemetry

__all__ = [
    "Admitted",
    "Arrived",
    "Asked",
    "AttemptLost",
    "Content",
    "Ended",
    "Event",
    "Evicted",
    "FellBack",
    "HealthChanged",
    "HttpAnswered",
    "JsonLines",
    "Meter",
    "ModeChanged",
    "ModelMoved",
    "Objective",
    "OwnCounts",
    "Preempted",
    "PrefixFound",
    "Routed",
    "RouterChanged",
    "Sink",
    "SoftLimitPassed",
    "StoreFailed",
    "Story",
    "Telemetry",
    "render",
]
