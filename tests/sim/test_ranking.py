"""Ranks, differences and pictures of runs whose figures are known."""

from io import StringIO

import pandas as pd
import pytest
from matplotlib.text import Text
from rich.console import Console

from sim import sweep_plots
from sim.intervals import Interval
from sim.metrics import OUTCOMES
from sim.ranking import comparisons, effects, rank_table, ranked, show
from sim.sweep_plots import Point, heat_map, pareto, rests_on

SWEPT = {"strategy": ["slow", "quick"], "eviction": ["lru", "fifo"]}
COMBINATIONS = [
    {"strategy": one, "eviction": other} for one in SWEPT["strategy"] for other in SWEPT["eviction"]
]
BASELINE = COMBINATIONS[0]


def index(**changes):
    """Quick is 0.1 s quicker than slow on every seed, give or take little; fifo changes nothing."""
    rows = []
    for combination in COMBINATIONS:
        for seed in range(1, 6):
            quick = combination["strategy"] == "quick"
            figures = {
                "mean_ttft_s": 1.0 + seed - 0.1 * quick + 0.001 * seed * quick,
                "token_hit_ratio": 0.5 + 0.1 * quick,
                **dict.fromkeys(OUTCOMES, 0),
                "completed": 99,
                "rejected": 1,
            }
            told = {"seed": seed, "verdict": "pass", "digest": f"{seed}", "error": ""}
            rows.append({**combination, **told, **figures, **changes})
    return pd.DataFrame(rows)


def test_the_best_is_first_and_its_difference_is_paired():
    found = ranked(index(), COMBINATIONS, BASELINE, "mean_ttft_s")
    assert [each.name for each in found[:2]] == [
        "strategy=quick eviction=lru",
        "strategy=quick eviction=fifo",
    ]
    best = found[0]
    assert best.difference.mean == pytest.approx(-0.097)
    assert (
        best.difference.half_width < 0.003 < best.figure.half_width
    )  # what seeds have in common cancels out
    assert best.verdict("mean_ttft_s") == "better"
    assert (best.passed, best.asked) == (5, 5)
    assert best.lost_share == pytest.approx(0.01)
    assert next(each for each in found if each.combination == BASELINE).difference is None


def test_more_is_better_where_it_is():
    found = ranked(index(), COMBINATIONS, BASELINE, "token_hit_ratio")
    assert found[0].combination["strategy"] == "quick"
    assert found[0].verdict("token_hit_ratio") == "better"


def test_a_p_value_is_corrected_for_the_number_of_combinations():
    alone = ranked(index(), [BASELINE, COMBINATIONS[2]], BASELINE, "mean_ttft_s")
    among = ranked(index(), COMBINATIONS, BASELINE, "mean_ttft_s")
    p_values = {each.name: each.p_value for each in among}
    assert p_values[alone[0].name] > alone[0].p_value > 0
    assert p_values["strategy=slow eviction=fifo"] == 1.0


def test_a_failed_run_is_left_out_and_a_missing_figure_is_last():
    table = index()
    quick_lru = (table["strategy"] == "quick") & (table["eviction"] == "lru")
    table.loc[quick_lru & (table["seed"] == 1), "error"] = "OSError: No space left on device"
    table.loc[
        (table["strategy"] == "quick") & (table["eviction"] == "fifo") & (table["seed"] == 2), "mean_ttft_s"
    ] = None
    found = ranked(table, COMBINATIONS, BASELINE, "mean_ttft_s")
    assert found[-1].combination == COMBINATIONS[3]
    assert found[-1].figure is None
    quick = next(each for each in found if each.combination == COMBINATIONS[2])
    assert (len(quick.runs), quick.asked, quick.difference.count) == (4, 5, 4)
    assert not effects(table, SWEPT, BASELINE)
    written = rank_table(found, "mean_ttft_s")
    assert list(written["place"]) == [1, 2, 3, 4]
    assert written["runs"].tolist().count(4) == 1


def test_an_effect_is_averaged_over_all_else_seed_by_seed():
    found = effects(index(), SWEPT, BASELINE)
    row = {row.figure: row for row in found["strategy=quick"]}["mean_ttft_s"]
    assert row.difference.count == 5  # seeds, not seeds times combinations
    assert row.difference.mean == pytest.approx(-0.097)
    assert row.verdict == "better"
    assert all(row.verdict == "no difference seen" for row in found["eviction=fifo"])


def test_comparisons_are_corrected_as_the_ranking_is():
    found = ranked(index(), COMBINATIONS, BASELINE, "mean_ttft_s")
    rows = comparisons(found, BASELINE)
    assert set(rows) == {each.name for each in found if each.combination != BASELINE}
    for each in found:
        if each.combination != BASELINE:
            row = next(row for row in rows[each.name] if row.figure == "mean_ttft_s")
            assert (row.p_value, row.verdict) == (each.p_value, each.verdict("mean_ttft_s"))
            assert row.p_value >= row.difference.p_value


def test_one_seed_has_an_order_but_no_verdict():
    table = index()
    found = ranked(table[table["seed"] == 1], COMBINATIONS, BASELINE, "mean_ttft_s")
    assert found[0].verdict("mean_ttft_s") == "one pair: no interval"


def test_the_table_says_what_it_rests_on():
    out = Console(width=180, record=True, file=StringIO())
    show(ranked(index(), COMBINATIONS, BASELINE, "mean_ttft_s"), BASELINE, "mean_ttft_s", out)
    text = out.export_text()
    assert "4 combinations, 20 runs (5 seeds each), the best by mean_ttft_s first" in text
    assert "baseline" in text
    assert "1.00%" in text


def test_pictures_say_n_seeds_and_interval_and_which_way_is_better():
    on = rests_on([1, 2, 3, 4, 5], 20)
    assert on == "n = 20 runs, seeds 1 to 5; bars and +-: 95 % t-intervals of means over seeds"
    assert rests_on([7], 3) == "n = 3 runs, seed 7; one seed: no intervals"
    assert "3 seeds" in rests_on([1, 5, 9], 3)
    points = [Point("a", Interval(1, 0.1), Interval(3, 0.1)), Point("b", Interval(2, 0.1), Interval(2, 0.1))]
    drawn = pareto(points, "mean_ttft_s", "token_hit_ratio", on)
    labels = " ".join(text.get_text() for text in drawn.findobj(Text))
    for said in ("1 (blue)", on, "mean_ttft_s (less is better)", "token_hit_ratio (more is better)"):
        assert said in labels


def test_a_heat_map_has_means_over_what_it_does_not_show_and_says_where_there_is_none(tmp_path):
    table = index()
    table.loc[(table["strategy"] == "quick") & (table["eviction"] == "fifo"), "error"] = "OSError"
    drawn = heat_map(table, ("strategy", "eviction"), SWEPT, "token_hit_ratio", rests_on([1, 2, 3, 4, 5], 20))
    texts = [text.get_text() for text in drawn.axes[0].texts]
    assert texts == ["0.5\n+- 0", "0.5\n+- 0", "0.6\n+- 0", "none"]
    sweep_plots.save(drawn, tmp_path / "heat.png")
    assert (tmp_path / "heat.png").read_bytes().startswith(b"\x89PNG")
    assert [each.name for each in tmp_path.iterdir()] == ["heat.png"]
