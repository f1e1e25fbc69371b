"""`python -m sim.gate policy`: may a change of configuration be merged? Two configurations on the same traffic.

"This change of policy may not cost more than 3 % goodput": both are played on the same seeds, so that what requests
have in common cancels out, and the interval of the cost lies within what is allowed (pass), beyond it (fail) or
across it (inconclusive: more seeds would say). Exit codes are those of the other gates.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, isfinite
from pathlib import Path
from typing import Any

from engine.errors import BadSettings
from engine.settings import above, at_least, require
from sim import metrics
from sim.config import read
from sim.experiments import MAIN, MORE_IS_BETTER, Folder, complain, progress
from sim.gate.rows import FAIL, INCONCLUSIVE, PASS, Row, overall
from sim.intervals import interval
from sim.runs import Run, open_run
from sim.workers import Job, Played, play_all

OF_REQUESTS = ("goodput_per_s", "slo_attainment")
FIGURES = (*OF_REQUESTS, *MAIN)
ALPHA = 0.05
SIDES = ("base", "head")


@dataclass(slots=True, kw_only=True)
class PolicySettings:
    """What the head may cost, by how many pairs of runs that is decided, and what is good."""

    may_cost: Mapping[str, float] = field(default_factory=lambda: {"goodput_per_s": 0.03})
    seeds: int = 10
    slo_ttft_s: float = 1.0
    slo_tpot_s: float = 0.1
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)

    def __post_init__(self) -> None:
        require(
            "may_cost", dict(self.may_cost), len(self.may_cost) > 0, "FIGURE:SHARE, as in goodput_per_s:3%"
        )
        for name, share in self.may_cost.items():
            require("may_cost", name, name in FIGURES, f"one of {', '.join(FIGURES)}")
            require(f"may_cost={name}", share, isfinite(share) and share >= 0, "at least 0 %")
        at_least("seeds", self.seeds, 2)
        above("slo_ttft_s", self.slo_ttft_s, 0)
        above("slo_tpot_s", self.slo_tpot_s, 0)
        at_least("workers", self.workers, 1)


@dataclass(slots=True)
class Verdict:
    """The rows, and where the runs are."""

    rows: list[Row]
    path: Path
    interrupted: bool = False

    @property
    def verdict(self) -> str:
        """pass, fail or inconclusive."""
        return overall(self.rows)


def judge_policy(
    base: Sequence[str],
    head: Sequence[str],
    settings: PolicySettings | None = None,
    *,
    shown: bool = False,
    command: str = "",
) -> Verdict:
    """Play both, pair by pair, and judge what the head costs. Raises BadSettings before anything runs."""
    asked = settings or PolicySettings()
    lines = {"base": list(base), "head": list(head)}
    composed = {side: read(each) for side, each in lines.items()}
    seeds = {side: each.seed for side, each in composed.items()}
    require(
        "seed", seeds["head"], seeds["head"] == seeds["base"], "the same on both sides: runs are paired by it"
    )
    folder = Folder(composed["base"].report.folder, f"gate_{composed['base'].scenario.name}")
    folder.begin([])
    jobs = [
        Job(2 * number + place, (*lines[side], f"seed={seed}"), folder.path / "runs" / f"{side}-{seed}")
        for number, seed in enumerate(range(seeds["base"], seeds["base"] + asked.seeds))
        for place, side in enumerate(SIDES)
    ]
    played: list[Played] = []
    interrupted = False
    try:
        with progress(len(jobs), played.append, shown=shown) as told:
            play_all(jobs, asked.workers, told, complain)
    except KeyboardInterrupt:
        interrupted = True
    rows = list(_rows(asked, played, command, interrupted=interrupted))
    path = folder.path if interrupted else folder.publish()
    return Verdict(rows, path, interrupted)


def _rows(
    settings: PolicySettings, played: Sequence[Played], command: str, *, interrupted: bool
) -> Iterator[Row]:
    by_number = {each.number: each for each in played}
    pairs = [
        (by_number[number], by_number[number + 1])
        for number in sorted(by_number)
        if number % 2 == 0 and number + 1 in by_number
    ]
    for each in played:
        if each.verdict == "bad settings":
            raise BadSettings(str(each.error))
    yield _checks(pairs, command)
    whole = [pair for pair in pairs if all(each.error is None for each in pair)]
    runs = [(open_run(base.folder), open_run(head.folder)) for base, head in whole]
    for base, head in runs:
        _check_same_traffic(base, head)
    for name in settings.may_cost:
        costs = [_cost(name, settings, *pair) for pair in runs]
        row = _judged(name, settings, costs, runs, command)
        if interrupted and row.verdict != FAIL:
            note = f"interrupted after {len(whole)} of {settings.seeds} pairs"
            row = Row(name=row.name, verdict=INCONCLUSIVE, base=row.base, head=row.head, delta=row.delta,
                      interval=row.interval, limit=row.limit, note=note, command=command)  # fmt: skip
        yield row


def _checks(pairs: Sequence[tuple[Played, Played]], command: str) -> Row:
    """Whether the scenario's own checks, and the runs themselves, fail more often than they did."""
    base, head = (sum(pair[place].verdict in {"fail", "error"} for pair in pairs) for place in (0, 1))
    broken = [each.error for pair in pairs for each in pair if each.error is not None]
    if base and head <= base and broken:
        verdict, note = INCONCLUSIVE, broken[0]
    elif head > base:
        verdict, note = FAIL, broken[0] if broken else "checks of the scenario fail that did not"
    else:
        verdict, note = (PASS, "") if pairs else (INCONCLUSIVE, "no pair of runs is whole")
    return Row(
        name="policy/runs that fail",
        verdict=verdict,
        base=base,
        head=head,
        limit="<= base",
        note=str(note),
        command=command,
    )


