"""What the cache finds, and what its tiers hold."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sim import metrics
from sim.metrics import TIERS, Floats
from sim.plots.bins import binned, counts_of, each_bin, edges_of, points_of
from sim.plots.frame import Frame, Look, colour, of_run, round_ticks, steps, style
from sim.runs import Run

MOST_STEPS, LEAST_STEPS, REQUESTS_A_STEP = 60, 12, 15
"""Of a hit ratio over time: with fewer requests in each, it would jump from request to request."""
MOST_NAMES = 6
OTHERS = "others"
WIDE = 0.1  # of a tier's capacity, below which a panel shows what is held and not the capacity
BYTES_OF = "bytes of "


def hit_ratio_over_time(run: Run) -> Figure:
    """The part of the prompt tokens that the cache had, by model and by tenant: a line for each of the largest."""
    done = run.whole.completed
    names = {kind: len(done[kind].unique()) for kind in ("model", "tenant")}
    kinds = [kind for kind, count in names.items() if count > 1]
    lines = min(MOST_NAMES, max(names.values()))
    edges = edges_of(run, min(MOST_STEPS, max(LEAST_STEPS, len(done) // (REQUESTS_A_STEP * max(1, lines)))))
    title = f"Prompt tokens found in the cache, of the requests that arrived in {each_bin(edges)}"
    frame = Frame(title, of_run(run), max(1, len(kinds)))
    frame.over_time(run)
    for axes, kind in zip(frame.panels, kinds or [""], strict=True):
        for index, (name, rows) in enumerate(largest(done, kind)):
            look: Look = {
                "color": colour(index),
                "linestyle": style(index // 2),
                "label": name,
                "linewidth": 1.4,
            }
            steps(axes, 100 * hit_ratio(rows, edges), edges, outline=True, **look)
        axes.set_ylabel(f"found, %\nby {kind}" if kind else "found, %", fontsize=9)
        axes.set_ylim(-3, 103)  # a line at 0 or 100 is still whole
        frame.mark(run, axes, named=axes is frame.panels[0])
    if not len(done):
        frame.say(frame.panels[0], "no request has completed")
    return frame.done()


def hit_ratio(requests: pd.DataFrame, edges: Floats) -> Floats:
    """Of each bin by arrival; NaN where nothing was asked."""
    prompt = counts_of(requests, edges, requests["prompt_tokens"].to_numpy(dtype=float))
    cached = counts_of(requests, edges, metrics.cached_tokens(requests).astype(float))
    ratio: Floats = np.divide(cached, prompt, out=np.full(len(prompt), np.nan), where=prompt > 0)
    return ratio


def largest(requests: pd.DataFrame, column: str) -> list[tuple[str, pd.DataFrame]]:
    """The requests of each that has the most of them, and of the others together; without a column, all as one."""
    if not column:
        return [("all requests", requests)] if len(requests) else []
    names = requests[column].value_counts().index.tolist()
    first = names if len(names) <= MOST_NAMES else names[: MOST_NAMES - 1]
    parts = [(str(name), requests[requests[column] == name]) for name in first]
    if len(first) < len(names):
        parts.append((f"{len(names) - len(first)} {OTHERS}", requests[~requests[column].isin(first)]))
    return parts


def tier_bytes(run: Run) -> Figure:
    """What each tier of the cache holds, by model on top of each other, below the line of its capacity."""
    tiers = tiers_of(run)
    frame = Frame("What the tiers of the cache hold", of_run(run), max(1, len(tiers)))
    frame.over_time(run)
    if not tiers:
        frame.say(frame.panels[0], "there is no cache")
    models = models_in(run)
    for tier, axes in zip(tiers, frame.panels, strict=False):
        _draw_tier(run, axes, tier, models)
        frame.mark(run, axes, named=axes is frame.panels[0])
    return frame.done()


def tiers_of(run: Run) -> list[str]:
    """The tiers of which there are samples, the fastest first."""
    return [name for name in TIERS if (f"tier {name}", "bytes") in run.series]


def models_in(run: Run) -> list[str]:
    """Whose bytes were seen in a tier, those with the most first."""
    values, most = run.timeseries["value"].to_numpy(), dict[str, float]()
    for (_, metric), rows in run.series.items():
        if metric.startswith(BYTES_OF):
            name = metric.removeprefix(BYTES_OF)
            most[name] = max(most.get(name, 0.0), float(values[rows].max()))
    return sorted((name for name in most if most[name]), key=lambda name: (-most[name], name))


def _draw_tier(run: Run, axes: Axes, tier: str, models: Sequence[str]) -> None:
    named = models[:MOST_NAMES]
    metrics_of = ("bytes", "capacity_bytes", *(BYTES_OF + name for name in named))
    times_s, (held, capacity, *parts) = points_of(run, f"tier {tier}", *metrics_of)
    labels = list(named)
    if (held - sum(parts, np.zeros(len(held))) > 0).any():
        labels.append(f"{len(models) - len(named)} {OTHERS}" if named else "held")
        parts.append(np.maximum(held - sum(parts, np.zeros(len(held))), 0.0))
    most, highest = float(capacity.max(initial=0.0)), float(held.max(initial=0.0))
    is_wide = highest >= WIDE * most
    unit, size = unit_of(most if is_wide else highest)
    edges, means, _ = binned(times_s, np.array([*parts, capacity]))
    below = np.zeros(means.shape[1])
    for index, (name, each) in enumerate(zip(labels, means, strict=False)):
        look: Look = {"color": colour(index), "label": name}
        steps(axes, (below + each) / size, edges, below=below / size, **look)
        below = below + each
    if is_wide and len(edges):
        line: Look = {"color": "black", "linestyle": "--", "linewidth": 1.2, "label": "capacity"}
        steps(axes, means[-1] / size, edges, outline=True, **line)
    elif most:
        text = "capacity {1:.3g} {0}: far above".format(*_said(most))
        place: Look = {"ha": "right", "va": "top", "fontsize": 8, "transform": axes.transAxes}
        axes.text(0.99, 0.95, text, **place)
    axes.set_ylim(0, (1.08 * max(most, highest, 1.0) if is_wide else max(1.25 * highest, 1.0)) / size)
    axes.set_ylabel(f"{tier}, {unit}", fontsize=9)
    axes.yaxis.set_major_locator(round_ticks())


def _said(size_bytes: float) -> tuple[str, float]:
    unit, size = unit_of(size_bytes)
    return unit, size_bytes / size


def unit_of(size_bytes: float) -> tuple[str, float]:
    """The unit in which so many bytes are a number that people read."""
    for unit, size in (("TiB", 2.0**40), ("GiB", 2.0**30), ("MiB", 2.0**20)):
        if size_bytes >= size:
            return unit, size
    return "KiB", 2.0**10
