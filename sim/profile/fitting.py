"""Fitting: costs of the terms from most of the grid, and how well they tell the rest of it."""

from collections.abc import Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt

from engine.errors import BadSettings
from engine.execution.profile_file import Profile
from engine.execution.terms import TERMS, Floats
from sim.least_squares import non_negative
from sim.profile.points import Points
from sim.streams import stream

HELD_OUT = 0.3
LEAST_POINTS = 10
MOST_RATIOS = 256
DIGITS = 7  # of what is written: fewer than matter, so that a file can be read
ROUNDS = 8
TUNING = 1.345  # of Huber's weights: 95 % as good as least squares where errors are normal
MAD_TO_SIGMA = 1.4826

Truths = npt.NDArray[np.bool_]


def fit(points: Points, seed: int) -> Profile:
    """The cost model of what was measured. Raises BadSettings where that is too little.

    A point is the median of its steps, each divided by how much slower than usual the yardstick was at the time.
    `HELD_OUT` of the points, drawn by `seed`, are never fitted. The others give the costs: the non-negative ones with
    the least relative errors, where a point far off counts less (Huber, Robust Estimation of a Location Parameter,
    Ann. Math. Statist. 35, 1964); and the ratios, of every step that was measured to what is predicted of it.
    """
    cells, steps = even_steps(points)
    if len(cells) < LEAST_POINTS:
        raise BadSettings(
            f"{len(cells)} points were measured, but a fit needs at least {LEAST_POINTS}: raise budget_s"
        )
    rows = np.array([points.counts[cell] for cell in cells], dtype=np.float64)
    medians = np.array([np.median(each) for each in steps])
    is_held_out = held_out(len(cells), seed)
    costs = robust_costs(rows[~is_held_out], medians[~is_held_out])
    costs_ns = {name: rounded(cost) for name, cost in zip(TERMS, costs, strict=True)}
    predicted = rows @ np.array([*costs_ns.values()])
    has_prefill = rows[:, list(TERMS).index("prefill_step")] > 0
    ratios = [
        pooled([steps[n] / predicted[n] for n in np.flatnonzero(~is_held_out & chosen)])
        for chosen in (has_prefill, ~has_prefill)
    ]
    table = [
        [*points.cells[cell][:3], rounded(median), rounded(told), int(held)]
        for cell, median, told, held in zip(cells, medians, predicted, is_held_out, strict=True)
    ]
    return Profile(
        model=points.model,
        shape=points.shape,
        weights=points.weights,
        weights_bytes=points.weights_bytes,
        kv_capacity_tokens=points.kv_capacity_tokens,
        kv_value_bytes=points.kv_value_bytes,
        kv_bytes_per_token=points.kv_bytes_per_token,
        costs_ns=costs_ns,
        prefill_ratios=ratios[0] or ratios[1],
        decode_ratios=ratios[1] or ratios[0],
        errors=errors_by_part(predicted / medians - 1, is_held_out, has_prefill),
        copies=points.copies,
        load_s={name: rounded(took) for name, took in points.load_s.items()},
        machine=points.machine,
        measured=points.measured
        | {"points": len(cells), "steps": sum(map(len, steps)), "held_out": HELD_OUT, "fitted_by_seed": seed}
        | {"drift": rounded(drift(points)), "noise": rounded(noise(points))},
        points=table,
    )


def even_steps(points: Points) -> tuple[list[int], list[Floats]]:
    """The cells that were measured, and the steps of each as they would be were the machine always equally fast."""
    found: dict[int, list[Floats]] = {}
    for visit, slowness in zip(points.visits, slownesses(points), strict=True):
        found.setdefault(visit.cell, []).append(np.array(visit.durations_ns, dtype=np.float64) / slowness)
    cells = sorted(found)
    return cells, [np.concatenate(found[cell]) for cell in cells]


def slownesses(points: Points) -> list[float]:
    """How much slower than usual the yardstick was at each visit: the median of it and its neighbours in time."""
    yards = [each.yard_ns for each in points.visits]
    near = [float(np.median([*chain(*yards[max(0, n - 1) : n + 2])])) for n in range(len(yards))]
    usual = float(np.median(near)) if near else 1.0
    return [each / usual for each in near]


def drift(points: Points) -> float:
    """How far the middle half of that lies apart: how restless the machine was."""
    low, high = np.quantile(slownesses(points), [0.25, 0.75])
    return float(high - low)


def noise(points: Points) -> float:
    """How uncertain a point is in the mean, as a share: the deviation of its visits by the root of their number.

    What is predicted cannot be nearer to the points than that. 0 where no cell was visited twice.
    """
    visits: dict[int, list[float]] = {}
    for visit, slowness in zip(points.visits, slownesses(points), strict=True):
        visits.setdefault(visit.cell, []).append(float(np.median(visit.durations_ns)) / slowness)
    again = [np.array(each) for each in visits.values() if len(each) > 1]
    shares = [each.std(ddof=1) / each.mean() / len(each) ** 0.5 for each in again]
    return float(np.mean(shares)) if shares else 0.0


def held_out(count: int, seed: int) -> Truths:
    """Which of so many points are kept from the fit."""
    chosen = np.zeros(count, dtype=bool)
    chosen[stream(seed, "profile.held_out").permutation(count)[: round(HELD_OUT * count)]] = True
    return chosen


def robust_costs(rows: Floats, values: Floats) -> Floats:
    """Non-negative costs with the least relative errors, of which large ones count less."""
    shares, ones = rows / values[:, None], np.ones(len(values))
    weights = ones
    for _ in range(ROUNDS):
        costs = non_negative(shares * weights[:, None], ones * weights)
        misses = np.abs(shares @ costs - 1)
        scale = TUNING * MAD_TO_SIGMA * float(np.median(misses))
        if scale <= np.finfo(float).eps:
            break
        weights = np.sqrt(np.minimum(1.0, scale / np.maximum(misses, scale)))
    return costs


def pooled(parts: Sequence[Floats]) -> list[float]:
    """The ratios in rising order; of very many, as many that stand for equal shares of them."""
    if not parts:
        return []
    pool = np.sort(np.concatenate(parts))
    if len(pool) > MOST_RATIOS:
        pool = np.quantile(pool, (np.arange(MOST_RATIOS) + 0.5) / MOST_RATIOS)
    return [rounded(each) for each in pool]


def errors_by_part(errors: Floats, is_held_out: Truths, has_prefill: Truths) -> dict[str, dict[str, float]]:
    """How far off predictions are: of points that were held out, and of those among them with and without prefill."""
    chosen = {
        "held_out": is_held_out,
        "held_out_prefill": is_held_out & has_prefill,
        "held_out_decode": is_held_out & ~has_prefill,
        "fitted": ~is_held_out,
    }
    return {name: summary(errors[which]) for name, which in chosen.items() if which.any()}


def summary(errors: Floats) -> dict[str, float]:
    """Signed errors as the figures that a profile tells."""
    sizes = np.abs(errors)
    found = {
        "points": float(len(errors)),
        "mean_abs": sizes.mean(),
        "p50_abs": np.quantile(sizes, 0.5),
        "p90_abs": np.quantile(sizes, 0.9),
        "max_abs": sizes.max(),
        "mean_signed": errors.mean(),
        "lowest": errors.min(),
        "highest": errors.max(),
    }
    return {name: rounded(value) for name, value in found.items()}


def rounded(value: float) -> float:
    """As many digits as are worth writing."""
    return float(f"{float(value):.{DIGITS}g}")
