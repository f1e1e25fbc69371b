"""The regret of each routing choice: how much sooner the best other replica would have been done, in hindsight.

What each replica had to do after the choice is known once the run is over, so no forecast is asked for. For a request
that stood in its replica's line at q and ended at e, and for each other replica of the model that it might have had:

- It would have *started* there at q and the moment that a joiner waits for a step to end, where a place was free and
  nobody waited; else when the next one in that line did, whose place it would have had, or when a place fell free.
- It would have gone on at that replica's *pace*: with n others running, 1 / (1 + k n) of what it has alone. k is a
  line fitted through the run itself: times per token over how many others ran meanwhile.
- The *work* left is what it did where it was, at the pace of there: so whatever is its own (lengths, the draw of its
  service time) is the same on both sides, and where it was it takes what it took.

The regret is what it took less what the best one would have taken, 0 where that was the chosen one. It is cheap and
it is an estimate. History is taken as it was: what the choice did to others, and that the router would have chosen
otherwise afterwards, is left out (`python -m sim.regret` plays exactly that). Lines are taken for first come, first
served. It is a minimum over guesses that err, so a policy that is as good as can be has some regret too: compare two
policies on the same traffic, never one with 0. Attempts that were lost, requests that did not complete, and choices
with nobody of the same model to choose from have none.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from engine.clock import NS_PER_S
from sim.breakdown import MISSING
from sim.history import Choices, Flags, Floats, History, Integers, Lane, Places, Told, choices

MOST_GUESSES = 4_000_000
"""Choices times replicas; beyond that, every other choice is left out, or more."""

LEAST_FITTED = 3  # times per token that a line is fitted through
FIRST, WHOLE = "ttft", "e2e"


@dataclass(slots=True)
class Pace:
    """How much of its work one that runs has done by a time, at a replica: piecewise linear.

    With `others`, who is asked about is not among those who ran there; without, it was.
    """

    at_ns: Floats
    done: Floats
    rate: Floats

    def by(self, at_ns: Floats) -> Floats:
        """The work done from the beginning of time until then."""
        place = np.maximum(np.searchsorted(self.at_ns, at_ns, side="right") - 1, 0)
        found: Floats = self.done[place] + (at_ns - self.at_ns[place]) * self.rate[place]
        return found

    def when(self, done: Floats) -> Floats:
        """When so much will have been done."""
        place = np.maximum(np.searchsorted(self.done, done, side="right") - 1, 0)
        found: Floats = self.at_ns[place] + (done - self.done[place]) / self.rate[place]
        return found


def regret(run: Told) -> pd.DataFrame:
    """What each choice of a run cost, a row a choice that had an alternative and can be judged.

    Columns: request_id, attempt, at_ns, chosen, best (the replica that would have ended first), reason, and the
    regret in seconds, of the time to first token and of the end-to-end time, each against its own best.
    """
    history = History(run)
    return regrets(history, choices(run, history))


def regrets(history: History, made: Choices) -> pd.DataFrame:
    """As `regret`, of what was read before. O(choices x replicas of a model x log)."""
    judged = _judged(history, made)
    slopes = _slopes(history)
    rows, chosen = made.row[judged], made.chosen[judged]
    best = {name: np.zeros(len(rows)) for name in (FIRST, WHOLE)}  # ns saved by the best so far
    winner = chosen.copy()
    work = {name: np.zeros(len(rows)) for name in (FIRST, WHOLE)}
    ends = {FIRST: history.first_ns[rows].astype(float), WHOLE: history.finished_ns[rows].astype(float)}
    begun = history.started_ns[rows].astype(float)
    for code, lane in enumerate(history.lanes):
        here = np.flatnonzero(chosen == code)
        pace = _pace(history, lane, slopes[code], with_others=False)
        for name, end in ends.items():
            work[name][here] = pace.by(end[here]) - pace.by(begun[here])
    for code, lane in enumerate(history.lanes):
        there = np.flatnonzero(made.members[made.among[judged], code] & (chosen != code))
        if not len(there):
            continue
        queued_ns = history.queued_ns[rows[there]]
        would_start = _starts(history, lane, queued_ns)
        pace = _pace(history, lane, slopes[code], with_others=True)
        done = pace.by(would_start)
        for name, end in ends.items():
            saved = end[there] - pace.when(done + work[name][there])
            better = saved > best[name][there]
            best[name][there[better]] = saved[better]
            if name == WHOLE:
                winner[there[better]] = code
    names = np.array(history.replicas, dtype=object)
    no_first = begun > ends[FIRST]  # an attempt before this one gave it
    return pd.DataFrame(
        {
            "request_id": history.request_id[rows],
            "attempt": made.attempt[judged],
            "at_ns": made.at_ns[judged],
            "chosen": pd.Series(names[chosen], dtype="str"),
            "best": pd.Series(names[winner], dtype="str"),
            "reason": pd.Series(made.reason[judged], dtype="str"),
            "regret_ttft_s": np.where(no_first, 0.0, best[FIRST]) / NS_PER_S,
            "regret_e2e_s": best[WHOLE] / NS_PER_S,
            "e2e_s": (history.finished_ns[rows] - made.at_ns[judged]) / NS_PER_S,
        }
    )


def figures(regretted: pd.DataFrame) -> dict[str, float | int | None]:
    """The regret of all judged choices together; None where nothing could be judged."""
    total = float(regretted["e2e_s"].sum())
    count = len(regretted)
    return {
        "n_regret": count,
        "mean_regret_ttft_s": float(regretted["regret_ttft_s"].mean()) if count else None,
        "mean_regret_e2e_s": float(regretted["regret_e2e_s"].mean()) if count else None,
        "regret_e2e_ratio": float(regretted["regret_e2e_s"].sum()) / total if total else None,
        "best_choice_ratio": float((regretted["chosen"] == regretted["best"]).mean()) if count else None,
    }


def _judged(history: History, made: Choices) -> Places:
    """The choices that can be judged: the last attempts of completed requests that had an alternative."""
    if not len(made):
        return np.zeros(0, np.intp)
    row = np.maximum(made.row, 0)
    several = made.members.sum(axis=1) > 1
    good = made.is_last & history.completed[row] & several[made.among]
    good &= (history.started_ns[row] != MISSING) & (history.queued_ns[row] != MISSING)
    found = np.flatnonzero(good)
    step = 1 + len(found) * len(history.replicas) // MOST_GUESSES
    return found[::step]


def _slopes(history: History) -> list[float]:
    """The k of each replica's pace, one for all replicas of a model: a line through times per token and company."""
    if history.is_shared:
        return [1.0] * len(history.replicas)
    per_token: dict[str, list[npt.NDArray[np.float64]]] = {}
    company: dict[str, list[npt.NDArray[np.float64]]] = {}
    for name, lane in zip(history.replicas, history.lanes, strict=True):
        tokens = history.output_tokens[lane.rows] - 1
        spans = lane.finished_ns - lane.first_ns
        decoded = (tokens > 0) & (lane.first_ns >= lane.started_ns) & (spans > 0)
        pace = _company(lane)
        others = (pace.by(lane.finished_ns.astype(float)) - pace.by(lane.first_ns.astype(float)))[decoded]
        model = history.model_of[name]
        per_token.setdefault(model, []).append(spans[decoded] / tokens[decoded])
        company.setdefault(model, []).append(others / spans[decoded] - 1)
    fitted = {
        model: _slope(np.concatenate(company[model]), np.concatenate(per_token[model])) for model in company
    }
    return [fitted[history.model_of[name]] for name in history.replicas]


