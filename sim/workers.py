"""Runs side by side, in processes of their own: the same results in the same order, however many there are."""

import errno
import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from engine.errors import BadSettings
from sim.apart import check_guard, end, pool_of, processes_of
from sim.checks import Check, overall
from sim.config import RunSettings, read

Figures = dict[str, Any]
MOST_RUNS = 100_000
"""Of an experiment, and so of processes that play them."""

EXIT_CODES = {"pass": 0, "fail": 1, "inconclusive": 3, "error": 1, "bad settings": 2}


SCARCE = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EROFS,
        errno.EIO,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
    }
)
"""What the machine lacks, not the run: tried again, it may go well."""


@dataclass(frozen=True, slots=True)
class Job:
    """One run to be played, and what its folder is called in the end.

    Neighbours with a seed of their own and equal lines may be played together, from one composed configuration.
    """

    number: int
    overrides: tuple[str, ...]
    folder: Path
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Played:
    """What became of a job: its figures, or the sentence that says why there are none."""

    number: int
    folder: Path
    seed: int
    verdict: str
    digest: str
    summary: Figures
    error: str | None = None
    again: bool = False
    """Whether it may go well another time: its worker was killed, or the disk is full."""

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.verdict]


def worst_exit_code(played: Sequence[Played]) -> int:
    """That of many runs together: bad settings, then a failure, then what is undecided; 0 when all passed."""
    codes = [each.exit_code for each in played]
    return next((code for code in (2, 1, 3) if code in codes), 0)


Told = Callable[[Played], None]
Note = Callable[[str], None]
TOGETHER = (
    2  # times that runs are played side by side; after that, whoever takes a worker along does so alone
)
BATCHES = 4  # for a worker, at least: whoever is done first takes the next


def play_all(
    jobs: Sequence[Job],
    workers: int,
    told: Told = lambda _played: None,
    note: Note = lambda _sentence: None,
) -> list[Played]:
    """Play all jobs; what became of them, in their order. `told` hears of each as it ends, in any order.

    A job that fails stops nobody. A worker that is killed takes along what others were at: that is said to `note` and
    played again, in the end one job at a time, so that the job which no worker survives is known. KeyboardInterrupt
    ends those under way and is raised; `told` has heard of the rest. Raises BadSettings where workers import a script
    that begins this anew.
    """
    with Crew(workers) as crew:
        return crew.play(jobs, told, note)


