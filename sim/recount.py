"""Quotas, counted again from the requests table alone: whether anybody was ever let in who should not have been."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from engine.clock import NS_PER_S

WINDOWS = {"hourly": 3600 * NS_PER_S, "daily": 86_400 * NS_PER_S}

Rule = dict[str, Any]


def exceeded(requests: pd.DataFrame, rules: Sequence[Rule], most_of_a_model: int | None) -> list[str]:
    """What was exceeded, in words; nothing where every limit held at every time.

    Fixed windows from time 0, limits on requests and tokens in them, on bursts of requests, and on requests at once.
    Limits of sliding windows and on bursts of tokens are not counted again. `most_of_a_model`: of requests at once,
    where no rule says otherwise.
    """
    served = requests[requests["admitted_ns"].notna()]
    served = served.assign(name=served["model"].str.partition("@")[0])
    found = []
    for whose, rows, rule in _books(served, list(rules), most_of_a_model):
        found += [f"{whose}: {what}" for what in _of(rows, rule)]
    return found


def _books(
    served: pd.DataFrame, rules: list[Rule], most: int | None
) -> Iterator[tuple[str, pd.DataFrame, Rule]]:
    """Whom a rule is for, their requests, and the rule: who is named goes before "*"."""
    for name, rows in served.groupby("name", sort=True):
        rule = _rule(rules, (str(name), "*"), (None,)) or {}
        if rule.get("concurrent_requests") is None and most is not None:
            rule = {**rule, "concurrent_requests": most}
        yield f"model {name}", rows, rule
    for tenant, rows in served.groupby("tenant", sort=True):
        yield f"tenant {tenant}", rows, _rule(rules, (None,), (str(tenant), "*")) or {}
    pairs = served.drop_duplicates(["name", "tenant"])[["name", "tenant"]].sort_values(["name", "tenant"])
    for model, whom in pairs.itertuples(index=False):
        rows = served[(served["name"] == model) & (served["tenant"] == whom)]
        yield f"model {model} for tenant {whom}", rows, _rule(rules, (model, "*"), (whom, "*")) or {}


def _rule(rules: list[Rule], models: Sequence[str | None], tenants: Sequence[str | None]) -> Rule | None:
    known = {(rule.get("model"), rule.get("tenant")): rule for rule in rules}
    found = (known.get((model, tenant)) for model in models for tenant in tenants)
    return next((rule for rule in found if rule is not None), None)


def _of(rows: pd.DataFrame, rule: Rule) -> Iterator[str]:
    """What these requests exceed of a rule."""
    admitted_ns = rows["admitted_ns"].to_numpy(dtype=np.int64)
    ended_ns = rows["finished_ns"].to_numpy(dtype=np.int64)
    tokens = (rows["prompt_tokens"] + rows["output_tokens"]).to_numpy(dtype=np.int64)
    most = rule.get("concurrent_requests")
    if most is not None and (seen := most_at_once(admitted_ns, ended_ns)) > most:
        yield f"{seen} requests at once of {most}"
    for kind, length_ns in WINDOWS.items():
        for what, amounts in (("requests", np.ones(len(rows), np.int64)), ("tokens", tokens)):
            limit = rule.get(f"{kind}_{what}")
            if limit is None or rule.get("sliding"):
                continue
            used = int(np.bincount(admitted_ns // length_ns, amounts).max())
            if used > limit:
                yield f"{used} {what} of {limit}, {kind}"
    rate, depth = rule.get("requests_per_s"), rule.get("burst_requests")
    if rate is not None and depth is not None:
        over = beyond_burst(np.sort(admitted_ns) / NS_PER_S, rate)
        if over > depth + 1e-6:  # times are floats here
            yield f"{over:.3f} requests beyond {rate:g} a second of {depth}"


def most_at_once(begin_ns: "np.ndarray[Any, Any]", end_ns: "np.ndarray[Any, Any]") -> int:
    """How many were there together at most; who leaves at a time has made room for who comes then."""
    times = np.concatenate((end_ns, begin_ns))
    steps = np.concatenate((-np.ones(len(end_ns), np.int64), np.ones(len(begin_ns), np.int64)))
    there = np.cumsum(steps[np.lexsort((steps, times))])
    return int(there.max(initial=0))


def beyond_burst(times_s: "np.ndarray[Any, Any]", rate: float) -> float:
    """The largest number in an interval less what the rate allows in its length, over all intervals, in one pass."""
    level = np.arange(1, len(times_s) + 1) - rate * times_s
    lowest = np.minimum.accumulate(level - 1)
    return float((level - lowest).max(initial=0.0))
