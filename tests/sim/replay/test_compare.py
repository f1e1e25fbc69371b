import io

import pytest
from rich.console import Console

from engine.errors import BadSettings
from sim.replay import Comparison, ReplaySettings, compare, replay_reference
from sim.replay import __main__ as command
from sim.replay.compare import CLAIRVOYANT, IDEAL, WALLS, Figures
from sim.traffic import MixWorkload
from sim.traffic.mixes import chains

SHORT = {"duration_s": 120.0, "capacity": 400, "seeds": 2}
ROWS = [IDEAL, CLAIRVOYANT, *WALLS, "shared", "fair", "proportional", "priority", "dynamic"]


def compared(**changed):
    comparison = Comparison()
    for figures in compare(ReplaySettings(**(SHORT | changed))):
        comparison.add(figures)
    return comparison


def said(*arguments):
    text = io.StringIO()
    exit_code = command.main(arguments, Console(file=text, width=200))
    return exit_code, text.getvalue()


def test_all_rows_stand_between_the_worst_and_the_bounds():
    comparison = compared()
    assert (list(comparison.rows), comparison.seeds) == (ROWS, 2)
    for seed in range(2):
        ideal, bound, *others = (figures[seed].block_hit_ratio for figures in comparison.rows.values())
        assert all(0 < other <= bound <= ideal for other in others)
    assert all(figures.shifted is not None for row in comparison.rows.values() for figures in row)


def test_after_the_shift_means_the_second_half_of_traffic_whose_popularity_moved():
    shifting = chains(MixWorkload(duration_s=120.0, rotate=True), 2)
    later = shifting.arrival_ns >= 60 * 10**9
    outcome = replay_reference(shifting, 400, shares=[0.2] * 5)
    found = compared(seed=2, seeds=1, allocations=[]).rows["fair walls"][0]
    assert found.shifted == outcome.block_hit_ratio(later)
    assert found.shifted_worst == outcome.worst_model(later)
    assert found.shifted != found.block_hit_ratio


def test_a_gain_is_the_mean_of_the_differences_of_pairs():
    comparison = Comparison()
    for shared, fair in ((0.7, 0.6), (0.9, 0.82)):
        rest = dict.fromkeys(("token_hit_ratio", "request_hit_ratio", "worst_model", "fairness"), 1.0)
        made = {"held_fairness": None, "evictions_per_minute": 0.0, **rest}
        comparison.add(
            {
                "shared": Figures(block_hit_ratio=shared, **made),
                "fair": Figures(block_hit_ratio=fair, **made),
            }
        )
    found = comparison.gain("shared", "fair", "block_hit_ratio")
    assert found.mean == pytest.approx(0.09)
    assert found.half_width == pytest.approx(12.7062 * 0.01, rel=1e-4)
    assert comparison.interval("shared", "held_fairness") is None
    assert comparison.gain("shared", "nobody", "block_hit_ratio") is None


def test_the_command_prints_bounds_allocations_and_what_was_published():
    exit_code, text = said("mix=B", "seeds=2", "duration_s=60", "capacity=300")
    lines = {line.strip().split("  ")[0]: line for line in text.splitlines() if line.strip()}
    assert exit_code == 0
    assert set(ROWS) <= set(lines)
    assert lines["fair"].rstrip().endswith("72 1.00 245")
    assert lines["dynamic"].rstrip().endswith("83 0.92 142")
    assert "after shift" in text
    assert "2 of 2 seeds" in text


def test_several_policies_make_a_row_each_and_one_seed_no_interval():
    exit_code, text = said(
        "seeds=1", "duration_s=30", "shift=false", "evictions=[lru,lfu]", "allocations=[shared]"
    )
    assert exit_code == 0
    assert "shared, lru" in text
    assert "shared, lfu" in text
    assert "±" not in text
    assert "after shift" not in text


def test_a_file_is_compared_once_and_without_walls(tmp_path):
    path = tmp_path / "trace.jsonl"
    rows = [(0, [0, 1]), (3000, [0, 1]), (6000, [0, 2])]
    path.write_text(
        "".join(
            f'{{"timestamp": {at}, "input_length": 1024, "output_length": 1, "hash_ids": {blocks}}}\n'
            for at, blocks in rows
        )
    )
    exit_code, text = said(f"path={path}", "capacity=9")
    assert exit_code == 0
    assert "trace.jsonl: prefix cache hits" in text
    assert "walls " not in text.split("9 blocks")[0]
    comparison = compared(path=str(path), seeds=5)
    assert (comparison.seeds, comparison.rows[IDEAL][0].block_hit_ratio) == (1, 0.5)


def test_an_interrupt_keeps_the_seeds_that_were_whole(monkeypatch):
    whole = compare(ReplaySettings(**SHORT))

    def interrupted(*_):
        yield next(whole)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "compare", interrupted)
    exit_code, text = said("duration_s=120", "capacity=400", "seeds=4")
    assert exit_code == 130
    assert "1 of 4 seeds" in text


def test_an_interrupt_before_the_first_seed_was_whole_says_so(monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "compare", interrupted)
    assert said() == (130, "interrupted before the first seed was whole\n")


@pytest.mark.parametrize(
    ("argument", "complaint"),
    [
        ("mix=E", "workload.mix is 'E', but must be one of A, B, C, D"),
        ("seeds=0", "replay.seeds is 0, but must be a whole number from 1"),
        ("capacity=0", "replay.capacity is 0, but must be"),
        ("share=2", "replay.share is 2.0, but must be above 0"),
        ("sedes=3", "no setting is called 'replay.sedes'"),
        ("seeds=many", "replay.seeds is 'many', but must be of type integer"),
        ("evictions=[mru]", "'mru'"),
        ("evictions=[]", "replay.evictions is [], but must be at least one"),
        ("allocations=[even]", "no allocation is called 'even'"),
        ("seeds", "'seeds' is no setting: write SETTING=VALUE"),
        ("path=nowhere.jsonl", "must be a readable file"),
    ],
)
def test_settings_that_are_no_good_are_one_sentence(capsys, argument, complaint):
    assert command.main([argument, "duration_s=30"]) == 2
    said = capsys.readouterr()
    assert complaint in said.err
    assert said.err.count("\n") == 1


def test_help_lists_the_settings():
    exit_code, text = said("--help")
    assert exit_code == 0
    assert "capacity: 8000" in text


@pytest.mark.slow
def test_allocations_on_mix_b_keep_their_order_over_two_seeds():
    named = ["shared", "fair", "proportional", "dynamic"]
    comparison = compared(duration_s=1800.0, capacity=8_000, seeds=2, shift=False, allocations=named)
    assert comparison.gain("proportional", "fair", "block_hit_ratio").mean >= 0.02
    for other in ("shared", "proportional", "fair"):
        assert comparison.gain("dynamic", other, "block_hit_ratio").mean >= -0.01


def test_a_comparison_of_bad_settings_never_starts():
    with pytest.raises(BadSettings):
        ReplaySettings(models=0)
