"""Chance: one random stream for each named source, so that adding a source moves no other one."""

from hashlib import sha256

import numpy as np


def stream(seed: int, name: str) -> np.random.Generator:
    """The generator of the source called `name` in a run with this `seed` (>= 0).

    The key comes from the name, not from the order of asking: `SeedSequence.spawn` would move every later
    stream when one is added in the middle. The same seed and name give the same bits in every process.
    """
    key = tuple(sha256(name.encode()).digest())
    return np.random.Generator(np.random.PCG64DXSM(np.random.SeedSequence(seed, spawn_key=key)))
