"""`python -m sim.compare RUNS -- RUNS`: what differs between two ways to serve the same traffic, and how surely.

Runs are paired by seed: both of a pair met the same requests, so what these have in common cancels out. The interval
is that of the difference; two overlapping intervals say nothing. 0: compared. 2: there is nothing to pair.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from engine.errors import BadSettings
from sim import metrics
from sim.beside import ITSELF
from sim.callables import callable_as
from sim.copies import without_copies
from sim.early import begin
from sim.experiments import LATENCIES, MAIN, complain, is_better
from sim.runs import Run, matching, open_run
from sim.stats import Difference, batch_means, difference, holm

USAGE = """usage: python -m sim.compare RUNS [RUNS ...] -- RUNS [RUNS ...] [out=PICTURE.png]

RUNS is a run folder, or a pattern of them such as 'runs/*_replicate_steady/runs/*'. What stands behind -- is compared
with what stands before it, pair by pair of the same seed; of a single pair, request by request.

exit codes: 0 compared, 2 nothing to pair"""
WIDTH = 110  # of a table that is not shown on a terminal
SURE = 0.05
UNSEEN = "no difference seen"
PICTURES = (".png", ".svg", ".pdf", ".jpg", ".webp")

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sim.plots import ForestRow

RunsLike = Run | Path | str


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of both sides, and the paired difference of the second from the first."""

    figure: str
    first: float
    second: float
    difference: Difference
    p_value: float | None
    """Corrected for the number of figures (Holm); None where a single pair gives none."""

    @property
    def verdict(self) -> str:
        """better, worse, or that nothing is seen; of a single pair, as its interval has it."""
        found = self.difference
        if found.half_width is None:
            return "one pair: no interval"
        is_seen = abs(found.mean) > found.half_width if self.p_value is None else self.p_value < SURE
        if not is_seen:
            return UNSEEN
        return "better" if is_better(self.figure, found.mean) else "worse"

    def told(self) -> dict[str, Any]:
        """For a table: one value a column."""
        found = self.difference
        return {
            "figure": self.figure,
            "first": self.first,
            "second": self.second,
            "difference": found.mean,
            "half_width": found.half_width,
            "pairs": found.count,
            "p_value": self.p_value,
            "verdict": self.verdict,
        }


@dataclass(slots=True)
class Comparison:
    """Two sides on the same traffic."""

    seeds: list[int]
    rows: list[Row]

    def table(self) -> pd.DataFrame:
        return pd.DataFrame([row.told() for row in self.rows])

    def forest(self) -> "Figure":
        """The intervals of the differences in per cent of the first side; right of the line is more."""
        from sim import plots  # noqa: PLC0415  matplotlib takes most of a second to import

        plural = "s" * (len(self.seeds) != 1)
        pairs = f"{len(self.seeds)} pair{plural} of runs, seed{plural} {told_seeds(self.seeds)}"
        if plural:
            pairs += "; verdicts allow for the number of figures (Holm)"
        unit = "difference, % of the first side, with 95 % intervals"
        return plots.forest(forest_rows(self.rows), unit=unit, rests_on=pairs)


def forest_rows(rows: "Sequence[Row]") -> "list[ForestRow]":
    """Those with an interval, in per cent of the first side."""
    from sim.plots import ForestRow  # noqa: PLC0415

    found = []
    for row in rows:
        half = row.difference.half_width
        if half is not None and row.first:
            scale, mean = 100 / abs(row.first), row.difference.mean
            ends = scale * (mean - half), scale * (mean + half)
            found.append(ForestRow(row.figure, scale * mean, *ends, row.verdict))
    return found


def told_seeds(seeds: Sequence[int]) -> str:
    """The first and the last one, or the only one."""
    return f"{seeds[0]}" if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)}"


