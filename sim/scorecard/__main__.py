"""`python -m sim.scorecard out=docs/scorecard.md`: the published tables, ours beside theirs.

0: written. 2: the settings are no good. 130: interrupted, and nothing is written.
"""

import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from engine.clock import utc_now
from engine.errors import BadSettings
from engine.settings import at_least, require
from sim.config import typed
from sim.early import begin
from sim.machine import processor
from sim.scorecard.caching import caching
from sim.scorecard.control import quota, routing
from sim.scorecard.latency import latency
from sim.scorecard.table import Table, page

USAGE = "usage: python -m sim.scorecard [SETTING=VALUE ...]    the published tables, ours beside theirs"
INTERRUPTED = 130


@dataclass(slots=True, kw_only=True)
class ScorecardSettings:
    """How much is measured, and where it is written."""

    out: str = "docs/scorecard.md"
    seeds: int = 5
    seed: int = 1
    duration_s: float = 1800.0  # of the traffic that caches are compared on
    requests: int = 200  # of each size
    rounds: int = 15  # of each timing

    def __post_init__(self) -> None:
        for name in ("seeds", "requests", "rounds"):
            at_least(f"scorecard.{name}", getattr(self, name), 1)
        at_least("scorecard.duration_s", self.duration_s, 60)
        at_least("scorecard.seed", self.seed, 0)
        require("scorecard.out", self.out, self.out.endswith(".md"), "the name of a Markdown file")
        folder = Path(self.out).parent
        require("scorecard.out", self.out, folder.is_dir(), "in a folder that is there")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    shown = Console(stderr=True)
    if {"--help", "-h"} & set(given):
        defaults = OmegaConf.to_yaml(OmegaConf.structured(ScorecardSettings))
        Console().print(f"{USAGE}\n\n{defaults}", markup=False, highlight=False, soft_wrap=True)
        return 0
    try:
        settings = read(given)
        with TemporaryDirectory() as folder:
            tables = measured(settings, Path(folder), shown)
    except BadSettings as error:
        shown.print(f"modelyard: {error}", markup=False, highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        shown.print("modelyard: interrupted; nothing is written", markup=False, highlight=False)
        return INTERRUPTED
    command = " ".join(["python -m sim.scorecard", *given])
    where = f"{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}, {utc_now():%Y-%m-%d}"
    text = page(tables, where, command)
    aside = Path(settings.out + ".partial")
    aside.write_text(text, encoding="utf-8")
    aside.rename(settings.out)
    Console().print(f"written  {settings.out}", highlight=False, soft_wrap=True)
    return 0


def read(arguments: Sequence[str]) -> ScorecardSettings:
    """The settings of the command line. Raises BadSettings."""
    known = ", ".join(field.name for field in fields(ScorecardSettings))
    for argument in arguments:
        if "=" not in argument:
            raise BadSettings(f"{argument!r} is no setting: write SETTING=VALUE; the settings are {known}")
    try:
        values = OmegaConf.to_container(OmegaConf.from_dotlist(list(arguments)))
    except (OmegaConfBaseException, ValueError) as error:
        raise BadSettings(" ".join(str(error).split())) from error
    return typed(ScorecardSettings, values, "scorecard")


def measured(settings: ScorecardSettings, folder: Path, shown: Console) -> list[Table]:
    """The four tables, one after the other: what is timed must have its core for itself."""
    parts: dict[str, Callable[[], Table]] = {
        "routing": lambda: routing(settings.rounds),
        "cache": lambda: caching(settings.seeds, settings.seed, settings.duration_s, settings.rounds),
        "quotas": lambda: quota(settings.rounds),
        "latency": lambda: latency(settings.requests, settings.seed, folder),
    }
    tables = []
    with shown.status("") as status:
        for name, make in parts.items():
            status.update(f"measuring {name}")
            tables.append(make())
    return tables


if __name__ == "__main__":
    begin()
    sys.exit(main())
