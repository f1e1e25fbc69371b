"""Choices made otherwise: the same trace again, one decision forced to another replica, the rest by the policy.

Exact, where the times of an executor are modelled: the request that was decided on gets what it would have got, and
so do all others, to whom the router reacts from then on as it would have. Each alternative costs a whole run, so they
are played for a sample of the decisions, side by side in processes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd

from engine.clock import NS_PER_S
from engine.errors import BadSettings
from engine.execution import executors
from engine.request import Request
from engine.routing import Seat
from sim.apart import apart, leave_if_imported
from sim.breakdown import MISSING, column
from sim.config import RunSettings, read
from sim.hindsight import regret
from sim.history import Flags, History, Integers, Places, choices
from sim.intervals import Interval, interval
from sim.runs import no_facts
from sim.stage import Stage
from sim.streams import stream

LEAST_RANKED = 3  # decisions whose ranks say something


@dataclass(frozen=True, slots=True)
class Forced:
    """One decision, and who is chosen whatever the policy says; None: nobody is, and it is the policy's own run."""

    overrides: tuple[str, ...]
    request_id: int = -1
    attempt: int = 0
    replica: str | None = None

    def overrule(self, request: Request, attempt: int, candidates: Sequence[Seat], chosen: Seat) -> Seat:
        """What the router asks."""
        if request.id != self.request_id or attempt != self.attempt:
            return chosen
        return next((seat for seat in candidates if seat.name == self.replica), chosen)


@dataclass(slots=True)
class Replayed:
    """What came of a run in which something was forced: of the request, and of all beside the policy's own run."""

    completed: bool
    e2e_s: float
    saved_by_all_s: float
    """Of the end-to-end times of those that were completed in both."""
    more_completed: int


@dataclass(slots=True)
class Tables:
    """The tables of a run without its folder."""

    config: dict[str, object]
    requests: pd.DataFrame
    decisions: pd.DataFrame
    facts: pd.DataFrame


@dataclass(slots=True)
class Counterfactual:
    """The exact regret of some decisions, beside the estimate of each.

    `table` has a row a decision: request_id, attempt, at_s, chosen, best, reason; regret_e2e_s, which the request
    would have saved with the best replica, 0 where that was the chosen one; estimated_e2e_s; saved_by_all_s, which
    all requests that were completed either way would have saved together, and which may be less than nothing;
    more_completed, how many more would have been completed.
    """

    table: pd.DataFrame
    num_decisions: int
    """From which the sample was drawn."""
    num_runs: int
    mean_regret_e2e_s: Interval
    mean_saved_by_all_s: Interval
    rank_correlation: float | None
    """Spearman's, between exact and estimated regret; None where one of them does not vary."""


def counterfactual(overrides: Sequence[str], sample: int = 20, workers: int = 1) -> Counterfactual:
    """Force a sample of a run's decisions to each other candidate. The same result whatever the number of workers.

    Raises BadSettings before anything runs; also when the run had no decision with an alternative.
    """
    leave_if_imported()
    settings = read(overrides)
    name = settings.engine.executor.name
    if not executors.find(name).is_modelled:
        raise BadSettings(
            f"executor is {name!r}, but must be one whose times are modelled: measured times differ in every run"
        )
    lines = tuple(overrides)
    with _played(settings, Forced(lines)) as stage:
        recorder = stage.recorder
        run = Tables(settings.config, recorder.requests(), recorder.decisions(), no_facts())
    history = History(run)
    made = choices(run, history)
    judged = np.flatnonzero(
        made.is_last & (made.members.sum(axis=1) > 1)[made.among] & history.completed[np.maximum(made.row, 0)]
    )
    if not len(judged):
        raise BadSettings(
            "no decision of the run had an alternative: all pools have one open replica of a model"
        )
    chance = stream(settings.seed, "sample of decisions")
    drawn = np.sort(chance.choice(judged, min(sample, len(judged)), replace=False))
    tasks = [
        Forced(
            lines, int(history.request_id[made.row[place]]), int(made.attempt[place]), history.replicas[code]
        )
        for place in drawn
        for code in np.flatnonzero(made.members[made.among[place]])
        if code != made.chosen[place]
    ]
    own_ns = _spent_ns(history.request_id, history.arrival_ns, history.finished_ns, history.completed)
    table = _table(run, drawn, tasks, apart(partial(_replay, own_ns=own_ns), tasks, workers))
    return Counterfactual(
        table,
        len(judged),
        1 + len(tasks),
        interval(table["regret_e2e_s"].tolist()),
        interval(table["saved_by_all_s"].tolist()),
        _spearman(table["regret_e2e_s"], table["estimated_e2e_s"]),
    )


