"""Runs side by side, in processes of their own: the same results in the same order, however many there are."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from engine.errors import BadSettings
from sim.config import read

Figures = dict[str, Any]

EXIT_CODES = {"pass": 0, "fail": 1, "inconclusive": 3, "error": 1, "bad settings": 2}


@dataclass(frozen=True, slots=True)
class Job:
    """One run to be played, and what its folder is called in the end."""

    number: int
    overrides: tuple[str, ...]
    folder: Path


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

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.verdict]


Told = Callable[[Played], None]
Note = Callable[[str], None]
TOGETHER = (
    2  # times that runs are played side by side; after that, whoever takes a worker along does so alone
)


def play_all(
    jobs: Sequence[Job],
    workers: int,
    told: Told = lambda _played: None,
    note: Note = lambda _sentence: None,
) -> list[Played]:
    """Play all jobs; what became of them, in their order. `told` hears of each as it ends, in any order.

    A job that fails stops nobody. A worker that is killed takes along what others were at: that is said to `note` and
    played again, in the end one job at a time, so that the job which no worker survives is known. KeyboardInterrupt
    ends those under way and is raised; `told` has heard of the rest.
    """
    if workers <= 1 or len(jobs) <= 1:
        return list(_one_by_one(jobs, told))
    played: dict[int, Played] = {}

    def heard(one: Played) -> None:
        played[one.number] = one
        told(one)

    left = list(jobs)
    for _ in range(TOGETHER):
        if not (left := _side_by_side(left, workers, heard)):
            break
        note(f"a worker was killed; {len(left)} runs that it took along are played again")
    for job in left:
        if _side_by_side([job], 1, heard):
            heard(
                Played(job.number, job.folder, -1, "error", "", {}, "its worker was killed: is memory short?")
            )
    return [played[job.number] for job in jobs]


def _side_by_side(jobs: Sequence[Job], workers: int, told: Told) -> list[Job]:
    """Play the jobs in processes of their own; those that were lost with a worker that was killed."""
    context = get_context(
        "spawn"
    )  # a fork would take along locks and threads of torch in whatever state they are
    threads = max(1, (os.cpu_count() or 1) // workers)
    lost: list[Job] = []
    with ProcessPoolExecutor(min(workers, len(jobs)), context, _begin, (threads,)) as pool:
        futures = {pool.submit(play_one, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                try:
                    told(future.result())
                except BrokenProcessPool:
                    lost.append(futures[future])
        except BaseException:
            _end(pool, list(futures))
            raise
    if lost:
        sweep_up(lost[0].folder.parent)
    return sorted(lost, key=lambda job: job.number)


def sweep_up(folder: Path) -> None:
    """Take away what runs have left that nobody plays any more."""
    for path in folder.glob("*.partial"):
        shutil.rmtree(path, ignore_errors=True)


def play_one(job: Job) -> Played:
    """Play one job and give its folder its name; one that was played before is read."""
    from sim.play import play  # noqa: PLC0415  who only waits for others need not import it
    from sim.runs import open_run  # noqa: PLC0415

    if job.folder.is_dir():
        run = open_run(job.folder)
        return Played(
            job.number, job.folder, run.manifest["seed"], run.verdict, run.manifest["digest"], run.summary
        )
    seed = -1
    try:
        settings = read(job.overrides)
        seed = settings.seed
        settings.report = replace(settings.report, folder=str(job.folder.parent), plots=False)
        run = play(settings)
    except BadSettings as error:
        return Played(job.number, job.folder, seed, "bad settings", "", {}, str(error))
    except Exception as error:  # noqa: BLE001  it is told, and the other jobs go on
        return Played(job.number, job.folder, seed, "error", "", {}, f"{type(error).__name__}: {error}")
    if run.manifest["interrupted"]:
        raise KeyboardInterrupt
    run.path.rename(job.folder)
    return Played(job.number, job.folder, seed, run.verdict, run.manifest["digest"], run.summary)


def _one_by_one(jobs: Sequence[Job], told: Told) -> Iterator[Played]:
    for job in jobs:
        played = play_one(job)
        told(played)
        yield played


def _begin(threads: int) -> None:
    """A worker's first act: Ctrl-C is for who waits for it, and its threads must not fight those of the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = str(threads)


def _end(pool: ProcessPoolExecutor, futures: Sequence["Future[Played]"]) -> None:
    for future in futures:
        future.cancel()
    for process in list(pool._processes.values()):  # noqa: SLF001  the pool would wait for runs nobody wants
        process.terminate()
