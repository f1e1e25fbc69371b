"""`python -m sim scenario=failover`: compose, play, check, report; the exit code is the verdict.

0: all checks hold. 1: one failed. 2: the configuration is no good, and nothing ran. 3: a check could not be
decided. 130: interrupted; what had finished is in a folder that is still called `.partial`.
"""

import os
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from engine.errors import BadSettings
from sim import every, multirun
from sim.checks import table
from sim.composing import is_interrupted, keeping_ctrl_c, plainly_composed
from sim.config import SECTIONS, choices, explained, settle
from sim.early import begin
from sim.play import play
from sim.runs import Run

EXIT_CODES = {"pass": 0, "fail": 1, "inconclusive": 3}
BAD_CONFIGURATION = 2
INTERRUPTED = 130


def main() -> None:
    """The command line. Exits with the code of the verdict; a sweep with that of its worst run."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(usage())
        return
    if every.asked_for(sys.argv[1:]):
        sys.exit(every.main(sys.argv[1:]))
    if set(multirun.FLAGS) & set(sys.argv[1:]):
        sys.exit(multirun.main(sys.argv[1:]))
    try:
        with keeping_ctrl_c():
            sys.exit(_one_run(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _one_run(arguments: list[str]) -> int:
    """The exit code of a run, or of what else Hydra knows, such as `--cfg job`."""
    try:
        config = plainly_composed(arguments)
    except BadSettings as error:
        return complain(error)
    if config is not None:
        return play_and_show(config, arguments)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra raises instead of printing and exiting with 1
    exit_codes = [0]

    @hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")
    def job(config: DictConfig) -> None:
        exit_codes.append(play_and_show(config, list(HydraConfig.get().overrides.task)))

    try:
        job()
    except (HydraException, OmegaConfBaseException) as error:
        if is_interrupted(error):
            raise
        return complain(explained(error, arguments))
    return exit_codes[-1]


def console() -> None:
    """`main` for a process of its own: whoever reads what it prints may leave."""
    begin()
    main()


def play_and_show(config: DictConfig, overrides: list[str]) -> int:
    """One run, from its configuration to what is said of it; its exit code."""
    try:
        run = play(settle(config, overrides), progress=True)
    except BadSettings as error:
        return complain(error)
    show(run)
    return INTERRUPTED if run.manifest["interrupted"] else EXIT_CODES[run.verdict]


def show(run: Run) -> None:
    """The checks, the figures that say how much they rest on, what else stands out, and where the rest is."""
    manifest, summary = run.manifest, run.summary
    verdict = "interrupted" if manifest["interrupted"] else run.verdict
    print(table(run.checks))
    print(
        f"\n{verdict.upper()}  {run.name}  {manifest['strategy']} on {manifest['executor']}, seed "
        f"{manifest['seed']}: {summary['completed']} of {len(run.requests)} requests completed in "
        f"{manifest['virtual_s']:.1f} s virtual, {manifest['wall_s']:.1f} s real"
    )
    if manifest["interrupted"]:
        print(f"interrupted with {manifest['in_flight']} requests in flight; the finished ones are kept")
    for finding in run.findings:
        print(f"look at  {finding.line()}")
    print(f"digest  {manifest['digest']}\nrun     {run.path}")


def usage() -> str:
    """What `--help` prints: the scenarios and every group of settings, as the configuration folder has them."""
    groups = [f"  {group}={'|'.join(choices(group))}" for group in SECTIONS if choices(group)]
    return "\n".join(
        [
            "usage: python -m sim scenario=NAME [SETTING=VALUE ...]    one run",
            "       python -m sim scenario=all [SETTING=VALUE ...]     the ten scenarios, and one table",
            "       python -m sim -m scenario=NAME [SETTING=A,B ...]   every combination, ranked (docs/sweeps.md)",
            "       python -m sim --cfg job scenario=NAME              every setting, and nothing runs",
            "",
            "groups of settings:",
            *groups,
            "",
            "exit codes: 0 all checks hold, 1 one failed, 2 bad configuration, 3 undecided, 130 interrupted",
        ]
    )


def complain(error: BadSettings) -> int:
    print(f"modelyard: {error}", file=sys.stderr)
    return BAD_CONFIGURATION


if __name__ == "__main__":
    console()
