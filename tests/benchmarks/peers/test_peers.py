"""Ours beside the simulators that PyPI has, by turns on one core, each in an environment of its own.

    pytest -m peers tests/benchmarks/peers

MODELYARD_PEERS names a folder that keeps the environments (2 GB); without it they are gone afterwards. A ratio above
1 says that ours is the faster one.
"""

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles

import numpy as np
import pytest

from engine.clock import NS_PER_S
from sim.config import read
from sim.stage import Stage
from sim.traffic import draw

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
TURNS = 7
ALIKE = 3.0  # times as long or as short: the same work, under another's idea of an A100
GOAL_PER_S = 25_000
INSTALL_S = 1200

PROMPT_TOKENS, OUTPUT_TOKENS, STEP_TOKENS = 512, 128, 2048

MODEL = (  # an 8B model, as peers have it for an A100
    "{name: llama-3-8b,"
    " architecture: {layers: 32, hidden: 4096, heads: 32, kv_heads: 8, head_dim: 128, ffn: 14336,"
    " vocab: 128256, context_tokens: 8192, rope_theta: 500000.0, tied_embeddings: false},"
    " stand_in: {layers: 2, hidden: 128, heads: 8, kv_heads: 2, head_dim: 16, ffn: 512,"
    " vocab: 4096, context_tokens: 8192, rope_theta: 500000.0}}"
)

# 6 requests/s, 512 prompt and 128 output tokens, one replica, nothing shared
W = (
    "scenario=steady",
    "executor=roofline",
    "hardware=a100",
    "tiers=off",
    "fleet.replicas=1",
    f"fleet.step_tokens={STEP_TOKENS}",
    f"fleet.models=[{MODEL}]",
    "workload=bare",
    "workload.rate=6",
    "workload.vocab=4096",
    *(f"workload.prompt_{name}_tokens={PROMPT_TOKENS}" for name in ("min", "median", "max")),
    *(f"workload.output_{name}_tokens={OUTPUT_TOKENS}" for name in ("min", "median", "max")),
)


@dataclass(frozen=True)
class Peer:
    """Who it is, how much it is given to do, and how fast ours has to be beside it.

    `best_per_s` is the best that was measured of it on W, in requests per second: of what the goal is a multiple.
    """

    requirement: str
    player: str
    requests: int
    best_per_s: float
    least_ratio: float  # fails below
    options: dict = field(default_factory=dict)


DYNAMO = ("ai-dynamo==1.3.1", "play_dynamo.py", 5_000, 24_000, 0.1)
SPEEDUP = {"speedup": 0.6}  # its own model is of a faster GPU; with times like ours it has fewer steps to do
PEERS = {
    "sched_sim": Peer("sched-sim==0.2.1", "play_sched_sim.py", 2_000, 3_200, 1.0),
    "dynamo": Peer(*DYNAMO, {"block_tokens": 64, **SPEEDUP}),  # blocks as it has them by itself
    "dynamo_one_block": Peer(*DYNAMO, {"block_tokens": PROMPT_TOKENS, **SPEEDUP}),  # as few as can be
    "vidur": Peer("vidur==0.0.26", "play_vidur.py", 1_000, 1_250, 5.0),
}


class NotToBeHad(Exception):
    """A peer that cannot be installed here, in pip's words."""


def installed(requirement, folder):
    """The interpreter of an environment that has the peer and nothing else. Raises NotToBeHad."""
    home = folder / requirement.replace("==", "-")
    python = home / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    complete = home / "complete"
    if complete.exists():
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", requirement]
    done = subprocess.run(pip, capture_output=True, text=True, check=False, timeout=INSTALL_S)
    if done.returncode:
        raise NotToBeHad(done.stderr.strip().splitlines()[-1])
    complete.touch()
    return python


@pytest.fixture(scope="module")
def environments(tmp_path_factory):
    """A folder of environments: kept where MODELYARD_PEERS says so, gone afterwards otherwise."""
    if "MODELYARD_PEERS" in os.environ:
        folder = Path(os.environ["MODELYARD_PEERS"]).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    folder = tmp_path_factory.mktemp("peers")
    yield folder
    shutil.rmtree(folder)


