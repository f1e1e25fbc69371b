"""Where a gate ran: what its figures hold for, and a process that is as alike as can be elsewhere."""

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from engine.command.compiling import compiled
from sim.machine import processor

ROOT = Path(__file__).parents[2]
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
NO_CPU_FEATURES = "-AVX,-AVX2,-AVX512F,-AVX512VL,-AVX512BW,-FMA,-FMA4,-BMI2,-ERMS,-FSRM,-MOVBE,-RTM"
"""The ways of copying and of exp and log that glibc has for some processors only."""
GIT_S = 20


def fixed(*, plain: bool) -> dict[str, str]:
    """The whole environment of a child: nothing of the caller's, one thread, no random hashes.

    `plain`: numpy and glibc also do without what only some processors can, so that instructions and the last digits
    of exp and log are those of any x86-64.
    """
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "LC_ALL": "C.UTF-8",
    }
    for name in (
        "SYSTEMROOT",
        "LD_LIBRARY_PATH",
        "PYTHONPYCACHEPREFIX",
    ):  # without which it may not start, or slowly
        if name in os.environ:
            environment[name] = os.environ[name]
    if plain:
        environment["NPY_DISABLE_CPU_FEATURES"] = " ".join(dispatched())
        if platform.machine() in {"x86_64", "AMD64"}:
            environment["GLIBC_TUNABLES"] = f"glibc.cpu.hwcaps={NO_CPU_FEATURES}"
    return environment


def dispatched() -> Sequence[str]:
    """The processor features that this numpy would look for."""
    core = getattr(np, "_core", None)
    return list(getattr(getattr(core, "_multiarray_umath", None), "__cpu_dispatch__", ()))


@cache
def python_key() -> str:
    """Baselines of memory that stays and of ratios hold for this: Python, down to its patch, and the architecture."""
    compiled_here = ", compiled" if compiled(ROOT) else ""
    return f"{platform.python_implementation()} {platform.python_version()}, {_machine()}{compiled_here}"


@cache
def digest_key() -> str:
    """What numpy promises its streams for: the same numpy, Python and machine."""
    return f"numpy {version('numpy')}, {python_key()}"


@cache
def build_key() -> str:
    """Instructions also differ by who compiled Python, and by the C library."""
    libc = " ".join(platform.libc_ver())
    return f"{python_key()}, {platform.python_compiler()} {' '.join(platform.python_build())}, {libc}"


def _machine() -> str:
    return f"{platform.system()} {platform.machine()}"


def described() -> dict[str, Any]:
    """For a reader of figures of time: processor, governor, load, and the source. No names of hosts or people."""
    return {
        "processor": processor(),
        "cores": os.cpu_count() or 1,
        "governor": _text(GOVERNOR) or "unknown",
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        **source(),
    }


def source() -> dict[str, Any]:
    """For a reader of figures of virtual time."""
    found = commit()
    changed = ", changed since" if found["dirty"] else ""
    return {
        "python": build_key(),
        "numpy": version("numpy"),
        "commit": "unknown" if found["commit"] is None else f"{found['commit']}{changed}",
    }


def commit() -> dict[str, Any]:
    """The commit of the source, and whether it was changed since; nothing where there is no git."""
    found = _git("rev-parse", "--short=12", "HEAD")
    if found is None:
        return {"commit": None, "dirty": None}
    return {"commit": found, "dirty": bool(_git("status", "--porcelain", "--untracked-files=no"))}


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(ROOT), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_S, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


PYTHON = [sys.executable, "-P"]
"""Without the folder that the caller happens to be in."""
