"""An index of many runs: a row each, with its verdict, a few figures, and a link to its report."""

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

from sim.checks import number
from sim.report.page import document, html_table
from sim.runs import Run

FIGURES = {
    "completed": "completed",
    "request_throughput_per_s": "completed/s",
    "token_hit_ratio": "hit ratio",
    "p50_ttft_s": "TTFT p50, s",
    "p99_ttft_s": "TTFT p99, s",
    "p99_e2e_s": "E2E p99, s",
}
HEADS = ("verdict", "scenario", "seed", "strategy", "executor", "checks", *FIGURES.values(), "run")


def html_index(runs: Sequence[Run], folder: Path) -> str:
    """The page, whose links are good from `folder`."""
    counts = {
        verdict: sum(run.verdict == verdict for run in runs) for verdict in ("pass", "fail", "inconclusive")
    }
    title = f"{len(runs)} runs: " + ", ".join(
        f"{count} {verdict}" for verdict, count in counts.items() if count
    )
    links = [_link(run.path / "report.html", folder) for run in runs]
    table = html_table(HEADS, [_row(run) for run in runs], (*FIGURES.values(), "seed", "checks"), links)
    return document(title, [f"<h1>{escape(title)}</h1>", table], wide=True)


def _link(report: Path, folder: Path) -> str:
    """Relative, so that the folder may move; "" where there is no report."""
    return Path(os.path.relpath(report, folder)).as_posix() if report.is_file() else ""


def _row(run: Run) -> tuple[str, ...]:
    manifest, summary = run.manifest, run.summary
    passed = sum(check.verdict == "pass" for check in run.checks)
    told = ("interrupted" if manifest["interrupted"] else run.verdict, run.name, str(manifest["seed"]))
    rest = (str(manifest["strategy"]), str(manifest["executor"]), f"{passed} of {len(run.checks)}")
    return (*told, *rest, *(number(summary.get(name)) for name in FIGURES), run.path.name)