def compare(first: RunsLike | Iterable[RunsLike], second: RunsLike | Iterable[RunsLike]) -> Comparison:
    """Compare runs, folders of runs, or patterns of them, paired by seed.

    Raises BadSettings where a seed is missing on one side or twice on it, or where a pair met different requests.
    """
    sides = [_by_seed(first, "first"), _by_seed(second, "second")]
    lonely = sorted(sides[0].keys() ^ sides[1].keys())
    if lonely:
        side = "second" if lonely[0] in sides[0] else "first"
        raise BadSettings(f"seed {lonely[0]} has no run on the {side} side, but runs are compared in pairs")
    seeds = sorted(sides[0])
    pairs = _without_copies([(sides[0][seed], sides[1][seed]) for seed in seeds])
    seeds = seeds[: len(pairs)]
    for one, other in pairs:
        _check_same_traffic(one, other)
    if len(pairs) == 1:
        return Comparison(seeds, _request_by_request(*pairs[0]))
    tables = [pd.DataFrame([run.summary for run in side]) for side in zip(*pairs, strict=True)]
    return Comparison(seeds, rows_of(*tables))


def rows_of(first: pd.DataFrame, second: pd.DataFrame) -> list[Row]:
    """The paired differences of the figures that all runs have; both tables have a row a run, in the same order."""
    found: list[tuple[str, metrics.Floats, metrics.Floats]] = []
    for name in MAIN:
        if name in first and name in second:
            a, b = (table[name].to_numpy(dtype=np.float64) for table in (first, second))
            if not np.isnan(a).any() and not np.isnan(b).any():
                found.append((name, a, b))
    differences = [difference(a.tolist(), b.tolist()) for _, a, b in found]
    corrected: list[float | None] = [None] * len(found)
    if all(each.p_value is not None for each in differences):
        corrected = list(holm([each.p_value or 0.0 for each in differences]))
    return [
        Row(name, float(a.mean()), float(b.mean()), each, p_value)
        for (name, a, b), each, p_value in zip(found, differences, corrected, strict=True)
    ]


def differences_beside(run: Run) -> dict[str, list[Row]]:
    """How each of the runs beside one differs from it, by name, over the seeds that they were played on."""
    itself = run.beside.get(ITSELF, [run])
    found = {}
    for name, others in run.beside.items():
        seeds = {int(other.manifest["seed"]): other for other in others}
        pairs = [(one, seeds[seed]) for one in itself if (seed := int(one.manifest["seed"])) in seeds]
        if name != ITSELF and pairs:
            found[name] = _differences(_without_copies(pairs))
    return found


def _without_copies(pairs: Sequence[tuple[Run, Run]]) -> Sequence[tuple[Run, Run]]:
    """A single pair where on neither side a seed changes anything."""
    return without_copies(pairs, [" ".join(run.manifest["digest"] for run in pair) for pair in pairs])


def _differences(pairs: Sequence[tuple[Run, Run]]) -> list[Row]:
    """Of a single pair request by request, where both met the same ones."""
    if len(pairs) == 1:
        try:
            _check_same_traffic(*pairs[0])
        except BadSettings:
            pass
        else:
            return _request_by_request(*pairs[0])
    return rows_of(*(pd.DataFrame([run.summary for run in side]) for side in zip(*pairs, strict=True)))


def _request_by_request(first: Run, second: Run) -> list[Row]:
    """A single pair: means by the differences of each request that both completed; the rest without an interval."""
    plain = rows_of(pd.DataFrame([first.summary]), pd.DataFrame([second.summary]))
    done = [run.whole.completed.set_index("request_id") for run in (first, second)]
    both = done[0].index.intersection(done[1].index)
    sides = [each.loc[both].sort_values("arrival_ns", kind="stable") for each in done]
    sides[1] = sides[1].loc[sides[0].index]
    rows = []
    for row in plain:
        kind, _, latency = row.figure.removesuffix("_s").partition("_")
        if kind == "mean" and latency in LATENCIES and len(both):
            values = [_latency(side, latency) for side in sides]
            one = batch_means(values[1] - values[0])
            told = Difference(len(both), one.mean, one.half_width, None)
            row = Row(row.figure, float(values[0].mean()), float(values[1].mean()), told, None)  # noqa: PLW2901
        rows.append(row)
    return rows


