import json
from contextlib import nullcontext

import pytest

from engine.errors import BadSettings
from sim.fidelity.__main__ import main
from sim.fidelity.cases import RANKED
from sim.fidelity.contest import Contest, RankedRound, RankingFolder, drawn, ranked_run, read, turned
from sim.fidelity.ranking import JUDGED

GIVEN = ["strategies=random,least_loaded", "allocations=shared,fair", "repeats=3", "simulated=twin_steps"]
NAMES = ["random shared", "random fair", "least_loaded shared", "least_loaded fair"]


def round_of(number, simulated=1.0, delay=0.0):
    """Four configurations, each a tenth slower than the one before; `simulated`: the last over what it takes."""
    real = {name: (0.1 + 0.01 * number) * 1.1**place for place, name in enumerate(NAMES)}
    twin = {**real, NAMES[-1]: simulated * real[NAMES[-1]]}
    means = {"real": dict.fromkeys(("TTFT", "TPOT", "E2E"), real)}
    means["simulated"] = dict.fromkeys(("TTFT", "TPOT", "E2E"), twin)
    return RankedRound(
        number=number,
        requests=40,
        rate=9.5,
        means=means,
        schedule_delay=delay,
        real_s=20.0,
        simulated_s=0.2,
    )


class MadeUp:
    """A contest whose rounds are known, and which is interrupted after so many."""

    def __init__(self, rounds, most):
        self._rounds, self.most = rounds, most
        self.capacities = {"ranked": 13.5}
        self.asked = []

    def __call__(self, settings, machine, folder, told, capacities):
        self.known = capacities
        return self

    def rounds(self, numbers):
        self.asked.append(list(numbers))
        for number in numbers[: self.most]:
            yield self._rounds[number]
        if len(numbers) > self.most:
            raise KeyboardInterrupt


@pytest.fixture
def contest(monkeypatch):
    def make(rounds, most=9):
        made = MadeUp(rounds, most)
        monkeypatch.setattr("sim.fidelity.contest.Contest", made)
        monkeypatch.setattr("sim.fidelity.contest.Machine", nullcontext)
        return made

    return make


def test_the_same_order_passes_and_everything_is_in_the_folder(contest, tmp_path, capsys):
    contest([round_of(number) for number in range(3)])
    assert main(["rank", *GIVEN, f"folder={tmp_path}"]) == 0
    (folder,) = tmp_path.iterdir()
    assert "_ranking_" in folder.name
    assert not folder.name.endswith(".partial")
    whole = json.loads((folder / "ranking.json").read_text())
    assert whole["verdict"] == "pass"
    found = {each["metric"]: each for each in whole["rankings"]}
    assert all(found[metric]["tau"] == 1.0 for metric in JUDGED)
    assert [each["configuration"] for each in found["TTFT"]["standings"]] == NAMES
    assert found["TTFT"]["num_pairs"] == len(found["TTFT"]["separated"]) == 6
    report = (folder / "report.md").read_text()
    assert "3 rounds of 40 requests at 9.50/s; simulated 100 times as fast as real" in report
    assert "python -m sim.fidelity rank repeats=3" in report
    assert (folder / "ranking.png").stat().st_size > 5_000
    assert "PASS  TTFT: tau 1.00 (at least 0.9) over 6 of 6 pairs" in capsys.readouterr().out


def test_another_order_fails_with_exit_code_1_and_the_pairs_are_named(contest, tmp_path, capsys):
    contest([round_of(number, simulated=0.5) for number in range(3)])
    assert main(["rank", *GIVEN, f"folder={tmp_path}", "plots=false"]) == 1
    (folder,) = tmp_path.iterdir()
    report = (folder / "report.md").read_text()
    assert "| least_loaded fair over random shared | +33.10 % | -33.45 % |" in report
    assert report.count("| OTHER |") == 9  # three pairs, by three latencies
    assert not (folder / "ranking.png").exists()
    assert "FAIL  TTFT: tau 0.00" in capsys.readouterr().out


def test_a_load_that_was_late_decides_nothing(contest, tmp_path, capsys):
    contest([round_of(number, delay=0.03) for number in range(3)])
    assert main(["rank", *GIVEN, f"folder={tmp_path}"]) == 3
    assert "void: the load was late" in capsys.readouterr().out


