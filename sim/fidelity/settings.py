"""What a comparison of simulation and reality is asked to do, read from the command line and checked at the door."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from engine.errors import BadSettings
from engine.settings import above, at_least, require
from sim.config import typed
from sim.fidelity.cases import CASES

LEAST_YARD_S = 0.02  # more often it would take more of the machine than what it measures

QUICK = {
    "cases": ["poisson70"],
    "requests": 150,
    "repeats": 3,
    "profile_s": 10.0,
    "calibration_requests": 60,
    "capacity_requests": 60,
}
"""What `quick=true` means for whatever is not given."""


@dataclass(slots=True, kw_only=True)
class Protocol:
    """How long and how often the real system runs beside the simulated one, and where the evidence goes.

    `minutes`, all that goes before included, are divided between the real runs, unless `requests` says how many each
    has. A calibration run takes as long as the run beside it, unless `calibration_requests` says how many requests
    it has: a shorter one would tell less of the machine than is asked of it. Each real run is simulated `draws`
    times, with chances of its own: what is compared is the mean of these. `simulated` is the executor of the
    simulated side. `profile` is a file that `python -m sim.profile` has written; without one, each model is measured
    for `profile_s` first. Each `yard_every_s` the yardstick is taken, which tells the simulation how fast the machine
    is. `overrides` are lines as `python -m sim` takes them, and hold for both sides.
    """

    minutes: float = 20.0
    repeats: int = 5
    requests: int | None = None
    capacity_requests: int = 150
    calibration_requests: int | None = None
    draws: int = 8
    simulated: str = "profile"
    profile: str | None = None
    profile_s: float = 20.0
    yard_every_s: float = 0.04  # 0: never
    max_schedule_delay: float = 0.02  # its p99, as a share of the mean latency
    folder: str = "fidelity"
    resume: str | None = None
    plots: bool = True
    overrides: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("minutes", "profile_s", "max_schedule_delay"):
            above(name, getattr(self, name), 0)
        is_rare = self.yard_every_s == 0 or self.yard_every_s >= LEAST_YARD_S
        require("yard_every_s", self.yard_every_s, is_rare, f"0, or at least {LEAST_YARD_S:g}")
        at_least("repeats", self.repeats, 2)
        at_least("draws", self.draws, 1)
        if self.requests is not None:
            at_least("requests", self.requests, 1)
        at_least("capacity_requests", self.capacity_requests, 20)
        if self.calibration_requests is not None:
            at_least("calibration_requests", self.calibration_requests, 20)


@dataclass(slots=True, kw_only=True)
class FidelitySettings(Protocol):
    """Which cases are compared. A cell whose noise floor is above `max_floor` marks passes nothing."""

    cases: list[str] = field(default_factory=lambda: list(CASES))
    max_floor: float = 2.0  # marks
    quick: bool = False

    def __post_init__(self) -> None:
        Protocol.__post_init__(self)
        require("cases", self.cases, len(self.cases) > 0, f"some of {', '.join(CASES)}")
        for name in self.cases:
            require("cases", name, name in CASES, f"some of {', '.join(CASES)}")
        above("max_floor", self.max_floor, 0)


def read(arguments: Sequence[str]) -> FidelitySettings:
    """The settings of a command line; what is not one of ours is an override of the run's. Raises BadSettings."""
    values = given_for(FidelitySettings, ["quick=true" if each == "--quick" else each for each in arguments])
    if values.get("quick") is True:
        values = {**QUICK, **values}
    return typed(FidelitySettings, values, "fidelity")


def given_for(cls: type[Protocol], arguments: Sequence[str]) -> dict[str, Any]:
    """What a command line says of the settings of `cls`; the rest of it are overrides. Raises BadSettings."""
    for argument in arguments:
        if "=" not in argument:
            raise BadSettings(f"{argument!r} is no setting: write SETTING=VALUE")
    names = {each.name: each for each in fields(cls) if each.name != "overrides"}
    own = [each for each in arguments if each.split("=")[0] in names]
    try:
        given = OmegaConf.to_container(OmegaConf.from_dotlist(own))
    except (OmegaConfBaseException, ValueError) as error:
        raise BadSettings(" ".join(str(error).split())) from error
    assert isinstance(given, dict)
    values = {str(name): value for name, value in given.items()}
    for name, value in values.items():
        if isinstance(value, str) and str(names[name].type).startswith("list"):
            values[name] = value.split(",")
    return {**values, "overrides": [each for each in arguments if each not in own]}
