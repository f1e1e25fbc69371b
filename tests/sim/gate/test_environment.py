"""What a child's environment is, and what a gate says of the machine."""

import os
import platform
import subprocess

import numpy as np
import pytest

from sim.gate import environment
from sim.gate.environment import PYTHON, build_key, described, digest_key, dispatched, fixed, python_key

FEATURES = """
from numpy._core._multiarray_umath import __cpu_features__ as found
print(sum(found.get(name, False) for name in {names!r}))
"""


def test_nothing_of_the_caller_gets_into_a_child(monkeypatch):
    before = fixed(plain=True)
    for name in (
        "PYTHONHASHSEED",
        "PYTHONPATH",
        "HOME",
        "OMP_NUM_THREADS",
        "PYTHONOPTIMIZE",
        "MALLOC_ARENA_MAX",
    ):
        monkeypatch.setenv(name, "7")
    assert fixed(plain=True) == before
    assert before["PYTHONHASHSEED"] == "0"
    assert not {"HOME", "PYTHONOPTIMIZE"} & before.keys()


@pytest.mark.skipif(not dispatched(), reason="this numpy has one way for all processors")
def test_a_plain_child_does_without_what_only_some_processors_can():
    code = FEATURES.format(names=list(dispatched()))
    done = subprocess.run(
        [*PYTHON, "-W", "error", "-c", code],
        env=fixed(plain=True),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "0", "")


def test_keys_say_what_figures_hold_for():
    assert python_key().startswith(f"{platform.python_implementation()} {platform.python_version()}, ")
    assert digest_key() == f"numpy {np.__version__}, {python_key()}"
    assert build_key().startswith(f"{python_key()}, {platform.python_compiler()}")


def test_the_machine_is_described_without_names_of_hosts_or_people():
    told = " ".join(map(str, described().values()))
    assert platform.python_version() in told
    assert platform.node() not in told.split() or not platform.node()
    assert os.path.expanduser("~") not in told  # noqa: PTH111  as text


def test_without_git_the_commit_is_unknown(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment.source()["commit"] == "unknown"
    assert environment.commit() == {"commit": None, "dirty": None}