def test_an_interrupt_keeps_the_rounds_that_are_whole_and_the_next_command_goes_on(contest, tmp_path, capsys):
    made = contest([round_of(number) for number in range(3)], most=2)
    given = ["rank", *GIVEN, f"folder={tmp_path}", "plots=false"]
    assert main(given) == 130
    (folder,) = tmp_path.iterdir()
    assert folder.name.endswith(".partial")
    assert len(json.loads((folder / "ranking.json").read_text())["rounds"]) == 2
    assert "go on with: python -m sim.fidelity rank repeats=3" in capsys.readouterr().out
    assert main([*given, f"resume={folder}"]) == 0
    assert made.asked == [[0, 1, 2], [2]]
    assert made.known == {"ranked": 13.5}
    (folder,) = tmp_path.iterdir()
    assert not folder.name.endswith(".partial")
    others = read([*GIVEN, "load=0.5", f"resume={folder}"])
    with pytest.raises(BadSettings, match="other settings"):
        RankingFolder(others)


def test_an_interrupt_before_the_first_round_leaves_nothing(contest, tmp_path):
    contest([], most=0)
    assert main(["rank", *GIVEN, f"folder={tmp_path}"]) == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("strategies=fastest", "strategies is 'fastest', but must be some of affinity, blend"),
        ("allocations=shared,mine", "allocations is 'mine', but must be some of dynamic, fair"),
        ("strategies=random,random", "each of them once"),
        ("load=0", "load is 0"),
        ("repeats=1", "repeats is 1"),
        ("strategy", "write SETTING=VALUE"),
        ("fleet.max_bath=8", "no setting is called 'fleet.max_bath'"),
        ("profile=nowhere.json", "a file that python -m sim.profile has written"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_no_folder(line, said, tmp_path, capsys):
    assert main(["rank", *GIVEN, f"folder={tmp_path}/here", line]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


def test_one_configuration_has_no_order(tmp_path, capsys):
    assert main(["rank", "strategies=random", "allocations=shared", f"folder={tmp_path}/here"]) == 2
    assert "at least two configurations" in capsys.readouterr().err


def test_every_configuration_meets_the_same_requests_and_each_round_others():
    settings = read(GIVEN)
    traces = [drawn(ranked_run(settings, name, 30), 30, 9.0, 1) for name in settings.configurations]
    first = traces[0]
    assert all((each.arrival_ns == first.arrival_ns).all() for each in traces)
    assert all((each.prompt_tokens == first.prompt_tokens).all() for each in traces)
    other = drawn(ranked_run(settings, NAMES[0], 30), 30, 9.0, 2)
    assert (other.prompt_tokens != first.prompt_tokens).any()
    assert {first.request(number).model for number in range(30)} == {"auto"}
    assert settings.configurations == NAMES
    engines = [ranked_run(settings, name, 30).engine for name in NAMES]
    assert [each.routing.strategy for each in engines] == ["random", "random", "least_loaded", "least_loaded"]
    assert [each.cache.allocation for each in engines] == ["shared", "fair"] * 2


def test_each_round_begins_with_another_configuration():
    assert [turned("abcd", number)[0] for number in range(5)] == ["a", "b", "c", "d", "a"]
    assert sorted(turned("abcd", 3)) == list("abcd")


def test_a_run_has_its_part_of_the_minutes(tmp_path):
    def count(*given):
        return Contest(read([*GIVEN, *given]), None, tmp_path, print).count(10.0)

    assert count("requests=7") == 7
    assert count("minutes=1") == 40
    runs = 3 * (len(NAMES) + 2)  # calibration runs take as long
    assert 0.7 * 20 * 60 < runs * count("minutes=20") / 10.0 < 20 * 60


def test_help_names_its_settings(capsys):
    assert main(["rank", "--help"]) == 0
    assert "- latency_based" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.torch
def test_both_worlds_are_ranked(tmp_path):
    given = ["strategies=random,least_loaded", "allocations=shared", "repeats=2", "simulated=twin_steps"]
    small = ["requests=20", "capacity_requests=20", "calibration_requests=20", "max_schedule_delay=10"]
    short = [
        "workload.output_max_tokens=12",
        "workload.prompt_max_tokens=48",
        "workload.prefix_median_tokens=32",
    ]
    exit_code = main(["rank", *given, *small, *short, f"folder={tmp_path}"])
    (folder,) = tmp_path.iterdir()
    whole = json.loads((folder / "ranking.json").read_text())
    assert exit_code == {"pass": 0, "fail": 1, "inconclusive": 3}[whole["verdict"]]
    assert [each["number"] for each in whole["rounds"]] == [0, 1]
    for each in whole["rounds"]:
        assert each["real_s"] > each["simulated_s"] > 0
        for side in ("real", "simulated"):
            assert all(mean > 0 for metric in JUDGED for mean in each["means"][side][metric].values())
    assert RANKED.is_for_any
