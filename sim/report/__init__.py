"""What a run was and what it showed, for people: one page, two runs beside each other, an index of many."""

from sim.report.changes import changes
from sim.report.index import html_index
from sim.report.one import html, markdown, write_report
from sim.report.page import STYLE
from sim.report.pair import html_pair
from sim.report.said import (
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

__all__ = [
    "STYLE",
    "changes",
    "command",
    "facts",
    "figures",
    "found",
    "headline",
    "html",
    "html_index",
    "html_pair",
    "looked_at",
    "markdown",
    "not_shown",
    "shown",
    "slow_and_fast",
    "write_report",
]
