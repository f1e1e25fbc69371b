"""Two models share the requests for one, 70 to 30: a session stays where it is, and what came of both is compared."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
import pandas as pd

from engine.settings import above, at_least, require
from sim import metrics
from sim.checks import Check, at_most, evidence
from sim.runs import Run, Window
from sim.stage import Stage
from sim.stats import Floats, clustered_difference

METRICS = {"ttft_s": "TTFT, s", "e2e_s": "E2E, s", "hit_ratio": "hit ratio"}
"""What is compared, as the engine's own report calls it, and as people do."""

EXACT = 1e-9


@dataclass
class Settings:
    """How far the split may be off, and how exactly the arms are to be told apart."""

    name: str
    max_split_error: float
    max_errors: float
    min_follow_ups: int
    max_hit_ratio_half_width: float
    max_latency_half_width: float

    def __post_init__(self) -> None:
        require("scenario.max_split_error", self.max_split_error, 0 < self.max_split_error < 1, "from 0 to 1")
        above("scenario.max_errors", self.max_errors, 0)
        at_least("scenario.min_follow_ups", self.min_follow_ups, 1)
        for name in ("max_hit_ratio_half_width", "max_latency_half_width"):
            above(f"scenario.{name}", getattr(self, name), 0)


def script(stage: Stage, _: Settings) -> None:
    """Nothing happens but the experiment. Raises BadSettings where there is none, or more than one."""
    experiments = stage.engine.settings.routing.experiments
    require("routing.experiments", len(experiments), len(experiments) == 1, "one experiment")


def checks(run: Run, s: Settings) -> Iterator[Check]:
    experiment: dict[str, Any] = run.config["routing"]["experiments"][0]
    rows = with_units(run.requests[run.requests["arm"].notna()], experiment)
    split = {f"{experiment['name']}/{arm['name']}": float(arm["weight"]) for arm in experiment["arms"]}

    yield at_most("requests outside the experiment", len(run.requests) - len(rows), 0, f"n={len(rows)}")
    yield of_requests(rows, split, s)
    yield of_units(rows, split, s)
    seen = rows.groupby("unit")["arm"].nunique()
    yield at_most("sessions in more than one arm", int((seen > 1).sum()), 0, f"of {len(seen)}")
    yield evidence("requests that had to find an earlier one's arm", len(rows) - len(seen), s.min_follow_ups)
    yield at_most("requests that the other arm's model served", strays(rows, experiment), 0)
    for label in split:
        arm = Window(rows[rows["arm"] == label])
        yield at_most(f"requests of {label} that did not complete", arm.not_completed, 0, arm.told)
    yield at_most("times that a replica was unhealthy", unhealthy(run), 0)
    yield from comparisons(run, rows, list(split), s)


def with_units(rows: pd.DataFrame, experiment: dict[str, Any]) -> pd.DataFrame:
    """The requests of an experiment, with what it deals out: sessions, tenants, or each for itself."""
    unit = {"session": rows["session"].fillna(rows["tenant"]), "tenant": rows["tenant"]}
    return rows.assign(unit=unit.get(experiment["unit"], rows["request_id"]))


def of_requests(rows: pd.DataFrame, split: dict[str, float], s: Settings) -> Check:
    """The largest distance of an arm's share of the requests from what was asked for.

    Who is dealt out is the session, with all of its requests: a share of them differs by chance, by a standard
    deviation of sqrt(p (1 - p) sum n^2) / sum n. What is within so many of these is no failure, even if too far.
    """
    name, count, sizes = "distance of the split from that asked for", len(rows), rows.groupby("unit").size()
    if not count:
        return at_most(name, None, s.max_split_error)
    shares = {label: float((rows["arm"] == label).mean()) for label in split}
    error = max(abs(shares[label] - weight) for label, weight in split.items())
    spread = max(sqrt(weight * (1 - weight)) for weight in split.values())
    by_chance = s.max_errors * spread * sqrt(float((sizes**2).sum())) / count
    told = "/".join(f"{share:.2%}" for share in shares.values())
    note = f"{told} of n={count} in {len(sizes)} sessions, of which chance makes up to {by_chance:.4f}"
    check = at_most(name, error, s.max_split_error, note, published="within 1 %")
    if check.verdict == "fail" and error <= by_chance:
        return Check(check.name, error, check.op, check.limit, "inconclusive", note, check.published)
    return check


