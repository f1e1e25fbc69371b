import json
import signal
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from threading import Event

import numpy as np
import pytest

from engine.errors import BadSettings
from engine.request import Request
from sim.fidelity.__main__ import main
from sim.fidelity.bench import (
    Bench,
    System,
    burst_rate,
    calibration_count,
    calibration_s,
    seeds_of,
    systems_of,
)
from sim.fidelity.cases import CASES, crowd_of, run_settings, traffic, with_burst
from sim.fidelity.folder import FidelityFolder, fingerprint
from sim.fidelity.settings import read
from sim.fidelity.wire import HEAD, frame, news, request_of

QUICK = [
    "--quick",
    "simulated=twin_steps",
    "requests=30",
    "repeats=2",
    "capacity_requests=20",
    "calibration_requests=20",
    "max_schedule_delay=10",
    "max_floor=10",
]


def test_a_request_comes_out_of_its_frame_as_it_went_in():
    tokens = np.array([5, 0, 4095], dtype=np.int32)
    sent = Request(7, "m", tokens, 9, 0, "tenant", "session", vocab=4096, priority=2)
    data = frame(sent)
    columns_bytes, tokens_bytes = HEAD.unpack(data[: HEAD.size])
    columns = json.loads(data[HEAD.size : HEAD.size + columns_bytes])
    came = request_of(columns, data[-tokens_bytes:], 123)
    assert came.prompt_tokens.tolist() == tokens.tolist()
    assert replace(came, prompt_tokens=tokens, arrival_ns=0) == replace(sent, prompt_tokens=tokens)
    assert came.arrival_ns == 123


def test_news_are_lines():
    assert news("E", 7, "completed") == b"E 7 completed\n"


def test_the_rate_of_a_burst_counts_its_beginning_and_not_its_last_stragglers(make_run):
    waits_ms = [*range(20, 2_020, 20), 60_000]
    run = make_run(waits_ms, [0.0] * 101, gap_ms=0)
    assert burst_rate(run) == pytest.approx(50.0)


def test_no_two_simulations_of_a_comparison_have_the_same_chances():
    seeds = [seed for number in range(5) for seed in seeds_of(42, number, 8)]
    assert len(set(seeds)) == len(seeds) == 40
    assert seeds_of(42, 0, 1) == [42]


def test_a_system_is_measured_once_for_all_its_cases():
    assert systems_of(["bursty", "failover", "poisson50"]) == ["one", "three"]


def test_settings_that_change_no_figure_do_not_keep_a_comparison_from_going_on(tmp_path):
    one, other = read(["--quick", f"folder={tmp_path}"]), read(["--quick", "plots=false"])
    assert fingerprint(one) == fingerprint(other) != fingerprint(read(["--quick", "seed=2"]))
    path = FidelityFolder(one).path
    assert FidelityFolder(replace(one, resume=str(path))).finished() == []
    assert path.name.endswith(".partial")


def test_a_folder_that_was_made_in_the_same_second_is_another_one(tmp_path):
    settings = read([f"folder={tmp_path}"])
    paths = {FidelityFolder(settings).path for _ in range(3)}
    assert len(paths) == 3


SERVED = """
import asyncio, gc, json
from multiprocessing import Pipe
from engine.garbage import GARBAGE_EVERY
from sim.fidelity.cases import CASES, run_settings
from sim.fidelity.server import LiveJob, serve

async def main():
    ours, theirs = Pipe()
    engine = run_settings(CASES["poisson50"], 1, []).engine
    serving = asyncio.create_task(serve(LiveJob(settings=engine), theirs))
    port = await asyncio.to_thread(ours.recv)
    kept = gc.get_freeze_count(), gc.get_threshold()[0] == GARBAGE_EVERY
    (await asyncio.open_connection("127.0.0.1", port))[1].close()
    await serving
    print(json.dumps(kept))

asyncio.run(main())
"""


