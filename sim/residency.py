"""How often a model is found in memory: the theory for independent requests, and what a run has to say of it."""

import numpy as np
import pandas as pd

from sim.stats import Floats
from sim.traffic.popularity import zipf_weights

POINTS = 4_000
THERE = ("loading", "healthy", "degraded", "draining")
"""States in which a model has its room in memory, or is about to."""


def lru_hit_ratio(models: int, exponent: float, resident: int) -> float:
    """The share of requests that find their model among the `resident` used last, of `models` by Zipf's law.

    Exact for independent requests: let them come in a Poisson stream of rate 1 (their order is the same). A request
    for i finds it there if fewer than `resident` others were asked for since i was, t ago; each j was with chance
    1 - exp(-p_j t), independently. So it is the sum over i of the integral over t of p_i^2 exp(-p_i t) P(fewer).
    """
    if resident >= models:
        return 1.0
    weights = zipf_weights(models, exponent)
    chances = weights / weights.sum()
    times = np.concatenate(([0.0], np.geomspace(1e-4, 60 / chances.min(), POINTS)))
    asked = -np.expm1(-np.outer(chances, times))
    found = 0.0
    for i, chance in enumerate(chances.tolist()):
        fewer = _fewer(np.delete(asked, i, axis=0), resident)
        found += float(np.trapezoid(chance**2 * np.exp(-chance * times) * fewer, times))
    return found


def _fewer(asked: "np.ndarray[tuple[int, int], np.dtype[np.float64]]", least: int) -> Floats:
    """The chance that fewer than `least` of independent events happen, by column of their chances."""
    exactly = np.zeros((least, asked.shape[1]))
    exactly[0] = 1.0
    for chances in asked:
        exactly[1:] = exactly[1:] * (1 - chances) + exactly[:-1] * chances
        exactly[0] *= 1 - chances
    total: Floats = exactly.sum(axis=0)
    return total


def found_in_memory(requests: pd.DataFrame, facts: pd.DataFrame) -> Floats:
    """For each request, in the order of arrival: 1 where its model was in memory or on its way there, else 0."""
    rows = requests.sort_values(["arrival_ns", "request_id"])
    moves = facts[facts["kind"] == "model_state_changed"]
    found = np.zeros(len(rows))
    for key, places in rows.reset_index(drop=True).groupby("model", sort=True).indices.items():
        of_it = moves[moves["subject"] == key]
        is_there = np.append(False, of_it["detail"].isin(THERE).to_numpy())
        arrivals_ns = rows["arrival_ns"].to_numpy()[places]
        found[places] = is_there[np.searchsorted(of_it["at_ns"].to_numpy(), arrivals_ns, side="left")]
    return found


def loads_s(facts: pd.DataFrame) -> pd.DataFrame:
    """The loads that came to an end: model, which of its loads it was (from 0), when it began, what it took."""
    moves = facts[facts["kind"] == "model_state_changed"]
    rows = []
    for key, of_it in moves.groupby("subject", sort=True):
        begun = None
        number = 0
        for at_ns, state in zip(of_it["at_ns"].tolist(), of_it["detail"].tolist(), strict=True):
            if state == "loading":
                begun = at_ns
            elif state == "healthy" and begun is not None:
                rows.append((str(key), number, begun, (at_ns - begun) / 1e9))
                begun, number = None, number + 1
    return pd.DataFrame(rows, columns=["model", "number", "begun_ns", "took_s"])


def sent_away_busy(requests: pd.DataFrame, facts: pd.DataFrame) -> int:
    """How often a model left memory while a request was being served by it, which may have been its end."""
    gone = facts[(facts["kind"] == "model_state_changed") & (facts["detail"] == "unloaded")]
    held = requests[requests["loaded_ns"].notna()]
    count = 0
    for key, leaves in gone.groupby("subject", sort=True):
        of_it = held[held["model"] == key]
        begin_ns, end_ns = (
            of_it["loaded_ns"].to_numpy(dtype=np.int64),
            of_it["finished_ns"].to_numpy(dtype=np.int64),
        )
        cut_off = (of_it["outcome"] != "completed").to_numpy()
        for at_ns in leaves["at_ns"].tolist():
            count += bool(((begin_ns < at_ns) & ((at_ns < end_ns) | (cut_off & (at_ns == end_ns)))).any())
    return count
