"""What replications and sweeps have in common: their folder, their figures, their progress."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from engine.clock import utc_now
from engine.errors import BadSettings
from engine.settings import require
from sim.folder import claim
from sim.workers import MOST_RUNS, Played, Told, sweep_up

LATENCIES = ("ttft", "tpot", "e2e")
MAIN = (
    *(f"{kind}_{latency}_s" for latency in LATENCIES for kind in ("mean", "p50", "p90", "p99")),
    "token_hit_ratio",
    "request_throughput_per_s",
    "completed",
)
"""The figures that are shown; the tables have all."""

COMMAND = "command.json"

T = TypeVar("T")

MORE_IS_BETTER = frozenset({"token_hit_ratio", "request_hit_ratio", "completed", "jain_index_of_replicas"})


def is_better(figure: str, difference: float) -> bool:
    """Whether a figure that grew by so much (negative: shrank) got better."""
    grows = figure in MORE_IS_BETTER or figure.endswith("_per_s")
    return difference > 0 if grows else difference < 0


def table_of(played: Sequence[Played], labels: Sequence[dict[str, Any]] | None = None) -> pd.DataFrame:
    """One row a run, in the order of the jobs: what tells it apart, verdict, digest, figures."""
    if not played:
        return pd.DataFrame(columns=["seed", "verdict", "digest", "error", "folder"])
    rows = []
    for index, each in enumerate(sorted(played, key=lambda each: each.number)):
        told = labels[each.number] if labels is not None else {}
        row = {**told, "seed": each.seed, "verdict": each.verdict, "digest": each.digest}
        rows.append({**row, "error": each.error or "", "folder": each.folder.name, **each.summary})
        assert index <= each.number, "jobs have numbers of their own"
    return pd.DataFrame(rows)


def refuse_if_none_could(played: Sequence[Played]) -> None:
    """Raise BadSettings where no run could begin: some mistakes come out on the stage only."""
    if all(each.verdict == "bad settings" for each in played):
        raise BadSettings(played[0].error)


class Folder:
    """Where an experiment's tables and runs go; called `.partial` until it is whole."""

    def __init__(self, parent: str, name: str) -> None:
        """Raises BadSettings where it cannot be made."""
        try:
            Path(parent).mkdir(parents=True, exist_ok=True)
            self.path = claim(Path(parent), f"{utc_now().strftime('%Y%m%dT%H%M%SZ')}_{name}")
        except OSError as error:
            raise BadSettings(
                f"report.folder is {parent!r}, but nothing can be written there: {error.strerror}"
            ) from error

    @classmethod
    def named(cls, path: Path) -> Self:
        """One of that name, which must not exist. Raises BadSettings where it cannot be made."""
        folder = cls.__new__(cls)
        folder.path = path.with_name(f"{path.name}.partial")
        try:
            folder.path.mkdir(parents=True)
        except OSError as error:
            raise BadSettings(
                f"folder is {str(path)!r}, but it cannot be made there: {error.strerror}"
            ) from error
        return folder

    @classmethod
    def resumed(cls, path: Path, arguments: Sequence[str]) -> Self:
        """That of an experiment which was interrupted, with the runs that were whole."""
        folder = cls.__new__(cls)
        folder.path = path
        folder.begin(arguments)
        return folder

    def begin(self, arguments: Sequence[str]) -> None:
        """Make room for runs, and note the command line, by which the experiment can be gone on with."""
        (self.path / "runs").mkdir(exist_ok=True)
        sweep_up(self.path / "runs")
        self.write_json(COMMAND, {"arguments": list(arguments)})

    def write_table(self, name: str, table: pd.DataFrame) -> None:
        self.write_text(name, table.to_csv(index=False, lineterminator="\n"))

    def write_json(self, name: str, value: Any) -> None:
        self.write_text(name, json.dumps(value, indent=2, allow_nan=False) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Written aside and renamed: what has the name is whole, on a full disk too."""
        aside = self.path / f"{name}.part"
        try:
            with aside.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(self.path / name)
        finally:
            aside.unlink(missing_ok=True)

    @contextmanager
    def unless_refused(self) -> Iterator[None]:
        """Leave no folder behind BadSettings, unless it holds runs: what is wrong came out too late."""
        try:
            yield
        except BadSettings:
            if not any((self.path / "runs").iterdir()):
                shutil.rmtree(self.path, ignore_errors=True)
            raise

    def publish(self, *, keep_command: bool = False) -> Path:
        """Give it its final name."""
        if not keep_command:
            (self.path / COMMAND).unlink(missing_ok=True)  # nothing is left to go on with
        final = self.path.with_name(self.path.name.removesuffix(".partial"))
        self.path.rename(final)
        self.path = final
        return final


def resumed(given: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The folder of `resume=FOLDER` and the command line that made it; or no folder, and what was given.

    Raises BadSettings where there is nothing to go on with.
    """
    asked = [each for each in given if each.startswith("resume=")]
    if not asked:
        return None, list(given)
    path = Path(asked[-1].removeprefix("resume="))
    if len(given) > 1:
        raise BadSettings(
            f"resume is {str(path)!r}, but must stand alone: it goes on with what was asked for then"
        )
    if not path.name.endswith(".partial") or not (path / COMMAND).is_file():
        raise BadSettings(f"resume is {str(path)!r}, but must be the .partial folder of what was interrupted")
    return path, noted(path)


def noted(path: Path) -> list[str]:
    """The command line that made an experiment's folder. Raises BadSettings where it cannot be read."""
    try:
        arguments = json.loads((path / COMMAND).read_text(encoding="utf-8"))["arguments"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadSettings(
            f"{path / COMMAND} cannot be read, so that nobody knows what was asked for"
        ) from error
    return [str(argument) for argument in arguments]


@contextmanager
def progress(total: int | None, told: Told, *, shown: bool) -> Iterator[Told]:
    """A bar over runs that have ended, on a terminal; passes on what it hears."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not (shown and console.is_terminal)
    ) as bar:
        task = bar.add_task("runs", total=total)

        def heard(played: Played) -> None:
            bar.update(task, advance=1)
            told(played)

        yield heard


def complain(problem: object) -> None:
    """Say on standard error what is wrong."""
    Console(stderr=True, soft_wrap=True).print(f"modelyard: {problem}", markup=False, highlight=False)


def own_settings(arguments: Sequence[str], names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Split a command line into settings of ours and those of the run."""
    own, rest = {}, []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if equals and name in names:
            own[name] = value
        else:
            rest.append(argument)
    return own, rest


def whole_number(name: str, value: str, least: int = 1) -> int:
    """Raises BadSettings for what is no whole number of at least `least`, and for more than anybody can have."""
    try:
        number = int(value)
    except ValueError:
        number = least - 1
    if number < least:
        raise BadSettings(f"{name} is {value!r}, but must be a whole number of at least {least}")
    require(name, number, number <= MOST_RUNS, f"at most {MOST_RUNS:,}")
    return number


def each_once(key: str, text: str, pairs: Iterable[tuple[str, T]]) -> dict[str, T]:
    """The values of `NAME:VALUE,NAME:VALUE` by name. Raises BadSettings where a name stands twice."""
    found: dict[str, T] = {}
    for name, value in pairs:
        require(key, text, name not in found, f"one value for each name, but has {name} twice")
        found[name] = value
    return found
