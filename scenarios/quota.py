"""One model may use so many tokens an hour and is asked for more: it warns, refuses, and serves again at the hour."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from engine.clock import NS_PER_S, to_ns
from engine.settings import above, require
from engine.settings import at_least as least
from sim.checks import Check, at_least, at_most, evidence
from sim.runs import Run
from sim.stage import Stage

HOUR_NS = 3600 * NS_PER_S


@dataclass
class Settings:
    """Whose limit it is, and what the others must not notice of it."""

    name: str
    model: str
    min_refused: int
    min_used: float
    back_within_s: float
    min_back: int
    max_others_slower: float

    def __post_init__(self) -> None:
        for name in ("min_refused", "min_back"):
            least(f"scenario.{name}", getattr(self, name), 1)
        require("scenario.min_used", self.min_used, 0 < self.min_used <= 1, "above 0, at most 1")
        above("scenario.back_within_s", self.back_within_s, 0)
        least("scenario.max_others_slower", self.max_others_slower, 1)


def script(stage: Stage, s: Settings) -> None:
    """Nothing happens but that hours pass. Raises BadSettings where the model has no limit, or nobody asks for it."""
    limits = stage.engine.settings.quotas.limits
    has_limit = any(limit.model == s.model and limit.hourly_tokens is not None for limit in limits)
    require("scenario.model", s.model, has_limit, "a model with hourly_tokens in quotas.limits")
    asked_for = stage.trace.asked_for
    require("scenario.model", s.model, s.model in asked_for, f"asked for: one of {', '.join(asked_for)}")


def checks(run: Run, s: Settings) -> Iterator[Check]:
    whole, limit = run.requests, limit_of(run.config, s.model)
    is_its = whole["model_requested"] == s.model
    its, others = whole[is_its], whole[~is_its]
    refused = its[its["outcome"] == "rejected"]
    told = run.facts[(run.facts["kind"] == "soft_limit_passed") & (run.facts["detail"] == "hourly_tokens")]
    soft = [round(100 * share) for share in run.config["quotas"].get("soft_limits") or (0.8, 0.85, 0.9, 0.95)]
    used = used_by_hour(its)

    unended = run.manifest["trace"]["requests"] - int(whole["outcome"].notna().sum())
    yield at_most("requests without an outcome", unended, 0, f"n={len(whole)}")
    ended = (whole["outcome"] == "completed") | (is_its & (whole["reason"] == "over_quota"))
    yield at_most("requests neither served nor refused by the limit", int((~ended).sum()), 0)
    wrong = misplaced(told, its, limit, soft)
    published = ", ".join(map(str, soft)) + " %"
    note = "each once an hour, in order"
    yield at_most("soft limits not told as they should be", wrong, 0, note, published=published)
    yield evidence("requests refused", len(refused), s.min_refused, f"of {len(its)}")
    share = at_refusal(its, limit)
    yield at_least("share of the limit used at the first refusal", share, s.min_used, published="100 %")
    most = max(used.max() / limit, reserved(run, s.model)) if len(used) else None
    note = "used and reserved: " + " ".join(map(str, used.tolist()))
    yield at_most("largest share of the limit in any hour", most, 1, note)
    back = again(its, refused, s.back_within_s)
    yield evidence("requests soon after the hour that follows a refusal", len(back), s.min_back)
    lost = int((back["outcome"] != "completed").sum()) if len(back) else None
    yield at_most("of them not served", lost, 0, f"within {s.back_within_s:g} s")
    hurt = int((others["outcome"] != "completed").sum())
    yield at_most("requests of other models not served", hurt, 0, f"n={len(others)}")
    yield at_most("their E2E, times that without a limit", slower(run, s), s.max_others_slower)


def limit_of(config: dict[str, Any], model: str) -> int:
    """The tokens that a model may use in an hour."""
    return int(next(each["hourly_tokens"] for each in config["quotas"]["limits"] if each["model"] == model))


def tokens_of(requests: pd.DataFrame) -> pd.Series:
    """What each request used."""
    return requests["prompt_tokens"] + requests["output_tokens"]


def hours(times_ns: "pd.Series[int]") -> pd.Series:
    """The number of the hour that each time is in."""
    return times_ns.astype("int64") // HOUR_NS


def used_by_hour(its: pd.DataFrame) -> pd.Series:
    """The tokens of the requests that were let in within each hour."""
    let_in = its[its["admitted_ns"].notna() & (its["outcome"] == "completed")]
    return tokens_of(let_in).groupby(hours(let_in["admitted_ns"])).sum()


def reserved(run: Run, model: str) -> float:
    """The largest share of the limit that the ledger had on its books at a sample, reservations included."""
    series = run.timeseries
    books = series[
        series["subject"].str.startswith(f"quota of {model}@") & (series["metric"] == "hourly_tokens")
    ]
    return float(books["value"].max()) if len(books) else 0.0


def misplaced(told: pd.DataFrame, its: pd.DataFrame, limit: int, soft: list[int]) -> int:
    """In how many hours the soft limits were not told one after the other, each that was passed once."""
    used = used_by_hour(its)
    passed = {hour: [each for each in soft if 100 * tokens >= each * limit] for hour, tokens in used.items()}
    heard: dict[Any, list[int]] = {hour: [] for hour in passed}
    for hour, share in zip(hours(told["at_ns"]), told["value"], strict=True):
        heard.setdefault(hour, []).append(int(share))
    return sum(heard[hour] != passed.get(hour, []) for hour in heard)


def at_refusal(its: pd.DataFrame, limit: int) -> float | None:
    """How much of the limit was in use when a request was refused, the least of the first in each hour."""
    refused = its[its["outcome"] == "rejected"]
    firsts = refused.groupby(hours(refused["arrival_ns"]))["arrival_ns"].min()
    let_in = its[its["admitted_ns"].notna()]
    shares = []
    for hour, first_ns in firsts.items():
        earlier = let_in[(hours(let_in["admitted_ns"]) == hour) & (let_in["admitted_ns"] <= first_ns)]
        wanted = its.loc[
            (its["arrival_ns"] == first_ns) & (its["outcome"] == "rejected"), "prompt_tokens"
        ].iloc[0]
        shares.append((int(tokens_of(earlier).sum()) + int(wanted)) / limit)
    return float(np.min(shares)) if shares else None


def again(its: pd.DataFrame, refused: pd.DataFrame, within_s: float) -> pd.DataFrame:
    """The requests that arrived soon after the end of an hour in which some were refused."""
    closed = hours(refused["arrival_ns"]).unique() + 1
    arrival_ns = its["arrival_ns"]
    is_soon = hours(arrival_ns).isin(closed) & (arrival_ns.astype("int64") % HOUR_NS < to_ns(within_s))
    return its[is_soon]


def slower(run: Run, s: Settings) -> float | None:
    """The mean E2E of the other models' requests, in times of what it is without a limit."""
    without = run.beside.get("no_limit", [])
    if not without:
        return None
    means = [others_e2e_s(each, s.model) for each in (run, without[0])]
    return means[0] / means[1] if means[1] else None


def others_e2e_s(run: Run, model: str) -> float:
    """The mean E2E of the completed requests for other models."""
    served = run.whole.completed
    served = served[served["model_requested"] != model]
    return float((served["finished_ns"] - served["arrival_ns"]).mean()) / NS_PER_S if len(served) else 0.0