class Crew:
    """Workers that stay from one call to the next: what they have imported need not be imported again."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._dismiss()

    def play(
        self,
        jobs: Sequence[Job],
        told: Told = lambda _played: None,
        note: Note = lambda _sentence: None,
    ) -> list[Played]:
        """Play all jobs, as `play_all` does."""
        workers = self._workers
        if workers <= 1 or len(jobs) <= 1:
            return [played for batch in batches(jobs, 1) for played in play_batch(batch, told)]
        played: dict[int, Played] = {}

        def heard(one: Played) -> None:
            played[one.number] = one
            told(one)

        left = list(jobs)
        for _ in range(TOGETHER):
            if not (left := self._side_by_side(batches(left, workers), heard)):
                break
            note(f"a worker was killed; {len(left)} runs that it took along are played again")
        for job in left:
            with Crew(1) as alone:
                if alone._side_by_side([[job]], heard):
                    heard(killed(job))
        return [played[job.number] for job in jobs]

    def _side_by_side(self, together: Sequence[Sequence[Job]], told: Told) -> list[Job]:
        """Play batches in processes of their own; the jobs that were lost with a worker that was killed."""
        pool = self._pool = self._pool or pool_of(self._workers)
        lost: list[Job] = []
        futures: dict[Future[list[Played]], Sequence[Job]] = {}
        try:
            for batch in together:
                try:
                    futures[pool.submit(play_batch, batch)] = batch
                except BrokenProcessPool:  # one was killed while nobody waited for it
                    lost += batch
            for future in as_completed(futures):
                try:
                    for played in future.result():
                        told(played)
                except BrokenProcessPool:
                    lost += futures[future]
        except BaseException:
            end(pool)
            raise
        if lost:
            ended = processes_of(pool)
            self._dismiss()
            check_guard(ended)
            sweep_up(lost[0].folder.parent)
        return sorted(lost, key=lambda job: job.number)

    def _dismiss(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


def killed(job: Job) -> Played:
    """What became of a job that no worker survived."""
    seed = -1 if job.seed is None else job.seed
    error = "its worker was killed: is memory short?"
    return Played(job.number, job.folder, seed, "error", "", {}, error, again=True)


def batches(jobs: Sequence[Job], workers: int) -> list[list[Job]]:
    """Jobs that one worker plays in a row: seeds of one configuration, few enough that all workers have some."""
    most = max(1, len(jobs) // (BATCHES * workers)) if workers > 1 else len(jobs)
    found: list[list[Job]] = []
    for _, alike in groupby(jobs, lambda job: (job.overrides, None if job.seed is not None else job.number)):
        group = list(alike)
        found += [group[begin : begin + most] for begin in range(0, len(group), most)]
    return found


def sweep_up(folder: Path) -> None:
    """Take away what runs have left that nobody plays any more."""
    for path in folder.glob("*.partial"):
        shutil.rmtree(path, ignore_errors=True)


def play_batch(
    jobs: Sequence[Job],
    told: Told = lambda _played: None,
    settle: Callable[[Sequence[str]], RunSettings] = read,
) -> list[Played]:
    """Play jobs that differ in their seeds only; those that were played before are read.

    `settle` makes settings of their lines, for who has composed them already.
    """
    settings: RunSettings | BadSettings | None = None
    played = []
    for job in jobs:
        one = kept(job)
        if one is None:
            settings = settings or _settings(job.overrides, settle)
            one = _play(job, settings)
        told(one)
        played.append(one)
    return played


def play_one(job: Job) -> Played:
    """Play one job and give its folder its name; one that was played before is read."""
    return play_batch([job])[0]


def kept(job: Job) -> Played | None:
    """What became of a job that was played before, from its folder; None when there is none, or one that is torn."""
    try:
        manifest, checks, summary = (
            json.loads((job.folder / f"{name}.json").read_text(encoding="utf-8"))
            for name in ("manifest", "checks", "summary")
        )
    except (OSError, ValueError):
        return None
    verdict = overall([Check(**check) for check in checks])
    return Played(job.number, job.folder, manifest["seed"], verdict, manifest["digest"], summary)


def on_seed(settings: RunSettings, seed: int | None) -> RunSettings:
    """The same run on another seed."""
    if seed is None or seed == settings.seed:
        return settings
    lines = [line for line in settings.overrides if not line.startswith("seed=")]
    return replace(
        settings,
        seed=seed,
        engine=replace(deepcopy(settings.engine), seed=seed),
        overrides=[*lines, f"seed={seed}"],
        config={**settings.config, "seed": seed},
    )


def _settings(
    overrides: Sequence[str], settle: Callable[[Sequence[str]], RunSettings]
) -> RunSettings | BadSettings:
    try:
        return settle(overrides)
    except BadSettings as error:
        return error


def _play(job: Job, settings: RunSettings | BadSettings) -> Played:
    from sim.play import play  # noqa: PLC0415  who only waits for others need not import it

    if isinstance(settings, BadSettings):
        seed = -1 if job.seed is None else job.seed
        return Played(job.number, job.folder, seed, "bad settings", "", {}, str(settings))
    settings = on_seed(settings, job.seed)
    seed = settings.seed
    report = replace(settings.report, folder=str(job.folder.parent), plots=False)
    try:
        run = play(replace(settings, report=report))
    except BadSettings as error:
        return Played(job.number, job.folder, seed, "bad settings", "", {}, str(error))
    except Exception as error:  # noqa: BLE001  it is told, and the other jobs go on
        scarce = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in SCARCE)
        what = str(error.strerror) if scarce and isinstance(error, OSError) else str(error)
        told = f"{type(error).__name__}: {what}"
        return Played(job.number, job.folder, seed, "error", "", {}, told, again=scarce)
    if run.manifest["interrupted"]:
        raise KeyboardInterrupt
    shutil.rmtree(job.folder, ignore_errors=True)  # one that is torn cannot be read
    run.path.rename(job.folder)
    return Played(job.number, job.folder, seed, run.verdict, run.manifest["digest"], run.summary)
