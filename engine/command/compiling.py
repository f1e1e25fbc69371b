"""The hot path compiled: the same source through mypyc, as extension modules beside it."""

import os
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory

from engine.errors import EngineError

SOURCES = (
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
    "sim/agenda.py",
)
"""What every request passes, from the door to the loop that serves it, the cache beside it, and virtual time.

A dataclass that each request makes writes out its own `__init__`: the one that dataclasses make stays Python, and
takes as long as ten that are compiled. Whoever inherits from one of these classes has to be here too, unless the
class allows it (`engine/native.py`). Events and allocations are not here: others derive theirs from them, or
decoration registers them, which makes no faster class.
Nor are two that mypyc gets wrong: `registry.py` looks for the first of names without end, of which a list is made,
and `reuse.py` adds sums of floats, which are taken for integers.
"""

CHECKS = """
[mypy]
follow_imports = silent
[mypy-torch.*,transformers.*,safetensors.*,tokenizers.*,boto3.*,botocore.*,redis.*]
follow_imports = skip
ignore_missing_imports = True
"""


class CannotCompile(EngineError):
    """What it takes is not there."""

    reason = "cannot_compile"


def compile_plane(root: Path) -> list[Path]:
    """Build the extension modules of the package in `root`, in place; where they are. About a minute.

    Raises CannotCompile without mypy, setuptools or a C compiler.
    """
    try:
        from mypyc.build import mypycify  # noqa: PLC0415  only who compiles needs them
        from setuptools import Distribution  # noqa: PLC0415
        from setuptools.errors import CCompilerError, PlatformError  # noqa: PLC0415
    except ImportError as error:
        raise CannotCompile(
            f"to compile takes mypy and setuptools (pip install mypy setuptools): {error}"
        ) from error
    with chdir(root), TemporaryDirectory() as folder:
        checks = Path(folder) / "mypy.ini"
        checks.write_text(CHECKS)
        checked = [*SOURCES, f"--config-file={checks}", f"--cache-dir={folder}"]
        # more makes nothing faster, and takes a C compiler twice as long
        extensions = mypycify(checked, opt_level="1", debug_level="0", target_dir=folder)
        if os.name == "posix":  # nobody reads the warnings, and to look for them takes longer than all else
            for extension in extensions:
                extension.extra_compile_args.append("-Wno-all")
        attributes = {"name": "modelyard", "ext_modules": extensions, "packages": [], "py_modules": []}
        build = Distribution(attributes).get_command_obj("build_ext")
        build.ensure_finalized()
        build.build_temp = build.build_lib = folder
        build.inplace = True
        try:
            build.run()
        except (CCompilerError, PlatformError) as error:
            raise CannotCompile(f"to compile takes a C compiler that works: {error}") from error
    return compiled(root)


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