@contextmanager
def player(python, script, load, folder):
    """A process that plays the load once each time that it is called."""
    name = script.removesuffix(".py")
    path, errors = folder / f"{name}.json", folder / f"{name}.err"
    path.write_text(json.dumps(load), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT) if python == sys.executable else ""}
    with (
        errors.open("w") as err,
        subprocess.Popen(
            [python, HERE / script, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=err,
            text=True,
            cwd=folder,
            env=environment,
        ) as process,
    ):

        def play():
            try:
                process.stdin.write("\n")
                process.stdin.flush()
                return json.loads(process.stdout.readline())
            except (BrokenPipeError, json.JSONDecodeError):
                process.wait()
                said = errors.read_text(encoding="utf-8", errors="replace")
                pytest.fail(f"{script} gave up: {said[-2000:]}", pytrace=False)

        try:
            yield play
        finally:
            process.kill()


def compared(peer, environments, load, folder):
    """Theirs and ours by turns: what each told in the last one, and times in seconds."""
    try:
        python = installed(peer.requirement, environments)
    except NotToBeHad as error:
        pytest.skip(f"{peer.requirement} cannot be installed here: {error}")
    seconds = []
    with (
        player(python, peer.player, load | peer.options, folder) as play_theirs,
        player(sys.executable, "play_modelyard.py", load, folder) as play_ours,
    ):
        play_theirs(), play_ours()
        for _ in range(TURNS):
            theirs, ours = play_theirs(), play_ours()
            seconds.append((theirs["seconds"], ours["seconds"]))
    return theirs, ours, np.array(seconds)


def told_of(seconds, count):
    """The ratio with its quartiles, and what each does per second."""
    ratios = seconds[:, 0] / seconds[:, 1]
    low, _, high = quantiles(ratios, n=4)
    theirs_s, ours_s = np.median(seconds, axis=0)
    return {
        "ratio": median(ratios),
        "quartile_1": low,
        "quartile_3": high,
        "ours_per_s": count / ours_s,
        "theirs_per_s": count / theirs_s,
    }


def drawn(lines):
    run = read(lines)
    return run, draw(run.workload, run.seed, [model.name for model in run.engine.fleet.models])


def load_of(lines):
    """W for everybody: the arrivals that ours draws."""
    _, trace = drawn(lines)
    return {
        "lines": lines,
        "arrivals_s": (trace.arrival_ns / NS_PER_S).tolist(),
        "prompt_tokens": PROMPT_TOKENS,
        "output_tokens": OUTPUT_TOKENS,
        "step_tokens": STEP_TOKENS,
    }


@pytest.mark.peers
@pytest.mark.parametrize("name", PEERS)
def test_workload_w_beside(name, environments, tmp_path, report):
    """Only what both did counts: every request, every token, and times that are alike."""
    peer = PEERS[name]
    load = load_of([*W, f"workload.requests={peer.requests}"])
    theirs, ours, seconds = compared(peer, environments, load, tmp_path)
    for told in (theirs, ours):
        assert told["completed"] == peer.requests
        assert told["output_tokens"] == peer.requests * OUTPUT_TOKENS
    figures = {
        f"{whose}_{figure}": told[figure]
        for figure in ("ttft_ms", "tpot_ms", "steps")
        for whose, told in (("ours", ours), ("theirs", theirs))
        if figure in told
    }
    speed = told_of(seconds, peer.requests)
    report(**speed, goal_ratio=GOAL_PER_S / peer.best_per_s, **figures)
    for figure in ("ttft_ms", "tpot_ms"):
        assert 1 / ALIKE < ours[figure] / theirs[figure] < ALIKE
    assert speed["ratio"] > peer.least_ratio


@pytest.mark.peers
def test_a_bare_queue_beside_ciw(environments, tmp_path, report):
    """M/M/1 at 0.8, the same jobs: the same mean wait, and how many jobs per second.

    Ciw plays a queue and nothing else; ours has a whole engine around it, so nothing is asked of the ratio.
    """
    count = 10_000
    peer = Peer("ciw==3.2.7", "play_ciw.py", count, 76_000, 0.0)
    load = bare_load(count)
    theirs, ours, seconds = compared(peer, environments, load, tmp_path)
    assert theirs["completed"] == ours["completed"] == count
    assert ours["wait_s"] == pytest.approx(theirs["wait_s"], rel=1e-6)
    report(**told_of(seconds, count), wait_s=ours["wait_s"])


def bare_load(count):
    """The jobs of a run of `scenario=queue`: when they come and how long each takes."""
    lines = ["scenario=queue", "workload.rate=0.8", f"workload.requests={count}"]
    run, trace = drawn(lines)
    stage = Stage(run.engine, trace)
    stage.play()
    rows = stage.recorder.requests().sort_values("request_id")
    stage.close()
    services_s = (rows["finished_ns"] - rows["started_ns"]) / NS_PER_S
    arrivals_s = (trace.arrival_ns / NS_PER_S).tolist()
    return {"lines": lines, "arrivals_s": arrivals_s, "services_s": services_s.tolist()}


@pytest.mark.slow
def test_a_player_plays_each_time_that_it_is_asked(tmp_path):
    """The part of the comparison that needs no network: ours, twice, with the same figures but for the time."""
    load = load_of([*W, "workload.requests=50"])
    with player(sys.executable, "play_modelyard.py", load, tmp_path) as play:
        first, second = play(), play()
    assert first["completed"] == 50
    assert first["output_tokens"] == 50 * OUTPUT_TOKENS
    assert first.pop("seconds") > 0
    assert second.pop("seconds") > 0
    assert first == second


@pytest.mark.slow
def test_a_player_that_gives_up_fails_with_its_own_words(tmp_path):
    load = {"lines": ["scenario=nowhere"]}
    with (
        player(sys.executable, "play_modelyard.py", load, tmp_path) as play,
        pytest.raises(pytest.fail.Exception, match="nowhere"),
    ):
        play()


@pytest.mark.slow
def test_what_cannot_be_installed_says_why_in_pips_words(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(NotToBeHad, match="sched-sim"):
        installed("sched-sim==0.2.1", tmp_path)
    assert not (tmp_path / "sched-sim-0.2.1" / "complete").exists()
