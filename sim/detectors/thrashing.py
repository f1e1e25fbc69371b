"""Thrashing: work that is done again because its result was thrown away too soon.

*Cache*: blocks that had been there were evicted and computed again (what an endless cache finds beyond ours, by the
blocks that the cache samples, but never more than left it). *Models*: one is loaded again and again because others
took its memory. *Preemptions*: requests give their KV back and are computed anew.
"""

import numpy as np
import pandas as pd

from engine.clock import NS_PER_S
from sim.breakdown import MISSING
from sim.detectors.finding import Finding, evidence, some, span_s
from sim.history import Flags, Floats, History, Places
from sim.runs import Run

CACHE = 0.25
"""Of the blocks that were asked for. A cache that turns over now and then computes one in ten again; where it is a
quarter, what is put in pushes out what will be wanted next."""

MODELS = 0.10
"""Of the end-to-end time of the requests to models that were loaded more than once. One that comes and goes
with the hours is loaded for minutes of use."""

PREEMPTIONS = 0.10
"""Of all tokens that were computed. The scheduler leaves room for growth, so a preemption is an exception."""

LEAST_BLOCKS = 200  # in the sample
LEAST_LOADS = 3  # of models that had been there before
LEAST_PREEMPTED = 10


def detect(run: Run, history: History) -> list[Finding]:
    """Findings for each model: its blocks, its loads, and the preemptions of each replica. O(n log n)."""
    return [*_of_caches(run, history), *_of_models(run, history), *_of_preemptions(run, history)]


def _of_caches(run: Run, history: History) -> list[Finding]:
    regret = (run.manifest.get("cache") or {}).get("regret")
    if not regret or "endless" not in regret or regret["sampled_blocks"] < LEAST_BLOCKS:
        return []
    ours, clairvoyant = regret["ours"], regret["clairvoyant"]
    # a block that is asked for while somebody still computes it is missed too, without any eviction
    severity = max(0.0, min(regret["endless"] - ours, _evicted(run, history)))
    mine = np.flatnonzero(history.completed)
    if severity < CACHE or not len(mine):
        return []
    begin_s, end_s = span_s(history.arrival_ns[mine])
    says = (
        f"of the blocks asked for {ours:.0%} were found; an endless cache finds {regret['endless']:.0%}, a "
        f"clairvoyant one of that size {clairvoyant:.0%}"
    )
    says += ": others should have been evicted" if clairvoyant - ours >= severity / 2 else ": it is too small"
    rows, lost = _computed_again(history, run, mine)
    return [
        Finding(
            "thrashing",
            "cache",
            severity,
            "the blocks asked for, which had been there before and were computed again",
            CACHE,
            "a cache that turns over now and then computes one in ten again",
            begin_s,
            end_s,
            int((lost > 0).sum()),
            evidence(history.request_id[rows], lost),
            says,
        )
    ]


