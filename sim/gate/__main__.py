"""`python -m sim.gate`: check a change; `update`: renew the baselines; `selftest`; `policy`: check a configuration.

0: all rows pass. 1: one has become worse. 2: what was asked for is no good. 3: of some nothing can be said, or they
have no baseline. 130: interrupted; the rows that were measured are told.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import BadSettings, EngineError
from engine.settings import require
from sim.early import begin
from sim.experiments import complain, own_settings, whole_number
from sim.gate.baselines import HOME
from sim.gate.check import LETTERS, SELF_TESTS, Selection, check, selftest, update
from sim.gate.environment import described
from sim.gate.files import write
from sim.gate.kinds import undecided
from sim.gate.policy_command import main as policy
from sim.gate.rows import EXIT_CODES, INTERRUPTED, PASS, Row, overall
from sim.gate.show import text

USAGE = f"""usage: python -m sim.gate [check] [SETTING=VALUE ...]     is this code as good as its baselines?
       python -m sim.gate update reason="..." [...]       measure, and make what is found the baselines
       python -m sim.gate selftest [times={SELF_TESTS}] [...]       is doubled work noticed, and nothing else?
       python -m sim.gate policy ...                      is a configuration as good as another one? (policy --help)

  classes={",".join(LETTERS)}    A: exact counts, B: instructions, C: ratios to a loop, D: beside published figures
  rows=*             some rows by name, patterns between commas: rows='B/*,C/route_*'
  show=worst         or all: rows that pass too
  out=runs/gate      where gate.json and gate.xml (JUnit) go
  baselines=FOLDER   other baselines than those of the repository

exit codes: 0 pass, 1 a regression, 2 bad settings, 3 inconclusive or no baseline, 130 interrupted"""
COMMANDS = ("check", "update", "selftest")
OWN = ("classes", "rows", "show", "out", "baselines", "reason", "times")
SHOWN = ("worst", "all")
BAD_SETTINGS = 2
INTERRUPT = 130


@dataclass(slots=True)
class Asked:
    """A command line, read."""

    command: str
    selection: Selection
    out: Path
    everything: bool
    reason: str
    times: int


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["policy"]:
        return policy(given[1:])
    if {"--help", "-h"} & set(given):
        sys.stdout.write(f"{USAGE}\n")
        return 0
    try:
        return run(read(given))
    except BadSettings as error:
        complain(error)
        return BAD_SETTINGS


def read(given: Sequence[str]) -> Asked:
    """The command line as settings. Raises BadSettings."""
    command, rest = (given[0], given[1:]) if given and "=" not in given[0] else ("check", given)
    require("command", command, command in COMMANDS, f"one of {', '.join((*COMMANDS, 'policy'))}")
    own, others = own_settings(rest, OWN)
    if others:
        raise BadSettings(f"{others[0]!r} is no setting of a gate; the settings are {', '.join(OWN)}")
    for name, wanted in (("reason", "update"), ("times", "selftest")):
        require(name, own.get(name), name not in own or command == wanted, f"given with {wanted} only")
    reason = own.get("reason", "").strip()
    if command == "update":
        require("reason", reason, reason != "", 'why the baselines may be renewed: reason="..."')
    shown = own.get("show", "worst")
    require("show", shown, shown in SHOWN, " or ".join(SHOWN))
    require("out", own.get("out"), own.get("out") != "", "the path of a folder")
    selection = Selection(
        classes=tuple(own["classes"].split(",")) if "classes" in own else LETTERS,
        rows=tuple(own["rows"].split(",")) if "rows" in own else ("*",),
        baselines=Path(own["baselines"]) if "baselines" in own else HOME,
    )
    times = whole_number("times", own["times"]) if "times" in own else SELF_TESTS
    return Asked(command, selection, Path(own.get("out", "runs/gate")), shown == "all", reason, times)


def run(asked: Asked) -> int:
    """Measure, tell, keep; the exit code. Raises BadSettings."""
    rows: list[Row] = []
    interrupted = False
    try:
        for row in rows_of(asked):
            rows.append(row)
            say_progress(row)
    except KeyboardInterrupt:
        interrupted = True
        told = {row.name for row in rows}
        if asked.command == "check":
            names = [name for _, each in asked.selection.wanted() for name in each]
            rows += [undecided(name, INTERRUPTED) for name in names if name not in told]
    except EngineError as error:
        if isinstance(error, BadSettings):
            raise
        rows.append(undecided(asked.command, str(error)))
    facts = environment(rows)
    everything = asked.everything or asked.command == "update"
    sys.stdout.write(text(rows, facts, everything=everything))
    write(rows, facts, asked.out)
    sys.stdout.write(f"{'report':<10} {asked.out / 'gate.json'}, {asked.out / 'gate.xml'}\n")
    return INTERRUPT if interrupted else EXIT_CODES[overall(rows)]


def rows_of(asked: Asked) -> Iterator[Row]:
    """The rows of the command, as they are measured."""
    if asked.command == "update":
        return update(asked.selection, asked.reason)
    if asked.command == "selftest":
        return selftest(asked.selection, asked.times)
    return check(asked.selection)


def say_progress(row: Row) -> None:
    """On a terminal, one line that the next one overwrites."""
    if sys.stderr.isatty():
        end = "" if row.verdict == PASS else "\n"
        sys.stderr.write(f"\r\x1b[K{row.verdict:<13}{row.name}{end}")
        sys.stderr.flush()


def environment(rows: Sequence[Row]) -> dict[str, Any]:
    """Where this ran."""
    facts = described()
    noise = [row.noise for row in rows if row.noise is not None]
    if noise:
        facts["A/A"] = f"{max(noise):.1%} at most, of {len(noise)} rows"
    return facts


if __name__ == "__main__":
    begin()
    sys.exit(main())
