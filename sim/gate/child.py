"""A process of its own for what is measured: it is told what to do, and tells each result as it has it."""

import json
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from engine.errors import EngineError
from sim.gate.environment import PYTHON, fixed

WORKER = "sim.gate.worker"
LAST_LINES = 3


class MeasuringFailed(EngineError):
    """The process that measures ended before it was done; the message has the end of what it said."""

    reason = "measuring_failed"


def measured(
    task: dict[str, Any], *, plain: bool, around: Sequence[str] = (), folder: str | None = None
) -> Iterator[dict[str, Any]]:
    """The results of a worker, one after the other. `around`: what the worker is run by, such as valgrind.

    Raises MeasuringFailed. Whoever stops listening ends it.
    """
    command = [*around, *PYTHON, "-m", WORKER, json.dumps(task)]
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(  # noqa: S603
            command,
            cwd=folder,
            env=fixed(plain=plain),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                yield json.loads(line)
        except BaseException:
            process.kill()
            raise
        if process.wait():
            said.seek(0)
            last = " ".join(said.read().strip().splitlines()[-LAST_LINES:])
            raise MeasuringFailed(f"the process that measures ended with code {process.returncode}: {last}")
