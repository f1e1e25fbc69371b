"""What is asked for: the objective, the prices, and how much may be simulated."""

import os
from dataclasses import dataclass, field
from typing import Any

from engine.errors import BadSettings
from engine.settings import TIERS, above, at_least, require
from sim.config import choices
from sim.experiments import whole_number

TTFT, TPOT, BOTH = "ttft", "tpot", "both"
NUMBERS = ("ttft_s", "tpot_s", "percentile", "attainment")
COUNTS = ("budget", "seeds", "verify", "workers")
ASSUMED = 2.0
"""An hour of an accelerator, where nothing is said of it."""


@dataclass(slots=True, kw_only=True)
class Prices:
    """What an hour costs, in any one currency: of an accelerator, and of a GiB in each tier.

    `hardware` are those of accelerators that are not the same, by the choices of `hardware=`. The defaults are
    assumptions, so that there is an order among candidates without any; they are nobody's offer.
    """

    accelerator: float | None = None
    """Of whatever hardware has no price of its own; None is ASSUMED."""
    hardware: dict[str, float] = field(default_factory=dict)
    gpu: float = 0.02
    ram: float = 0.005
    ssd: float = 0.0002
    network: float = 0.0004
    cloud: float = 0.00005

    def __post_init__(self) -> None:
        for name, value in self.told().items():
            require(f"price.{name}", value, 0 <= value < float("inf"), "at least 0")

    def told(self) -> dict[str, float]:
        """All of them by name."""
        tiers = {name: float(getattr(self, name)) for name in TIERS}
        return {"accelerator": self.of(None), **self.hardware, **tiers}

    def of(self, hardware: str | None) -> float:
        """That of an accelerator."""
        if hardware in self.hardware:
            return self.hardware[hardware]
        return ASSUMED if self.accelerator is None else self.accelerator


@dataclass(frozen=True, slots=True)
class Goal:
    """A share of all requests that must have a latency within its limit; one that is not served has none."""

    name: str
    share: float
    ttft_s: float | None = None
    tpot_s: float | None = None

    @property
    def told(self) -> str:
        """The goal in words."""
        limits = [(TTFT, self.ttft_s), (TPOT, self.tpot_s)]
        parts = [f"{name.upper()} within {limit_s:g} s" for name, limit_s in limits if limit_s is not None]
        return f"{100 * self.share:.4g} % of all requests with {' and '.join(parts)}"


@dataclass(slots=True, kw_only=True)
class AdviceSettings:
    """The objective and the search. Raises BadSettings."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    percentile: float | None = None
    attainment: float | None = None
    budget: int = 100
    seeds: int = 3
    verify: int = 5
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    prices: Prices = field(default_factory=Prices)

    def __post_init__(self) -> None:
        if self.ttft_s is None and self.tpot_s is None:
            raise BadSettings("no objective is given; give one with ttft_s=SECONDS, tpot_s=SECONDS, or both")
        for name in ("ttft_s", "tpot_s"):
            limit_s = getattr(self, name)
            if limit_s is not None:
                above(name, limit_s, 0)
        if self.percentile is not None and self.attainment is not None:
            raise BadSettings(
                "percentile and attainment are two ways to say how many requests count; give one of them"
            )
        if self.attainment is not None:
            require("attainment", self.attainment, 0 < self.attainment <= 1, "a share, above 0 and at most 1")
        elif self.percentile is not None:
            require("percentile", self.percentile, 0 < self.percentile < 100, "above 0 and below 100")  # noqa: PLR2004
        at_least("seeds", self.seeds, 2)
        at_least("verify", self.verify, 2)
        at_least("workers", self.workers, 1)
        least = self.seeds + self.verify
        require("budget", self.budget, self.budget >= least, f"at least seeds + verify, {least}")

    @property
    def goals(self) -> list[Goal]:
        """One for each limit with a percentile; one for both together with an attainment."""
        if self.attainment is not None:
            return [Goal(BOTH, self.attainment, self.ttft_s, self.tpot_s)]
        share = (99.0 if self.percentile is None else self.percentile) / 100
        goals = [Goal(TTFT, share, ttft_s=self.ttft_s), Goal(TPOT, share, tpot_s=self.tpot_s)]
        return [goal for goal in goals if goal.ttft_s is not None or goal.tpot_s is not None]


def settings_of(own: dict[str, str]) -> AdviceSettings:
    """The settings of a command line. Raises BadSettings."""
    given: dict[str, Any] = {name: whole_number(name, own[name]) for name in COUNTS if name in own}
    given |= {name: number(name, own[name]) for name in NUMBERS if name in own}
    kinds, hardware = ("accelerator", *TIERS), choices("hardware")
    prices: dict[str, float] = {}
    for name, value in own.items():
        if name.startswith("price."):
            kind = name.removeprefix("price.")
            allowed = f"one of {', '.join(kinds)}; or of {', '.join(hardware)}"
            require("price", kind, kind in (*kinds, *hardware), allowed)
            prices[kind] = number(name, value)
    of_hardware = {kind: prices.pop(kind) for kind in hardware if kind in prices}
    return AdviceSettings(**given, prices=Prices(**prices, hardware=of_hardware))


def number(name: str, text: str) -> float:
    """Raises BadSettings for what is none."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if value != value:  # noqa: PLR0124  not a number
        raise BadSettings(f"{name} is {text!r}, but must be a number")
    return value
