"""What each replica had in its hands and when, put together from the tables of a run that is over."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd

from sim.breakdown import MISSING, column

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Places = npt.NDArray[np.intp]

TIERS = ("gpu", "ram", "ssd", "network", "cloud")


class Told(Protocol):
    """What a history is made from."""

    config: dict[str, Any]
    requests: pd.DataFrame
    decisions: pd.DataFrame


@dataclass(slots=True)
class Lane:
    """The requests that one replica started, in the order in which they stood in its line; times in ns.

    `rows` are their places in the requests table. `last_start_ns` is the latest start of them and of all before.
    """

    rows: Places
    queued_ns: Integers
    started_ns: Integers
    first_ns: Integers
    finished_ns: Integers
    last_start_ns: Integers
    starts_ns: Integers
    """Sorted, as `ends_ns` are: how many run at a time is a difference of two look-ups."""
    ends_ns: Integers

    def running(self, at_ns: Integers) -> Integers:
        """How many have started and not ended at each of these times; what happens at that instant has happened."""
        started = np.searchsorted(self.starts_ns, at_ns, side="right")
        return started - np.searchsorted(self.ends_ns, at_ns, side="right")


class History:
    """The requests of a run as plain arrays, and replica by replica."""

    def __init__(self, run: Told) -> None:
        requests = run.requests
        self.request_id = column(requests, "request_id")
        self.arrival_ns, self.finished_ns = column(requests, "arrival_ns"), column(requests, "finished_ns")
        self.loaded_ns = column(requests, "loaded_ns")
        self.queued_ns, self.started_ns = column(requests, "queued_ns"), column(requests, "started_ns")
        self.first_ns = column(requests, "first_token_ns")
        self.prompt_tokens, self.output_tokens = (
            column(requests, f"{name}_tokens") for name in ("prompt", "output")
        )
        cached = sum(np.maximum(column(requests, f"cached_tokens_{tier}"), 0) for tier in TIERS)
        self.new_tokens = np.maximum(self.prompt_tokens - cached, 1)  # of the prompt, to be computed
        self.priority, self.attempts = column(requests, "priority"), column(requests, "attempts")
        self.completed: Flags = (requests["outcome"] == "completed").to_numpy(dtype=bool)
        self.model_of = _models(requests, run.decisions)
        self.replicas = sorted(self.model_of)
        code_of = {name: code for code, name in enumerate(self.replicas)}
        codes = requests["replica"].map(code_of).fillna(-1)
        self.replica: Places = codes.to_numpy(dtype=np.int64).astype(np.intp)  # -1: of none
        fleet = run.config.get("fleet", {})
        self.max_batch = int(fleet.get("max_batch", 1))
        self.is_shared = fleet.get("discipline") == "ps"

    @property
    def tokens(self) -> Integers:
        """What each request occupies where it is: its prompt and its answer."""
        return self.prompt_tokens + self.output_tokens

    @cached_property
    def lanes(self) -> list[Lane]:
        """Replica by replica, whoever was started there at its last attempt."""
        found = []
        started = (self.started_ns != MISSING) & (self.queued_ns != MISSING)
        for code in range(len(self.replicas)):
            rows = np.flatnonzero(started & (self.replica == code))
            rows = rows[np.lexsort((self.started_ns[rows], self.queued_ns[rows]))]
            starts = self.started_ns[rows]
            found.append(
                Lane(
                    rows,
                    self.queued_ns[rows],
                    starts,
                    self.first_ns[rows],
                    self.finished_ns[rows],
                    np.maximum.accumulate(starts),
                    np.sort(starts),
                    np.sort(self.finished_ns[rows]),
                )
            )
        return found


def _models(requests: pd.DataFrame, decisions: pd.DataFrame) -> dict[str, str]:
    """The model of each replica: of those that served, and of those that stood for choice and never did."""
    served = requests.dropna(subset=["replica", "model"]).drop_duplicates("replica")
    found = dict(zip(served["replica"].astype(str), served["model"].astype(str), strict=True))
    models = set(found.values())
    for pool, candidates in decisions[["pool", "candidates"]].drop_duplicates().to_numpy():
        for name in str(candidates).split(","):
            if name not in found and pool in models:  # a pool is called like its model, or it is a group
                found[name] = str(pool)
    return found


@dataclass(slots=True)
class Choices:
    """The choices of the router as arrays, in the order in which they were made.

    `row` is the request's place in the requests table, -1 for one that had not ended. `chosen` is a replica's number,
    -1 for one that no request ended at. `members[code]` says which replicas stood for choice, of the chosen one's
    model; `among` is the code of each choice. `is_last`: the request ended at this attempt.
    """

    at_ns: Integers
    row: Places
    attempt: Integers
    chosen: Places
    pool: npt.NDArray[np.object_]
    reason: npt.NDArray[np.object_]
    among: Places
    members: Flags
    is_last: Flags

    def __len__(self) -> int:
        return len(self.at_ns)


def choices(run: Told, history: History) -> Choices:
    """The decisions on record; where none were kept, those that the requests table tells of.

    It tells that a request came to its last replica, not who else stood for choice: then all replicas of the model
    did.
    """
    decisions = run.decisions
    code_of = {name: code for code, name in enumerate(history.replicas)}
    if decisions.empty:
        return _of_requests(history)
    order = np.argsort(history.request_id, kind="stable")
    sorted_ids = history.request_id[order]
    ids = decisions["request_id"].to_numpy(dtype=np.int64)
    places = np.minimum(np.searchsorted(sorted_ids, ids), max(len(order) - 1, 0))
    found = sorted_ids[places] == ids if len(order) else np.zeros(len(ids), bool)
    row = np.full(len(ids), -1, np.intp)
    row[found] = order[places[found]]
    chosen: Places = decisions["chosen"].map(code_of).fillna(-1).to_numpy(dtype=np.int64).astype(np.intp)
    among, members = _candidates(decisions, history, chosen, code_of)
    attempt = decisions["attempt"].to_numpy(dtype=np.int64)
    last = np.flatnonzero(~decisions["request_id"].duplicated(keep="last").to_numpy())
    is_last = np.zeros(len(decisions), bool)
    is_last[last] = True
    is_last &= (row >= 0) & (chosen >= 0)
    is_last &= history.replica[np.maximum(row, 0)] == chosen if len(order) else False
    at_ns = decisions["at_ns"].to_numpy(dtype=np.int64)
    pool, reason = (decisions[name].to_numpy(dtype=object) for name in ("pool", "reason"))
    return Choices(at_ns, row, attempt, chosen, pool, reason, among, members, is_last)


def _of_requests(history: History) -> Choices:
    """That each request came to its last replica, when its model was there."""
    rows = np.flatnonzero((history.replica >= 0) & (history.loaded_ns != MISSING))
    rows = rows[np.argsort(history.loaded_ns[rows], kind="stable")]
    chosen, counts = history.replica[rows], history.attempts[rows]
    members = _of_one_model(history)
    pool, reason = (np.full(len(rows), word, dtype=object) for word in ("", "strategy"))
    is_last = np.ones(len(rows), bool)
    return Choices(history.loaded_ns[rows], rows, counts, chosen, pool, reason, chosen, members, is_last)


def _of_one_model(history: History) -> Flags:
    """For each replica, which ones serve the same model."""
    models = np.array([history.model_of[name] for name in history.replicas], dtype=object)
    same: Flags = models[:, None] == models[None, :]
    return same


def _candidates(
    decisions: pd.DataFrame, history: History, chosen: Places, code_of: dict[str, int]
) -> tuple[Places, Flags]:
    """The code of each decision's candidates, and which replicas each code stands for."""
    codes, names = pd.factorize(decisions["candidates"])
    known = np.zeros((len(names), len(history.replicas)), bool)
    for index, text in enumerate(names):
        known[index, [code_of[name] for name in str(text).split(",") if name in code_of]] = True
    pairs = codes.astype(np.int64) * (len(history.replicas) + 1) + chosen + 1
    wanted, among = np.unique(pairs, return_inverse=True)
    same = np.vstack((np.zeros((1, len(history.replicas)), bool), _of_one_model(history)))
    members = known[wanted // (len(history.replicas) + 1)] & same[wanted % (len(history.replicas) + 1)]
    return among.astype(np.intp), members