def _evicted(run: Run, history: History) -> float:
    """Blocks that left for good, for each that was asked for."""
    tiers = ((run.manifest["cache"].get("all") or {}).get("by_tier") or {}).values()
    block_tokens = (run.config.get("tiers") or {}).get("block_tokens") or 1
    asked = float((history.prompt_tokens // block_tokens).sum())
    return sum(tier["evicted_blocks"] for tier in tiers) / asked if asked else 0.0


def _computed_again(history: History, run: Run, mine: Places) -> tuple[Places, Floats]:
    """Requests, and how many tokens each had in common with the turn before that were not found.

    Where there are no sessions that say so, all tokens that were computed count.
    """
    sessions = run.requests["session"].iloc[mine]
    codes = pd.factorize(sessions)[0]
    order = np.lexsort((history.arrival_ns[mine], codes))
    rows, codes = mine[order], codes[order]
    follows = np.append(False, (codes[1:] == codes[:-1]) & (codes[1:] >= 0))
    before = np.append(0, history.tokens[rows[:-1]])
    found = history.prompt_tokens[rows] - history.new_tokens[rows]
    lost = np.where(follows, np.minimum(before, history.prompt_tokens[rows]) - found, 0)
    lost = np.maximum(lost, 0).astype(float)
    return rows, lost if lost.any() else history.new_tokens[rows].astype(float)


def _of_models(run: Run, history: History) -> list[Finding]:
    facts = run.facts[run.facts["kind"] == "model_state_changed"]
    again: dict[str, int] = {}
    gaps_ns: list[int] = []
    waits_ns = np.zeros(len(history.arrival_ns))
    for model, moves in facts.groupby("subject", sort=True):
        loads, leaves = (
            moves.loc[moves["detail"] == state, "at_ns"].to_numpy(dtype=np.int64)
            for state in ("loading", "unloaded")
        )
        if not len(leaves) or not (loads > leaves[0]).any():
            continue
        loads = loads[loads > leaves[0]]
        again[str(model)] = len(loads)
        gaps_ns += (loads - leaves[np.searchsorted(leaves, loads, side="right") - 1]).tolist()
        mine = _is_of(run, str(model))
        waited = run.parts["load_ns"].to_numpy() * mine
        came_back = (
            history.arrival_ns + waited >= loads[0]
        )  # who waited for its first load did not wait for this
        waits_ns += np.where(came_back, waited, 0)
    concerned = np.isin(run.requests["model"].to_numpy(dtype=object).astype(str), list(again))
    spent_ns = float((history.finished_ns - history.arrival_ns)[concerned].sum())
    severity = float(waits_ns.sum()) / spent_ns if spent_ns else 0.0
    if sum(again.values()) < LEAST_LOADS or severity < MODELS:
        return []
    late = np.flatnonzero(waits_ns)
    begin_s, end_s = span_s(history.arrival_ns[late])
    told = ", ".join(
        f"{model} {count} times" if count > 1 else f"{model} once" for model, count in again.items()
    )
    return [
        Finding(
            "thrashing",
            "models",
            severity,
            "the end-to-end time of requests to them, spent on waiting until they were back",
            MODELS,
            "a model that comes and goes with the hours is loaded for minutes of use",
            begin_s,
            end_s,
            len(late),
            evidence(history.request_id[late], waits_ns[late]),
            f"loaded again {np.median(gaps_ns) / NS_PER_S:.3g} s after they had left (median): {told}",
        )
    ]


def _of_preemptions(run: Run, history: History) -> list[Finding]:
    facts = run.facts[run.facts["kind"] == "request_preempted"]
    found = []
    for name, rows in facts.groupby("subject", sort=True):
        replica = str(name)
        if len(rows) < LEAST_PREEMPTED or replica not in history.replicas:
            continue
        mine = history.replica == history.replicas.index(replica)
        mine &= history.started_ns != MISSING
        lost = int(rows["value"].sum())
        computed = int((history.new_tokens + history.output_tokens)[mine].sum())
        severity = lost / (computed + lost) if lost else 0.0
        if severity < PREEMPTIONS:
            continue
        by_request = rows.groupby("request_id")["value"].sum()
        begin_s, end_s = span_s(rows["at_ns"].to_numpy(dtype=np.int64))
        most = int(rows["request_id"].value_counts().max())
        found.append(
            Finding(
                "thrashing",
                f"preemptions at replica {replica}",
                severity,
                "the tokens that it computed",
                PREEMPTIONS,
                "the scheduler leaves room for growth, so a preemption is an exception",
                begin_s,
                end_s,
                len(by_request),
                evidence(by_request.index.to_numpy(dtype=np.int64), by_request.to_numpy(dtype=float)),
                f"{some(len(rows), 'preemption')} of {some(len(by_request), 'request')}, up to {most} of one: {lost} "
                f"tokens had to be computed anew",
            )
        )
    return found


def _is_of(run: Run, model: str) -> Flags:
    found: Flags = (run.requests["model"] == model).fillna(value=False).to_numpy(dtype=bool)
    return found
