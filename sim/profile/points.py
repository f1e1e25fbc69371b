"""Points: what has been measured, kept as it comes, so that whoever is interrupted can go on."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from engine.errors import BadSettings
from engine.execution.profile_file import Copy, Scalar, is_number
from engine.settings import Architecture
from sim.profile.grid import Cell

MAX_LINE = 1 << 16


@dataclass(slots=True, kw_only=True)
class Visit:
    """A cell, measured some times in a row, and the yardstick before and after."""

    cell: int
    durations_ns: list[int]
    yard_ns: list[int]


@dataclass(slots=True, kw_only=True)
class Points:
    """All that was measured of one model: everything that a fit needs."""

    model: str
    shape: Architecture
    weights: str
    weights_bytes: int
    kv_capacity_tokens: int
    kv_value_bytes: float
    kv_bytes_per_token: int
    machine: dict[str, Scalar]
    measured: dict[str, Scalar]
    cells: list[Cell]
    counts: list[list[int]]  # of each cell: units of each term
    visits: list[Visit] = field(default_factory=list)
    copies: dict[str, Copy] = field(default_factory=dict)
    load_s: dict[str, float] = field(default_factory=dict)


class Notes:
    """A file of visits, a line each, behind one that says of what. Survives whatever ends the measuring."""

    def __init__(self, path: Path | None, about: dict[str, Any]) -> None:
        """Take up the file if it is about the same, begin it otherwise. Raises BadSettings where it is not ours."""
        self.path = path
        self.found: list[Visit] = []
        self._head = json.dumps(about, sort_keys=True)
        if path is None:
            return
        try:
            whole = [*self._lines(path)] if path.exists() else []
            self.found = [visit for line in whole if (visit := visit_of(line)) is not None]
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a" if whole else "w", encoding="utf-8")
            if not whole:
                self._write(self._head)
        except OSError as error:
            raise BadSettings(f"{path} cannot be written: {error.strerror or error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.path is not None:
            self._file.close()

    def add(self, visit: Visit) -> None:
        """Write a visit down."""
        if self.path is not None:
            self._write(json.dumps([visit.cell, visit.durations_ns, visit.yard_ns]))

    def remove(self) -> None:
        """It has served."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _write(self, line: str) -> None:
        self._file.write(line + "\n")
        self._file.flush()

    def _lines(self, path: Path) -> Iterator[str]:
        """The lines behind the head. Raises BadSettings where the head is another one."""
        with path.open(encoding="utf-8", errors="replace") as file:
            head = file.readline(MAX_LINE)
            if head.rstrip("\n") != self._head:
                raise BadSettings(
                    f"{path} holds points of something else that was measured; remove it, or choose another out="
                )
            yield head
            while line := file.readline(MAX_LINE):
                yield line


def visit_of(line: str) -> Visit | None:
    """The visit on a line; None for one that is not whole."""
    try:
        cell, durations, yard = json.loads(line)
    except (ValueError, TypeError):
        return None
    numbers = [*durations, *yard] if isinstance(durations, list) and isinstance(yard, list) else []
    good = (
        isinstance(cell, int) and durations and yard and all(is_number(each) and each > 0 for each in numbers)
    )
    return Visit(cell=cell, durations_ns=durations, yard_ns=yard) if numbers and good else None


def notes_path(out: Path) -> Path:
    """Where points are kept until the profile is written."""
    return out.with_name(f"{out.name}.points")


def may_write(out: Path) -> None:
    """Raise BadSettings where no file can come to be."""
    folder = next(each for each in (out.parent, *out.parent.parents) if each.exists())
    if out.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise BadSettings(
            f"out is {str(out)!r}, but must be the path of a file in a folder that can be written to"
        )
