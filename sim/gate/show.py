"""A gate's rows for people: the worst first, what reproduces each, and those that pass folded away."""

from collections.abc import Mapping, Sequence
from typing import Any

from sim.gate.rows import PASS, Figure, Row, headline, worst_first

HEADS = ("row", "base", "head", "delta", "interval", "limit", "verdict")
MOST_LETTERS = 14  # of a digest


def text(rows: Sequence[Row], facts: Mapping[str, Any], *, everything: bool = False) -> str:
    """What is printed: the headline, a table, where this ran. `everything`: rows that pass too."""
    shown = [row for row in worst_first(rows) if everything or row.verdict != PASS]
    parts = [headline(rows)]
    if shown:
        parts.append(_table(shown))
    passed = sum(row.verdict == PASS for row in rows)
    if passed and not everything:
        notes = [f"{row.name}: {row.note}" for row in rows if row.verdict == PASS and row.note]
        parts.append("\n".join([f"{_passing(passed)}; show=all shows them", *notes]))
    parts.append("\n".join(f"{name:<10} {value}" for name, value in facts.items()))
    return "\n\n".join(parts) + "\n"


def markdown(rows: Sequence[Row], facts: Mapping[str, Any], most_bytes: int) -> str:
    """The same for a step summary; rows that have no room are counted."""
    ordered = worst_first(rows)
    bad = [row for row in ordered if row.verdict != PASS]
    good = [row for row in ordered if row.verdict == PASS]
    end = "\n".join(f"- {name}: {value}" for name, value in facts.items()) + "\n"
    whole = [f"## {headline(rows)}\n"]
    room = most_bytes - len((whole[0] + end).encode()) - 1_000
    for group, folds in ((bad, False), (good, True)):
        if group:
            lines, room = _lines(group, room)
            whole.append(_folded(len(group), lines) if folds else lines)
    return "\n".join([*whole, end])


def cells(row: Row) -> tuple[str, ...]:
    """A row's figures as text."""
    interval = row.interval
    return (
        row.name,
        figure(row.base),
        figure(row.head),
        "" if row.delta is None else f"{100 * row.delta:+.2f} %",
        "" if interval is None else f"{100 * interval[0]:+.1f} to {100 * interval[1]:+.1f} %",
        row.limit,
        row.verdict.upper(),
    )


def figure(value: Figure | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value[:MOST_LETTERS]
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _table(rows: Sequence[Row]) -> str:
    told = [HEADS, *map(cells, rows)]
    widths = [max(len(each[column]) for each in told) for column in range(len(HEADS))]
    lines = []
    for number, each in enumerate(told):
        padded = [
            part.ljust(width) if column in {0, len(HEADS) - 1} else part.rjust(width)
            for column, (part, width) in enumerate(zip(each, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
        if number:
            row = rows[number - 1]
            lines += [f"    {part}" for part in (row.note, row.command) if part]
    return "\n".join(lines)


def _lines(rows: Sequence[Row], room: int) -> tuple[str, int]:
    """A table of as many rows as there is room for, and the room that is left."""
    lines = [f"| {' | '.join((*HEADS, 'why', 'again'))} |", f"|{'---|' * (len(HEADS) + 2)}"]
    for number, row in enumerate(rows):
        told = [_escaped(part) for part in (*cells(row), row.note)]
        line = f"| {' | '.join(told)} | `{row.command}` |"
        room -= len(line.encode()) + 1
        if room < 0:
            left = len(rows) - number
            return "\n".join([*lines, f"\n{left} rows more are in gate.json\n"]), 0
        lines.append(line)
    return "\n".join(lines) + "\n", room


def _folded(count: int, lines: str) -> str:
    return f"<details><summary>{_passing(count)}</summary>\n\n{lines}\n</details>\n"


def _passing(count: int) -> str:
    return "1 row passes" if count == 1 else f"{count} rows pass"


def _escaped(part: str) -> str:
    return " ".join(part.replace("|", "\\|").replace("<", "&lt;").split())
