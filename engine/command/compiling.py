"""The hot path compiled: the same source through mypyc, as extension modules beside it."""

import os
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from contextlib import chdir
from copy import copy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from engine.errors import EngineError

if TYPE_CHECKING:
    from setuptools import Extension

SOURCES = (
    "engine/timing.py",
    "engine/routing/seats.py",
    "engine/routing/prefixes.py",
    "engine/routing/sessions.py",
    "engine/routing/strategies.py",
    "engine/routing/decisions.py",
    "engine/routing/router.py",
    "engine/routing/targets.py",
    "engine/quotas/windows.py",
    "engine/quotas/books.py",
    "engine/quotas/line.py",
    "engine/quotas/quotas.py",
    "engine/cache/names.py",
    "engine/cache/blocks.py",
    "engine/cache/regret.py",
    "engine/cache/orders.py",
    "engine/cache/table.py",
    "engine/cache/holders.py",
    "engine/cache/limits.py",
    "engine/cache/tier.py",
    "engine/cache/cache.py",
    "engine/cache/ways.py",
    "engine/cache/crossings.py",
    "engine/cache/sizes.py",
    "engine/cache/carrier.py",
    "engine/registry/health.py",
    "engine/registry/lifecycle.py",
    "engine/telemetry/telemetry.py",
    "engine/execution/executor.py",
    "engine/execution/modelled.py",
    "engine/execution/roofline.py",
    "engine/execution/scheduler.py",
    "engine/execution/loops.py",
    "engine/execution/serving.py",
    "engine/execution/sharing.py",
    "engine/execution/replica.py",
    "engine/request.py",
    "engine/fleet.py",
    "engine/engine.py",
    "sim/heap.py",
    "sim/agenda.py",
    "sim/world.py",
    "sim/traffic/trace.py",
    "sim/points.py",
    "sim/recorder.py",
    "sim/audit.py",
    "sim/stage.py",
)
"""What every request passes, from the door to the loop that serves it, the cache beside it, and what a run in virtual
time has around that: its queue, its trace, its stage, and who writes down what happened.

A dataclass that each request makes writes out its own `__init__`: the one that dataclasses make stays Python, and
takes as long as ten that are compiled. Whoever inherits from one of these classes has to be here too, unless the
class allows it (`engine/native.py`). Events and allocations are not here: the first have variables of their class,
which a dataclass that is compiled takes for its own fields, and decoration registers the others, which makes no
faster class.
Nor are two that mypyc gets wrong: `registry.py` looks for the first of names without end, of which a list is made,
and `reuse.py` adds sums of floats, which are taken for integers.
"""

CHECKS = """
[mypy]
follow_imports = silent
[mypy-torch.*,transformers.*,safetensors.*,tokenizers.*,boto3.*,botocore.*,redis.*,pandas.*,hydra.*,omegaconf.*]
follow_imports = skip
ignore_missing_imports = True
"""

WATCHED = ["-fprofile-generate", "-fprofile-update=single"]
TRAINED = [
    "-fprofile-use",
    "-fprofile-correction",
    "-freorder-blocks-and-partition",
    "-freorder-functions",
    "-Wno-missing-profile",
]

TRAINING = (
    # a cache of five full tiers behind a router that looks for prefixes, conversations, five models
    (
        "scenario=steady executor=roofline hardware=h100 fleet=reference_five fleet.step_tokens=2048 "
        "strategy=cache_aware workload=mix_b workload.model_zipf=1 workload.rate=3 workload.requests=1000 "
        "seed=11 tiers=five tiers.block_tokens=64 tiers.gpu.gib=20 tiers.ram.gib=48 tiers.ssd.gib=128 "
        "tiers.network.gib=192 tiers.cloud.gib=384"
    ),
    # one model, no cache
    (
        "scenario=steady executor=roofline hardware=a100 tiers=off fleet.replicas=1 fleet.step_tokens=2048 "
        "workload=bare workload.vocab=4096 workload.rate=5 workload.requests=2000 seed=12 "
        "workload.prompt_min_tokens=600 workload.prompt_median_tokens=600 workload.prompt_max_tokens=600 "
        "workload.output_min_tokens=100 workload.output_median_tokens=100 workload.output_max_tokens=100"
    ),
    "scenario=failover executor=roofline",
)
"""Runs that take the ways that most runs take, as lines of the simulator's command: each a few seconds."""


class CannotCompile(EngineError):
    """What it takes is not there."""

    reason = "cannot_compile"


