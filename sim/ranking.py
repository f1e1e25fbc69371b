"""What the runs of a sweep say: which combination is best by a figure, and how far each is from the baseline.

All combinations are played on the same seeds and so on the same requests: differences are paired, and their p-values
are corrected for the number of combinations (Holm). A rank without that is chance put into an order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from engine.errors import BadSettings
from sim.compare import Row, rows_of
from sim.copies import are_copies, rows_without_copies
from sim.experiments import LATENCIES, MAIN, is_better
from sim.intervals import Interval, interval
from sim.metrics import OUTCOMES
from sim.plan import Combination, label
from sim.stats import Difference, difference, holm

FIGURES = tuple(
    dict.fromkeys(
        [
            *MAIN,
            *(
                f"{kind}_{name}_s"
                for name in (*LATENCIES, "queue")
                for kind in ("mean", "p50", "p90", "p95", "p99")
            ),
            *OUTCOMES,
            "output_throughput_tokens_per_s",
            "request_hit_ratio",
            "second_tries",
            "jain_index_of_replicas",
            "mean_regret_ttft_s",
            "mean_regret_e2e_s",
        ]
    )
)
"""By which combinations can be ranked and drawn."""

BESIDE = ("mean_ttft_s", "mean_tpot_s", "token_hit_ratio")
"""Shown beside the figure that ranks."""

MOST_SHOWN = 24
SURE = 0.05


@dataclass(frozen=True, slots=True)
class Ranked:
    """One combination: its figure over the seeds, and the paired difference from the baseline."""

    combination: Combination
    runs: pd.DataFrame
    """Those that were whole, a row a seed."""
    asked: int
    figure: Interval | None
    """None where a run has no such figure."""
    difference: Difference | None = None
    """None of the baseline itself, and where there are no pairs."""
    p_value: float | None = None
    """Corrected for the number of combinations (Holm)."""

    @property
    def name(self) -> str:
        return label(self.combination)

    @property
    def passed(self) -> int:
        """Runs whose checks all held."""
        return int((self.runs["verdict"] == "pass").sum())

    @property
    def lost_share(self) -> float | None:
        """Requests that were not completed, of all: a figure over the others says nothing of them."""
        counts = self.runs[list(OUTCOMES)].sum() if len(self.runs) else None
        return 1 - float(counts["completed"] / counts.sum()) if counts is not None and counts.sum() else None

    def mean(self, figure: str) -> Interval | None:
        return mean_of(self.runs, figure)

    def verdict(self, figure: str) -> str:
        """Better or worse than the baseline, or that nothing is seen."""
        if self.difference is None:
            return ""
        if self.p_value is None:
            return "one pair: no interval"
        if self.p_value >= SURE:
            return "no difference seen"
        return "better" if is_better(figure, self.difference.mean) else "worse"


def check_figure(setting: str, figure: str) -> str:
    """The figure, where there is one of that name. Raises BadSettings."""
    if figure not in FIGURES:
        raise BadSettings(f"{setting} is {figure!r}, but must be one of {', '.join(FIGURES)}")
    return figure


def mean_of(runs: pd.DataFrame, figure: str) -> Interval | None:
    """The mean of a figure over runs; None where one of them has none."""
    if figure not in runs or not len(runs) or runs[figure].isna().any():
        return None
    return interval(rows_without_copies(runs)[figure].astype(float).tolist())


def ranked(
    index: pd.DataFrame, combinations: Sequence[Combination], baseline: Combination, figure: str
) -> list[Ranked]:
    """All combinations, the best by the figure first; those without it are last, in the order of the sweep."""
    found = [_alone(index, each, figure) for each in combinations]
    (base,) = (each for each in found if each.combination == baseline)
    others = [each for each in found if each is not base]
    differences = [_difference(base.runs, each.runs, figure) for each in others]
    p_values = _corrected([each.p_value if each else None for each in differences])
    compared = [
        replace(each, difference=one, p_value=p_value)
        for each, one, p_value in zip(others, differences, p_values, strict=True)
    ]
    sign = 1 if is_better(figure, -1.0) else -1
    place = {label(each): number for number, each in enumerate(combinations)}
    return sorted(
        [base, *compared],
        key=lambda each: (
            each.figure is None,
            sign * each.figure.mean if each.figure else 0.0,
            place[each.name],
        ),
    )


def comparisons(found: Sequence[Ranked], baseline: Combination) -> dict[str, list[Row]]:
    """By combination: how each figure differs from the baseline's.

    P-values are corrected for the number of combinations, figure by figure, as in the ranking.
    """
    (base,) = (each for each in found if each.combination == baseline)
    rows = {each.name: _paired_rows(base.runs, each.runs) for each in found if each is not base}
    return _by_figure({name: each for name, each in rows.items() if each})


def effects(
    index: pd.DataFrame, swept: Mapping[str, Sequence[str]], baseline: Combination
) -> dict[str, list[Row]]:
    """By setting and value: what a value changes against the baseline's, averaged over all else that is swept.

    The average is taken seed by seed: two combinations on one seed met the same requests, and are no two samples.
    P-values are corrected for the number of values, figure by figure. None where a run is missing, because then the
    averages are not over the same.
    """
    if len(swept) < 2 or (index["error"] != "").any():  # noqa: PLR2004  one setting has no average over others
        return {}
    if all(are_copies(rows["digest"].tolist()) for _, rows in index.groupby(list(swept), sort=False)):
        index = index[index["seed"] == index["seed"].iloc[0]]
    found = {}
    for name, values in swept.items():
        sides = {
            value: index[index[name] == value].groupby("seed", sort=True)[_figures_in(index)].mean()
            for value in values
        }
        first = sides[baseline[name]]
        for value in values:
            if value != baseline[name]:
                found[f"{name}={value}"] = rows_of(first, sides[value])
    return _by_figure(found)


def told(rows: Mapping[str, Sequence[Row]], name: str) -> pd.DataFrame:
    """Comparisons as a table: one row a figure."""
    return pd.DataFrame([{name: value, **row.told()} for value, each in rows.items() for row in each])


def rank_table(found: Sequence[Ranked], figure: str) -> pd.DataFrame:
    """ranking.csv: one row a combination, the best first."""
    rows = []
    for place, each in enumerate(found, start=1):
        row: dict[str, Any] = {
            "place": place,
            **each.combination,
            "runs": len(each.runs),
            "passed": each.passed,
        }
        row |= {"lost_share": each.lost_share, "figure": figure}
        row |= {
            "mean": each.figure.mean if each.figure else None,
            "half_width": each.figure.half_width if each.figure else None,
        }
        one = each.difference
        row |= {
            "difference": one.mean if one else None,
            "difference_half_width": one.half_width if one else None,
        }
        rows.append({**row, "p_value": each.p_value, "verdict": each.verdict(figure)})
    return pd.DataFrame(rows)


def show(found: Sequence[Ranked], baseline: Combination, figure: str, out: Console) -> None:
    """The ranked table."""
    runs, seeds = sum(each.asked for each in found), found[0].asked
    table = Table(
        box=SIMPLE_HEAD,
        title=f"{len(found)} combinations, {runs} runs ({seeds} seed{'s' * (seeds != 1)} each), the best by {figure} "
        f"first\nmeans over seeds; paired differences from the baseline with 95 % intervals",
    )
    keys, beside = list(baseline), [each for each in BESIDE if each != figure]
    heads = ("", *keys, figure, "difference", "p (Holm)", "verdict", "passed", "lost", *beside)
    for head in heads:
        table.add_column(head, justify="left" if head in (*keys, "verdict") else "right", no_wrap=True)
    for place, each in enumerate(found[:MOST_SHOWN], start=1):
        table.add_row(
            str(place), *each.combination.values(), *_cells(each, baseline, figure), *_means(each, beside)
        )
    out.print(table)
    if len(found) > MOST_SHOWN:
        out.print(f"{len(found) - MOST_SHOWN} further combinations are in ranking.csv", highlight=False)


def _cells(each: Ranked, baseline: Combination, figure: str) -> list[str]:
    one, lost = each.difference, each.lost_share
    return [
        "" if each.figure is None else f"{each.figure.mean:.4g}{_give_or_take(each.figure.half_width)}",
        "" if one is None else f"{one.mean:+.3g}{_give_or_take(one.half_width)}",
        "" if each.p_value is None else f"{each.p_value:.2g}",
        "baseline" if each.combination == baseline else each.verdict(figure),
        f"{each.passed}/{each.asked}",
        "" if lost is None else f"{lost:.2%}",
    ]


def _means(each: Ranked, figures: Sequence[str]) -> list[str]:
    means = [each.mean(name) for name in figures]
    return ["" if mean is None else f"{mean.mean:.4g}" for mean in means]


def _give_or_take(half_width: float | None) -> str:
    return "" if half_width is None else f" +- {half_width:.2g}"


def _alone(index: pd.DataFrame, combination: Combination, figure: str) -> Ranked:
    rows = index
    for name, value in combination.items():
        rows = rows[rows[name] == value]
    whole = rows[rows["error"] == ""].set_index("seed", drop=False).rename_axis(None)
    return Ranked(combination, whole, len(rows), mean_of(whole, figure))


def _difference(first: pd.DataFrame, second: pd.DataFrame, figure: str) -> Difference | None:
    one, other = _pairs(first, second)
    if mean_of(one, figure) is None or mean_of(other, figure) is None:
        return None
    return difference(one[figure].astype(float).tolist(), other[figure].astype(float).tolist())


def _paired_rows(first: pd.DataFrame, second: pd.DataFrame) -> list[Row]:
    one, other = _pairs(first, second)
    return rows_of(one, other) if len(one) else []


def _pairs(first: pd.DataFrame, second: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The runs of both sides on the same seeds; a single pair where on neither side a seed changes anything."""
    both = first.index.intersection(second.index, sort=False)
    one, other = first.loc[both], second.loc[both]
    most = max(len(rows_without_copies(each)) for each in (one, other))
    return one.iloc[:most], other.iloc[:most]


def _figures_in(index: pd.DataFrame) -> list[str]:
    return [name for name in MAIN if name in index and not index[name].isna().any()]


def _by_figure(rows: Mapping[str, Sequence[Row]]) -> dict[str, list[Row]]:
    """The rows with p-values corrected for how many sides are compared in the same figure."""
    raw: dict[str, list[float | None]] = {}
    for each in rows.values():
        for row in each:
            raw.setdefault(row.figure, []).append(row.difference.p_value)
    left = {figure: iter(_corrected(p_values)) for figure, p_values in raw.items()}
    return {
        name: [replace(row, p_value=next(left[row.figure])) for row in each] for name, each in rows.items()
    }


def _corrected(p_values: Sequence[float | None]) -> list[float | None]:
    known = iter(holm([value for value in p_values if value is not None]))
    return [None if value is None else next(known) for value in p_values]
