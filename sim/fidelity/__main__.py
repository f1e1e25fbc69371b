"""`python -m sim.fidelity --quick`: the same load on the real engine and on the simulated one, and how far apart.

0: within the marks. 1: one was missed. 2: the settings are no good, and nothing ran. 3: it could not be decided (a
noise floor too large, too few requests, a load that was late). 130: interrupted; finished cases are kept, and
`resume=FOLDER` goes on. `python -m sim.fidelity show FOLDER` prints the figures of a folder as Markdown.
`python -m sim.fidelity rank` asks whether strategies and allocations come in the same order in both worlds.
"""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from omegaconf import OmegaConf
from rich.console import Console
from rich.status import Status

from engine.errors import BadSettings
from engine.execution import executors
from engine.settings import require
from sim.early import begin
from sim.fidelity import contest, report
from sim.fidelity.bench import Bench, CaseResult, systems_of
from sim.fidelity.cases import CASES, run_settings, traffic
from sim.fidelity.compare import FAIL, INCONCLUSIVE, PASS
from sim.fidelity.folder import FidelityFolder, read_cases
from sim.fidelity.live import Machine
from sim.fidelity.settings import FidelitySettings, read

USAGE = """usage: python -m sim.fidelity [--quick] [SETTING=VALUE ...] [OVERRIDE ...]
       python -m sim.fidelity rank [SETTING=VALUE ...] [OVERRIDE ...]    the order of strategies and allocations
       python -m sim.fidelity show FOLDER

Overrides are those of `python -m sim` and hold for both sides. Settings and what they are otherwise:"""
WIDTH = 150  # of a table that is not shown on a terminal
EXIT_CODES = {PASS: 0, FAIL: 1, INCONCLUSIVE: 3}
BAD_CONFIGURATION, INTERRUPTED = 2, 130
RUN_S = 12.0  # about what a real run takes with its calibration, where requests are counted and not minutes


def main(arguments: Sequence[str] | None = None, console: Console | None = None) -> int:
    """The command line; the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    out = console or Console(width=None if sys.stdout.isatty() else WIDTH)
    if {"--help", "-h"} & set(given):
        settings = OmegaConf.structured(contest.RankingSettings if "rank" in given else FidelitySettings)
        out.print(f"{USAGE}\n\n{OmegaConf.to_yaml(settings)}", markup=False, highlight=False, soft_wrap=True)
        return 0
    try:
        if given[:1] == ["show"]:
            return show_folder(given[1:])
        if given[:1] == ["rank"]:
            return contest.main(given[1:], out)
        settings = read(given)
        check(settings)
        return run(settings, out)
    except BadSettings as error:
        Console(stderr=True, soft_wrap=True).print(f"modelyard: {error}", markup=False, highlight=False)
        return BAD_CONFIGURATION


def show_folder(given: Sequence[str]) -> int:
    """Print the figures of a folder as tables of Markdown. Raises BadSettings."""
    require("show", list(given), len(given) == 1, "one folder of a comparison")
    sys.stdout.write("\n".join(report.tables(read_cases(Path(given[0])))) + "\n")
    return 0


def check(settings: FidelitySettings) -> None:
    """Raise BadSettings for what no case can run with."""
    executors.find(settings.simulated)
    if settings.profile is not None:
        is_there = Path(settings.profile).is_file()
        require("profile", settings.profile, is_there, "a file that python -m sim.profile has written")
    for name in settings.cases:
        case = CASES[name]
        run = run_settings(case, 1, settings.overrides, 1.0)
        traffic(case, run, 1, 1.0, run.seed)


def run(settings: FidelitySettings, out: Console) -> int:
    """Compare, show and keep; the exit code."""
    folder = FidelityFolder(settings)
    results = folder.finished()
    left = [name for name in settings.cases if name not in [result.name for result in results]]
    out.print(estimate(settings, left), highlight=False)
    try:
        is_interrupted = not compare(settings, left, folder, results, out)
    except BaseException:
        folder.drop_if_empty()
        raise
    if is_interrupted and not results and settings.resume is None:
        folder.drop_if_empty()
        out.print("interrupted before the first case was finished: nothing is kept", highlight=False)
        return INTERRUPTED
    results.sort(key=lambda result: settings.cases.index(result.name))
    folder.write(results)
    if not is_interrupted:
        folder.publish()
    for line in (*report.closing_lines(results), f"report  {folder.path}"):
        out.print(line, highlight=False, markup=False, soft_wrap=True)
    if is_interrupted:
        out.print(
            f"go on with: {report.command(settings)} resume={folder.path}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        return INTERRUPTED
    return EXIT_CODES[report.verdict_of(results)]


def compare(
    settings: FidelitySettings,
    left: list[str],
    folder: FidelityFolder,
    results: list[CaseResult],
    out: Console,
) -> bool:
    """Add the results of the cases that are left; whether all of them could finish."""
    status = Status("", console=Console(stderr=True))
    try:
        with ExitStack() as stack:
            if left:
                machine = stack.enter_context(Machine())
                stack.enter_context(status)
                bench = Bench(settings, machine, folder.profiles, status.update, folder.capacities)
                for result in bench.results(left):
                    folder.keep_capacities(bench.capacities)
                    folder.keep(result)
                    results.append(result)
                    show(result, out)
    except KeyboardInterrupt:
        return False
    return True


def estimate(settings: FidelitySettings, cases: Sequence[str]) -> str:
    """What is about to happen, and about how long it takes."""
    systems = systems_of(list(cases))
    text = f"{len(cases)} cases, {settings.repeats} real runs each, on {len(systems)} systems"
    minutes = settings.minutes * len(cases) / len(settings.cases)
    if settings.requests is not None:
        minutes = (len(cases) * settings.repeats * RUN_S + len(systems) * settings.profile_s) / 60
        text += f", {settings.requests:,} requests a run"
    return f"{text}: about {minutes:.0f} minutes"


def show(result: CaseResult, out: Console) -> None:
    """A case that is finished."""
    for table in report.terminal_tables(result):
        out.print(table)
    for note in report.notes(result):
        out.print(f"  {note}", highlight=False, markup=False)


if __name__ == "__main__":
    begin()
    sys.exit(main())
