import json
from dataclasses import replace

import numpy as np
import pytest

from engine.request import Request
from sim.fidelity.__main__ import main
from sim.fidelity.bench import burst_rate, systems_of
from sim.fidelity.folder import FidelityFolder, fingerprint
from sim.fidelity.report import closing_lines, markdown, percent, verdict_of
from sim.fidelity.settings import read
from sim.fidelity.wire import HEAD, frame, news, request_of

QUICK = [
    "--quick",
    "simulated=twin_steps",
    "requests=100",
    "capacity_requests=30",
    "calibration_requests=30",
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


def test_the_rate_of_a_burst_is_that_of_its_middle(make_run):
    run = make_run([0.0] * 101, [0.0] * 101, gap_ms=20)
    assert burst_rate(run) == pytest.approx(50.0)


def test_a_system_is_measured_once_for_all_its_cases():
    assert systems_of(["bursty", "failover", "poisson50"]) == ["one", "three"]


def test_without_a_finished_case_nothing_is_decided():
    assert verdict_of([]) == "inconclusive"
    assert closing_lines([]) == ["INCONCLUSIVE  0 cases"]
    assert "LLMServingSim" in markdown([], [])
    assert (percent(0.0123), percent(None)) == ("+1.23 %", "")


def test_settings_that_change_no_figure_do_not_keep_a_comparison_from_going_on(tmp_path):
    one, other = read(["--quick", f"folder={tmp_path}"]), read(["--quick", "plots=false"])
    assert fingerprint(one) == fingerprint(other) != fingerprint(read(["--quick", "seed=2"]))
    path = FidelityFolder(one).path
    assert FidelityFolder(replace(one, resume=str(path))).finished() == []
    assert path.name.endswith(".partial")


@pytest.mark.slow
@pytest.mark.torch
def test_a_quick_comparison_runs_both_worlds_and_keeps_all_of_it(tmp_path, capsys):
    exit_code = main([*QUICK, f"folder={tmp_path}", "fleet.max_batch=8"])
    (folder,) = tmp_path.iterdir()
    whole = json.loads((folder / "fidelity.json").read_text())
    (case,) = whole["cases"]
    assert exit_code == {"pass": 0, "fail": 1, "inconclusive": 3}[whole["verdict"]]
    assert not folder.name.endswith(".partial")
    assert (case["name"], case["requests"], case["repeats"]) == ("poisson70", 100, 2)
    equal = {share["name"]: share["value"] for share in case["shares"]}
    assert (equal["replica"], equal["outcome"], equal["refused"]) == (1.0, 1.0, 0.0)
    figures = [(cell["metric"], cell["statistic"]) for cell in case["cells"]]
    assert len(figures) == 13
    assert all(cell["real"] > 0 and cell["simulated"] > 0 for cell in case["cells"])
    assert case["client"]["E2E mean"] > 0
    assert case["host"]["step_ns"] > 0
    assert case["speed_up"] > 1
    assert {path.name for path in folder.glob("*.png")} == {
        "errors.png",
        "poisson70_pairs.png",
        "poisson70_distributions.png",
    }
    assert "| E2E mean, ms |" in (folder / "report.md").read_text()
    assert "Poisson, 70 % load" in capsys.readouterr().out
    again = main([*QUICK, f"resume={folder}", "fleet.max_batch=8"])
    assert again == exit_code
    assert json.loads((folder / "fidelity.json").read_text())["cases"] == whole["cases"]
