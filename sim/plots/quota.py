"""How much of their limits models and tenants use, and in which mode that puts them."""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from engine.clock import NS_PER_S
from engine.settings import QuotaSettings
from sim.plots.bins import binned, points_of
from sim.plots.frame import Frame, Look, colour, of_run, round_ticks, steps, style
from sim.runs import Run

SUBJECT = "quota of "
CONCURRENT = "concurrent_requests"
MODES = {"warning": "#F0E442", "throttled": "#E69F00", "limited": "#D55E00", "emergency": "#CC79A7"}
"""The degradation modes, from mild to severe, and their colours."""
MOST_SUBJECTS = 6
NORMAL = "normal"
SEVERITY = (NORMAL, *MODES)
OTHERS = "*"
TICKS = (0, 25, 50, 75, 100)


def quota_use(run: Run) -> Figure:
    """Shares of limits that are used, with soft limits as lines and degradation modes as bands; below, who waits."""
    subjects, more = subjects_of(run)
    left_out = f" ({len(subjects)} of {len(subjects) + more})" if more else ""
    kinds = sorted({kind for of, kind in run.series if of in subjects})
    waits = _most_waiting(run) > 0
    frame = Frame(f"Use of quotas{left_out}", of_run(run), max(1, len(subjects) + waits))
    frame.over_time(run)
    for subject, axes in zip(subjects, frame.panels, strict=False):
        _draw_use(run, axes, subject, kinds)
        frame.mark(run, axes, named=axes is frame.panels[0])
    if waits:
        _draw_line(run, frame.panels[-1], len(kinds))
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
    """From when to when a model or tenant was in which degradation mode: the severest of those that it is under.

    These are its own and that of the whole service; for the tenants without a rule of their own, which have one
    series together ("*"), those of all of them.
    """
    facts = run.facts[run.facts["kind"] == "mode_changed"]
    named = {subject.removeprefix(SUBJECT) for subject, _ in run.series}
    modes: dict[str, str] = {}
    begin_s, before = 0.0, NORMAL
    for at_ns, whose, mode in facts[["at_ns", "subject", "detail"]].itertuples(index=False):
        if whose in (name, "") or (OTHERS in name and fnmatchcase(whose, name) and whose not in named):
            modes[whose] = mode
            now = max(modes.values(), key=SEVERITY.index)
            if now != before:
                if before != NORMAL:
                    yield begin_s, at_ns / NS_PER_S, before
                begin_s, before = at_ns / NS_PER_S, now
    if before != NORMAL:
        yield begin_s, float(run.manifest["virtual_s"]), before


def soft_limits(run: Run) -> Sequence[float]:
    """Shares of a limit that are told when they are passed: as set, or as the engine has them."""
    given = run.config.get("quotas", {}).get("soft_limits")
    return QuotaSettings().soft_limits if given is None else list(given)


def _draw_use(run: Run, axes: Axes, subject: str, kinds: Sequence[str]) -> None:
    """`kinds`: of limits in all panels, so that each has one colour."""
    name = subject.removeprefix(SUBJECT)
    for begin_s, end_s, mode in bands_of(run, name):
        axes.axvspan(
            begin_s, end_s, color=MODES.get(mode, "#BBBBBB"), alpha=0.35, linewidth=0, zorder=0, label=mode
        )
    for share in soft_limits(run):
        axes.axhline(100 * share, color="#555555", linewidth=0.7, linestyle=":", label="soft limits")
    axes.axhline(100, color="black", linewidth=1, linestyle="--", label="limit")
    used = 0.0
    for index, kind in enumerate(kinds):
        if (subject, kind) not in run.series:
            continue
        times_s, values = points_of(run, subject, kind)
        edges, _, peaks = binned(times_s, values)
        look: Look = {"color": colour(index), "linestyle": style(index), "linewidth": 1.4}
        steps(axes, 100 * peaks[0], edges, outline=True, label=kind.replace("_", " "), **look)
        used = max(used, 100 * float(values.max(initial=0.0)))
    axes.set_ylim(0, max(108.0, 1.05 * used))
    axes.set_ylabel(f"{name.replace(OTHERS, 'any tenant')}\nused, %", fontsize=9)
    axes.set_yticks(TICKS)


def _draw_line(run: Run, axes: Axes, first: int) -> None:
    """Who is served and who waits for a place; `first`: colours that are taken."""
    times_s, values = points_of(run, "quota", "in_service", "waiting")
    edges, means, _ = binned(times_s, values)
    for index, name in enumerate(("in service", "waiting")):
        look: Look = {"color": colour(first + index), "linestyle": style(index), "label": name}
        steps(axes, means[index], edges, outline=True, linewidth=1.4, **look)
    axes.set_ylabel("all models\nrequests", fontsize=9)
    axes.set_ylim(0, None)
    axes.yaxis.set_major_locator(round_ticks(whole=True))


def _most_waiting(run: Run) -> float:
    _, values = points_of(run, "quota", "waiting")
    return float(values.max(initial=0.0))
