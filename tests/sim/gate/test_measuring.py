"""What is really measured, in the processes in which it is: the same twice, and twice as much for twice the work."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sim.gate import valgrind
from sim.gate.absolute import Absolute
from sim.gate.baselines import Baselines
from sim.gate.child import MeasuringFailed, measured
from sim.gate.counted import Counted
from sim.gate.counting import NEEDS
from sim.gate.exact import Exact
from sim.gate.kept import blocks
from sim.gate.kinds import Measured
from sim.gate.operations import OPERATIONS
from sim.gate.ratios import Ratios
from sim.gate.timing import mean_us, p99_us

ROOT = Path(__file__).parents[3]
ROUTE = "B/route_least_loaded"


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_works_and_is_imported_before_it_is_counted(name):
    kind = OPERATIONS[name]
    kind.work()(2)
    assert name.partition("_")[0] in NEEDS


def test_what_is_looked_up_is_there():
    found = {name: OPERATIONS[name].make()() for name in OPERATIONS if OPERATIONS[name].make is not None}
    assert found["cache_lookup_hit"] == 32
    assert found["cache_lookup_miss"] == 0
    assert found["cache_find"].num_blocks == 32
    assert found["registry_lookup"].key == "model-7@1.1.0"
    assert found["quota_check"]
    assert {found[f"route_{name}"].model for name in ("round_robin", "least_loaded", "cache_aware")} == {
        "llama"
    }


@pytest.mark.slow
def test_memory_that_results_hold_is_counted_and_doubled_with_the_work():
    kind = OPERATIONS["cache_find"]
    assert blocks(kind, 2) - 2 * blocks(kind) < 20
    assert blocks(kind) > 1_000
    assert blocks(OPERATIONS["route_least_loaded"]) < 20


def test_a_mean_and_a_percentile_of_what_takes_a_microsecond():
    mean, p99 = mean_us(lambda: sum(range(50))), p99_us(lambda: sum(range(50)))
    assert 0.05 < mean < 500
    assert 0.05 < p99 < 5_000


def test_a_worker_that_fails_says_why():
    with pytest.raises(MeasuringFailed, match=r"ended with code 1: .*KeyError: 'no such operation'"):
        list(measured({"task": "kept", "names": ["no such operation"], "doubled": []}, plain=True))


@pytest.mark.slow
def test_the_small_runs_are_the_same_in_two_processes():
    names = [name for name in Exact().names() if not name.startswith("A/kept/")]
    first, second = (list(Exact().measure(names, [])) for _ in range(2))
    assert first == second
    counts = {each.name: each.value for each in first}
    assert counts["A/failover/second_tries"] >= 2
    assert counts["A/five_models/hit_tokens"] > 10_000


@pytest.mark.slow
def test_identical_code_passes_twenty_times_and_twice_the_memory_is_caught():
    kind, names = Exact(), ["cache_find", "route_least_loaded"]
    base = {each.name: each.value for each in kind.measure([f"A/kept/{name}" for name in names], [])}

    def verdicts(again, doubled):
        task = {"task": "kept", "names": names * again, "doubled": doubled}
        for told in measured(task, plain=True):
            name = f"A/kept/{told['name']}"
            yield kind.judge(base[name], Measured(name, told["blocks"])).verdict

    same = [verdict for _ in range(4) for verdict in verdicts(5, [])]
    assert same == ["pass"] * 40
    assert list(verdicts(1, ["cache_find"])) == ["fail", "pass"]


@pytest.mark.benchmark(group="gate")  # so that nothing runs beside it
def test_identical_code_never_fails_by_its_ratio_and_twice_the_time_does():
    """Verdicts that the noise of this moment makes impossible are no verdicts."""
    kind, name, other = Ratios(samples=31), "C/quota_check", "C/registry_lookup"
    base = {each.name: each.value for each in kind.measure([name, other], [])}
    same = [kind.judge(base[head.name], head).verdict for head in kind.measure([name, other] * 20, [])]
    assert len(same) == 40
    assert "fail" not in same
    for _ in range(5):
        heads = kind.measure([name, other], [name])
        found = {head.name: kind.judge(base[head.name], head).verdict for head in heads}
        assert found[other] != "fail"
        if found[name] != "inconclusive":
            break
    assert found[name] == "fail"


@pytest.mark.slow
def test_every_published_figure_has_a_figure_of_ours():
    kind = Absolute()
    heads = list(kind.measure(kind.names(), []))
    assert sorted(head.name for head in heads) == sorted(kind.names())
    assert all(5 < head.details["turn_ns"] < 5_000 for head in heads)


@pytest.fixture
def doubled_route(tmp_path):
    """The tree elsewhere, in which least loaded looks at every candidate twice."""
    for package in ("engine", "sim", "scenarios", "conf"):
        shutil.copytree(
            ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "*.so")
        )
    path = tmp_path / "engine/routing/strategies.py"
    text = path.read_text()
    start = text.index("class LeastLoaded")
    loop = text.index("        for seat in seats:\n            load = seat.tokens_in_flight", start)
    end = text.index("        turns = self._turns", loop)
    path.write_text(text[:end] + 3 * text[loop:end] + text[end:])
    return tmp_path


@pytest.mark.slow
@pytest.mark.skipif(valgrind.missing() is not None, reason="valgrind is not installed")
def test_a_planted_loop_is_named_by_its_instructions_and_nothing_else_is(doubled_route, tmp_path):
    kind, others = Counted(), ["B/route_round_robin", "B/registry_lookup"]
    base = {each.name: each.value for each in kind.measure([ROUTE, *others], [])}
    Baselines(tmp_path / "baselines", kind.file).renew(kind.key(), base, set(kind.names()), "as it was")
    command = [sys.executable, "-m", "sim.gate", f"rows={','.join(base)}", "baselines=baselines"]
    done = subprocess.run(command, cwd=doubled_route, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.startswith("GATE FAIL 1 of 3\n")
    told = json.loads((doubled_route / "runs" / "gate" / "gate.json").read_text())
    rows = {row["name"]: row for row in told["rows"]}
    assert {name for name, row in rows.items() if row["verdict"] == "fail"} == {ROUTE}
    assert rows[ROUTE]["delta"] > 0.3
    for name in others:  # counted in another process, in another folder
        assert abs(rows[name]["delta"]) < 0.005
