"""What the runs beside one make of the same requests."""

from matplotlib.figure import Figure

from sim.beside import ITSELF
from sim.compare import differences_beside, forest_rows
from sim.plots.frame import of_run
from sim.plots.generic import ForestRow, forest
from sim.runs import Run

SHOWN = (
    "mean_ttft_s",
    "p99_ttft_s",
    "mean_tpot_s",
    "mean_e2e_s",
    "p99_e2e_s",
    "token_hit_ratio",
    "request_throughput_per_s",
)
"""Of all figures: with several runs beside, more would be too many."""


def beside(run: Run) -> Figure:
    """Paired differences of the main figures in per cent of this run, a line a figure and run beside it."""
    lines = [
        ForestRow(f"{name}: {row.name}", *row[1:])
        for name, rows in differences_beside(run).items()
        for row in forest_rows([row for row in rows if row.figure in SHOWN])
    ]
    seeds = len(run.beside.get(ITSELF, [])) or 1
    note = f"{seeds} pairs of runs" if seeds > 1 else "request by request"
    unit = "difference from this run, %, with 95 % intervals"
    return forest(lines, unit=unit, title="Runs beside this one", rests_on=of_run(run, note))


def none_beside(run: Run) -> str | None:
    """Why there is nothing to see in `beside`."""
    others = any(name != ITSELF for name in run.beside)
    return None if others else "no other runs were played beside it"
