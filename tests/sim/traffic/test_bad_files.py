"""A trace that is no good ends a command before it begins: exit code 2, a sentence with file and line, no folder."""

import gzip
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from engine.errors import BadSettings
from sim import run
from sim.traffic.__main__ import main

ROOT = Path(__file__).parents[3]
HEADER = "timestamp_s,model,tenant,input_tokens,output_tokens\n"
GOOD = HEADER + "0,m,t,5,5\n" * 50
GIB = 1 << 30

BAD = {
    "a missing column": (b"timestamp_s,model,tenant,input_tokens\n0,m,t,1\n", "line 1"),
    "nan": (f"{HEADER}nan,m,t,1,1\n".encode(), "line 2"),
    "infinite": (f"{HEADER}1e309,m,t,1,1\n".encode(), "line 2"),
    "negative": (f"{HEADER}0,m,t,-1,1\n".encode(), "line 2"),
    "beyond an int64": (f"{HEADER}0,m,t,9223372036854775808,1\n".encode(), "line 2"),
    "time that goes back": (f"{HEADER}5,m,t,1,1\n4,m,t,1,1\n".encode(), "line 3"),
    "two formats": (f'{GOOD}{{"timestamp": 0}}\n'.encode(), "line 52"),
    "gzip cut short": (gzip.compress(GOOD.encode())[:-12], "line"),
    "gzip of zeros": (gzip.compress(GOOD.encode() + bytes(1 << 24)), "line 52"),
    "nothing": (b"", "is empty"),
}


@pytest.mark.parametrize("why", BAD)
def test_a_bad_file_is_refused_by_every_command_and_nothing_is_written(why, tmp_path, capsys, monkeypatch):
    content, place = BAD[why]
    path, out = tmp_path / "bad", tmp_path / "out"
    path.write_bytes(content)
    monkeypatch.chdir(tmp_path)
    for command in (["describe", str(path)], ["fit", str(path), f"out={out}"]):
        assert main(command) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert f"{path}" in said.err
        assert place in said.err
        assert said.err.count("\n") == 1
    lines = ["executor=roofline", "workload=trace", f"workload.path={path}", f"report.folder={out}"]
    with pytest.raises(BadSettings, match=place) as refusal:
        run("failover", lines)
    assert str(path) in str(refusal.value)
    assert list(tmp_path.iterdir()) == [path]


def limited(*arguments, megabytes, folder=ROOT):
    """A command in a process that may have so much memory."""

    def limit():
        resource.setrlimit(resource.RLIMIT_DATA, (megabytes << 20, megabytes << 20))

    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        preexec_fn=limit,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_gigabyte_in_one_line_is_refused_by_a_process_that_could_not_hold_it(tmp_path):
    path = tmp_path / "endless.csv"
    with path.open("wb") as file:
        file.write(GOOD.encode())
        file.truncate(GIB)
    done = limited("sim.traffic", "describe", str(path), megabytes=400, folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"modelyard: {path}, line 52 must be at most 65,536 bytes long\n"
    assert list(tmp_path.iterdir()) == [path]


MEASURE = """
import resource, sys
from sim.traffic import TraceWorkload
from sim.traffic.describe import describe
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
trace = TraceWorkload(path=sys.argv[1]).as_it_is(1)
describe(trace)
print(len(trace), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.slow
def test_rows_take_less_memory_than_the_results_of_their_requests(tmp_path):
    path = tmp_path / "long.csv.gz"
    count = 200_000
    with gzip.open(path, "wt", compresslevel=1) as file:
        file.write(HEADER)
        file.writelines(
            f"{number / 20},m{number % 5},t{number % 50},{number % 4000 + 1},9\n" for number in range(count)
        )
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    rows, taken = map(int, done.stdout.split())
    assert rows == count
    assert taken < 150 * count  # a row of the requests table takes 360 bytes
