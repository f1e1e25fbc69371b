"""The report of a run: one HTML file that needs nothing else, and the same facts as Markdown."""

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from sim.folder import put
from sim.plots import CAPTIONS, plots
from sim.report.page import (
    document,
    folded,
    html_picture,
    html_table,
    markdown_table,
    paragraphs,
)
from sim.report.said import (
    BESIDE_HEADS,
    FINDING_HEADS,
    SLOW_HEADS,
    beside,
    check_table,
    command,
    facts,
    figures,
    found,
    headline,
    looked_at,
    not_shown,
    shown,
    slow_and_fast,
)
from sim.runs import Run

NUMBERS = ("value", "bound", "this", "that", "difference", "+-", "n", "p (Holm)")


def write_report(run: Run, folder: Path) -> None:
    """Write report.html and report.md beside `plots/`, whose pictures must be there."""
    pictures = {name: (folder / "plots" / f"{name}.png").read_bytes() for name in shown(run)}
    put(folder / "report.html", html(run, pictures).encode())
    put(folder / "report.md", markdown(run).encode())


def html(run: Run, pictures: Mapping[str, bytes]) -> str:
    """The whole report as one page, pictures inside."""
    differences = beside(run)
    parts = [
        f"<h1>{escape(headline(run))}</h1>",
        *paragraphs(facts(run)),
        "<h2>Checks</h2>",
        html_table(*check_table(run)),
        *(
            ["<h2>Runs beside this one</h2>", html_table(BESIDE_HEADS, differences, NUMBERS)]
            if differences
            else []
        ),
        "<h2>What to look at</h2>",
        *paragraphs(looked_at(run)),
        html_table(FINDING_HEADS, found(run)) if run.findings else "",
        html_table(SLOW_HEADS, slow_and_fast(run)),
        "<h2>Key figures</h2>",
        html_table(("figure", "value"), figures(run)),
        "<h2>Pictures</h2>",
        *(html_picture(pictures[name], CAPTIONS[name]) for name in plots if name in pictures),
        *paragraphs(not_shown(run)),
        "<h2>Run it again</h2>",
        f"<pre>{escape(command(run))}</pre>",
        folded("Configuration", pretty(run.config)),
        folded("Manifest", pretty(run.manifest)),
    ]
    return document(headline(run), parts)


def markdown(run: Run) -> str:
    """The same facts, with links to the pictures."""
    differences = beside(run)
    blocks = [
        f"# {headline(run)}",
        *facts(run),
        "## Checks",
        markdown_table(*check_table(run)),
        *(["## Runs beside this one", markdown_table(BESIDE_HEADS, differences)] if differences else []),
        "## What to look at",
        *looked_at(run),
        *([markdown_table(FINDING_HEADS, found(run))] if run.findings else []),
        markdown_table(SLOW_HEADS, slow_and_fast(run)),
        "## Key figures",
        markdown_table(("figure", "value"), figures(run)),
        "## Pictures",
        *(f"![{CAPTIONS[name]}](plots/{name}.png)\n\n{CAPTIONS[name]}" for name in shown(run)),
        *not_shown(run),
        "## Run it again",
        f"```bash\n{command(run)}\n```",
    ]
    return "\n\n".join(blocks) + "\n"


def pretty(value: Any) -> str:
    return json.dumps(value, indent=2, allow_nan=False)
