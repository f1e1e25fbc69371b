"""What a comparison of simulation and reality is asked to do, read from the command line and checked at the door."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from engine.errors import BadSettings
from engine.settings import above, at_least, require
from sim.config import typed
from sim.fidelity.cases import CASES

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
class FidelitySettings:
    """Which cases, how long and how often the real system runs, and where the evidence goes.

    `minutes`, all that goes before included, are divided between the cases and their `repeats`, unless `requests`
    says how many each run has. `simulated` is the executor of the simulated side. `profile` is a file that
    `python -m sim.profile` has written; without one, each model is measured for `profile_s` first. A cell whose noise
    floor is above `max_floor` marks passes nothing. `overrides` are lines as `python -m sim` takes them, and hold for
    both sides.
    """

    cases: list[str] = field(default_factory=lambda: list(CASES))
    minutes: float = 20.0
    repeats: int = 5
    requests: int | None = None
    capacity_requests: int = 150
    calibration_requests: int = 90
    simulated: str = "profile"
    profile: str | None = None
    profile_s: float = 20.0
    max_floor: float = 2.0  # marks
    max_schedule_delay: float = 0.02  # its p99, as a share of the mean latency
    folder: str = "fidelity"
    resume: str | None = None
    plots: bool = True
    quick: bool = False
    overrides: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        require("cases", self.cases, len(self.cases) > 0, f"some of {', '.join(CASES)}")
        for name in self.cases:
            require("cases", name, name in CASES, f"some of {', '.join(CASES)}")
        for name in ("minutes", "profile_s", "max_floor", "max_schedule_delay"):
            above(name, getattr(self, name), 0)
        at_least("repeats", self.repeats, 2)
        if self.requests is not None:
            at_least("requests", self.requests, 1)
        for name in ("capacity_requests", "calibration_requests"):
            at_least(name, getattr(self, name), 20)


OWN = tuple(each.name for each in fields(FidelitySettings) if each.name != "overrides")


def read(arguments: Sequence[str]) -> FidelitySettings:
    """The settings of a command line; what is not one of ours is an override of the run's. Raises BadSettings."""
    arguments = ["quick=true" if each == "--quick" else each for each in arguments]
    for argument in arguments:
        if "=" not in argument:
            raise BadSettings(f"{argument!r} is no setting: write SETTING=VALUE")
    own = [each for each in arguments if each.split("=")[0] in OWN]
    try:
        given = OmegaConf.to_container(OmegaConf.from_dotlist(own))
    except (OmegaConfBaseException, ValueError) as error:
        raise BadSettings(" ".join(str(error).split())) from error
    assert isinstance(given, dict)
    values = {str(name): value for name, value in given.items()}
    if isinstance(values.get("cases"), str):
        values["cases"] = str(values["cases"]).split(",")
    if values.get("quick") is True:
        values = {**QUICK, **values}
    values["overrides"] = [each for each in arguments if each not in own]
    return typed(FidelitySettings, values, "fidelity")
