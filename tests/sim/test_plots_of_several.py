"""Pictures of several runs and of plain tables: what is drawn is what the figures are."""

import numpy as np
import pytest

import sim
from engine.errors import BadSettings
from sim import plots
from sim.compare import compare
from sim.intervals import Interval
from sim.plots import ForestRow, Point
from sim.plots.several import knee, largest_rates, offered_rate, runs_of

S = 1_000_000_000


@pytest.fixture
def make_load(make_run):
    """Twenty requests at a rate, which take so long to their first token and half a second more."""

    def make(rate, ttft_s, *, strategy="round_robin", seed=1):
        rows = [
            {
                "outcome": "completed", "replica": "a", "prompt_tokens": 9, "output_tokens": 11,
                "arrival_ns": at, "admitted_ns": at, "started_ns": at,
                "first_token_ns": at + int(ttft_s * (1 + 0.01 * n) * S),
                "finished_ns": at + int((ttft_s * (1 + 0.01 * n) + 0.5) * S),
            }
            for n, at in ((n, n * S // rate) for n in range(20))
        ]  # fmt: skip
        run = make_run(rows, strategy=strategy, seed=seed, digest=f"{seed}")
        run.config["workload"] = {"rate": rate}
        return run

    return make


@pytest.fixture
def rising(make_load):
    """Two seeds at each of six rates; from 50 a second on the wait explodes."""
    waits_s = {10: 0.1, 20: 0.1, 30: 0.1, 40: 0.1, 50: 0.12, 60: 1.0}
    return [
        make_load(rate, wait_s * (1 + 0.1 * seed), seed=seed)
        for rate, wait_s in waits_s.items()
        for seed in (1, 2)
    ]


def lines_of(axes):
    """The line of each errorbar by its label."""
    return {bar.get_label(): bar.lines[0].get_xydata() for bar in axes.containers}


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_percentiles_are_means_over_seeds_with_their_intervals(rising):
    figure = plots.percentiles_by_rate(rising)
    upper, lower = figure.axes
    lines = lines_of(upper)
    assert list(lines) == ["p50", "p90"]  # twenty requests have no p99
    assert lines["p50"][:, 0].tolist() == [10, 20, 30, 40, 50, 60]
    expected = [1e3 * run.summary["p50_ttft_s"] for run in rising[:2]]
    assert lines["p50"][0, 1] == pytest.approx(np.mean(expected))
    (bars,) = upper.containers[0].lines[2]
    low, high = bars.get_segments()[0][:, 1]
    assert high - low == pytest.approx(2 * 12.706 * abs(np.diff(expected)[0]) / 2, rel=1e-3)
    assert lines_of(lower)["p50"][0, 1] == pytest.approx(lines["p50"][0, 1] + 500)
    assert "12 runs, 2 seeds (1 to 2), n=240 requests in all; bars: 95 % intervals" in figure.get_suptitle()


def test_percentiles_by_rate_are_of_one_strategy(make_load):
    runs = [make_load(10, 0.1), make_load(10, 0.1, strategy="random")]
    with pytest.raises(BadSettings, match="of the strategies random, round_robin, but must be of one"):
        plots.percentiles_by_rate(runs)


def test_the_knee_is_where_a_curve_bends_upwards():
    rates = np.array([10.0, 20, 30, 40, 50, 60])
    assert knee(rates, np.array([1, 1, 1, 1, 2, 10.0])) == 50
    assert knee(rates, rates) is None
    assert knee(rates, rates[::-1]) is None
    assert knee(rates[:3], np.array([1, 1, 10.0])) is None


def test_throughput_has_a_line_a_strategy_in_the_order_of_the_rates(make_load):
    runs = [make_load(rate, 0.1, strategy=name) for name in ("random", "least_loaded") for rate in (40, 10)]
    figure = plots.throughput_by_latency(runs, "p50_e2e_s")
    lines = lines_of(figure.axes[0])
    assert list(lines) == ["least_loaded", "random"]
    assert lines["random"][:, 0].tolist() == sorted(
        run.summary["request_throughput_per_s"] for run in runs[:2]
    )
    assert figure.axes[0].get_ylabel() == "E2E p50, ms"


def test_goodput_is_the_share_that_met_both_objectives_and_names_the_largest_rates(rising):
    figure = plots.goodput_by_rate(rising, ttft_slo_s=0.2, tpot_slo_s=0.06)
    lines = lines_of(figure.axes[0])
    assert list(lines) == ["round_robin: 50/s at 99 %, 50/s at 95 %, 50/s at 90 %"]
    (line,) = lines.values()
    assert line[:, 1].tolist() == [100, 100, 100, 100, 100, 0]
    none = plots.goodput_by_rate(rising, ttft_slo_s=0.2, tpot_slo_s=0.01)
    assert list(lines_of(none.axes[0])) == ["round_robin: none at 99 %, none at 95 %, none at 90 %"]


def test_a_rate_above_one_that_failed_does_not_count():
    assert largest_rates({10: 1.0, 20: 0.96, 30: 0.5, 40: 1.0}) == {0.99: 10, 0.95: 20, 0.9: 20}


def test_a_rate_that_nobody_set_is_that_of_the_arrivals(make_load):
    run = make_load(10, 0.1)
    run.config["workload"] = {"rate": None}
    assert offered_rate(run) == 10
    run.requests = run.requests.iloc[:0]
    assert offered_rate(run) == 0


def test_the_heat_map_frames_the_best_strategy_of_each_rate(make_load):
    waits_s = {("random", 10): 0.3, ("random", 40): 0.1, ("least_loaded", 10): 0.2}
    runs = [make_load(rate, wait_s, strategy=name) for (name, rate), wait_s in waits_s.items()]
    axes = plots.strategy_heat_map(runs, "p50_ttft_s").axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["least_loaded", "random"]
    assert texts(axes) == ["0.219", "none", "0.329", "0.11"]
    boxes = [(round(box.get_x() + 0.48), round(box.get_y() + 0.46)) for box in axes.patches]
    assert boxes == [(0, 0), (1, 1)]


POINTS = [
    Point("slow", Interval(3.0, 0.5), Interval(1.0, None)),
    Point("cheap", Interval(1.0, 0.1), Interval(1.0, 0.2)),
    Point("best", Interval(2.0, 0.1), Interval(5.0, 0.2)),
    Point("twin", Interval(2.0, 0.1), Interval(5.0, 0.2)),
]


def test_the_front_has_those_that_no_other_beats_twins_included():
    assert [point.name for point in plots.front(POINTS, less_y=False)] == ["cheap", "best", "twin"]
    assert [point.name for point in plots.front(POINTS)] == ["cheap"]
    assert [point.name for point in plots.front(POINTS, less_x=False, less_y=False)] == [
        "slow",
        "best",
        "twin",
    ]


def test_the_front_is_numbered_and_twins_share_a_place():
    figure = plots.pareto(POINTS, x="wait, s", y="hits", less_y=False, rests_on="n=4")
    assert texts(figure.axes[0]) == ["1", "2, 3"]
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named == ["1  cheap", "2  best", "3  twin"]
    assert figure.axes[0].get_xlabel() == "wait, s (less is better)"
    assert figure.axes[0].get_ylabel() == "hits (more is better)"


def test_a_forest_has_a_line_a_difference_the_first_on_top():
    rows = [ForestRow("a", -2.0, -3.0, -1.0, "better"), ForestRow("b", 1.0, -1.0, 3.0, "no difference seen")]
    figure = plots.forest(rows, unit="%")
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    better, unseen = axes.containers
    assert better.lines[0].get_xydata().tolist() == [[-2, 1]]
    assert unseen.lines[2][0].get_segments()[0].tolist() == [[-1, 0], [3, 0]]
    assert better.lines[0].get_color() != unseen.lines[0].get_color()


def test_the_forest_of_a_comparison_is_in_per_cent_of_the_first_side(make_load):
    sides = [[make_load(10, wait_s + 0.01 * seed, seed=seed) for seed in (1, 2, 3)] for wait_s in (0.1, 0.2)]
    figure = compare(*sides).forest()
    (axes,) = figure.axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    drawn = {names[-1 - int(y)]: x for bar in axes.containers for x, y in bar.lines[0].get_xydata()}
    assert drawn["mean_ttft_s"] == pytest.approx(100 * 0.1 / 0.12)
    assert "3 pairs of runs, seeds 1 to 3" in figure.get_suptitle()


def test_simulated_against_real_pairs_the_requests_of_both(make_load):
    real, simulated = make_load(10, 0.2), make_load(10, 0.1)
    simulated.requests = simulated.requests.iloc[5:]
    upper, lower = plots.simulated_against_real(real, simulated).axes
    dots = upper.lines[0].get_xydata()
    assert len(dots) == 15
    assert dots[:, 1] == pytest.approx(dots[:, 0] / 2)
    assert (upper.get_xlabel(), lower.get_ylabel()) == ("real TTFT, ms", "simulated E2E, ms")


def test_residuals_of_the_shipped_profile_tell_what_was_held_out():
    figure = plots.profile_residuals()
    (legend,) = figure.legends
    groups = [text.get_text().split(", n=") for text in legend.get_texts()]
    assert [name for name, _ in groups] == [
        "decode, fitted",
        "prefill, fitted",
        "decode, held out",
        "prefill, held out",
    ]
    assert f"n={sum(int(count) for _, count in groups)} points" in figure.get_suptitle()


def test_runs_may_be_a_list_a_pattern_or_a_loaded_table(played):
    pattern = played.path.parent / "*"
    for given in (pattern, str(pattern), sim.load(pattern), [played]):
        assert [run.manifest["digest"] for run in runs_of(given)] == [played.manifest["digest"]]
    with pytest.raises(BadSettings, match="no finished run matches"):
        runs_of(played.path / "nothing")


EMPTY = {
    "percentiles": lambda: plots.percentiles_by_rate([]),
    "throughput": lambda: plots.throughput_by_latency([]),
    "goodput": lambda: plots.goodput_by_rate([], 1.0, 1.0),
    "front": lambda: plots.front_of([]),
    "heat": lambda: plots.strategy_heat_map([]),
    "forest": lambda: plots.forest([], unit="%"),
    "agreement": lambda: plots.agreement({}, unit="ms"),
    "residuals": lambda: plots.residuals({}, unit="ms"),
}


@pytest.mark.parametrize("name", sorted(EMPTY))
def test_nothing_to_show_is_a_sentence_in_the_picture(name):
    figure = EMPTY[name]()
    said = [text for axes in figure.axes for text in texts(axes)]
    assert said
    assert all(" " in sentence for sentence in said)
