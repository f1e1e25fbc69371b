"""The example workflow does what it says: its steps, typed in a repository in which a branch changes the policy."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

WORKFLOW = Path(__file__).parents[3] / "docs" / "examples" / "gate-workflow.yml"
TRAFFIC = [
    "scenario=steady",
    "executor=roofline",
    "report=tables",
    "workload.requests=60",
    "workload.rate=60",
]


def steps():
    """The commands of the workflow but the installation."""
    told = yaml.safe_load(WORKFLOW.read_text())
    (job,) = told["jobs"].values()
    return [step["run"] for step in job["steps"] if "run" in step and not step["run"].startswith("pip ")]


def typed(command, folder, **more):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "GITHUB_BASE_REF": "main", **more}
    command = ["bash", "-euo", "pipefail", "-c", command]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


@pytest.fixture
def repository(tmp_path):
    """main has one policy, the working tree another one."""
    gate = tmp_path / "gate"
    gate.mkdir()
    (gate / "traffic.yaml").write_text("".join(f"- {line}\n" for line in TRAFFIC))
    (gate / "policy.yaml").write_text("- fleet.max_batch=32\n")
    done = typed(
        "git init -q && git add . && git -c user.name=n -c user.email=e@localhost commit -qm first "
        "&& git update-ref refs/remotes/origin/main HEAD",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    (gate / "policy.yaml").write_text("- fleet.max_batch=1\n")
    return tmp_path


@pytest.mark.slow
def test_the_steps_of_the_workflow_stop_a_policy_that_costs_goodput(repository):
    lines, gate = steps()
    assert typed(lines, repository).returncode == 0
    few = gate.replace("seeds=20", "seeds=3").replace("slo_ttft_s=1 ", "slo_ttft_s=0.2 ")
    summary = repository / "summary.md"
    done = typed(few, repository, GITHUB_STEP_SUMMARY=str(summary))
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.startswith("GATE FAIL ")
    assert "policy/goodput_per_s" in done.stdout
    assert "| policy/goodput_per_s |" in summary.read_text()
    assert (repository / "gate-report" / "gate.xml").is_file()
