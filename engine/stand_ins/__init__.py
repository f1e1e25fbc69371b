"""Small stand-ins of real models on disk: the same architectures, names and file formats, weights from a seed.

Discovery, loading and inference take the path of real weights; what the stand-ins say is babble, and always the same.
"""

from engine.stand_ins.designs import REFERENCE, StandIn, designs
from engine.stand_ins.writing import make_stand_ins

__all__ = ["REFERENCE", "StandIn", "designs", "make_stand_ins"]
