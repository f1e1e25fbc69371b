"""Who may import whom: the contracts hold, each was seen failing, and nothing heavy comes along unasked."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("engine", "sim", "scenarios", "conf")
CONTRACTS = [
    contract["name"]
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
]
PLANTS = [
    ("engine/cache/orders.py", "import engine.quotas", "The engine's layers"),
    ("sim/world.py", "import scenarios.steady", "Scenarios use the simulator"),
    ("engine/request.py", "import simpy", "The engine knows no simulator"),
    ("engine/routing/router.py", "import time", "Time, loops and randomness"),
]
ENGINE_ONLY = ("simpy", "hydra", "omegaconf", "pandas", "matplotlib", "torch", "sim", "scenarios")


def lint_imports(folder):
    """Each contract's verdict, as the command prints it."""
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "COLUMNS": "200"}, capture_output=True, text=True, check=False
    )
    lines = done.stdout.splitlines()
    verdicts = {
        name: line.removeprefix(name).split()[0]
        for name in CONTRACTS
        for line in lines
        if line.startswith(f"{name} ")
    }
    assert list(verdicts) == CONTRACTS, done.stdout + done.stderr
    return done.returncode, verdicts


def loaded(code):
    """The top-level modules that are loaded when `code` has run in a new process."""
    shown = f"import sys\n{code}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-P", "-c", shown], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_the_contracts_hold():
    exit_code, verdicts = lint_imports(ROOT)
    assert set(verdicts.values()) == {"KEPT"}
    assert exit_code == 0


@pytest.mark.parametrize(("path", "line", "contract"), PLANTS)
def test_a_planted_import_breaks_its_contract_and_no_other(tmp_path, path, line, contract):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    planted = tmp_path / path
    planted.write_text(f"{planted.read_text()}\n{line}\n")
    exit_code, verdicts = lint_imports(tmp_path)
    assert [name for name, verdict in verdicts.items() if verdict == "BROKEN"] == [
        name for name in CONTRACTS if name.startswith(contract)
    ]
    assert exit_code == 1


def test_every_contract_has_its_plant():
    assert len(PLANTS) == len(CONTRACTS)


@pytest.mark.parametrize("module", ["engine", "sim", "sim.play", "sim.sweep", "engine.engine"])
def test_importing_does_not_bring_torch_or_matplotlib(module):
    """Each takes as long to import as all the rest: who computes no tensors and draws no pictures does without."""
    assert not {"torch", "matplotlib"} & loaded(f"import {module}")


def test_the_engine_brings_no_simulator_and_no_table_or_plot_library():
    assert loaded("import engine.engine").isdisjoint(ENGINE_ONLY)


def test_a_run_that_needs_no_torch_does_not_import_it(tmp_path):
    arguments = ["scenario=steady", "executor=roofline", "report=tables", f"report.folder={tmp_path}"]
    modules = loaded(f"""
import runpy
sys.argv = ["sim", *{arguments}]
try:
    runpy.run_module("sim", run_name="__main__")
except SystemExit as end:
    assert end.code == 0, end.code
""")
    assert "simpy" in modules
    assert "torch" not in modules
    assert len(list(tmp_path.iterdir())) == 1
