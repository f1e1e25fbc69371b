"""A crowd uses up its limits: the service degrades step by step for it, for nobody else, and comes back by itself."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

import pandas as pd

from engine.clock import NS_PER_S, to_ns
from engine.settings import MODES, above, at_least
from sim import metrics
from sim.checks import Check, at_most, evidence, grown, p99_at_most, within
from sim.checks import at_least as no_less
from sim.runs import Run, Window
from sim.stage import Stage

UP_AND_DOWN = [*MODES, *reversed(MODES[:-1])]
"""The way of a limit that is reached and comes back."""


@dataclass
class Settings:
    """Every number of the story. The spike is that of the workload."""

    name: str
    crowd: str
    spike_at_s: float
    spike_for_s: float
    day_ends_at_s: float
    min_refused: int
    min_books: int
    max_back_after_s: float
    max_p99_growth: float
    max_p99_ttft_s: float
    max_p99_e2e_s: float
    ttft_slo_s: float
    tpot_slo_s: float
    min_goodput_in_spike: float
    min_goodput_after: float

    def __post_init__(self) -> None:
        above("scenario.spike_at_s", self.spike_at_s, 0)
        above("scenario.spike_for_s", self.spike_for_s, 0)
        at_least("scenario.day_ends_at_s", self.day_ends_at_s, self.spike_at_s)
        for name in ("max_p99_growth", "ttft_slo_s", "tpot_slo_s"):
            above(f"scenario.{name}", getattr(self, name), 0)

    @property
    def spike_ends_s(self) -> float:
        return self.spike_at_s + self.spike_for_s


def script(stage: Stage, s: Settings) -> None:
    """Nothing happens but traffic: the crowd is in the workload."""


def checks(run: Run, s: Settings) -> Iterator[Check]:
    offered, rows = int(run.manifest["trace"]["requests"]), run.requests
    refused = rows[rows["outcome"] == "rejected"]
    answered = int((rows["outcome"] == "completed").sum()) + int(refused["reason"].notna().sum())
    told = ", ".join(f"{reason} {count}" for reason, count in refused["reason"].value_counts().items())
    yield at_most("requests neither served nor refused with a reason", offered - answered, 0, f"n={offered}")
    crashed = int(rows["outcome"].isin(["failed", "timed_out", "cancelled"]).sum())
    yield at_most("requests that failed, timed out or were dropped", crashed, 0)
    yield at_most("times that a replica was unhealthy", unhealthy(run), 0)
    yield evidence("requests that were refused", len(refused), s.min_refused, told)
    yield from steps(run, s)
    yield from of_the_others(run, s)
    yield from goodput(run, s)


def unhealthy(run: Run) -> int:
    """How often a replica was found to be unhealthy."""
    return int((run.timeseries["metric"] == "unhealthy").sum())


def steps(run: Run, s: Settings) -> Iterator[Check]:
    """The modes of each limit of the crowd: up one after the other, and back."""
    ways = {book: way for book, way in modes(run).items() if book.endswith(s.crowd)}
    reached = [book for book, way in ways.items() if MODES[-1] in way["detail"].tolist()]
    wrong = {book: path for book, way in ways.items() if not is_in_order(path := ["normal", *way["detail"]])}
    yield evidence(
        "limits of the crowd that were in emergency", len(reached), s.min_books, ", ".join(reached)
    )
    note = next((f"{book}: {' '.join(path)}" for book, path in wrong.items()), " ".join(UP_AND_DOWN))
    yield at_most("limits whose modes came out of order", len(wrong), 0, note)
    back_s = [normal_s(way, s.spike_ends_s) for way in ways.values()]
    late_s = (
        None
        if None in back_s
        else max((each - s.spike_ends_s for each in back_s if each is not None), default=None)
    )
    yield within(
        "all limits back in normal after the spike, s", late_s, s.max_back_after_s, was_due=bool(back_s)
    )
    others = sorted(set(modes(run)) - set(ways))
    yield at_most("other limits that left normal", len(others), 0, ", ".join(others))


def modes(run: Run) -> dict[str, pd.DataFrame]:
    """The changes of mode of each limit, in their order."""
    changes = run.facts[run.facts["kind"] == "mode_changed"]
    return {str(subject): rows for subject, rows in changes.groupby("subject", sort=True)}


def normal_s(way: pd.DataFrame, from_s: float) -> float | None:
    """When a limit was first in normal from then on; None where it never was."""
    before = way[way["at_ns"] < to_ns(from_s)]
    if before.empty or before["detail"].iloc[-1] == MODES[0]:
        return from_s
    back = way[(way["at_ns"] >= to_ns(from_s)) & (way["detail"] == MODES[0])]
    return None if back.empty else int(back["at_ns"].iloc[0]) / NS_PER_S


def is_in_order(path: list[str]) -> bool:
    """Whether each step is to the mode beside the one before."""
    places = [MODES.index(mode) for mode, _ in groupby(path)]
    return all(abs(after - before) == 1 for before, after in pairwise(places))


def of_the_others(run: Run, s: Settings) -> Iterator[Check]:
    """Those who are not the crowd: nobody refused, and as quick as without it, on the same requests."""
    mine = innocent(run.between(s.spike_at_s, s.spike_ends_s), s)
    refused = innocent(run.whole, s).not_completed
    yield at_most("requests of others that were not served", refused, 0, f"n={innocent(run.whole, s).count}")
    calm_runs = run.beside.get("calm", [])
    calm = (
        innocent(calm_runs[0].between(s.spike_at_s, s.spike_ends_s), s)
        if calm_runs
        else Window(run.requests[:0])
    )
    for name, floor_s, values, before in (
        ("TTFT", s.max_p99_ttft_s, mine.ttft_s, calm.ttft_s),
        ("E2E", s.max_p99_e2e_s, mine.e2e_s, calm.e2e_s),
    ):
        without = metrics.percentile(before, 99)
        check = p99_at_most(
            f"p99 {name} of others in the spike, s", values, grown(before, s.max_p99_growth, floor_s)
        )
        told = "-" if without is None else f"{without:.4g}"
        verdict = check.verdict if len(before) or check.verdict == "pass" else "inconclusive"
        yield replace(check, verdict=verdict, note=f"{check.note}; without the crowd {told}")


def innocent(window: Window, s: Settings) -> Window:
    """Its requests that are not the crowd's."""
    return Window(window.requests[window.requests["tenant"] != s.crowd])