def _replay(forced: Forced, own_ns: Integers) -> Replayed:
    """Play the run in which that is forced; `own_ns` is what was spent in the policy's own."""
    with _played(read(forced.overrides), forced) as stage:
        columns = stage.recorder.columns
        ids, arrival_ns, finished_ns = (
            columns[name].values() for name in ("request_id", "arrival_ns", "finished_ns")
        )
        completed = columns["outcome"].values() == "completed"
    (row,) = np.flatnonzero(ids == forced.request_id)
    spent_ns = _spent_ns(ids, arrival_ns, finished_ns, completed)
    both = (own_ns != MISSING) & (spent_ns != MISSING)
    return Replayed(
        bool(completed[row]),
        float(finished_ns[row] - arrival_ns[row]) / NS_PER_S,
        int((own_ns - spent_ns)[both].sum()) / NS_PER_S,
        int((spent_ns != MISSING).sum() - (own_ns != MISSING).sum()),
    )


def _spent_ns(ids: Integers, arrival_ns: Integers, finished_ns: Integers, completed: Flags) -> Integers:
    """The end-to-end time of each request in the order of their numbers; MISSING of who was not completed."""
    spent_ns = np.where(completed, finished_ns.astype(np.int64) - arrival_ns, MISSING)
    found: Integers = spent_ns[np.argsort(ids, kind="stable")]
    return found


@contextmanager
def _played(settings: RunSettings, forced: Forced) -> Iterator[Stage]:
    """A stage on which the whole run was played, without a folder."""
    routing = replace(settings.engine.routing, decision_log=1.0)  # decisions are made with care then
    engine = replace(settings.engine, routing=routing)
    stage = Stage(engine, settings.draw(), settings.report.sample_every_s)
    try:
        for number, timed in enumerate(settings.faults):
            stage.at(timed.at_s, timed.fault, f"faults[{number}].replica")
        settings.story.script(stage, settings.scenario)
        if forced.replica is not None:
            stage.engine.router.overrule = forced.overrule
        stage.play()
        yield stage
    finally:
        stage.close()


def _table(run: Tables, drawn: Places, tasks: Sequence[Forced], replayed: Sequence[Replayed]) -> pd.DataFrame:
    """A row a decision, from the runs of its alternatives."""
    estimates = regret(run).set_index(["request_id", "attempt"])["regret_e2e_s"]
    own_ns = column(run.requests, "finished_ns") - column(run.requests, "arrival_ns")
    found: dict[tuple[int, int], list[tuple[Forced, Replayed]]] = {}
    for task, played in zip(tasks, replayed, strict=True):
        found.setdefault((task.request_id, task.attempt), []).append((task, played))
    rows = []
    whole_s = dict(
        zip(column(run.requests, "request_id").tolist(), (own_ns / NS_PER_S).tolist(), strict=True)
    )
    for place in drawn:
        decision = run.decisions.iloc[place]
        key = (int(decision["request_id"]), int(decision["attempt"]))
        e2e_s, chosen = whole_s[key[0]], str(decision["chosen"])
        best_s, best, saved_s, more = e2e_s, chosen, 0.0, 0
        for task, played in found[key]:
            if played.completed and played.e2e_s < best_s:
                best_s, best = played.e2e_s, str(task.replica)
                saved_s, more = played.saved_by_all_s, played.more_completed
        rows.append(
            {
                "request_id": key[0],
                "attempt": key[1],
                "at_s": decision["at_ns"] / NS_PER_S,
                "chosen": chosen,
                "best": best,
                "reason": decision["reason"],
                "e2e_s": e2e_s,
                "regret_e2e_s": e2e_s - best_s,
                "estimated_e2e_s": float(estimates.get(key, np.nan)),
                "saved_by_all_s": saved_s,
                "more_completed": more,
            }
        )
    return pd.DataFrame(rows)


def _spearman(one: "pd.Series[float]", other: "pd.Series[float]") -> float | None:
    both = one.notna() & other.notna()
    ranks = one[both].rank(), other[both].rank()
    if both.sum() < LEAST_RANKED or not all(np.ptp(each.to_numpy()) for each in ranks):
        return None
    return float(np.corrcoef(*ranks)[0, 1])
