"""A gate's rows for programs: gate.json, JUnit's gate.xml, and the step summary of GitHub."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from engine.errors import BadSettings
from sim.gate.rows import FAIL, INCONCLUSIVE, Row, counted, headline, overall, worst_first
from sim.gate.show import cells, markdown

SUMMARY = "GITHUB_STEP_SUMMARY"
MOST_SUMMARY_BYTES = 1_024 * 1_024
"""A step's summary that is larger is not shown at all."""
NOT_IN_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd]")


def write(rows: Sequence[Row], facts: Mapping[str, Any], out: Path) -> None:
    """Write all of them into a folder. Raises BadSettings where that cannot be."""
    told = {
        "headline": headline(rows),
        "verdict": overall(rows),
        "counts": counted(rows),
        "environment": dict(facts),
        "rows": [row.told() for row in worst_first(rows)],
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        _replace(out / "gate.json", json.dumps(told, indent=2, allow_nan=False) + "\n")
        _replace(out / "gate.xml", junit(rows))
    except OSError as error:
        raise BadSettings(
            f"out is {str(out)!r}, but nothing can be written there: {error.strerror}"
        ) from error
    if os.environ.get(SUMMARY):
        summarise(rows, facts, Path(os.environ[SUMMARY]))


def summarise(rows: Sequence[Row], facts: Mapping[str, Any], path: Path) -> None:
    """Add to a step summary, within what a step may say. Raises BadSettings."""
    try:
        used = path.stat().st_size if path.exists() else 0
        with path.open("a", encoding="utf-8") as file:
            file.write(markdown(rows, facts, MOST_SUMMARY_BYTES - used))
    except OSError as error:
        raise BadSettings(f"{SUMMARY} is {str(path)!r}, which cannot be written: {error.strerror}") from error


def junit(rows: Sequence[Row]) -> str:
    """A test case for each row: one that fails is a failure, one of which nothing can be said is an error."""
    count = counted(rows)
    numbers = {
        "tests": str(len(rows)),
        "failures": str(count[FAIL]),
        "errors": str(count[INCONCLUSIVE]),
    }
    root = Element("testsuites", {"name": "gate", **numbers})
    suite = SubElement(root, "testsuite", {"name": "gate", **numbers})
    for row in rows:
        group, _, _ = row.name.partition("/")
        case = SubElement(suite, "testcase", {"classname": f"gate.{_plain(group)}", "name": _plain(row.name)})
        if row.verdict in {FAIL, INCONCLUSIVE}:
            tag = "failure" if row.verdict == FAIL else "error"
            SubElement(case, tag, {"message": _plain(message(row)), "type": row.verdict})
        elif row.note:
            SubElement(case, "system-out").text = _plain(message(row))
    indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + tostring(root, encoding="unicode") + "\n"


def message(row: Row) -> str:
    """The row in one line."""
    _, base, head, delta, interval, limit, verdict = cells(row)
    figures = f"base {base}, head {head}" + (f" ({delta})" if delta else "")
    parts = [
        verdict,
        figures,
        f"95 % interval {interval}" if interval else "",
        f"limit {limit}" if limit else "",
    ]
    return "; ".join(part for part in (*parts, row.note, row.command) if part)


def _plain(words: str) -> str:
    return NOT_IN_XML.sub("?", words)


def _replace(path: Path, content: str) -> None:
    """Whole or not at all."""
    aside = path.with_name(path.name + ".partial")
    aside.write_text(content, encoding="utf-8")
    aside.replace(path)
