"""What was simulated against what was real: latencies of the same requests, steps of a cost model."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from engine.execution.profile import SHIPPED
from engine.execution.profile_file import Profile, read_profile
from sim.certainty import LATENCIES
from sim.plots.generic import agreement, residuals
from sim.runs import Run

PREFILL, MEDIAN, PREDICTED, HELD_OUT = 0, 3, 4, 5
"""Columns of a profile's points."""


def simulated_against_real(real: Run, simulated: Run) -> Figure:
    """TTFT and E2E of each request that completed in both, with y = x and 5 % to both sides."""
    sides = [run.whole.completed.set_index("request_id") for run in (real, simulated)]
    both = sides[0].index.intersection(sides[1].index, sort=True)
    pairs = {}
    for name in ("ttft", "e2e"):
        one, other = (1e3 * LATENCIES[name](side.loc[both]) for side in sides)
        pairs[name.upper()] = one, other
    engines = " against ".join(
        f"{run.manifest['executor']}, seed {run.manifest['seed']}" for run in (simulated, real)
    )
    return agreement(pairs, unit="ms", rests_on=f"{real.name}: n={len(both)} requests, {engines}")


def profile_residuals(profile: Profile | Path | str | None = None) -> Figure:
    """What steps took when a profile was measured over what it says of them; those held out were never fitted.

    None: the profile that comes with the package. Raises BadSettings for a file that is none.
    """
    if profile is None:
        profile = min(SHIPPED.glob("*.json"))
    if not isinstance(profile, Profile):
        profile = read_profile(profile)
    points = np.array(profile.points, dtype=np.float64).reshape(-1, HELD_OUT + 1)
    groups = {}
    for is_held_out, when in ((0, "fitted"), (1, "held out")):
        for has_prefill, what in ((False, "decode"), (True, "prefill")):
            rows = points[(points[:, HELD_OUT] == is_held_out) & ((points[:, PREFILL] > 0) == has_prefill)]
            groups[f"{what}, {when}"] = rows[:, PREDICTED] / 1e6, rows[:, MEDIAN] / 1e6
    error = profile.errors.get("held_out", {}).get("mean_abs")
    told = "" if error is None else f"; mean error of those held out {100 * error:.1f} %"
    where = f"{profile.model} on {profile.machine.get('processor', 'a machine')}"
    rests_on = (
        f"{where}, n={len(points)} points, fitted by seed {profile.measured.get('fitted_by_seed', '?')}{told}"
    )
    return residuals(
        groups, unit="ms", title="Steps: what they took over what the profile says", rests_on=rests_on
    )
