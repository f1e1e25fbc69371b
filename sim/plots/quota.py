"""How much of their limits models and tenants use, and in which mode that puts them."""

from collections.abc import Iterator

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sim.plots.bins import binned, points_of
from sim.plots.frame import COLOURS, Frame, Look, colour, of_run, steps, style
from sim.runs import Run

SUBJECT = "quota of "
CONCURRENT = "concurrent_requests"
MODES = {"warning": "#F0E442", "throttled": "#E69F00", "limited": "#D55E00", "emergency": "#CC79A7"}
"""The degradation modes, from mild to severe, and their colours."""
MOST_SUBJECTS = 6
NORMAL = "normal"


def quota_use(run: Run) -> Figure:
    """Shares of limits that are used, with soft limits as lines and degradation modes as bands; below, who waits."""
    subjects, more = subjects_of(run)
    left_out = f" ({len(subjects)} of {len(subjects) + more})" if more else ""
    waits = _most_waiting(run) > 0
    frame = Frame(f"Use of quotas{left_out}", of_run(run), max(1, len(subjects) + waits))
    frame.over_time(run)
    for subject, axes in zip(subjects, frame.panels, strict=False):
        _draw_use(run, axes, subject)
        frame.mark(run, axes, named=axes is frame.panels[0])
    if waits:
        _draw_line(run, frame.panels[-1])
    if not subjects and not waits:
        frame.say(frame.panels[0], "no limit was set, and nobody waited")
    return frame.done()


def no_quotas(run: Run) -> str | None:
    """Why there is nothing to see in `quota_use`."""
    if _has_limits(run) or _most_waiting(run) > 0:
        return None
    return "no limit was set beyond concurrent requests, and nobody waited for those"


def subjects_of(run: Run) -> tuple[list[str], int]:
    """Models and tenants with limits, the most used first, and how many more there are."""
    values, most = run.timeseries["value"].to_numpy(), dict[str, float]()
    limited = _has_limits(run)
    for (subject, kind), rows in run.series.items():
        if subject.startswith(SUBJECT) and (kind != CONCURRENT or not limited):
            most[subject] = max(most.get(subject, 0.0), float(values[rows].max()))
    ordered = sorted(most, key=lambda subject: (-most[subject], subject))
    return ordered[:MOST_SUBJECTS], max(0, len(ordered) - MOST_SUBJECTS)


def _has_limits(run: Run) -> bool:
    """Whether there are others than on concurrent requests, which a model always has."""
    return any(subject.startswith(SUBJECT) and kind != CONCURRENT for subject, kind in run.series)


def bands_of(run: Run, name: str) -> Iterator[tuple[float, float, str]]:
    """From when to when a model or tenant was in which degradation mode, that of the whole service included."""
    facts = run.facts
    rows = facts[(facts["kind"] == "mode_changed") & facts["subject"].isin([name, ""])]
    begun: dict[str, tuple[float, str]] = {}
    for at_ns, subject, mode in rows[["at_ns", "subject", "detail"]].itertuples(index=False):
        if subject in begun:
            begin_s, before = begun.pop(subject)
            yield begin_s, at_ns / 1e9, before
        if mode != NORMAL:
            begun[subject] = (at_ns / 1e9, mode)
    for begin_s, mode in begun.values():
        yield begin_s, float(run.manifest["virtual_s"]), mode


def _draw_use(run: Run, axes: Axes, subject: str) -> None:
    name = subject.removeprefix(SUBJECT)
    for begin_s, end_s, mode in bands_of(run, name):
        axes.axvspan(
            begin_s, end_s, color=MODES.get(mode, "#BBBBBB"), alpha=0.35, linewidth=0, zorder=0, label=mode
        )
    for share in run.config.get("quotas", {}).get("soft_limits") or []:
        axes.axhline(100 * share, color="#555555", linewidth=0.7, linestyle=":", label="soft limits")
    axes.axhline(100, color="black", linewidth=1, linestyle="--", label="limit")
    kinds = sorted(kind for of, kind in run.series if of == subject)
    used = 0.0
    for index, kind in enumerate(kinds):
        times_s, values = points_of(run, subject, kind)
        edges, _, peaks = binned(times_s, values)
        look: Look = {"color": colour(index), "linestyle": style(index), "linewidth": 1.4}
        steps(axes, 100 * peaks[0], edges, outline=True, label=kind.replace("_", " "), **look)
        used = max(used, 100 * float(values.max(initial=0.0)))
    axes.set_ylim(0, max(108.0, 1.05 * used))
    axes.set_ylabel(f"{name or 'all'}\nused, %", fontsize=9)
    axes.yaxis.set_major_locator(MaxNLocator(4))


def _draw_line(run: Run, axes: Axes) -> None:
    """Who is served and who waits for a place."""
    times_s, values = points_of(run, "quota", "in_service", "waiting")
    edges, means, _ = binned(times_s, values)
    for index, name in enumerate(("in service", "waiting")):
        look: Look = {"color": COLOURS[index], "linestyle": style(index), "label": name}
        steps(axes, means[index], edges, outline=True, linewidth=1.4, **look)
    axes.set_ylabel("all models\nrequests", fontsize=9)
    axes.set_ylim(0, None)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))


def _most_waiting(run: Run) -> float:
    _, values = points_of(run, "quota", "waiting")
    return float(values.max(initial=0.0))