def _slope(others: Floats, per_token: Floats) -> float:
    """What each other one adds to a time per token, as a part of what it is alone; never negative."""
    if len(others) < LEAST_FITTED or not np.ptp(others):
        return 0.0
    slope, alone = np.polyfit(others, per_token, 1)
    if slope <= 0:
        return 0.0
    return float(slope / max(alone, per_token.min() / 2, 1e-9))


def _events(lane: Lane) -> tuple[Floats, Floats]:
    """When how many run changes, and how many run from then on."""
    at_ns = np.concatenate((lane.starts_ns, lane.ends_ns))
    steps = np.concatenate((np.ones(len(lane.starts_ns)), -np.ones(len(lane.ends_ns))))
    order = np.argsort(at_ns, kind="stable")
    times, running = at_ns[order].astype(float), np.cumsum(steps[order])
    last = np.append(np.diff(times) > 0, True)[: len(times)]  # what happens at one instant counts together
    return np.append(0.0, times[last]), np.append(0.0, running[last])


def _line(at_ns: Floats, rate: Floats) -> Pace:
    done = np.append(0.0, np.cumsum(np.diff(at_ns) * rate[:-1]))
    return Pace(at_ns, done, rate)


def _company(lane: Lane) -> Pace:
    """How many have run, summed up over time."""
    return _line(*_events(lane))


def _pace(history: History, lane: Lane, slope: float, *, with_others: bool) -> Pace:
    """The pace of one more than all who ran there; or of one of them, if those are not all `others`."""
    at_ns, running = _events(lane)
    others = running if with_others else running - 1
    others = np.clip(others, 0, None if history.is_shared else history.max_batch - 1)
    return _line(at_ns, 1 / (1 + slope * others))


def _starts(history: History, lane: Lane, queued_ns: Integers) -> Floats:
    """When one would have started that had come into this line at those times."""
    place = np.searchsorted(lane.queued_ns, queued_ns, side="right")
    before = np.append(MISSING, lane.last_start_ns)[place]
    free_ns = np.maximum(queued_ns, before)  # everybody who came earlier has started
    is_free: Flags = (
        np.ones(len(queued_ns), bool) if history.is_shared else lane.running(free_ns) < history.max_batch
    )
    after = np.append(lane.ends_ns, np.iinfo(np.int64).max)
    free_ns = np.where(is_free, free_ns, after[np.searchsorted(lane.ends_ns, free_ns, side="right")])
    never = np.iinfo(np.int64).max
    next_queued = np.append(lane.queued_ns, never)[place]
    next_start = np.append(lane.started_ns, never)[place]
    has_line = (before > queued_ns) | ~is_free
    in_its_place = has_line & (next_queued <= free_ns) & (next_start > next_queued)
    started = np.where(in_its_place, np.maximum(next_start, queued_ns), free_ns).astype(float)
    return np.where(has_line, started, queued_ns + _moment(history, lane))


def _moment(history: History, lane: Lane) -> float:
    """What somebody who found a free place waited for all the same: most often, that a step ends."""
    if not len(lane.rows):
        return 0.0
    before = np.append(MISSING, lane.last_start_ns[:-1])
    at_once = before <= lane.queued_ns
    at_once &= lane.running(lane.queued_ns) < history.max_batch
    waits = (lane.started_ns - lane.queued_ns)[at_once]
    return float(waits.mean()) if len(waits) else 0.0