def goodput(run: Run, s: Settings) -> Iterator[Check]:
    """Requests a second that met the objectives: while the crowd is there, and afterwards, against before."""
    before = good_per_s(run, 0.0, s.spike_at_s, s)
    during = good_per_s(run, s.spike_at_s, s.spike_ends_s, s)
    back_s = s.spike_ends_s + s.max_back_after_s
    last_s = int(run.requests["arrival_ns"].max()) / NS_PER_S if len(run.requests) else 0.0
    after = good_per_s(run, back_s, last_s, s) if last_s > back_s else None
    for name, rate, least in (
        ("in the spike", during, s.min_goodput_in_spike),
        ("after it", after, s.min_goodput_after),
    ):
        ratio = rate / before if before and rate is not None else None
        note = (
            f"{before or 0:.4g} requests/s before"
            if rate is None
            else f"{rate:.4g} requests/s, {before:.4g} before"
        )
        yield no_less(f"goodput {name}, times that before", ratio, least, note)


def good_per_s(run: Run, begin_s: float, end_s: float, s: Settings) -> float | None:
    """Of the requests that ended in that time, those within both objectives, a second; None where there are none."""
    ended_ns = run.requests["finished_ns"]
    rows = run.requests[(ended_ns >= to_ns(begin_s)) & (ended_ns < to_ns(end_s))]
    share = metrics.slo_attainment(rows, s.ttft_slo_s, s.tpot_slo_s)
    return None if share is None else share * len(rows) / (end_s - begin_s)
