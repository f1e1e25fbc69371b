"""Instructions an operation, (Ir(2N) - Ir(N)) / N, as valgrind's cachegrind counts them."""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from sim.gate.child import MeasuringFailed, measured

SUMMARY = re.compile(r"^summary:\s*(\d+)", re.MULTILINE)
REPEATS = 3
OPTIONS = ("--tool=cachegrind", "--cache-sim=no", "--quiet", "--cachegrind-out-file=counted.%p")


@dataclass(frozen=True, slots=True)
class Counted:
    """How many instructions one operation takes."""

    name: str
    instructions: float


def missing() -> str | None:
    """Why nothing can be counted here; None where it can."""
    if shutil.which("valgrind") is None:
        return "valgrind is not installed (apt-get install valgrind)"
    try:
        subprocess.run(["valgrind", "--version"], capture_output=True, check=True, timeout=60)  # noqa: S607
    except (OSError, subprocess.SubprocessError) as error:
        return f"valgrind does not run here: {error}"
    return None


def instructions(
    names: Sequence[str], *, doubled: Sequence[str] = (), repeats: int = REPEATS
) -> Iterator[Counted]:
    """Count each operation; the median of `repeats`.

    Some ten seconds, thirty with the simulator's loop: Python runs fifty times slower there. Raises MeasuringFailed.
    """
    valgrind = shutil.which("valgrind")
    assert valgrind is not None, "whoever counts has asked whether there is one"
    task = {"task": "count", "names": list(names), "doubled": list(doubled), "repeats": repeats}
    with tempfile.TemporaryDirectory() as folder:
        for told in measured(task, plain=True, around=(valgrind, *OPTIONS), folder=folder):
            counts = [_total(Path(folder) / f"counted.{process}") for process in told["processes"]]
            found = [more - fewer for fewer, more in zip(counts[::2], counts[1::2], strict=True)]
            yield Counted(told["name"], median(found) / told["calls"])


def _total(path: Path) -> int:
    found = SUMMARY.search(path.read_text(errors="replace")) if path.is_file() else None
    if found is None:
        raise MeasuringFailed(f"valgrind has written no count into {path.name}")
    return int(found[1])
