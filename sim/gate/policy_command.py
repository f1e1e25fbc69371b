"""`python -m sim.gate policy`: the command line of the gate of configurations."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from engine.errors import BadSettings
from engine.settings import require
from sim.experiments import complain, each_once, own_settings, whole_number
from sim.gate.environment import source
from sim.gate.files import write
from sim.gate.policy import SIDES, PolicySettings, judge_policy
from sim.gate.rows import EXIT_CODES
from sim.gate.show import text

USAGE = """usage: python -m sim.gate policy SETTING=VALUE ... -- BASE ... -- HEAD ... [what is below]

Settings before the first -- are common to both sides, those behind it are the base's, those behind the second the
head's. A side may also be a file: base=FILE head=FILE, a YAML list of such lines as in a run folder's overrides.yaml.

  may_cost=goodput_per_s:3%    what the head may lose, in per cent of the base; several between commas
  seeds=10                     pairs of runs, from the setting `seed` on
  slo_ttft_s=1 slo_tpot_s=0.1  what a request must meet to count as good
  workers=(cores)              processes that play them
  show=worst                   or all: rows that pass too
  out=runs/gate                where gate.json and gate.xml (JUnit) go

exit codes: 0 pass, 1 a regression, 2 bad settings, 3 inconclusive, 130 interrupted"""
OWN = ("may_cost", "seeds", "slo_ttft_s", "slo_tpot_s", "workers", "show", "out", "base", "head")
BETWEEN = "--"
SHOWN = ("worst", "all")
BAD_SETTINGS = 2
INTERRUPT = 130


@dataclass(slots=True)
class Sides:
    """Two configurations as override lines, the common ones first."""

    base: list[str]
    head: list[str]


def main(arguments: Sequence[str]) -> int:
    """The command line after `policy`; the exit code."""
    given = list(arguments)
    if not given or {"--help", "-h"} & set(given):
        sys.stdout.write(f"{USAGE}\n")
        return 0 if given else BAD_SETTINGS
    try:
        own, rest = own_settings(given, OWN)
        show, out = own.get("show", "worst"), own.get("out", "runs/gate")
        require("show", show, show in SHOWN, " or ".join(SHOWN))
        require("out", out, out != "", "the path of a folder")
        sides = sides_of(own, rest)
        command = shlex.join(["python", "-m", "sim.gate", "policy", *given])
        found = judge_policy(sides.base, sides.head, options(own), shown=True, command=command)
        facts = source()
        sys.stdout.write(text(found.rows, facts, everything=show == "all"))
        write(found.rows, facts, Path(out))
    except BadSettings as error:
        complain(error)
        return BAD_SETTINGS
    sys.stdout.write(f"{'report':<10} {Path(out) / 'gate.json'}, {Path(out) / 'gate.xml'}\n")
    sys.stdout.write(f"{'runs':<10} {found.path}\n")
    return INTERRUPT if found.interrupted else EXIT_CODES[found.verdict]


def sides_of(own: Mapping[str, str], lines: Sequence[str]) -> Sides:
    """The lines of both sides. Raises BadSettings."""
    parts: list[list[str]] = [[]]
    for line in lines:
        if line == BETWEEN:
            parts.append([])
        else:
            parts[-1].append(line)
    if "base" in own or "head" in own:
        for side in SIDES:
            require(
                side,
                own.get(side),
                bool(own.get(side)),
                "a file beside the other side's: base=FILE head=FILE",
            )
        require("--", len(parts) - 1, len(parts) == 1, "left out where both sides are files")
        return Sides(*([*parts[0], *lines_of(side, Path(own[side]))] for side in SIDES))
    if len(parts) != 3:  # noqa: PLR2004  common, base, head
        raise BadSettings(
            f"-- stands {len(parts) - 1} times, but must stand twice: before the settings of the "
            "base and before those of the head"
        )
    common, base, head = parts
    return Sides([*common, *base], [*common, *head])


def lines_of(side: str, path: Path) -> list[str]:
    """The override lines of a file. Raises BadSettings."""
    try:
        lines = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise BadSettings(f"{side} is {str(path)!r}, which cannot be read: {reason}") from error
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise BadSettings(
            f"{side} is {str(path)!r}, but must be a YAML list of lines such as 'strategy=random'"
        )
    return lines


def options(own: Mapping[str, str]) -> PolicySettings:
    """The settings of the command line. Raises BadSettings."""
    given: dict[str, Any] = {
        name: whole_number(name, own[name]) for name in ("seeds", "workers") if name in own
    }
    given |= {name: _number(name, own[name]) for name in ("slo_ttft_s", "slo_tpot_s") if name in own}
    if "may_cost" in own:
        costs = map(_allowance, own["may_cost"].split(","))
        given["may_cost"] = each_once("may_cost", own["may_cost"], costs)
    return PolicySettings(**given)


def _number(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise BadSettings(f"{name} is {value!r}, but must be a number") from None


def _allowance(words: str) -> tuple[str, float]:
    name, _, share = words.partition(":")
    try:
        return name, float(share.removesuffix("%")) / 100
    except ValueError:
        raise BadSettings(
            f"may_cost is {words!r}, but must be FIGURE:SHARE, as in goodput_per_s:3%"
        ) from None
