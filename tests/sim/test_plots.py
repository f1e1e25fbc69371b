"""Pictures say what the tables say, also of runs in which little or nothing happened."""

import numpy as np
import pytest
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle, StepPatch

from sim import plots
from sim.drawing import pack
from sim.plots import CAPTIONS, outages, save_all
from sim.plots.quota import bands_of

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
    return heights(shape)


def heights(shape):
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
    (shape,) = [patch for patch in panel.patches if isinstance(patch, StepPatch)]
    assert shape.get_fill()
    assert shape.get_linewidth() == 0  # or nothing would be drawn as a line
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
    upper, lower = plots.latency_over_time(five).axes
    assert texts(upper) == ["a: crash", "a: unhealthy", "a: recover", "a: healthy"]
    assert not lower.texts
    lines = {line.get_paths()[0].vertices[0][0] for line in lower.collections if len(line.get_paths()) == 1}
    assert {5.0, 7.0, 8.0} <= lines


def test_names_of_many_marks_do_not_overprint_each_other_nor_leave_the_panel(make_run):
    marks = [(n * S // 9, "ab"[n % 2], list(plots.MARKS)[n // 2 % 4], 1.0) for n in range(100)]
    figure = plots.latency_over_time(make_run(FIRST_TRY, series=marks))
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
    (first, again) = upper.lines
    assert first.get_xydata().tolist() == [[0, 6000], [1, 2000]]
    assert again.get_xydata().tolist() == [[2, 8000]]
    assert (first.get_marker(), again.get_marker()) == ("o", "x")
    assert [p.get_xydata().tolist() for p in lower.lines if p.get_label() == "second try"] == [[[2, 1000]]]
    (legend,) = plots.latency_over_time(make_run(FIRST_TRY)).legends
    assert [text.get_text() for text in legend.get_texts()] == ["first try"]


def test_latencies_of_very_many_requests_are_thinned_and_say_so(many):
    upper = plots.latency_over_time(many).axes[0]
    (points,) = upper.lines
    assert len(points.get_xdata()) == plots.MOST_POINTS
    assert points.get_label() == "first try (one in 5 is shown)"


def test_the_distribution_ends_at_one_and_at_the_slowest(five):
    lines = named_lines(plots.latency_cdf(five).axes[0])
    assert list(lines) == ["TTFT, n=3", "TPOT, n=2", "E2E, n=3"]
    assert list(lines["E2E, n=3"].get_xdata()) == [2000, 6000, 8000]
    assert list(lines["E2E, n=3"].get_ydata()) == pytest.approx([1 / 3, 2 / 3, 1])
    assert list(lines["TPOT, n=2"].get_xdata()) == [1000, 3500]


def test_only_requests_of_one_token_have_no_distribution_of_tpot(make_run):
    assert list(named_lines(plots.latency_cdf(make_run(FIRST_TRY)).axes[0])) == ["TTFT, n=1", "E2E, n=1"]


def named_lines(axes):
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


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


def test_the_hit_ratio_is_that_of_the_tokens_of_each_second(five):
    (axes,) = plots.hit_ratio_over_time(five).axes
    found = bars(axes)
    assert (found[0.0], found[1.0], found[2.0]) == (64, 0, 0)
    assert np.isnan(found[3.0])


def test_hit_ratios_are_by_model_and_by_tenant_where_there_are_several(make_run):
    row = {"outcome": "completed", "replica": "a", "prompt_tokens": 100, "output_tokens": 1}
    times = ("arrival_ns", "admitted_ns", "started_ns", "first_token_ns", "finished_ns")
    cases = [("x", "t1", 80), ("x", "t2", 40), ("y", "t1", 0)]
    rows = [
        {**row, **dict.fromkeys(times, 0), "model": model, "tenant": tenant, "cached_tokens_ram": cached}
        for model, tenant, cached in cases
    ]
    by_model, by_tenant = plots.hit_ratio_over_time(make_run(rows)).axes
    found = [
        {shape.get_label(): heights(shape)[0.0] for shape in axes.patches if isinstance(shape, StepPatch)}
        for axes in (by_model, by_tenant)
    ]
    assert found == [{"x": 60, "y": 0}, {"t1": 40, "t2": 40}]


def test_of_many_tenants_the_largest_are_named_and_the_others_together(make_run):
    row = {"outcome": "completed", "replica": "a", "prompt_tokens": 10, "output_tokens": 1}
    times = ("arrival_ns", "admitted_ns", "started_ns", "first_token_ns", "finished_ns")
    rows = [{**row, **dict.fromkeys(times, 0), "tenant": f"t{n}"} for n in range(9) for _ in range(20 - n)]
    (axes,) = plots.hit_ratio_over_time(make_run(rows)).axes
    names = [shape.get_label() for shape in axes.patches if isinstance(shape, StepPatch)]
    assert names == ["t0", "t1", "t2", "t3", "t4", "4 others"]


MIB = 2**20


def tier_series(held, capacity, **models):
    """A tier that is sampled twice."""
    values = {"bytes": held, "capacity_bytes": capacity, **{f"bytes of {m}": v for m, v in models.items()}}
    return [(at * S, "tier ram", name, value * MIB) for at in range(2) for name, value in values.items()]


def test_tiers_show_models_on_top_of_each_other_below_the_capacity(make_run):
    (axes,) = plots.tier_bytes(make_run(series=tier_series(9.0, 20.0, x=5.0, y=3.0, z=1.0))).axes
    shapes = {shape.get_label(): shape.get_data() for shape in axes.patches if isinstance(shape, StepPatch)}
    assert {name: shape.values[0] for name, shape in shapes.items()} == {
        "x": 5,
        "y": 8,
        "z": 9,
        "capacity": 20,
    }
    assert [shapes[name].baseline[0] for name in "xyz"] == [0, 5, 8]
    assert axes.get_ylim()[1] > 20
    assert axes.get_ylabel() == "ram, MiB"


def test_a_capacity_far_above_what_is_held_is_said_and_not_drawn(make_run):
    (axes,) = plots.tier_bytes(make_run(series=tier_series(9.0, 2048.0, x=9.0))).axes
    assert texts(axes) == ["capacity 2 GiB: far above"]
    assert 9 < axes.get_ylim()[1] < 15


QUOTAS = [
    (at * S, "quota of x and t", kind, value)
    for at, used in enumerate((0.5, 0.9, 0.2, 0.1))
    for kind, value in (("hourly_tokens", used), ("concurrent_requests", 0.1))
]


def test_use_of_a_quota_has_its_soft_limits_and_bands_of_modes(make_run, make_facts):
    run = make_run(series=QUOTAS)
    run.config["quotas"] = {"soft_limits": [0.8, 0.9]}
    run.facts = make_facts(
        "mode_changed",
        [
            (1, "x and t", "warning"),
            (2, "x and t", "throttled"),
            (3, "x and t", "normal"),
            (4, "y", "limited"),
        ],
    )
    (axes,) = plots.quota_use(run).axes
    bands = [
        (shade.get_label(), shade.get_x(), shade.get_x() + shade.get_width())
        for shade in axes.patches
        if isinstance(shade, Rectangle)
    ]
    assert bands == [("warning", 1, 2), ("throttled", 2, 3)]
    assert [line.get_ydata()[0] for line in axes.lines] == [80, 90, 100]
    used = {shape.get_label(): heights(shape) for shape in axes.patches if isinstance(shape, StepPatch)}
    assert used["hourly tokens"] == {0: 50, 1: 90, 2: 20, 3: 10}
    assert axes.get_ylabel() == "x and t\nused, %"


def test_soft_limits_that_are_not_set_are_those_of_the_engine(make_run):
    run = make_run(series=QUOTAS)
    run.config["quotas"] = {"soft_limits": None}
    assert [line.get_ydata()[0] for line in plots.quota_use(run).axes[0].lines] == [80, 85, 90, 95, 100]
    run.config["quotas"] = {"soft_limits": []}
    assert [line.get_ydata()[0] for line in plots.quota_use(run).axes[0].lines] == [100]


def test_tenants_without_a_rule_of_their_own_are_in_the_severest_mode_of_any_of_them(make_run, make_facts):
    series = [(0, f"quota of {name}", "hourly_tokens", 0.5) for name in ("*", "vip")]
    run = make_run(series=series)
    modes = [(1, "t1", "warning"), (2, "t2", "limited"), (3, "vip", "emergency"), (4, "t2", "normal")]
    run.facts = make_facts("mode_changed", modes)
    assert list(bands_of(run, "*")) == [(1, 2, "warning"), (2, 4, "limited"), (4, 12, "warning")]
    assert list(bands_of(run, "vip")) == [(3, 12, "emergency")]


def test_a_mode_of_the_whole_service_lasts_to_the_end_of_the_run_in_every_panel(make_run, make_facts):
    run = make_run(series=QUOTAS)
    run.facts = make_facts("mode_changed", [(2, "", "emergency")])
    (axes,) = plots.quota_use(run).axes
    assert band(axes) == (2, 12)


def test_who_waits_for_a_place_has_a_panel_of_its_own(make_run):
    series = [(at * S, "quota", name, at) for at in range(3) for name in ("in_service", "waiting")]
    figure = plots.quota_use(make_run(series=[*QUOTAS, *series]))
    assert [axes.get_ylabel() for axes in figure.axes] == ["x and t\nused, %", "all models\nrequests"]


def test_the_start_of_a_steady_run_is_shaded_and_no_other(make_run):
    row = {"outcome": "completed", "replica": "a", "prompt_tokens": 9, "output_tokens": 4}
    spent = [9 * S if n < 80 else S for n in range(400)]
    rows = [
        {**row, "arrival_ns": n * S, **dict.fromkeys(("admitted_ns", "started_ns"), n * S),
         "first_token_ns": n * S + 1, "finished_ns": n * S + spent[n]}
        for n in range(400)
    ]  # fmt: skip
    steady = plots.latency_over_time(make_run(rows, scenario="steady", virtual_s=401.0))
    assert [band(axes) for axes in steady.axes] == [(0, 80), (0, 80)]
    assert "start of the run (MSER-5)" in [text.get_text() for text in steady.legends[0].get_texts()]
    other = plots.latency_over_time(make_run(rows, virtual_s=401.0))
    assert not [patch for axes in other.axes for patch in axes.patches]


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
    """Kind, begin and end of each bar."""
    return [
        (bars_of.get_label(), path.vertices[:, 0].min(), path.vertices[:, 0].max())
        for bars_of in axes.collections
        if isinstance(bars_of, PolyCollection)
        for path in bars_of.get_paths()
    ]


def test_gantt_shows_the_requests_around_the_first_mark(played):
    figure = plots.gantt(played)
    crash_s = played.mark_s("crash", "a")
    begin_s, end_s = figure.axes[0].get_xlim()
    assert begin_s < crash_s < end_s
    assert sum(kind == "decode" for axes in figure.axes for kind, _, _ in spans(axes)) > 100
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


def test_a_picture_that_would_show_nothing_is_left_out_with_the_reason(five, make_run):
    assert plots.left_out(five) == {
        "beside": "no other runs were played beside it",
        "hit_ratio_over_time": "there was no cache",
        "tier_bytes": "there was no cache",
        "quota_use": "no limit was set beyond concurrent requests, and nobody waited for those",
    }
    assert set(plots.left_out(make_run())) == set(plots.plots)
    cached = make_run(five.requests.to_dict("records"), tier_series(9.0, 20.0, x=9.0))
    assert set(plots.left_out(cached)) == {"beside", "load_over_time", "quota_use"}
    assert "quota_use" not in plots.left_out(make_run(series=QUOTAS))


def test_of_a_large_fleet_few_replicas_are_drawn_those_first_to_which_something_happened(make_run):
    fleet = [f"r{n}" for n in range(30)]
    figure = plots.load_over_time(make_run(replicas=fleet, series=[(S, "r29", "crash", 1.0)]))
    assert "(8 of 30 replicas)" in figure.get_suptitle()
    assert [axes.get_ylabel() for axes in figure.axes[::2]][-1] == "r29\nsequences"


def test_nothing_of_a_picture_is_cut_off_or_overprints_the_title(played):
    for name, plot in plots.plots.items():
        figure = plot(played)
        figure.canvas.draw()
        outer = figure.get_tightbbox(figure.canvas.get_renderer())
        width, height = figure.get_size_inches()
        assert outer.x0 > 0, name
        assert outer.y0 > -0.05, name
        assert outer.x1 < width + 0.05, name
        assert outer.y1 < height + 0.05, name
        title = figure._suptitle.get_window_extent()
        drawn = [axes.get_tightbbox(figure.canvas.get_renderer()) for axes in figure.axes]
        assert all(box.y1 <= title.y0 + 2 for box in drawn), name


def test_the_pictures_of_a_real_run_are_small_files_and_the_same_when_drawn_again(played):
    assert plots.png(plots.gantt(played)) == (played.path / "plots" / "gantt.png").read_bytes()
    for path in (played.path / "plots").iterdir():
        assert 5_000 < path.stat().st_size < 100_000


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["many", "five"])
def test_every_picture_of_every_run_can_be_drawn_and_is_the_same_twice(kind, request, tmp_path):
    run = request.getfixturevalue(kind)
    paths = save_all(run, tmp_path / "plots")
    assert [path.stem for path in paths] == [name for name in plots.plots if name not in plots.left_out(run)]
    for path in paths:
        data = path.read_bytes()
        assert data.startswith(b"\x89PNG")
        assert 5_000 < len(data) < 100_000
        assert plots.png(plots.plots[path.stem](run)) == data


def test_every_picture_can_be_drawn_of_nothing_and_says_so(make_run):
    run = make_run(virtual_s=0.0)
    for name, plot in plots.plots.items():
        figure = plot(run)
        said = [text for axes in figure.axes for text in texts(axes)]
        assert said or name in {"served_by_replica", "load_over_time"}, name
        assert plots.png(figure).startswith(b"\x89PNG"), name


def test_a_notebook_shows_the_picture_that_a_report_has(five):
    figure = plots.latency_cdf(five)
    assert figure._repr_png_() == plots.png(plots.latency_cdf(five))


@pytest.mark.parametrize("name", ["$x^$", "a$b$c", "\\frac{$", "テナント"])
def test_names_are_drawn_whatever_they_are(name):
    figure = Figure()
    axes = figure.subplots()
    axes.bar([0, 1], [1, 2], label=name)
    axes.set_xticks([0, 1], labels=[name, "other"])
    axes.set_title(name)
    axes.legend()
    assert plots.png(figure).startswith(b"\x89PNG")
