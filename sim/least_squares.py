"""Least squares whose solution has no negative number: costs are none."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

TOLERANCE = 1e-10
ROUNDS_A_COLUMN = 10


def non_negative(rows: Floats, values: Floats) -> Floats:
    """The x >= 0 for which |rows x - values| is least: the active-set method of Lawson and Hanson.

    (Solving Least Squares Problems, 1974, chapter 23.) Columns are scaled to length 1 first, so that it does not
    matter in which units they are. A column of zeros gets 0. Deterministic.
    """
    count = rows.shape[1]
    sizes = np.sqrt((rows**2).sum(axis=0))
    scaled = np.divide(rows, sizes, out=np.zeros_like(rows), where=sizes > 0)
    bound = TOLERANCE * max(1.0, float(np.linalg.norm(values)))
    found, is_free = np.zeros(count), np.zeros(count, dtype=bool)
    for _ in range(ROUNDS_A_COLUMN * max(1, count)):
        gains = scaled.T @ (values - scaled @ found)
        gains[is_free] = -np.inf
        best = int(gains.argmax()) if count else 0
        if not count or gains[best] <= bound:
            break
        is_free[best] = True
        found = _settled(scaled, values, found, is_free)
    costs: Floats = np.divide(found, sizes, out=np.zeros(count), where=sizes > 0)
    return costs


def _settled(rows: Floats, values: Floats, found: Floats, is_free: npt.NDArray[np.bool_]) -> Floats:
    """The best of the free columns, after those have gone back to 0 that would be negative."""
    while True:
        wanted = np.zeros(len(found))
        wanted[is_free] = np.linalg.lstsq(rows[:, is_free], values, rcond=None)[0]
        if (wanted[is_free] > 0).all():
            return wanted
        blocked = is_free & (wanted <= 0)
        steps = found[blocked] / np.maximum(found[blocked] - wanted[blocked], np.finfo(float).tiny)
        found = found + min(1.0, float(steps.min())) * (wanted - found)
        is_free[blocked & (found <= TOLERANCE)] = False
        found[~is_free] = 0.0


def relative(rows: Floats, values: Floats) -> Floats:
    """The x >= 0 that makes the sum of squared relative errors of `values` (> 0) least."""
    return non_negative(rows / values[:, None], np.ones(len(values)))
