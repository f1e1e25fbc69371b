"""Chance in a run: the engine's named streams, under the name that the simulator's modules know them by."""

from engine.chance import stream

__all__ = ["stream"]