def _check_same_traffic(base: Run, head: Run) -> None:
    """Raise BadSettings unless both met the same requests."""
    if base.manifest["trace"]["fingerprint"] != head.manifest["trace"]["fingerprint"]:
        raise BadSettings(
            f"the runs of seed {base.manifest['seed']} met different traffic, so that they cannot be paired: "
            "settings of the workload must be common to both sides"
        )


def _figure(name: str, settings: PolicySettings, run: Run) -> float | None:
    if name in OF_REQUESTS:
        taken = metrics.goodput_per_s if name == "goodput_per_s" else metrics.slo_attainment
        return taken(run.requests, settings.slo_ttft_s, settings.slo_tpot_s)
    value = run.summary[name]
    return None if value is None else float(value)


def _cost(name: str, settings: PolicySettings, base: Run, head: Run) -> float | None:
    """What the head loses against the base, as a share of that; None where there is nothing to lose."""
    before, after = _figure(name, settings, base), _figure(name, settings, head)
    if not before or after is None:
        return None
    return (before - after) / before if more_is_better(name) else (after - before) / before


def more_is_better(name: str) -> bool:
    """Whether a figure that grows gets better."""
    return name in {*MORE_IS_BETTER, "slo_attainment"} or name.endswith("_per_s")


def _judged(
    name: str,
    settings: PolicySettings,
    costs: Sequence[float | None],
    runs: Sequence[tuple[Run, Run]],
    command: str,
) -> Row:
    """The interval of the cost against what is allowed; narrower claims where several figures are looked at."""
    limit = settings.may_cost[name]
    sign = -1 if more_is_better(name) else 1
    known = [cost for cost in costs if cost is not None]
    shown: dict[str, Any] = {
        "name": f"policy/{name}",
        "limit": f"{sign * 100 * limit:+.3g} %",
        "command": command,
    }
    if len(known) < max(2, len(costs)):
        without = len(costs) - len(known)
        note = (
            f"{without} of {len(costs)} pairs have no such figure"
            if without
            else "fewer than two pairs are whole"
        )
        return Row(verdict=INCONCLUSIVE, note=note, **shown)
    found = interval(known, 1 - ALPHA / len(settings.may_cost))
    assert found.half_width is not None, "there are several pairs"
    ends = (found.low, found.high)
    verdict = PASS if found.high <= limit else FAIL if found.low > limit else INCONCLUSIVE
    means = [_mean(name, settings, [pair[place] for pair in runs]) for place in (0, 1)]
    return Row(
        verdict=verdict,
        base=means[0],
        head=means[1],
        delta=sign * found.mean,
        interval=(min(sign * end for end in ends), max(sign * end for end in ends)),
        note=_why(verdict, limit, found.mean, found.half_width, len(known)),
        **shown,
    )


def _mean(name: str, settings: PolicySettings, runs: Sequence[Run]) -> float:
    values = [_figure(name, settings, run) or 0.0 for run in runs]
    return sum(values) / len(values)


def _why(verdict: str, limit: float, mean: float, half_width: float, pairs: int) -> str:
    if verdict == PASS:
        return ""
    if verdict == FAIL:
        return f"costs {mean:.2%} over {pairs} pairs, surely more than {limit:.2%}"
    needed = ceil(pairs * (half_width / abs(limit - mean)) ** 2) if mean != limit else None
    more = f"; about {needed} seeds would say" if needed else ""
    return f"the interval of {pairs} pairs lies across what is allowed{more}"
