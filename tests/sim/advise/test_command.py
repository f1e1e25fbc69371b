"""`python -m sim.advise` on real runs whose answer is known: below half a GiB conversations do not fit."""

import json
import os
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from engine.errors import BadSettings
from sim.advise.command import Advising, advise, main
from sim.advise.settings import AdviceSettings, Prices
from sim.advise.space import cost_of, space_of
from sim.config import read

ROOT = Path(__file__).parents[3]
LINES = [
    "scenario=steady",
    "executor=roofline",
    "report=tables",
    "workload=mix_b",
    "workload.requests=80",
    "workload.duration_s=200",
    "hardware=l4",
    "allocation=shared",
    "eviction=lru",
    "strategy=round_robin",
]
OWN = ["percentile=50", "seeds=2", "verify=2", "workers=1"]
SIZES = "tiers.ram.gib=0.02,2"


@pytest.fixture
def lines(tmp_path):
    return [*LINES, f"report.folder={tmp_path}"]


@pytest.mark.slow
def test_the_least_memory_that_meets_the_goal_is_found_verified_and_told(lines, tmp_path):
    out = Console(width=170, record=True, file=StringIO())
    assert main([*lines, SIZES, *OWN, "ttft_s=0.04", "budget=8"], out) == 0
    (folder,) = tmp_path.glob("*_advise_steady")
    told = json.loads((folder / "advice.json").read_text())
    assert told["overrides"][-1] == "tiers.ram.gib=2"
    assert told["cost_per_hour"] == pytest.approx(3 * 2.0 + 2 * 0.005)
    assert (told["budget"], told["all_cheaper_ones_played"]) == (8, True)
    assert told["search_seeds"] == [1, 2]
    assert told["verification_seeds"][:2] == [3, 4]
    assert told["verification"]["share within ttft"]["n"] == len(told["verification_seeds"])
    assert "use     python -m sim scenario=steady" in out.export_text()
    assert (
        "tiers.ram.gib=2 meets 50 % of all requests with TTFT within 0.04 s"
        in (folder / "advice.md").read_text()
    )
    table = pd.read_csv(folder / "candidates.csv")
    assert list(table["state"]) == ["meets, verified", "misses by far"]
    assert len(list((folder / "runs").iterdir())) == told["simulations"] <= 8
    assert (folder / "pareto.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], "no objective is given; give one with ttft_s=SECONDS"),
        (["ttft_s=0"], "ttft_s is 0.0, but must be above 0"),
        (["ttft_s=fast"], "ttft_s is 'fast', but must be a number"),
        (["ttft_s=1", "percentile=100"], "percentile is 100.0, but must be above 0 and below 100"),
        (["ttft_s=1", "percentile=50", "attainment=0.5"], "give one of them"),
        (["ttft_s=1", "attainment=2"], "attainment is 2.0, but must be a share"),
        (["ttft_s=1", "budget=3"], "budget is 3, but must be at least seeds + verify, 8"),
        (["ttft_s=1", "budget=many"], "budget is 'many', but must be a whole number"),
        (["ttft_s=1", "seeds=1"], "seeds is 1, but must be at least 2"),
        (["ttft_s=1", "price.disk=3"], "price is 'disk', but must be one of accelerator"),
        (["ttft_s=1", "price.ram=-1"], "price.ram is -1.0, but must be at least 0"),
        (["ttft_s=1", "price.l4=-1"], "price.l4 is -1.0, but must be at least 0"),
        (["ttft_s=1", "hardware=l4,h100", "price.l4=1"], "h100 has no price; give one as in price.h100=1.5"),
        (["ttft_s=1", "price.h100=3"], "price.h100 is 3, but no candidate runs on h100"),
        (
            ["ttft_s=1", "percentile=99"],
            "percentile is 99, which needs 100 requests a run, but the workload has 80",
        ),
        (["ttft_s=1", "seed=1,2"], "'seed=1,2' names several seeds"),
        (["ttft_s=1", "strategy=nobody,random"], "no strategy is called 'nobody'"),
        (["ttft_s=1", "tiers.ram.gib=-1,2"], "tiers.ram.gib is -1"),
        (["ttft_s=1", "workload.rate=1,0"], "workload.rate is 0.0, but must be above 0"),
        (["ttft_s=1", "tiers.ram.gib=1"], "nothing is left to choose"),
        (["ttft_s=1", "hydra/launcher=ray"], "is for python -m sim -m"),
        (["resume=nowhere.partial", "ttft_s=1"], "must stand alone"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_bad_settings_exit_with_2_one_sentence_and_no_folder(given, told, lines, tmp_path, capsys):
    assert (
        main([*lines, "percentile=50" if "ttft_s=1" in given and len(given) == 1 else "verify=5", *given])
        == 2
    )
    err = capsys.readouterr().err
    assert told in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_what_the_line_says_nothing_of_is_open(lines):
    some = [line for line in lines if not line.startswith(("strategy", "eviction"))]
    found = space_of(some, Prices())
    assert list(found.plan.swept) == ["strategy", "eviction", "tiers.ram.gib"]
    assert len(found) == 3 * 3 * 5


def test_a_cost_is_accelerators_and_memory(lines):
    tiers = [
        "tiers=gpu_ram_ssd",
        "tiers.gpu.gib=2",
        "tiers.ram.gib=10",
        "tiers.ssd.gib=1000",
        "fleet.replicas=3",
    ]
    prices = Prices(accelerator=1.5, gpu=0.1, ram=0.01, ssd=0.001)
    assert cost_of(read([*lines, *tiers]), prices) == pytest.approx(3 * 1.5 + 0.2 + 0.1 + 1.0)
    assert cost_of(read([*lines, "tiers=off"]), prices) == pytest.approx(4.5)


def test_hardware_has_prices_of_its_own(lines):
    open_lines = [*lines, "hardware=l4,h100", "tiers.ram.gib=1"]
    found = space_of(open_lines, Prices(ram=0, hardware={"l4": 0.5, "h100": 3}))
    assert found.costs == [3 * 0.5, 3 * 3]
    assert space_of(open_lines, Prices(ram=0, hardware={"l4": 0.5}, accelerator=1)).costs == [1.5, 3]
    assert space_of(open_lines, Prices(ram=0, accelerator=1)).costs == [3, 3]
    fixed = [*lines, "hardware=h100", "tiers.ram.gib=1,2"]
    assert space_of(fixed, Prices(ram=0, hardware={"h100": 3})).costs == [9, 9]


def test_the_function_raises_before_anything_is_written(lines, tmp_path):
    with pytest.raises(BadSettings, match="no objective is given"):
        advise([*lines, SIZES])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_what_cannot_be_met_exits_with_1_and_names_what_binds(lines, tmp_path):
    out = Console(width=170, record=True, file=StringIO())
    assert main([*lines, SIZES, *OWN, "ttft_s=0.001", "budget=8"], out) == 1
    (folder,) = tmp_path.glob("*_advise_steady")
    told = json.loads((folder / "advice.json").read_text())
    assert told["verdict"] == "infeasible"
    assert told["overrides"] == []
    assert "The closest, tiers.ram.gib=2" in told["sentence"]
    assert "with tiers.ram.gib=2, the most that may be chosen" in told["sentence"]


@pytest.mark.slow
def test_ctrl_c_and_any_number_of_workers_change_nothing(lines, tmp_path):
    sizes = "tiers.ram.gib=0.02,0.05,2"
    given = [*lines, sizes, *OWN, "ttft_s=0.04", "budget=10"]
    process = subprocess.Popen(
        [sys.executable, "-m", "sim.advise", *given, "workers=2"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    while not list(tmp_path.glob("*.partial/runs/??????-?")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    (partial,) = tmp_path.glob("*.partial")
    assert f"go on with: python -m sim.advise resume={partial}".encode() in err
    assert main([f"resume={partial}"], Console(quiet=True)) == 0
    (resumed,) = tmp_path.glob("*_advise_steady")
    settings = AdviceSettings(ttft_s=0.04, percentile=50, budget=10, seeds=2, verify=2, workers=1)
    alone = Advising([*lines, sizes], settings, [])
    alone.advise()
    for name in ("advice.json", "candidates.csv", "advice.md"):
        assert (resumed / name).read_bytes() == (alone.path / name).read_bytes(), name
