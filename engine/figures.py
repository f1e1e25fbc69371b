"""Figures: numbers that parts of the engine count for themselves, for whoever scrapes them."""

from typing import NamedTuple

Values = dict[tuple[str, ...], float]
"""By the values of the labels."""


class Figure(NamedTuple):
    """A number for Prometheus: a counter, or a gauge where it may fall."""

    name: str
    help_text: str
    labels: tuple[str, ...]
    values: Values
    is_gauge: bool = False
