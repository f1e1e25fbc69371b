"""`python -m sim -m scenario=steady strategy=a,b 'seed=range(1,11)'`: a sweep played by a launcher of Hydra's.

Local processes (`hydra/launcher=joblib`, as it is), a Ray cluster (`ray`), Slurm (`submitit_slurm`) or what stands in
for it on this machine (`submitit_local`), one job a combination. A job costs Hydra a tenth of a second, so all seeds
of a combination are played inside of it. What is asked for, kept, said and gone on with is that of `sim.sweep`: only
who plays the runs differs. Jobs write into the sweep's folder, which the machines of a cluster must share.
"""

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

from hydra import initialize_config_module
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from engine.errors import BadSettings
from sim.composing import CONFIG_MODULE, keeping_ctrl_c
from sim.config import explained, settle
from sim.experiments import own_settings, resumed
from sim.plan import planned
from sim.sweep import OWN, WIDTH, Sweeping, carried_out, console_of
from sim.workers import TOGETHER, Job, Note, Played, Told, kept, killed, play_batch, sweep_up

FLAGS = ("-m", "--multirun")
OF_HYDRA = ("hydra/launcher", "hydra.launcher", "hydra.job.env_set", "hydra.job.env_copy")
"""What of Hydra's own settings a sweep honours."""

NEEDED = {
    "joblib": (("hydra_plugins.hydra_joblib_launcher",), "hydra-joblib-launcher"),
    "ray": (("hydra_plugins.hydra_ray_launcher", "ray"), "modelyard[ray]"),
    "submitit_local": (("hydra_plugins.hydra_submitit_launcher", "submitit"), "modelyard[slurm]"),
    "submitit_slurm": (("hydra_plugins.hydra_submitit_launcher", "submitit"), "modelyard[slurm]"),
}
"""Launchers: the modules that each needs, and what brings them."""

COMMAND = "python -m sim -m"
LOOK_EVERY_S = 0.5
MOST_LETTERS = 120  # of what a launcher says of an error of its own
REST = "launcher"
"""Folder of a sweep for what a launcher itself writes, such as Slurm's logs."""


@dataclass(frozen=True, slots=True)
class Task:
    """What a job does, wherever it runs: play the seeds of one combination. Sent to the launcher's processes."""

    runs: Path
    seeds: tuple[int | None, ...]
    home: Path
    """Where the command was typed: relative paths in settings begin there."""
    starter: int
    """The process that waits; Ctrl-C is for it."""

    def __call__(self, config: DictConfig) -> list[Played]:
        if os.getpid() != self.starter:
            with suppress(ValueError):  # not the main thread there, which then has no signals to mind
                signal.signal(signal.SIGINT, signal.SIG_IGN)
            os.chdir(self.home)
        hydra = HydraConfig.get()
        first, lines = int(hydra.job.name), tuple(map(str, hydra.overrides.task))
        numbered = enumerate(self.seeds, start=first)
        jobs = [Job(number, lines, self.runs / f"{number:05}", seed) for number, seed in numbered]
        return play_batch(jobs, settle=lambda of_jobs: settle(config, of_jobs))


