"""Cost models: what a model's steps take on this machine, measured, fitted, and held against what was not fitted."""

from sim.profile.fitting import fit
from sim.profile.measuring import measure
from sim.profile.points import Points

__all__ = ["Points", "fit", "measure"]
