"""Herding: choices run after each other to one replica, while others have less to do.

Two signs. *Bursts*: in a stretch of choices, the replica that was chosen last is chosen again, although another one
had less to do, far more often than if each choice were drawn by the shares that the replicas have of the whole run.
Who acts on loads that are old does that: everybody sees the same idle replica, until the next look. *A hot spot*: one
replica gets more than twice its part (by `routing.weights`) of all choices, while others had less to do.

Both count only where they cost something: the best other replica would have saved a part of these requests' time, by
the estimate of `sim.hindsight`. What each replica has to do is its tokens in flight, counted again from the tables:
what the strategy believed does not matter. Choices that a session, a slow start or a lack of others made are left
out.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from sim.detectors.finding import Finding, evidence, some, span_s
from sim.hindsight import regrets
from sim.history import Choices, Flags, Floats, History, Places

THRESHOLD = 0.05
"""Of the end-to-end time of the requests concerned. Less is within the error of the estimate."""

STRETCH = 64  # choices that are looked at together
LEAST = 32  # choices without which nothing is said
LEAST_PART = 0.05  # of all choices, that a finding concerns
CHANCE = 1e-3  # that a run without herds is called one
HOT = 2.0  # times its part


def detect(history: History, made: Choices, config: Mapping[str, Any]) -> list[Finding]:
    """Findings for each pool: its bursts together, and its hot spot. O(choices x replicas)."""
    if not len(made) or len(history.replicas) == 1:
        return []
    free = (made.reason == "strategy") & (made.chosen >= 0) & (made.members.sum(axis=1) > 1)[made.among]
    if free.sum() < LEAST:
        return []
    lost_s, whole_s = _costs(history, made)
    busier = _busier(history, made)
    found = []
    for pool, model in _groups(history, made, free):
        places = np.flatnonzero(free & (made.pool == pool) & (_models(history)[made.chosen] == model))
        if len(places) < LEAST:
            continue
        subject = f"model {model}" if pool in ("", model) else f"model {model} in {pool}"
        shares = np.bincount(made.chosen[places], minlength=len(history.replicas)) / len(places)
        for bursts, chosen in ((True, _bursts(made, places, busier, shares)), (False, None)):
            hot = None if bursts else _hot_spot(history, made, places, shares, busier, config)
            concerned = chosen if bursts else hot
            if concerned is None or len(concerned) < max(LEAST, LEAST_PART * len(places)):
                continue
            spent_s = float(whole_s[concerned].sum())
            severity = float(lost_s[concerned].sum()) / spent_s if spent_s else 0.0
            if severity < THRESHOLD:
                continue
            found.append(_told(history, made, concerned, subject, severity, lost_s, bursts=bursts))
            break
    return found


def _told(
    history: History,
    made: Choices,
    places: Places,
    subject: str,
    severity: float,
    lost_s: Floats,
    *,
    bursts: bool,
) -> Finding:
    begin_s, end_s = span_s(made.at_ns[places])
    counts = np.bincount(made.chosen[places], minlength=len(history.replicas))
    if bursts:
        says = f"{some(len(places), 'choice')} in bursts to one replica after the other while others had less to do"
    else:
        most = int(counts.argmax())
        subject = f"replica {history.replicas[most]}"
        says = f"chosen {some(len(places), 'time')}, more than {HOT:g} times its part, while others had less to do"
    rows = made.row[places]
    return Finding(
        "herding",
        subject,
        severity,
        "their end-to-end time, which another replica would have saved",
        THRESHOLD,
        "less is within the error of the estimate",
        begin_s,
        end_s,
        len(places),
        evidence(np.where(rows >= 0, history.request_id[rows], -1), lost_s[places]),
        says,
    )


def _costs(history: History, made: Choices) -> tuple[Floats, Floats]:
    """The regret of each choice, and the time of its request, in seconds; 0 for those that were not judged."""
    judged = regrets(history, made)
    key = ["request_id", "attempt"]
    ids = np.where(made.row >= 0, history.request_id[made.row], -1)
    mine = pd.DataFrame({"request_id": ids, "attempt": made.attempt})
    joined = mine.merge(
        judged[[*key, "regret_e2e_s", "e2e_s"]].drop_duplicates(key, keep="last"), "left", key
    )
    lost, whole = (joined[name].fillna(0.0).to_numpy() for name in ("regret_e2e_s", "e2e_s"))
    return lost, whole


def _models(history: History) -> "np.ndarray[Any, np.dtype[np.object_]]":
    return np.array([history.model_of[name] for name in history.replicas], dtype=object)


def _groups(history: History, made: Choices, free: Flags) -> list[tuple[str, str]]:
    """The pools, and the models in each of them, in the order in which they were first chosen from."""
    pairs = pd.DataFrame({"pool": made.pool[free], "model": _models(history)[made.chosen[free]]})
    return [(str(pool), str(model)) for pool, model in pairs.drop_duplicates().to_numpy()]


def _busier(history: History, made: Choices) -> Flags:
    """Whether the chosen one had more tokens in flight than another candidate of its model, at each choice."""
    tokens = np.where(made.row >= 0, history.tokens[made.row], 0)
    ended_ns = np.where(made.row >= 0, history.finished_ns[made.row], np.iinfo(np.int64).max)
    # an attempt that was lost is gone when the next one is chosen
    follows = (
        pd.Series(made.at_ns).groupby(np.where(made.row >= 0, made.row, -1 - np.arange(len(made)))).shift(-1)
    )
    gone_ns = np.where(follows.notna(), follows.fillna(0).to_numpy(), ended_ns).astype(np.int64)
    own, least = np.zeros(len(made), np.int64), np.full(len(made), np.iinfo(np.int64).max)
    for code in range(len(history.replicas)):
        here = made.chosen == code
        came = np.cumsum(np.where(here, tokens, 0))
        order = np.argsort(gone_ns[here], kind="stable")
        left = np.append(0, np.cumsum(tokens[here][order]))
        load = came - np.where(here, tokens, 0)
        load -= left[np.searchsorted(gone_ns[here][order], made.at_ns, side="right")]
        own = np.where(here, load, own)
        member = made.members[made.among, code]
        least = np.where(member, np.minimum(least, load), least)
    return own > least


def _bursts(made: Choices, places: Places, busier: Flags, shares: Floats) -> Places | None:
    """The choices in stretches in which the last one was repeated too often; None where there are none."""
    chosen = made.chosen[places]
    repeated = np.append(False, chosen[1:] == chosen[:-1]) & busier[places]
    count = -(-len(places) // STRETCH)
    stretch = np.minimum(np.arange(len(places)) // STRETCH, max(0, len(places) // STRETCH - 1))
    sizes = np.bincount(stretch, minlength=count)[: stretch.max() + 1]
    hits = np.bincount(stretch, repeated, minlength=count)[: stretch.max() + 1]
    chance = float((shares**2).sum())
    bound = np.sqrt(
        2 * np.log(len(sizes) / CHANCE)
    )  # standard deviations that no stretch of a fair run exceeds
    flagged = hits > sizes * chance + bound * np.sqrt(sizes * chance * (1 - chance))
    return places[flagged[stretch]] if flagged.any() else None


def _hot_spot(
    history: History, made: Choices, places: Places, shares: Floats, busier: Flags, config: Mapping[str, Any]
) -> Places | None:
    """The choices of a replica that gets more than twice its part, while others had less to do."""
    given = (config.get("routing") or {}).get("weights") or {}
    members = np.flatnonzero(made.members[made.among[places]].any(axis=0))
    weights = np.array([float(given.get(history.replicas[code], 1.0)) for code in members])
    parts = weights / weights.sum() if weights.sum() else np.full(len(members), 1 / len(members))
    most = int(members[shares[members].argmax()])
    part = float(parts[np.flatnonzero(members == most)[0]])
    wanted = min(HOT * part, (1 + part) / 2)  # of two, one with three quarters is hot
    slack = 4 * np.sqrt(part * (1 - part) / len(places))
    if shares[most] < wanted + slack:
        return None
    hot: Places = places[(made.chosen[places] == most) & busier[places]]
    return hot
