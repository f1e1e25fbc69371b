"""Pictures say what the tables say, also of runs in which little or nothing happened."""

import io

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.patches import Rectangle, StepPatch

from sim import plots
from sim.drawing import pack
from sim.plots import CAPTIONS, outages, save_all

S = 1_000_000_000
FIRST_TRY = [
    {
        "outcome": "completed", "replica": "a", "arrival_ns": 0, "admitted_ns": 0, "started_ns": 1 * S,
        "first_token_ns": 2 * S, "finished_ns": 2 * S, "prompt_tokens": 100, "output_tokens": 1,
    }
]  # fmt: skip


def bars(axes):
    """Left edge and height of each step of the first shape."""
    (shape, *_) = [patch for patch in axes.patches if isinstance(patch, StepPatch)]
    data = shape.get_data()
    return dict(zip(data.edges, data.values, strict=False))


def band(axes):
    """Begin and end of the one shaded outage."""
    (shade,) = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    return shade.get_x(), shade.get_x() + shade.get_width()


def texts(axes):
    return [text.get_text() for text in axes.texts]


def boxes(figure, axes):
    """Where the names of the marks lie, once the figure is laid out."""
    figure.canvas.draw()
    return [text.get_window_extent() for text in axes.texts]


def test_bars_are_the_completed_requests_of_each_second_and_replica(five):
    first, second, _ = plots.served_by_replica(five).axes
    assert bars(first) == {0.0: 1, 1.0: 0, 2.0: 0, 3.0: 0, 4.0: 0}
    assert bars(second) == {0.0: 0, 1.0: 1, 2.0: 1, 3.0: 0, 4.0: 0}


def test_bars_of_a_real_run_are_counts_of_its_table_and_none_is_cut_off(played):
    panels = plots.served_by_replica(played).axes
    assert len(panels) == len(played.replicas)
    second = played.requests["arrival_ns"] // S
    highest = 0
    for axes, replica in zip(panels, played.replicas, strict=True):
        counted = second[played.requests["replica"] == replica].value_counts()
        assert {at: height for at, height in bars(axes).items() if height} == dict(counted)
        highest = max(highest, counted.max())
    assert [axes.get_ylim() for axes in panels] == [(0, pytest.approx(1.05 * highest))] * 3


def test_what_was_not_completed_has_a_panel_of_its_own(five, make_run):
    panel = plots.served_by_replica(five).axes[-1]
    assert panel.get_ylabel().startswith("not completed")
    assert bars(panel) == {0.0: 0, 1.0: 0, 2.0: 0, 3.0: 1, 4.0: 1}
    served = [row for row in five.requests.to_dict("records") if row["outcome"] == "completed"]
    assert len(plots.served_by_replica(make_run(served)).axes) == 2


def test_a_long_run_is_counted_in_longer_bins_and_says_so(many):
    figure = plots.served_by_replica(many)
    assert "arrived in each 9 s" in figure.get_suptitle()
    heights = list(bars(figure.axes[0]).values())
    assert len(heights) <= plots.MOST_BINS + 1
    assert sum(heights) * 9 == pytest.approx(10_000)
    assert heights[100] == pytest.approx(5, abs=0.2)


def test_the_title_says_what_it_rests_on(five, make_run):
    assert "made: n=5, seed 3, round_robin on roofline" in plots.latency_cdf(five).get_suptitle()
    assert "no request has ended" in plots.latency_cdf(make_run()).get_suptitle()


def test_outages_last_from_the_crash_to_the_return_or_to_the_end(five, make_run):
    assert list(outages(five)) == [(5.0, 7.0, "a")]
    assert list(outages(make_run(series=[(5 * S, "b", "crash", 1.0)]))) == [(5.0, 12.0, "b")]
    assert list(outages(make_run())) == []


def test_the_band_of_an_outage_spans_crash_to_recover_or_the_rest_of_the_run(five, make_run):
    first, second, _ = plots.served_by_replica(five).axes
    assert band(first) == (5, 7)
    assert not [patch for patch in second.patches if isinstance(patch, Rectangle)]
    assert [band(axes) for axes in plots.latency_over_time(five).axes] == [(5, 7), (5, 7)]
    for_good = make_run(series=[(5 * S, "b", "crash", 1.0)])
    assert band(plots.served_by_replica(for_good).axes[1]) == (5, 12)


