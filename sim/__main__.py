"""`python -m sim scenario=failover`: compose, play, check, report; the exit code is the verdict.

0: all checks hold. 1: one failed. 2: the configuration is no good, and nothing ran. 3: a check could not be
decided. 130: interrupted; what had finished is in a folder that is still called `.partial`.
"""

import os
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from engine.errors import BadSettings
from sim.checks import table
from sim.config import explained, settle
from sim.play import play
from sim.runs import Run

EXIT_CODES = {"pass": 0, "fail": 1, "inconclusive": 3}
BAD_CONFIGURATION = 2
INTERRUPTED = 130


class ChecksFailed(Exception):
    """A run's verdict is not pass. Raised after the run is saved, so that the other jobs of a sweep go on."""

    def __init__(self, verdict: str) -> None:
        super().__init__(verdict)
        self.verdict = verdict


class Interrupted(Exception):
    """The user ended the run."""


def main() -> None:
    """The command line. Exits with the code of the verdict."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra raises instead of printing and exiting with 1
    try:
        job()
    except ChecksFailed as failed:
        sys.exit(EXIT_CODES[failed.verdict])
    except (Interrupted, KeyboardInterrupt):
        sys.exit(INTERRUPTED)
    except BadSettings as error:
        sys.exit(complain(error))
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(complain(explained(error, sys.argv[1:])))


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")
def job(config: DictConfig) -> None:
    """One run, alone or as part of a sweep."""
    settings = settle(config, list(HydraConfig.get().overrides.task))
    try:
        run = play(settings, progress=HydraConfig.get().mode is RunMode.RUN)
    except KeyboardInterrupt:
        raise Interrupted from None
    show(run)
    if run.manifest["interrupted"]:
        raise Interrupted
    if run.verdict != "pass":
        raise ChecksFailed(run.verdict)


def show(run: Run) -> None:
    """The checks, the figures that say how much they rest on, and where the rest is."""
    manifest, summary = run.manifest, run.summary
    print(table(run.checks))
    print(
        f"\n{run.verdict.upper()}  {run.name}  {manifest['strategy']} on {manifest['executor']}, seed "
        f"{manifest['seed']}: {summary['completed']} of {len(run.requests)} requests completed in "
        f"{manifest['virtual_s']:.1f} s virtual, {manifest['wall_s']:.1f} s real"
    )
    if manifest["interrupted"]:
        print(f"interrupted with {manifest['in_flight']} requests in flight; the finished ones are kept")
    print(f"digest  {manifest['digest']}\nrun     {run.path}")


def complain(error: BadSettings) -> int:
    print(f"modelyard: {error}", file=sys.stderr)
    return BAD_CONFIGURATION


if __name__ == "__main__":
    main()