def _latency(requests: pd.DataFrame, name: str) -> metrics.Floats:
    """One value a request; a request with a single token has no time per further token: 0."""
    if name != "tpot":
        values: metrics.Floats = getattr(metrics, f"{name}_s")(requests)
        return values
    gaps = np.maximum(requests["output_tokens"].to_numpy(dtype=np.float64) - 1, 1)
    spans_s = metrics.e2e_s(requests) - metrics.ttft_s(requests)
    return np.asarray(spans_s / gaps, dtype=np.float64)


def _by_seed(side: RunsLike | Iterable[RunsLike], name: str) -> dict[int, Run]:
    each = [side] if isinstance(side, Run | Path | str) else list(side)
    runs: list[Run] = []
    for one in each:
        if isinstance(one, Run):
            runs.append(one)
        else:
            folders = matching(one)
            if not folders:
                raise BadSettings(f"no finished run matches {str(one)!r}")
            runs += map(open_run, folders)
    found: dict[int, Run] = {}
    for run in runs:
        seed = int(run.manifest["seed"])
        if seed in found:
            raise BadSettings(
                f"seed {seed} has two runs on the {name} side: {found[seed].path} and {run.path}"
            )
        found[seed] = run
    return found


def _check_same_traffic(first: Run, second: Run) -> None:
    """Raise BadSettings unless both met the same requests; arrivals may differ where clients wait for answers."""
    one, other = (
        run.requests.sort_values("request_id")["prompt_tokens"].to_numpy() for run in (first, second)
    )
    if first.manifest["trace"] != second.manifest["trace"] or not np.array_equal(one, other):
        raise BadSettings(
            f"the runs of seed {first.manifest['seed']} met different traffic, so that they cannot be paired: "
            f"{first.path} and {second.path}"
        )


def main(arguments: Sequence[str] | None = None, console: Console | None = None) -> int:
    """The command line; the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    out = console or Console(width=None if sys.stdout.isatty() else WIDTH)
    if {"--help", "-h"} & set(given):
        out.print(USAGE, markup=False, highlight=False, soft_wrap=True)
        return 0
    picture = [each.removeprefix("out=") for each in given if each.startswith("out=")]
    given = [each for each in given if not each.startswith("out=")]
    if given.count("--") != 1 or given[0] == "--" or given[-1] == "--":
        out.print(USAGE, markup=False, highlight=False, soft_wrap=True)
        return 2
    middle = given.index("--")
    try:
        for each in picture:
            check_picture(each)
        found = compare(given[:middle], given[middle + 1 :])
    except BadSettings as error:
        complain(error)
        return 2
    except KeyboardInterrupt:
        complain("interrupted; nothing is written")
        return 130
    pairs = len(found.seeds)
    show_rows(f"{pairs} pair{'s' * (pairs != 1)} of runs, 95 % intervals of the difference", found.rows, out)
    if picture:
        try:
            found.forest().savefig(picture[-1])
        except OSError as error:
            complain(f"out is {picture[-1]!r}, but it cannot be written: {error.strerror}")
            return 2
        out.print(f"picture  {picture[-1]}", highlight=False, soft_wrap=True)
    return 0


def check_picture(name: str) -> None:
    """Raise BadSettings for what is no file that a picture can be written to."""
    path = Path(name)
    if path.suffix.lower() not in PICTURES or not path.parent.is_dir():
        raise BadSettings(
            f"out is {name!r}, but must be a file in a folder that exists, ending in {', '.join(PICTURES)}"
        )


def show_rows(title: str, rows: Sequence[Row], out: Console) -> None:
    """A table of figures: both sides, the difference with its interval, and what that means."""
    table = Table(box=SIMPLE_HEAD, title=title)
    for head in ("figure", "first", "second", "difference", "+-", "n", "p (Holm)", "verdict"):
        table.add_column(head, justify="left" if head in ("figure", "verdict") else "right")
    for row in rows:
        found = row.difference
        table.add_row(
            row.figure,
            f"{row.first:.4g}",
            f"{row.second:.4g}",
            f"{found.mean:+.3g}",
            "" if found.half_width is None else f"{found.half_width:.2g}",
            str(found.count),
            "" if row.p_value is None else f"{row.p_value:.2g}",
            row.verdict,
        )
    out.print(table)


callable_as(__name__, compare)

if __name__ == "__main__":
    begin()
    sys.exit(main())