def test_when_the_load_begins_nothing_that_is_there_is_looked_at_again():
    """The collector would stop a run for 150 ms, once, and never a simulated one."""
    done = subprocess.run([sys.executable, "-c", SERVED], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    objects, is_rare = json.loads(done.stdout)
    assert objects > 100_000  # torch and all that
    assert is_rare


class Interrupted:
    """A bench whose second case is interrupted."""

    def __init__(self, cases):
        self._cases = cases
        self.capacities = {"one": 20.0}

    def __call__(self, settings, machine, folder, told, capacities):
        self.known = capacities
        return self

    def results(self, names):
        self.names = names
        yield self._cases[names[0]]
        raise KeyboardInterrupt


@pytest.fixture
def interrupted(make_case, monkeypatch):
    bench = Interrupted({name: make_case(name) for name in ("poisson50", "poisson70")})
    monkeypatch.setattr("sim.fidelity.__main__.Bench", bench)
    monkeypatch.setattr("sim.fidelity.__main__.Machine", nullcontext)
    return bench


@pytest.mark.slow
def test_an_interrupted_comparison_keeps_what_is_finished_and_goes_on_there(interrupted, tmp_path, capsys):
    given = ["cases=poisson50,poisson70", f"folder={tmp_path}", "simulated=twin_steps", "plots=false"]
    assert main(given) == 130
    (folder,) = tmp_path.iterdir()
    assert folder.name.endswith(".partial")
    assert json.loads((folder / "fidelity.json").read_text())["cases"][0]["name"] == "poisson50"
    assert "poisson50: pass" in (folder / "report.md").read_text()
    assert main([*given, f"resume={folder}"]) == 130
    assert (interrupted.names, interrupted.known) == (["poisson70"], {"one": 20.0})
    assert "go on with: " in capsys.readouterr().out
    assert main([*given, f"resume={folder}"]) == 0
    (folder,) = tmp_path.iterdir()
    assert not folder.name.endswith(".partial")
    assert main(["show", str(folder)]) == 0
    assert "## poisson70: pass" in capsys.readouterr().out


def test_a_comparison_that_is_interrupted_before_its_first_case_leaves_nothing(interrupted, tmp_path):
    interrupted.results = lambda names: interrupted_at_once()
    assert main(["cases=poisson50", f"folder={tmp_path}", "simulated=twin_steps"]) == 130
    assert list(tmp_path.iterdir()) == []


def interrupted_at_once():
    raise KeyboardInterrupt
    yield


def test_a_comparison_that_cannot_go_on_leaves_nothing(interrupted, tmp_path, capsys):
    interrupted.results = lambda names: refused()
    assert main(["cases=poisson50", f"folder={tmp_path}", "simulated=twin_steps"]) == 2
    assert "too few" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def refused():
    raise BadSettings("too few")
    yield


@pytest.mark.slow
@pytest.mark.torch
def test_a_comparison_runs_both_worlds_is_interrupted_and_goes_on(tmp_path, capsys):
    given = [*QUICK, f"folder={tmp_path}", "cases=poisson85,poisson70", "fleet.max_batch=8"]
    command = [sys.executable, "-m", "sim.fidelity", *given]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not list(tmp_path.glob("*/cases/poisson85.json")) and process.poll() is None:
            Event().wait(0.2)
        process.send_signal(signal.SIGINT)
        said, complaint = process.communicate(timeout=180)
    assert process.returncode == 130, complaint
    assert "Traceback" not in complaint
    assert "1 cases" in said
    (folder,) = tmp_path.iterdir()
    assert folder.name.endswith(".partial")
    exit_code = main([*given, f"resume={folder}"])
    assert "Poisson, 70 % load" in capsys.readouterr().out
    (folder,) = tmp_path.iterdir()
    assert not folder.name.endswith(".partial")
    whole = json.loads((folder / "fidelity.json").read_text())
    assert exit_code == {"pass": 0, "fail": 1, "inconclusive": 3}[whole["verdict"]]
    before, poisson = whole["cases"]
    assert [case["name"] for case in whole["cases"]] == ["poisson85", "poisson70"]
    assert before["rate"] / 0.85 == pytest.approx(poisson["rate"] / 0.7)
    assert (poisson["requests"], poisson["repeats"]) == (30, 2)
    shares = {share["name"]: share["value"] for share in poisson["shares"]}
    assert (shares["replica"], shares["outcome"], shares["refused"]) == (1.0, 1.0, 0.0)
    known = [cell for cell in poisson["cells"] if cell["statistic"] != "p99"]
    assert all(cell["real"] > 0 and cell["simulated"] > 0 for cell in known)
    assert len(poisson["cells"]) == 13
    assert len(poisson["turns"]) == 2
    told, untold = ([cell["simulated"] for cell in poisson[kind]] for kind in ("cells", "untold"))
    assert len(told) == len(untold)
    assert told[0] != untold[0]  # the same chances, another pace
    assert poisson["host"]["step_ns"] + poisson["host"]["scale"] > 0
    assert 0 < poisson["core_share"] <= 1
    assert 0 < poisson["yard_share"] < 0.5
    assert len(poisson["speeds"]) == 2
    assert all(0.2 < pace < 5 for pace in poisson["speeds"])
    assert poisson["speed_up"] > 1
    assert "| E2E mean, ms |" in (folder / "report.md").read_text()
    assert main([*given, f"resume={folder}"]) == exit_code
    assert json.loads((folder / "fidelity.json").read_text())["cases"] == whole["cases"]


@pytest.mark.parametrize("run_s", [5.0, 11.9, 12.1, 140.0])
def test_a_calibration_run_takes_as_long_as_it_is_asked_to(run_s):
    count = calibration_count(run_s, 40.0)
    assert calibration_s(count, 40.0) == pytest.approx(run_s, rel=0.02)
    crowd = crowd_of(count)
    assert crowd == min(count // 3, 120)
    calm = replace(CASES["poisson70"], cv=1.0)
    trace = traffic(calm, run_settings(calm, count, []), count, 24.0, 1)
    arrival_ns = with_burst(trace).arrival_ns
    assert np.count_nonzero(arrival_ns == arrival_ns[-1]) == crowd
    assert (arrival_ns[:-crowd] == trace.arrival_ns[:-crowd]).all()


def test_a_run_has_its_part_of_the_minutes_and_enough_requests_for_a_p99(tmp_path):
    def count(name, *given, capacity=40.0):
        settings = read([f"folder={tmp_path}", "simulated=twin_steps", *given])
        bench = Bench(settings, None, tmp_path, print)
        case = CASES[name]
        system = System(name=case.system, capacity=capacity, models={})
        return bench.count(case.load * capacity, case, system)

    assert count("poisson70", "requests=7") == 7
    longer = count("poisson70", "minutes=40")
    assert longer > 2 * count("poisson70", "minutes=20") - 10
    of_load_s = longer / (0.7 * 40.0)
    assert (
        0.9 * 40 * 60 < 9 * (5 + 6) * of_load_s < 40 * 60
    )  # a calibration run takes as long, and there is one more
    shorter = count("poisson70", "minutes=40", "calibration_requests=180")
    assert 0.9 * 40 * 60 < 9 * (5 * shorter / (0.7 * 40.0) + 6 * calibration_s(180, 40.0)) < 40 * 60
    assert count("poisson70", "minutes=1") == 120
    assert count("decisions", "minutes=1") == 20
