"""Whoever reads what a command prints may leave: nothing else changes."""

import os
import subprocess
import sys

import pytest

from engine.pipes import let_readers_leave

LINES = "import sys\nfrom engine.pipes import let_readers_leave\nlet_readers_leave()\n"
RUN = ["-m", "sim", "scenario=steady", "executor=roofline", "workload.requests=20", "report=tables"]


def left(*arguments, unbuffered="", both=False):
    """Exit code and complaints of a process that prints into pipes that nobody reads."""
    reads, writes = os.pipe()
    os.close(reads)
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=writes,
        stderr=writes if both else subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        text=True,
    )
    os.close(writes)
    _, complaint = process.communicate(timeout=60)
    return process.returncode, complaint


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_the_work_goes_on_and_its_exit_code_is_its_own(unbuffered):
    code = LINES + "for _ in range(100_000):\n    print('é' * 9)\nsys.exit(3)\n"
    assert left("-c", code, unbuffered=unbuffered) == (3, "")


def test_also_where_complaints_go_the_same_way():
    code = LINES + "print('a')\nprint('b' * 99_999, file=sys.stderr)\nprint('c', flush=True)\nsys.exit(4)\n"
    assert left("-c", code, both=True)[0] == 4


def test_what_is_read_is_read_whole():
    code = LINES + "print('é'); print('on', file=sys.stderr); print(sys.stdout.fileno(), flush=True)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout.decode().split() == ["é", "1"]
    assert done.stderr == b"on\n"


@pytest.mark.usefixtures("capsys")
def test_what_somebody_else_has_put_there_stays():
    before = sys.stdout
    let_readers_leave()
    assert sys.stdout is before


@pytest.mark.slow
@pytest.mark.parametrize("both", [False, True])
def test_a_run_is_whole_though_nobody_reads_of_it(tmp_path, both):
    code, complaint = left(*RUN, f"report.folder={tmp_path}", both=both)
    assert code == 0, complaint
    (folder,) = tmp_path.iterdir()
    assert (folder / "requests.parquet").exists()
    assert both or "BrokenPipe" not in complaint
