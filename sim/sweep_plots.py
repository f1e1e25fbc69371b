"""Pictures of a sweep: which configurations nothing beats in two figures, and what two settings do to one."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sim import plots
from sim.copies import without_copies
from sim.experiments import is_better
from sim.folder import put
from sim.intervals import Interval, interval
from sim.plots import Point

__all__ = ["Point", "heat_map", "pareto", "rests_on", "save"]


def pareto(points: Sequence[Point], x: str, y: str, rests_on: str) -> Figure:
    """All configurations by two figures; those of the front have a name and are joined."""
    less_x, less_y = (is_better(figure, -1.0) for figure in (x, y))
    return plots.pareto(points, x=x, y=y, less_x=less_x, less_y=less_y, rests_on=rests_on)


def heat_map(
    index: pd.DataFrame,
    settings: tuple[str, str],
    values: Mapping[str, Sequence[str]],
    figure: str,
    rests_on: str,
) -> Figure:
    """The mean of a figure for each pair of values of two settings, over the seeds and all else that was swept."""
    down, across = settings
    whole = index[index["error"] == ""]
    names = pd.Index(list(values[down]), name=down)
    heads = pd.Index(list(values[across]), name=across)
    cells, halves = (pd.DataFrame(np.nan, index=names, columns=heads) for _ in range(2))
    for row, one in enumerate(values[down]):
        for column, other in enumerate(values[across]):
            runs = whole[(whole[down] == one) & (whole[across] == other)]
            if len(runs) and not runs[figure].isna().any():
                found = _over_seeds(runs, figure)
                cells.iloc[row, column] = found.mean
                halves.iloc[row, column] = np.nan if found.half_width is None else found.half_width
    return plots.heat_map(
        cells,
        title=f"{down} and {across}",
        unit=figure,
        less=is_better(figure, -1.0),
        halves=halves if halves.notna().to_numpy().any() else None,
        rests_on=rests_on,
    )


def _over_seeds(runs: pd.DataFrame, figure: str) -> Interval:
    """Seed by seed the mean of the combinations, and its interval over those seeds that change anything."""
    by_seed = runs.groupby("seed", sort=True)
    digests = by_seed["digest"].agg(" ".join).tolist()
    return interval(without_copies(by_seed[figure].mean().astype(float).tolist(), digests))


def save(figure: Figure, path: Path) -> None:
    """As PNG, aside and renamed: a picture that has its name is whole."""
    put(path, plots.png(figure))


def rests_on(seeds: Sequence[int], runs: int) -> str:
    """What a picture of a sweep rests on, for its title."""
    named = _told(seeds)
    bars = "bars and +-: 95 % t-intervals of means over seeds" if len(seeds) > 1 else "one seed: no intervals"
    return f"n = {runs} runs, {named}; {bars}"


def _told(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    if seeds and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"seeds {seeds[0]} to {seeds[-1]}"
    return f"{len(seeds)} seeds"
