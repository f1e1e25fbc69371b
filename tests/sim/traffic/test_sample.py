import gzip
import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from engine.errors import BadSettings
from sim.traffic import AzureWorkload, draw
from sim.traffic.sample import main, write_sample

ROOT = Path(__file__).parents[3]


def read(path):
    return draw(AzureWorkload(path=str(path), requests=None), 1, "m")


def test_a_sample_looks_like_the_conversation_trace(tmp_path):
    write_sample(tmp_path / "out.csv", 20_000, 5.5, 1)
    trace = read(tmp_path / "out.csv")
    assert len(trace) == 20_000
    assert trace.summary()["requests_per_s"] == pytest.approx(5.5, rel=4 * np.sqrt(1 / 0.87 / 20_000))
    assert np.log(np.median(trace.prompt_tokens)) == pytest.approx(6.63, abs=0.05)
    assert np.log(np.median(trace.output_tokens)) == pytest.approx(5.02, abs=0.05)
    assert (trace.prompt_tokens.max(), trace.output_tokens.max()) <= (14_050, 1_000)
    gaps = np.diff(trace.arrival_ns)
    assert gaps.std() / gaps.mean() == pytest.approx(0.87**-0.5, abs=0.05)


def test_lines_have_the_published_form(tmp_path):
    write_sample(tmp_path / "out.csv", 3, 5.5, 1)
    header, *lines = (tmp_path / "out.csv").read_text().splitlines()
    assert header == "TIMESTAMP,ContextTokens,GeneratedTokens"
    assert len(lines) == 3
    for line in lines:
        stamp, prompt, output = line.split(",")
        assert (len(stamp), stamp[:14], int(prompt) > 0, int(output) > 0) == (
            27,
            "2025-01-01 00:",
            True,
            True,
        )


def test_the_same_seed_writes_the_same_bytes_and_another_does_not(tmp_path):
    for name in ("a.csv", "b.csv", "a.csv.gz", "b.csv.gz"):
        write_sample(tmp_path / name, 50, 5.5, 1)
    write_sample(tmp_path / "c.csv", 50, 5.5, 2)
    content = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert content["a.csv"] == content["b.csv"] != content["c.csv"]
    assert content["a.csv.gz"] == content["b.csv.gz"]
    assert content["a.csv.gz"][4:8] == bytes(4)  # no time of writing
    assert gzip.decompress(content["a.csv.gz"]) == content["a.csv"]


def test_a_sample_is_the_same_in_another_process(tmp_path):
    for hash_seed in ("1", "2"):
        subprocess.run(
            [
                sys.executable,
                "-m",
                "sim.traffic.sample",
                str(tmp_path / f"{hash_seed}.csv.gz"),
                "--requests",
                "9",
            ],
            cwd=ROOT,
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"},
            check=True,
        )
    assert len({hashlib.sha256(path.read_bytes()).digest() for path in tmp_path.iterdir()}) == 1


def test_the_command_writes_what_it_was_asked_for(tmp_path):
    path = tmp_path / "out.csv"
    assert main([str(path), "--requests", "12", "--seed", "3", "--rate", "100"]) == 0
    write_sample(tmp_path / "same.csv", 12, 100.0, 3)
    assert path.read_bytes() == (tmp_path / "same.csv").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--requests", "0"], "requests is 0, but must be a whole number from 1 to 100,000,000"),
        (["--requests", "-1"], "requests is -1, but must be a whole number from 1 to 100,000,000"),
        (["--requests", "many"], "argument --requests: invalid int value: 'many'"),
        (["--rate", "0"], "rate is 0.0, but must be a number of at least 6.32463e-06"),
        (["--rate", "nan"], "rate is nan, but must be a number of at least"),
        (["--rate", "inf"], "rate is inf, but must be a number of at least"),
        (["--seed", "-1"], "seed is -1, but must be a whole number from 0 to"),
    ],
)
def test_a_bad_argument_ends_with_2_and_one_sentence(tmp_path, capsys, arguments, said):
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "out.csv"), *arguments])
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith(said)
    assert printed.count("\n") == 1
    assert not (tmp_path / "out.csv").exists()


def test_a_path_that_cannot_be_written_ends_with_2_and_one_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "missing" / "out.csv")])
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith("out.csv cannot be written: No such file or directory\n")


def test_a_number_that_cannot_be_is_refused(tmp_path):
    with pytest.raises(BadSettings, match=r"requests is 2\.5"):
        write_sample(tmp_path / "out.csv", 2.5, 5.5, 1)
