"""Measure, compare, judge: the rows of a check, of a renewal, and of a gate that is itself put to the test."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from shlex import quote

from engine.errors import BadSettings, UnknownName
from engine.settings import require
from sim.gate.absolute import Absolute
from sim.gate.baselines import HOME, Baselines
from sim.gate.child import MeasuringFailed
from sim.gate.counted import Counted
from sim.gate.exact import Exact
from sim.gate.kinds import Class, Measured, broken, command_of, undecided
from sim.gate.ratios import MOST_NOISE, Ratios
from sim.gate.rows import FAIL, INCONCLUSIVE, PASS, Figure, Row

CLASSES: tuple[Class, ...] = (Exact(), Counted(), Ratios(), Absolute())
"""Timed ones last: nothing else of ours is at work then."""
LETTERS = tuple(kind.letter for kind in CLASSES)
SELF_TESTS = 2


@dataclass(slots=True, kw_only=True)
class Selection:
    """Which rows, and where their baselines are."""

    classes: tuple[str, ...] = LETTERS
    rows: tuple[str, ...] = ("*",)
    baselines: Path = HOME
    known: tuple[Class, ...] = field(default=CLASSES, repr=False)

    def __post_init__(self) -> None:
        for letter in self.classes:
            require("classes", letter, letter in LETTERS, f"some of {', '.join(LETTERS)}")
        everything = [name for kind in self.known for name in kind.names()]
        for pattern in self.rows:
            if not any(fnmatchcase(name, pattern) for name in everything):
                raise UnknownName(f"no row is called {pattern!r}; choose from {', '.join(everything)}")
        if not self.wanted():
            raise BadSettings(
                f"rows is {','.join(self.rows)!r}, of which none is in classes={','.join(self.classes)}"
            )

    def wanted(self) -> list[tuple[Class, list[str]]]:
        """The classes that have rows to look at, and these."""
        found = []
        for kind in self.known:
            names = [name for name in kind.names() if any(fnmatchcase(name, each) for each in self.rows)]
            if kind.letter in self.classes and names:
                found.append((kind, names))
        return found

    @property
    def is_whole(self) -> bool:
        """Whether every row of its classes is looked at."""
        return "*" in self.rows


def check(selection: Selection) -> Iterator[Row]:
    """The rows, as they are measured. Raises BadSettings where a file of baselines is no good."""
    besides = "" if selection.baselines == HOME else f" baselines={quote(str(selection.baselines))}"
    for row in _checked_all(selection):
        yield replace(row, command=f"{row.command}{besides}") if row.command else row


def _checked_all(selection: Selection) -> Iterator[Row]:
    for kind, names in selection.wanted():
        stored = Baselines(selection.baselines, kind.file).figures(kind.key()) if kind.file else None
        yield from _checked(kind, names, stored)
        if selection.is_whole:
            for name in sorted(set(stored or {}) - set(kind.names())):
                yield undecided(
                    name, "it has a baseline, but nothing measures it any more: renew the baselines"
                )


def _checked(kind: Class, names: Sequence[str], stored: dict[str, Figure] | None) -> Iterator[Row]:
    if reason := kind.missing():
        yield from (undecided(name, reason) for name in names)
        return
    held: dict[str, Row] = {}
    for attempt in range(1, kind.attempts + 1):
        again = []
        left = [name for name in names if attempt == 1 or name in held]
        for row in _attempted(kind, left, stored):
            may_pass = row.base is not None and row.verdict in {FAIL, INCONCLUSIVE}
            if not may_pass or attempt == kind.attempts:
                yield _settled(held.pop(row.name, row), row, attempt)
            else:
                held[row.name] = _settled(held.get(row.name, row), row, attempt)
                again.append(row.name)
        if not again:
            return


def _settled(before: Row, row: Row, attempt: int) -> Row:
    """What follows of several attempts: what passes once passes; else one that could say something counts."""
    if attempt > 1 and row.verdict == INCONCLUSIVE and before.verdict == FAIL:
        return before
    return row


def _attempted(kind: Class, names: Sequence[str], stored: dict[str, Figure] | None) -> Iterator[Row]:
    """Each row measured once."""
    left = list(names)
    try:
        for head in kind.measure(names, ()):
            left.remove(head.name)
            yield _compared(kind, head, stored)
        problem = "the process that measures has left it out"
    except MeasuringFailed as error:
        problem = str(error)
    yield from (broken(kind, name, problem) for name in left)


def _compared(kind: Class, head: Measured, stored: dict[str, Figure] | None) -> Row:
    base = kind.base(head.name, (stored or {}).get(head.name))
    if base is not None:
        return kind.judge(base, head)
    lacks = "no baseline of this row" if stored is not None else "no baseline"
    return undecided(head.name, f"{lacks} for {kind.key()}", None, head.value)


def update(selection: Selection, reason: str) -> Iterator[Row]:
    """Measure the rows, and make what is found their baseline. Rows of class D have none, and are left out.

    Raises BadSettings where the baselines cannot be read or written. A row that is too noisy is left as it was.
    """
    for kind, names in selection.wanted():
        if not kind.file:
            continue
        baselines = Baselines(selection.baselines, kind.file)
        before = baselines.figures(kind.key()) or {}
        if why := kind.missing():
            yield from (undecided(name, why) for name in names)
            continue
        figures: dict[str, Figure] = {}
        rows = []
        for row, head in _remeasured(kind, names, before):
            rows.append(row)
            if row.verdict == PASS and head is not None:
                figures[row.name] = head.value
        if figures:
            baselines.renew(kind.key(), figures, set(kind.names()), reason)
        yield from rows


def _remeasured(
    kind: Class, names: Sequence[str], before: dict[str, Figure]
) -> Iterator[tuple[Row, Measured | None]]:
    """Each row with what was measured for it; one that was too noisy is measured again."""
    left = list(names)
    for attempt in range(1, kind.attempts + 1):
        try:
            for head in kind.measure(list(left), ()):
                row = _renewed(kind, head, before.get(head.name))
                if row.verdict == PASS or attempt == kind.attempts:
                    left.remove(head.name)
                    yield row, head
        except MeasuringFailed as error:
            yield from ((broken(kind, name, str(error)), None) for name in left)
            return
        if not left:
            return


def _renewed(kind: Class, head: Measured, before: Figure | None) -> Row:
    noise = head.details.get("noise", 0.0)
    if noise > MOST_NOISE:
        note = f"not renewed: A/A differed by {noise:.1%}, more than {MOST_NOISE:.0%}"
        return undecided(head.name, note, before, head.value, noise)
    delta = kind.judge(before, head).delta if before is not None else None
    return Row(
        name=head.name,
        verdict=PASS,
        base=before,
        head=head.value,
        delta=delta,
        limit="renewed",
        command=command_of(head.name),
    )


def selftest(selection: Selection, times: int = SELF_TESTS) -> Iterator[Row]:
    """The gate itself: the same code must not fail however often it is looked at, doubled work must, and only that.

    The baseline is measured here and now, so that this holds on every machine. Raises MeasuringFailed.
    """
    for kind, names in selection.wanted():
        doubled = [name for name in kind.doubles() if name in names]
        if not doubled:
            continue
        if why := kind.missing():
            yield from (undecided(f"selftest/{name}", why) for name in doubled)
            continue
        base = {head.name: head.value for head in kind.measure(names, ())}
        verdicts: dict[str, list[str]] = {name: [] for name in names}
        for _ in range(times):
            for row in _checked(kind, names, base):
                verdicts[row.name].append(row.verdict)
        for name, found in verdicts.items():
            yield _tested(name, "the same code", found, is_wanted=False)
        for half in (doubled[::2], doubled[1::2]):
            if half:
                yield from _with_doubled(kind, names, half, base)


def _with_doubled(
    kind: Class, names: Sequence[str], doubled: Sequence[str], base: dict[str, Figure]
) -> Iterator[Row]:
    """Of all rows: those whose work is done twice must fail, and no other. What is too noisy is looked at again."""
    left = list(names)
    for attempt in range(1, kind.attempts + 1):
        for head in kind.measure(list(left), [name for name in doubled if name in left]):
            verdict = _compared(kind, head, base).verdict
            if verdict != INCONCLUSIVE or attempt == kind.attempts:
                left.remove(head.name)
                is_wanted = head.name in doubled
                what = "doubled work" if is_wanted else "beside doubled work"
                yield _tested(head.name, what, [verdict], is_wanted=is_wanted)
        if not left:
            return


def _tested(name: str, what: str, verdicts: Sequence[str], *, is_wanted: bool) -> Row:
    """Whether the gate failed where it should, and nowhere else."""
    count = verdicts.count(FAIL)
    holds = count == len(verdicts) if is_wanted else count == 0
    undecidable = INCONCLUSIVE in verdicts and (is_wanted or count == 0)
    return Row(
        name=f"selftest/{name}, {what}",
        verdict=INCONCLUSIVE if undecidable else PASS if holds else FAIL,
        base=len(verdicts) if is_wanted else 0,
        head=count,
        limit=f"fails {'always' if is_wanted else 'never'}",
        note="" if holds and not undecidable else f"verdicts: {', '.join(verdicts)}",
        command=f"python -m sim.gate selftest rows={name}",
    )