class Launching:
    """Plays the runs of a sweep by a launcher of Hydra's."""

    def __init__(self, settings: Sequence[str]) -> None:
        """`settings` are Hydra's own. Raises BadSettings where nothing can be launched by them."""
        for line in settings:
            if not line.lstrip("+~").startswith(OF_HYDRA):
                raise BadSettings(f"{line!r} is not looked at in a sweep, but {', '.join(OF_HYDRA)} are")
        if swept := planned(settings).swept:
            raise BadSettings(f"{next(iter(swept))} has several values, but one launcher plays a whole sweep")
        chosen = [line.partition("=")[2] for line in settings if line.partition("=")[0] == "hydra/launcher"]
        name = chosen[-1] if chosen else "joblib"
        modules, package = NEEDED.get(name, ((), ""))
        if not all(map(_is_there, modules)):
            raise BadSettings(f"hydra/launcher is {name!r}, which is not installed: pip install '{package}'")
        self._settings = list(settings)
        self._seeds: tuple[int | None, ...] = ()

    def check(self, lines: Sequence[str]) -> None:
        """Raise BadSettings where Hydra cannot compose these lines with its own settings."""
        with _hydra() as hydra:
            self._composed(hydra, lines)

    def play(self, jobs: Sequence[Job], told: Told, note: Note) -> list[Played]:
        """Play all jobs. What a killed process took along is played again, in the end one combination at a time."""
        played: dict[int, Played] = {}
        with _watched(jobs, told):
            left = list(jobs)
            for _ in range(TOGETHER):
                played |= {one.number: one for one in self._launch(left, note)}
                left = [job for job in left if job.number not in played]
            for _, group in groupby(left, lambda job: job.overrides):
                alone = list(group)
                played |= {job.number: killed(job) for job in alone}
                played |= {one.number: one for one in self._launch(alone, note)}
        return [played[job.number] for job in jobs]

    def _launch(self, jobs: Sequence[Job], note: Note) -> list[Played]:
        """What became of the jobs, as far as is known when the launcher has ended."""
        if not jobs:
            return []
        runs, seeds = jobs[0].folder.parent, self._seeds
        task = Task(runs, seeds, Path.cwd(), os.getpid())
        firsts = {job.overrides: job.number // len(seeds) * len(seeds) for job in jobs}
        given = [[*lines, f"hydra.job.name={first:05}"] for lines, first in firsts.items()]
        found: list[Played] = []
        with _hydra() as hydra:
            config = self._composed(
                hydra, [*jobs[0].overrides, f"hydra.sweep.dir={_quoted(runs.parent / REST)}"]
            )
            context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(config))
            launcher = Plugins.instance().instantiate_launcher(context, task, config)
            try:
                for each in launcher.launch(given, initial_job_idx=0):
                    if each.status is JobStatus.COMPLETED:
                        found += each.return_value
                    else:
                        note(f"a job of the sweep failed: {_first_line(each._return_value)}")  # noqa: SLF001
            except Exception as error:  # noqa: BLE001  each launcher has its own for a process that died
                note(
                    f"the launcher lost a process; what it took along is played again ({_first_line(error)})"
                )
        sweep_up(runs)
        with suppress(OSError):
            (runs.parent / REST).rmdir()  # where nothing was written there
        known = {one.number for one in found}
        return [*found, *(one for job in jobs if job.number not in known and (one := kept(job)) is not None)]

    def for_seeds(self, seeds: Sequence[int | None]) -> "Launching":
        """Itself, once it is known on which seeds each combination is played."""
        self._seeds = tuple(seeds)
        return self

    @keeping_ctrl_c()
    def _composed(self, hydra: Any, lines: Sequence[str]) -> DictConfig:
        try:
            composed: DictConfig = hydra.compose_config(
                config_name="config",
                overrides=[*lines, *self._settings],
                run_mode=RunMode.MULTIRUN,
            )
        except (HydraException, OmegaConfBaseException) as error:
            raise explained(error, self._settings) from error
        return composed


def main(arguments: Sequence[str], console: Console | None = None) -> int:
    """The command line after `python -m sim`, with -m among it; the exit code."""
    given = [each for each in arguments if each not in FLAGS]
    return carried_out(lambda: _asked(given), console or console_of(WIDTH))


def _asked(given: Sequence[str]) -> Sweeping:
    for each in given:
        if each.startswith("-"):
            raise BadSettings(f"{each!r} cannot stand beside -m, which takes settings only")
    resume, asked = resumed(given)
    own, lines = own_settings(asked, OWN)
    if "workers" in own:
        raise BadSettings(
            "workers is for python -m sim.sweep; here it is the launcher's, as hydra.launcher.n_jobs"
        )
    of_hydra = [line for line in lines if line.lstrip("+~").startswith(("hydra.", "hydra/"))]
    launching = Launching(of_hydra)
    sweeping = Sweeping(
        [line for line in lines if line not in of_hydra],
        own,
        launching.play,
        check=launching.check,
        command=COMMAND,
        noted_besides=of_hydra,
        resume=resume,
        shown=True,
    )
    launching.for_seeds(sweeping.plan.seeds)
    return sweeping


@contextmanager
def _hydra() -> Iterator[Any]:
    """A Hydra of its own; that of a caller is kept."""
    hydra = GlobalHydra.instance()
    of_the_caller, hydra.hydra = hydra.hydra, None
    try:
        with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
            yield GlobalHydra.instance().hydra
    finally:
        GlobalHydra.instance().hydra = of_the_caller


@contextmanager
def _watched(jobs: Sequence[Job], told: Told) -> Iterator[None]:
    """Tell of runs as their folders appear: a launcher says nothing before all are over."""
    over = threading.Event()
    left = {job.folder.name: job for job in jobs}

    def watch() -> None:
        while not over.wait(LOOK_EVERY_S):
            for name in [name for name in _names(jobs[0].folder.parent) if name in left]:
                one = kept(left[name])
                if one is not None:
                    del left[name]
                    told(one)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208  names are all that is asked for
    except OSError:
        return []


def _quoted(path: Path) -> str:
    """A path as the value of an override, whatever letters it has."""
    text = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _first_line(error: object) -> str:
    name = type(error).__name__
    text = next(iter(str(error).strip().splitlines()), "")[:MOST_LETTERS]
    return f"{name}: {text}" if text else name
