"""Chance: one random stream for each named source, so that adding a source moves no other one."""

from collections.abc import Callable
from hashlib import sha256
from itertools import chain, repeat

import numpy as np

DRAWN_AT_ONCE = 4_096


def stream(seed: int, name: str) -> np.random.Generator:
    """The generator of the source called `name` in a run with this `seed` (>= 0).

    The key comes from the name, not from the order of asking: `SeedSequence.spawn` would move every later
    stream when one is added in the middle. The same seed and name give the same bits in every process.
    """
    key = tuple(sha256(name.encode()).digest())
    return np.random.Generator(np.random.PCG64DXSM(np.random.SeedSequence(seed, spawn_key=key)))


def draws(seed: int, name: str) -> Callable[[], float]:
    """What draws the next number of that stream, uniform in [0, 1). 20 ns a call, where a generator takes 300."""
    source = stream(seed, name)
    return chain.from_iterable(source.random(DRAWN_AT_ONCE).tolist() for _ in repeat(None)).__next__