def compile_plane(root: Path, *, train: bool = False, say: Callable[[str], None] | None = None) -> list[Path]:
    """Build the extension modules of the package in `root`, in place; where they are. One to two minutes.

    With `train` they are built twice, the second time for what `TRAINING` was seen to do with the first: what is
    often passed then lies together, and what hardly ever happens apart. That takes GCC, and five minutes.

    `say` is told of each step as it begins. Raises CannotCompile without mypy, setuptools or a C compiler, and for a
    training that fails.
    """
    say = say or _silent
    try:
        import librt.vecs  # noqa: F401, PLC0415  columns of numbers, which mypy has had since 2.4
        import setuptools  # noqa: F401, PLC0415
        from mypyc.build import mypycify  # noqa: PLC0415  only who compiles needs them
    except ImportError as error:
        raise CannotCompile(
            f"to compile takes mypy and setuptools (pip install 'mypy>=2.4' setuptools): {error}"
        ) from error
    if train:
        require_gcc()
    with chdir(root), TemporaryDirectory() as folder:
        checks = Path(folder) / "mypy.ini"
        checks.write_text(CHECKS)
        say(f"translating {len(SOURCES)} files into C")
        checked = [*SOURCES, f"--config-file={checks}", f"--cache-dir={folder}"]
        # more makes nothing faster, and takes a C compiler twice as long
        extensions = mypycify(checked, opt_level="1", debug_level="0", target_dir=folder)
        if os.name == "posix":  # nobody reads the warnings, and to look for them takes longer than all else
            for extension in extensions:
                extension.extra_compile_args.append("-Wno-all")
        say("compiling them")
        if not train:
            _build(extensions, folder)
            return compiled(root)
        try:
            _build([_with(extension, WATCHED, WATCHED) for extension in extensions], folder)
            say(f"playing {len(TRAINING)} runs")
            train_on(root)
            say("compiling them again, for what was seen")
            _build([_with(extension, TRAINED, []) for extension in extensions], folder)
        except BaseException:
            remove(root)  # what watches itself is no use to anybody
            raise
    return compiled(root)


def _silent(_step: str) -> None:
    """Nobody wants to know."""


def _build(extensions: "list[Extension]", folder: str) -> None:
    """Have the C compiler make extension modules, beside their sources. Raises CannotCompile."""
    from setuptools import Distribution  # noqa: PLC0415
    from setuptools.errors import CCompilerError, PlatformError  # noqa: PLC0415

    attributes = {"name": "modelyard", "ext_modules": extensions, "packages": [], "py_modules": []}
    build = Distribution(attributes).get_command_obj("build_ext")
    build.ensure_finalized()
    build.build_temp = build.build_lib = folder
    build.inplace = build.force = True
    try:
        build.run()
    except (CCompilerError, PlatformError) as error:
        raise CannotCompile(f"to compile takes a C compiler that works: {error}") from error


def _with(extension: "Extension", compiling: list[str], linking: list[str]) -> "Extension":
    """The same extension, compiled and linked with more arguments."""
    changed = copy(extension)
    changed.extra_compile_args = [*extension.extra_compile_args, *compiling]
    changed.extra_link_args = [*extension.extra_link_args, *linking]
    return changed


def require_gcc() -> None:
    """Raises CannotCompile where the C compiler is another one."""
    command = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    try:
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError) as error:
        raise CannotCompile(f"to compile takes a C compiler that works: {error}") from error
    told = done.stdout.partition("\n")[0]
    if "Free Software Foundation" not in done.stdout:
        raise CannotCompile(
            f"to train takes GCC, but {shlex.join(command)} is {told!r}; without --train any will do"
        )


def train_on(root: Path) -> None:
    """Play what shows the compiler which ways are taken. Raises CannotCompile."""
    with TemporaryDirectory() as folder:
        for lines in TRAINING:
            command = [
                sys.executable,
                "-m",
                "sim",
                *lines.split(),
                "report=tables",
                f"report.folder={folder}",
            ]
            environment = os.environ | {"PYTHONPATH": str(root)}
            done = subprocess.run(  # noqa: S603
                command, cwd=folder, env=environment, capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise CannotCompile(
                    f"the training run {shlex.join(command[1:])} failed: {done.stderr.strip()}"
                )


def compiled(root: Path) -> list[Path]:
    """The extension modules that are there."""
    beside = [path for source in SOURCES for path in (root / source).parent.glob(f"{Path(source).stem}.*.so")]
    return sorted([*beside, *root.glob("*__mypyc.*.so")])


def remove(root: Path) -> list[Path]:
    """Delete the extension modules, so that the source is run again; what is gone."""
    gone = compiled(root)
    for path in gone:
        path.unlink()
    return gone
