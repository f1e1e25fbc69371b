"""A day of ordinary traffic: what the engine holds does not grow from hour to hour, and the cache is no worse."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

import numpy as np
import pandas as pd

from engine.clock import NS_PER_S
from engine.settings import above, at_least, require
from sim import metrics, told
from sim.checks import Check, all_completed, at_most, evidence
from sim.footprint import Footprint, footprint
from sim.intervals import Interval, t_quantile
from sim.runs import Run
from sim.stage import Stage
from sim.stats import Floats

HOUR_S = 3600.0
LEAST_POINTS = 8


@dataclass
class Settings:
    """How long it goes on, how often somebody looks, and what may change in an hour."""

    name: str
    hours: float
    warm_share: float
    look_every_s: float
    max_drift: float
    max_growth: float
    max_in_flight: int
    min_requests: int

    def __post_init__(self) -> None:
        for name in ("hours", "look_every_s", "max_drift", "max_growth"):
            above(f"scenario.{name}", getattr(self, name), 0)
        require("scenario.warm_share", self.warm_share, 0 <= self.warm_share < 1, "at least 0 and below 1")
        for name in ("max_in_flight", "min_requests"):
            at_least(f"scenario.{name}", getattr(self, name), 1)

    @property
    def warm_s(self) -> float:
        return self.warm_share * self.hours * HOUR_S


def script(stage: Stage, s: Settings) -> None:
    for number in range(1, ceil(s.hours * HOUR_S / s.look_every_s) + 1):
        stage.act(number * s.look_every_s, footprint)


def checks(run: Run, s: Settings) -> Iterator[Check]:
    seen_hours = metrics.duration_s(run.requests) / HOUR_S
    yield evidence("hours of traffic", seen_hours, 0.95 * s.hours, f"n={run.whole.count}")
    yield all_completed(run.whole)
    yield drift(run, s)
    looks = pd.DataFrame(told.events(run.path, Footprint.kind))
    warm = looks[looks["at_ns"] >= s.warm_s * NS_PER_S] if len(looks) else looks
    for column, what in (("objects", "live objects"), ("bytes", "live bytes")):
        yield growth(warm, column, what, s)
    most = int(looks["in_flight"].max()) if len(looks) else None
    yield at_most(
        "requests in flight when somebody looked, at most", most, s.max_in_flight, f"{len(looks)} looks"
    )
    left = run.manifest["in_flight"]
    yield at_most("requests in flight at the end", left, 0)


def drift(run: Run, s: Settings) -> Check:
    """By how much the hit ratio changes in an hour, over equal stretches once it is warm."""
    rows = run.after(s.warm_s).completed
    stretch = (rows["arrival_ns"] // round(s.look_every_s * NS_PER_S)).to_numpy(dtype=int)
    points = []
    for number in np.unique(stretch).tolist():
        of_it = rows[stretch == number]
        ratio = metrics.token_hit_ratio(of_it)
        if len(of_it) >= s.min_requests and ratio is not None:
            points.append(((number + 0.5) * s.look_every_s / HOUR_S, float(len(of_it)), ratio))
    hours, load, ratios = np.array(points).reshape(-1, 3).T
    note = f"token hit ratio {ratios.mean():.3f}" if len(ratios) else ""
    return bounded("drift of the hit ratio, an hour", hours, load, ratios, s.max_drift, note)


def growth(looks: pd.DataFrame, column: str, what: str, s: Settings) -> Check:
    """By how much of its size that grows in an hour, in the same way; to shrink is no leak."""
    name = f"growth of {what}, an hour, as a share"
    if len(looks) < LEAST_POINTS:
        return at_most(name, None, s.max_growth, f"{len(looks)} looks")
    hours = (looks["at_ns"] / NS_PER_S / HOUR_S).to_numpy(dtype=float)
    load, values = looks["sessions"].to_numpy(dtype=float), looks[column].to_numpy(dtype=float)
    note = f"{values[0]:,.0f} at first, {values[-1]:,.0f} at last"
    return bounded(name, hours, load, values / values.mean(), s.max_growth, note, is_growth=True)


def bounded(
    name: str,
    hours: Floats,
    load: Floats,
    values: Floats,
    limit: float,
    note: str,
    *,
    is_growth: bool = False,
) -> Check:
    """A slope is at most so steep: up and down, or up only. Undecided where its interval goes on both sides."""
    if len(hours) < LEAST_POINTS:
        return at_most(name, None, limit, f"{len(hours)} points")
    found = slope(hours, load, values)
    steep = found.mean if is_growth else abs(found.mean)
    half_width = found.half_width or 0.0
    verdict = "inconclusive"
    if steep + half_width <= limit:
        verdict = "pass"
    elif steep - half_width > limit:
        verdict = "fail"
    return Check(name, steep, "<=", limit, verdict, f"{note}; slope {found.mean:+.2g} +-{half_width:.2g}")


def slope(hours: Floats, load: Floats, values: Floats) -> Interval:
    """The change an hour by least squares, beside what the load explains, which is another at noon than at night."""
    columns = [np.ones(len(hours)), hours]
    if load.std() > 0:
        columns.append(load / load.mean())
    design = np.stack(columns, axis=1)
    inverse = np.linalg.pinv(design.T @ design)
    fitted = inverse @ design.T @ values
    degrees = len(values) - design.shape[1]
    residual = float(((values - design @ fitted) ** 2).sum()) / degrees
    return Interval(float(fitted[1]), t_quantile(degrees) * float(residual * inverse[1, 1]) ** 0.5)
