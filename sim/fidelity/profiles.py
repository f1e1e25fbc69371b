"""Cost models for the simulated side: a profile that is given, or one of each model measured just before."""

from pathlib import Path

from engine.settings import EngineSettings, ExecutorSettings
from sim.fidelity.live import Machine
from sim.fidelity.server import MeasureJob
from sim.fidelity.steps import FITTED, models_of

PROFILE = "profile"
"""The executor that runs by a profile."""

MEANS_ONLY = {"spread": False, "copies": False}
"""What a profile says here: the mean of a step. Its spread and what copying out takes come from calibration runs."""

Models = dict[str, ExecutorSettings]


def cost_models(
    machine: Machine,
    settings: EngineSettings,
    simulated: str,
    given: str | None,
    budget_s: float,
    folder: Path,
) -> Models:
    """An executor for each model of the fleet that has a replica; none where calibration runs make them.

    Profiles are measured on the core that serves, `budget_s` for each model, and kept in `folder`.
    Raises BadSettings.
    """
    names = models_of(settings)
    if simulated == FITTED:
        return {}
    if simulated != PROFILE:
        return {name: ExecutorSettings(name=simulated) for name in names}
    made: Models = {}
    for name in names:
        path = Path(given) if given is not None else folder / f"{name}.json"
        if given is None and not path.exists():
            machine.measure(MeasureJob(settings=settings, model=name, budget_s=budget_s, path=str(path)))
        made[name] = ExecutorSettings(name=PROFILE, options={"path": str(path), **MEANS_ONLY})
    return made