def of_units(rows: pd.DataFrame, split: dict[str, float], s: Settings) -> Check:
    """The same of sessions, each of which counts once: then chance is binomial."""
    name = "sessions: standard errors of the split from that asked for"
    first = rows.drop_duplicates("unit")
    if first.empty:
        return at_most(name, None, s.max_errors)
    errors = [
        abs(float((first["arm"] == label).mean()) - weight) / sqrt(weight * (1 - weight) / len(first))
        for label, weight in split.items()
        if 0 < weight < 1
    ]
    bound = s.max_errors * sqrt(max(weight * (1 - weight) for weight in split.values()) / len(first))
    told = "/".join(f"{float((first['arm'] == label).mean()):.2%}" for label in split)
    return at_most(name, max(errors), s.max_errors, f"{told}, bound +-{bound:.2%}, n={len(first)}")


def strays(rows: pd.DataFrame, experiment: dict[str, Any]) -> int:
    """Requests that were served, and not by what their arm sends them to."""
    target = {f"{experiment['name']}/{arm['name']}": arm["target"] for arm in experiment["arms"]}
    served = rows[rows["model"].notna()]
    wanted = served["arm"].map(target)
    names, exact = served["model"].str.partition("@")[0], served["model"]
    return int(((names != wanted) & (exact != wanted)).sum())


def unhealthy(run: Run) -> int:
    """How often a replica was found to be unhealthy."""
    return int((run.timeseries["metric"] == "unhealthy").sum())


def comparisons(run: Run, rows: pd.DataFrame, labels: list[str], s: Settings) -> Iterator[Check]:
    """How each further arm differs from the first: the engine's own report against a count of ours, and how exactly.

    The intervals here are by sessions, whose requests are alike: a little wider than those of the engine's report.
    """
    done = rows[rows["outcome"] == "completed"]
    values = {"ttft_s": metrics.ttft_s(done), "e2e_s": metrics.e2e_s(done), "hit_ratio": hit_ratios(done)}
    experiment, first = labels[0].split("/")
    report = run.manifest["experiments"][experiment]["comparisons"]
    is_first, worst = (done["arm"] == labels[0]).to_numpy(), 0.0
    for label in labels[1:]:
        other = label.split("/")[1]
        is_other = (done["arm"] == label).to_numpy()
        for metric, told in METRICS.items():
            known = report[f"{other} against {first}"][metric]
            name = f"{told}, {other} less {first}: half-width of the interval"
            if min(is_first.sum(), is_other.sum()) == 0:
                yield at_most(name, None, 0.0)
                continue
            ours = [float(values[metric][side].mean()) for side in (is_first, is_other)]
            worst = max(worst, abs(known["mean_a"] - ours[0]), abs(known["mean_b"] - ours[1]))
            yield exact_enough(name, values[metric], done["unit"], is_first, is_other, metric, s)
    yield at_most("engine's report of the arms: distance from a recount", worst, EXACT, f"n={len(done)}")


def hit_ratios(done: pd.DataFrame) -> Floats:
    """Of each request, the part of its prompt that was cached."""
    ratios: Floats = metrics.cached_tokens(done) / done["prompt_tokens"].to_numpy(dtype=float)
    return ratios


def exact_enough(
    name: str, values: Floats, unit: "pd.Series[Any]", is_first: Any, is_other: Any, metric: str, s: Settings
) -> Check:
    """Whether the difference of two arms is known well enough to mean something."""
    codes = pd.factorize(unit)[0].astype(np.int64)
    found = clustered_difference(values[is_first], codes[is_first], values[is_other], codes[is_other])
    mean = float(values[is_first].mean())
    limit = s.max_hit_ratio_half_width if metric == "hit_ratio" else s.max_latency_half_width * mean
    note = f"{mean:.4g} and {mean + found.mean:.4g}, differ by {found.mean:+.4g}"
    half_width = found.half_width
    shown = half_width is not None and half_width <= limit
    return Check(name, half_width, "<=", limit, "pass" if shown else "inconclusive", note)