def test_marks_are_named_on_the_replica_that_they_are_of_and_with_it_elsewhere(five):
    first, second, _ = plots.served_by_replica(five).axes
    assert texts(first) == ["crash", "unhealthy", "recover", "healthy"]
    assert not second.texts
    upper, lower = plots.cache_over_time(five).axes
    assert texts(upper) == ["a: crash", "a: unhealthy", "a: recover", "a: healthy"]
    assert not lower.texts
    lines = {line.get_paths()[0].vertices[0][0] for line in lower.collections if len(line.get_paths()) == 1}
    assert {5.0, 7.0, 8.0} <= lines


def test_names_of_many_marks_do_not_overprint_each_other_nor_leave_the_panel(make_run):
    marks = [(n * S // 9, "ab"[n % 2], list(plots.MARKS)[n // 2 % 4], 1.0) for n in range(100)]
    figure = plots.latency_over_time(make_run(series=marks))
    upper = figure.axes[0]
    drawn = boxes(figure, upper)
    assert 10 < len(drawn) < 100  # those without room have no name
    assert not any(one.overlaps(other) for n, one in enumerate(drawn) for other in drawn[:n])
    assert max(box.x1 for box in drawn) <= upper.bbox.x1 + 20
    assert min(box.y0 for box in drawn) >= upper.bbox.y1
    assert sum(len(lines.get_segments()) for lines in upper.collections if is_marks(lines)) == 100


def is_marks(collection):
    return isinstance(collection, LineCollection)


def test_second_tries_stand_out_in_the_latencies(five, make_run):
    upper, lower = plots.latency_over_time(five).axes
    (first, again) = [points for points in upper.collections if not is_marks(points)]
    assert first.get_offsets().tolist() == [[0, 6000], [1, 2000]]
    assert again.get_offsets().tolist() == [[2, 8000]]
    assert [p.get_offsets().tolist() for p in lower.collections if p.get_label() == "second try"] == [
        [[2, 1000]]
    ]
    (legend,) = plots.latency_over_time(make_run(FIRST_TRY)).legends
    assert [text.get_text() for text in legend.get_texts()] == ["first try"]


def test_latencies_of_very_many_requests_are_thinned_and_say_so(many):
    upper = plots.latency_over_time(many).axes[0]
    (points,) = [points for points in upper.collections if not is_marks(points)]
    assert len(points.get_offsets()) == plots.MOST_POINTS
    assert points.get_label() == "first try (one in 2 is shown)"


def test_the_distribution_ends_at_one_and_at_the_slowest(five):
    lines = {line.get_label(): line for line in plots.latency_cdf(five).axes[0].lines}
    assert list(lines) == ["TTFT, n=3", "TPOT, n=2", "E2E, n=3"]
    assert list(lines["E2E, n=3"].get_xdata()) == [2000, 6000, 8000]
    assert list(lines["E2E, n=3"].get_ydata()) == pytest.approx([1 / 3, 2 / 3, 1])
    assert list(lines["TPOT, n=2"].get_xdata()) == [1000, 3500]


def test_only_requests_of_one_token_have_no_distribution_of_tpot(make_run):
    lines = plots.latency_cdf(make_run(FIRST_TRY)).axes[0].lines
    assert [line.get_label() for line in lines] == ["TTFT, n=1", "E2E, n=1"]


def test_load_shows_the_samples_of_each_replica(five):
    panels = plots.load_over_time(five).axes
    assert bars(panels[0]) == {at: at % 3 for at in range(10)}
    assert bars(panels[1]) == {at: 100 * at for at in range(10)}
    assert bars(panels[2]) == dict.fromkeys(range(10), 1)
    assert panels[0].get_ylim() == panels[2].get_ylim()
    assert panels[1].get_ylim() == panels[3].get_ylim()


def test_waiting_stands_on_running(make_run):
    series = [(at * S, "a", metric, 1.0 + at) for at in range(3) for metric in ("running", "waiting")]
    sequences = plots.load_over_time(make_run(series=series)).axes[0]
    running, waiting = [patch.get_data() for patch in sequences.patches]
    assert list(running.values) == list(waiting.baseline) == [1, 2, 3]
    assert list(waiting.values) == [2, 4, 6]


def test_load_of_a_long_run_is_means_with_the_most_above(many):
    sequences = plots.load_over_time(many).axes[0]
    running, _, most = [patch.get_data() for patch in sequences.patches]
    assert len(running.values) == 236  # 8,000 samples, 34 at a time
    assert running.values[0] == pytest.approx(np.mean(np.arange(34) % 7))
    assert set(most.values[:-1]) == {12}  # 6 running and 6 waiting


def test_cache_shows_the_hits_of_each_second_and_what_is_held(five):
    upper, lower = plots.cache_over_time(five).axes
    found = bars(upper)
    assert (found[0.0], found[1.0], found[2.0]) == (64, 0, 0)
    assert np.isnan(found[3.0])
    (capacity,) = lower.lines
    assert set(capacity.get_ydata()) == {20}
    assert lower.get_ylim()[1] >= 20


def test_gantt_shows_each_phase_and_none_of_negative_length_after_a_lost_replica(five):
    figure = plots.gantt(five)
    first, second = figure.axes
    assert spans(first) == [
        ("waiting", 0, 1),
        ("prefill", 1, 2),
        ("decode", 2, 6),
        ("not completed", 4, 5),
    ]
    assert spans(second) == [
        ("waiting", 1, 2),
        ("waiting", 2, 3),
        ("prefill", 2, 3),
        ("prefill", 3, 3),
        ("decode", 3, 3),
        ("decode", 3, 10),
    ]
    assert first.get_ylim() == second.get_ylim() == (-0.6, 1.6)
    assert first.get_xlim() == (0, 10)


def spans(axes):
    return [
        (box.get_label(), patch.get_x(), patch.get_x() + patch.get_width())
        for box in axes.containers
        for patch in box
    ]


def test_gantt_shows_the_requests_around_the_first_mark(played):
    figure = plots.gantt(played)
    crash_s = played.mark_s("crash", "a")
    begin_s, end_s = figure.axes[0].get_xlim()
    assert begin_s < crash_s < end_s
    assert (
        sum(len(box) for axes in figure.axes for box in axes.containers if box.get_label() == "decode") > 100
    )
    assert "around the first mark" in figure.get_suptitle()


def test_gantt_of_a_single_moment_has_a_width(make_run):
    lost = {"outcome": "failed", "replica": "a", "arrival_ns": S, "finished_ns": S, "prompt_tokens": 9}
    figure = plots.gantt(make_run([lost]))
    assert figure.axes[0].get_xlim() == (1, pytest.approx(1.001))
    assert "from the first on" in figure.get_suptitle()


def test_packed_intervals_share_a_slot_only_when_they_do_not_overlap():
    draw = np.random.default_rng(5)
    begin = draw.uniform(0, 100, 500)
    end = begin + draw.exponential(5, 500)
    slots = pack(begin, end)
    for slot in range(slots.max() + 1):
        mine = np.flatnonzero(slots == slot)
        order = mine[np.argsort(begin[mine])]
        assert (end[order][:-1] <= begin[order][1:]).all()
    most = max(((begin <= t) & (end > t)).sum() for t in begin)
    assert slots.max() + 1 == most
    assert list(pack(np.zeros(0), np.zeros(0))) == []


def test_latencies_of_zero_are_drawn_without_a_logarithm(make_run):
    row = dict.fromkeys(("arrival_ns", "admitted_ns", "started_ns", "first_token_ns", "finished_ns"), 0)
    run = make_run([{**row, "outcome": "completed", "replica": "a", "prompt_tokens": 1, "output_tokens": 2}])
    assert [axes.get_yscale() for axes in plots.latency_over_time(run).axes] == ["linear", "linear"]
    assert plots.latency_cdf(run).axes[0].get_xscale() == "linear"
    assert spans(plots.gantt(run).axes[0]) == [(name, 0, 0) for name in ("waiting", "prefill", "decode")]


def test_every_picture_has_a_caption():
    assert set(CAPTIONS) == set(plots.plots)


SEVERAL = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("played", "five")]


@pytest.mark.parametrize("kind", ["nothing", "many", *SEVERAL])
def test_every_picture_of_every_run_can_be_drawn_and_is_the_same_twice(kind, request, make_run, tmp_path):
    run = make_run(virtual_s=0.0) if kind == "nothing" else request.getfixturevalue(kind)
    paths = save_all(run, tmp_path / "plots")
    assert [path.stem for path in paths] == list(plots.plots)
    for path in paths:
        data = path.read_bytes()
        assert data.startswith(b"\x89PNG")
        assert 5_000 < len(data) < 400_000
    again = io.BytesIO()
    plots.gantt(run).savefig(again, format="png", dpi=plots.DPI, metadata={"Software": None})
    assert again.getvalue() == (tmp_path / "plots" / "gantt.png").read_bytes()
