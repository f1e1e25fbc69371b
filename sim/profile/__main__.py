"""`python -m sim.profile out=FILE`: measure what a model's steps take here, and write the cost model; `show FILE`.

0: done. 2: the settings or the file are no good, and nothing is written. 130: interrupted, and points are kept.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from engine.errors import BadSettings, LoadFailed
from engine.execution.profile_file import Profile, read_profile
from engine.settings import EngineSettings, above, at_least, require
from sim.config import read as read_run
from sim.config import typed
from sim.early import begin
from sim.profile.fitting import fit
from sim.profile.measuring import CONTEXT_TOKENS, Told, measure, model_of
from sim.profile.points import may_write, notes_path
from sim.profile.showing import show

USAGE = f"""usage: python -m sim.profile out=FILE [SETTING=VALUE ...]   measure a model, and write its cost model
       python -m sim.profile show FILE                      what such a file says

settings:
  model=null           a model of the fleet or of models.folder; null: the first of the fleet
  budget_s=60          about how long the grid and the copies are measured
  context_tokens=null  where the grid ends; null: {CONTEXT_TOKENS}, or the model's context where that is shorter
  seed=1               of the grid, the order, and the points that are held out of the fit
  KEY=VALUE            a setting of a run: fleet=reference_five, models.folder=models, executor.weights=int8, ...

Points are kept in FILE.points until the cost model is written: the same command goes on with them.

exit codes: 0 done, 2 bad settings or file, 130 interrupted"""
BAD_SETTINGS = 2
INTERRUPTED = 130
WIDTH = 150  # of a table that is not shown on a terminal
RUN = ("scenario=steady", "executor=torch")
"""What a run has to be told besides; of no consequence here."""


@dataclass(slots=True, kw_only=True)
class Asked:
    """A command line that measures, read."""

    out: str
    model: str | None = None
    budget_s: float = 60.0
    context_tokens: int | None = None
    seed: int = 1

    def __post_init__(self) -> None:
        require("out", self.out, self.out != "", "the path of a file")
        above("budget_s", self.budget_s, 0)
        at_least("seed", self.seed, 0)
        if self.context_tokens is not None:
            at_least("context_tokens", self.context_tokens, 64)


OWN = tuple(each.name for each in fields(Asked))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or {"--help", "-h"} & set(given):
        sys.stdout.write(f"{USAGE}\n")
        return 0 if given else BAD_SETTINGS
    try:
        profile = shown(given[1:]) if given[0] == "show" else measured(given)
    except (BadSettings, LoadFailed) as error:
        sys.stderr.write(f"modelyard: {error}\n")
        return BAD_SETTINGS
    except Stopped as stopped:
        sys.stderr.write(f"modelyard: {stopped}\n")
        return INTERRUPTED
    show(profile, Console(width=None if sys.stdout.isatty() else WIDTH))
    return 0


class Stopped(Exception):
    """Somebody has interrupted the measuring; says where the points are."""


def shown(arguments: Sequence[str]) -> Profile:
    """The profile in the file that is named. Raises BadSettings."""
    if len(arguments) != 1:
        raise BadSettings(f"show is given {len(arguments)} files, but must be given the path of one profile")
    return read_profile(arguments[0])


def measured(arguments: Sequence[str]) -> Profile:
    """Measure, fit, write. Raises BadSettings before anything is measured, Stopped."""
    asked, settings = read(arguments)
    out = Path(asked.out)
    may_write(out)
    model = asked.model or settings.fleet.models[0].name
    model_of(settings, model)
    notes, visits = notes_path(out), [0]
    try:
        with bar(visits) as told:
            points = measure(
                settings,
                model,
                budget_s=asked.budget_s,
                seed=asked.seed,
                context_tokens=asked.context_tokens,
                notes=notes,
                told=told,
            )
    except KeyboardInterrupt:
        raise Stopped(
            f"interrupted; {visits[0]} visits are kept in {notes}, and the same command goes on with them"
        ) from None
    profile = fit(points, asked.seed)
    profile.save(out)
    notes.unlink(missing_ok=True)
    return profile


def read(arguments: Sequence[str]) -> tuple[Asked, EngineSettings]:
    """What is asked for, and the engine that it is asked of. Raises BadSettings."""
    for argument in arguments:
        if "=" not in argument:
            raise BadSettings(f"{argument!r} is no setting: write SETTING=VALUE, or show FILE")
    own = [each for each in arguments if each.split("=")[0] in OWN]
    try:
        values = OmegaConf.to_container(OmegaConf.from_dotlist(own))
    except (OmegaConfBaseException, ValueError) as error:
        raise BadSettings(" ".join(str(error).split())) from error
    assert isinstance(values, dict)
    if values.get("out") is None:
        raise BadSettings("out has no value: say with out=FILE where the cost model goes")
    asked = typed(Asked, values, "profile")
    overrides = [each for each in arguments if each not in own]
    return asked, read_run([*RUN, *overrides, f"seed={asked.seed}"]).engine


@contextmanager
def bar(visits: list[int]) -> Iterator[Told]:
    """A bar over the budget on a terminal, silent elsewhere; keeps the number of visits in `visits`."""
    shown_as = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(
        *shown_as, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()
    ) as made:
        task = made.add_task("warming up", total=1.0)

        def told(share: float, count: int, cells: int) -> None:
            visits[0] = count
            made.update(task, completed=share, description=f"{cells} points, {count} visits")

        yield told


if __name__ == "__main__":
    begin()
    sys.exit(main())
