"""`python -m sim.fidelity --quick`: the same load on the real engine and on the simulated one, and how far apart.

0: within the marks. 1: one was missed. 2: the settings are no good, and nothing ran. 3: it could not be decided (a
noise floor too large, too few requests, a load that was late). 130: interrupted; finished cases are kept, and
`resume=FOLDER` goes on.
"""

import sys
from collections.abc import Sequence
from contextlib import ExitStack

from omegaconf import OmegaConf
from rich.console import Console
from rich.status import Status

from engine.errors import BadSettings
from sim.fidelity import report
from sim.fidelity.bench import Bench, CaseResult, systems_of
from sim.fidelity.cases import CASES, run_settings
from sim.fidelity.compare import FAIL, INCONCLUSIVE, PASS
from sim.fidelity.folder import FidelityFolder
from sim.fidelity.live import Machine
from sim.fidelity.settings import FidelitySettings, read

USAGE = """usage: python -m sim.fidelity [--quick] [SETTING=VALUE ...] [OVERRIDE ...]

Overrides are those of `python -m sim` and hold for both sides. Settings and what they are otherwise:"""
WIDTH = 150  # of a table that is not shown on a terminal
EXIT_CODES = {PASS: 0, FAIL: 1, INCONCLUSIVE: 3}
BAD_CONFIGURATION, INTERRUPTED = 2, 130
SYSTEM_S = 25.0  # about what a system takes besides its profiles: a burst and a calibration run


def main(arguments: Sequence[str] | None = None, console: Console | None = None) -> int:
    """The command line; the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    out = console or Console(width=None if sys.stdout.isatty() else WIDTH)
    if {"--help", "-h"} & set(given):
        settings = OmegaConf.structured(FidelitySettings)
        out.print(f"{USAGE}\n\n{OmegaConf.to_yaml(settings)}", highlight=False)
        return 0
    try:
        settings = read(given)
        check(settings)
        return run(settings, out)
    except BadSettings as error:
        Console(stderr=True, soft_wrap=True).print(f"modelyard: {error}", markup=False, highlight=False)
        return BAD_CONFIGURATION


def check(settings: FidelitySettings) -> None:
    """Raise BadSettings for overrides that no case can run with."""
    for name in settings.cases:
        run_settings(CASES[name], 1, settings.overrides)


def run(settings: FidelitySettings, out: Console) -> int:
    """Compare, show and keep; the exit code."""
    folder = FidelityFolder(settings)
    results = folder.finished()
    left = [name for name in settings.cases if name not in [result.name for result in results]]
    out.print(estimate(settings, left), highlight=False)
    is_interrupted = not compare(settings, left, folder, results, out)
    results.sort(key=lambda result: settings.cases.index(result.name))
    folder.write(results)
    if not is_interrupted:
        folder.publish()
    for line in (*report.closing_lines(results), f"report  {folder.path}"):
        out.print(line, highlight=False, markup=False)
    return INTERRUPTED if is_interrupted else EXIT_CODES[report.verdict_of(results)]


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
                bench = Bench(settings, machine, folder.profiles, status.update)
                for result in bench.results(left):
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
    if settings.requests is not None:
        return f"{text}: {settings.requests:,} requests a run"
    share = len(cases) / len(settings.cases)
    minutes = settings.minutes * share + len(systems) * (SYSTEM_S + settings.profile_s) / 60
    return f"{text}: about {minutes:.0f} minutes"


def show(result: CaseResult, out: Console) -> None:
    """A case that is finished."""
    for table in report.terminal_tables(result):
        out.print(table)
    for note in report.notes(result):
        out.print(f"  {note}", highlight=False, markup=False)


if __name__ == "__main__":
    sys.exit(main())
