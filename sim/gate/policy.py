"""`python -m sim.gate policy`: may a change of configuration be merged? Two configurations on the same traffic.

"This change of policy may not cost more than 3 % goodput": both are played on the same seeds, so that what requests
have in common cancels out, and the interval of the cost lies within what is allowed (pass), beyond it (fail) or
across it (inconclusive: more seeds would say). Exit codes are those of the other gates.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, isfinite
from pathlib import Path
from statistics import fmean

from engine.errors import BadSettings
from engine.settings import above, at_least, require
from sim import metrics
from sim.config import RunSettings, read
from sim.experiments import MAIN, MORE_IS_BETTER, Folder, complain, progress
from sim.gate.rows import FAIL, INCONCLUSIVE, PASS, Row, overall
from sim.intervals import interval
from sim.runs import Run, open_run
from sim.traffic import draw
from sim.traffic.fingerprint import fingerprint
from sim.workers import Job, Played, play_all

OF_REQUESTS = ("goodput_per_s", "slo_attainment")
FIGURES = (*OF_REQUESTS, *MAIN)
ALPHA = 0.05
SIDES = ("base", "head")
TOGETHER = 5
"""Seeds of one side that are played in a row."""


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
    before, after = (read(lines[side]) for side in SIDES)
    _check_same_traffic(before, after)
    folder = Folder(before.report.folder, f"gate_{before.scenario.name}")
    folder.begin([])
    jobs = _jobs(lines, before.seed, asked.seeds, folder.path / "runs")
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


def _jobs(lines: Mapping[str, Sequence[str]], first_seed: int, seeds: int, folder: Path) -> list[Job]:
    """A few seeds of the base, the same ones of the head, and so on: what is played in a row is composed once."""
    pairs = [(number, first_seed + number) for number in range(seeds)]
    return [
        Job(2 * number + place, tuple(lines[side]), folder / f"{side}-{seed}", seed)
        for begin in range(0, seeds, TOGETHER)
        for place, side in enumerate(SIDES)
        for number, seed in pairs[begin : begin + TOGETHER]
    ]


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
    for name in settings.may_cost:
        row = judged(name, [_figures(name, settings, *pair) for pair in runs], settings, command)
        if interrupted and row.verdict != FAIL:
            note = f"interrupted after {len(whole)} of {settings.seeds} pairs"
            row = replace(row, verdict=INCONCLUSIVE, note=note)
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


def _check_same_traffic(base: RunSettings, head: RunSettings) -> None:
    """Raise BadSettings unless both meet the same requests."""
    met = [
        fingerprint(draw(side.workload, side.seed, [model.name for model in side.engine.fleet.models]))
        for side in (base, head)
    ]
    if base.seed != head.seed or met[0] != met[1]:
        raise BadSettings(
            "base and head meet different traffic, so that their runs cannot be paired: what sets seed, workload and "
            "models must be common to both"
        )


def _figures(name: str, settings: PolicySettings, *pair: Run) -> tuple[float | None, ...]:
    """The figure of both sides; None where a run has none."""
    if name not in OF_REQUESTS:
        return tuple(None if run.summary[name] is None else float(run.summary[name]) for run in pair)
    taken = metrics.goodput_per_s if name == "goodput_per_s" else metrics.slo_attainment
    return tuple(taken(run.requests, settings.slo_ttft_s, settings.slo_tpot_s) for run in pair)


def more_is_better(name: str) -> bool:
    """Whether a figure that grows gets better."""
    return name in {*MORE_IS_BETTER, "slo_attainment"} or name.endswith("_per_s")


def judged(
    name: str, pairs: Sequence[tuple[float | None, ...]], settings: PolicySettings, command: str = ""
) -> Row:
    """The interval of the cost against what is allowed, from base and head of each pair.

    A cost is a share of the base of its own pair. Where several figures are looked at, each interval is wider
    (Bonferroni), so that all of them together are right as often as one would be.
    """
    limit, sign = settings.may_cost[name], -1 if more_is_better(name) else 1
    row = Row(
        name=f"policy/{name}", verdict=INCONCLUSIVE, limit=f"{sign * 100 * limit:+.3g} %", command=command
    )
    known = [(base, head) for base, head in pairs if base and head is not None]
    if len(known) < max(2, len(pairs)):
        without = len(pairs) - len(known)
        note = f"{without} of {len(pairs)} pairs have none" if without else "fewer than two pairs are whole"
        return replace(row, note=note)
    found = interval(
        [sign * (head - base) / base for base, head in known], 1 - ALPHA / len(settings.may_cost)
    )
    assert found.half_width is not None, "there are several pairs"
    verdict = PASS if found.high <= limit else FAIL if found.low > limit else INCONCLUSIVE
    low, high = sorted((sign * found.low, sign * found.high))
    return replace(
        row,
        verdict=verdict,
        base=fmean(base for base, _ in known),
        head=fmean(head for _, head in known),
        delta=sign * found.mean,
        interval=(low, high),
        note=_why(verdict, limit, found.mean, found.half_width, len(known)),
    )


def _why(verdict: str, limit: float, mean: float, half_width: float, pairs: int) -> str:
    if verdict == PASS:
        return ""
    if verdict == FAIL:
        return f"costs {mean:.2%} over {pairs} pairs, surely more than {limit:.2%}"
    needed = ceil(pairs * (half_width / abs(limit - mean)) ** 2) if mean != limit else None
    more = f"; about {needed} seeds would say" if needed else ""
    return f"the interval of {pairs} pairs lies across what is allowed{more}"
