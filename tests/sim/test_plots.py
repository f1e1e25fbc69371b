"""Pictures say what the tables say, also of runs in which little or nothing happened."""

import io

import numpy as np
import pytest

from sim import plots
from sim.plots import CAPTIONS, outages, pack, save_all

S = 1_000_000_000


def bars(axes):
    return [(patch.get_x(), patch.get_height()) for container in axes.containers for patch in container]


def test_bars_are_the_completed_requests_of_each_second_and_replica(five):
    figure = plots.served_by_replica(five)
    first, second = figure.axes
    assert dict(bars(first))[0.0] == 1
    assert sum(height for _, height in bars(first)) == 1
    assert {x: height for x, height in bars(second) if height} == {1.0: 1, 2.0: 1}


def test_what_was_not_completed_is_drawn_on_top(five, make_run):
    (line,) = [
        line for line in plots.served_by_replica(five).axes[0].lines if "not completed" in line.get_label()
    ]
    assert list(line.get_ydata()) == [0, 0, 0, 1, 1]
    served = [row for row in five.requests.to_dict("records") if row["outcome"] == "completed"]
    assert plots.served_by_replica(make_run(served)).axes[0].get_legend() is None


def test_the_title_says_what_it_rests_on(five, make_run):
    assert "made: n=5, seed 3, round_robin on roofline" in plots.latency_cdf(five).get_suptitle()
    assert "no request has ended" in plots.latency_cdf(make_run()).get_suptitle()


def test_outages_last_from_the_crash_to_the_return_or_to_the_end(five, make_run):
    assert list(outages(five)) == [(5.0, 7.0, "a")]
    assert list(outages(make_run(series=[(5 * S, "b", "crash", 1.0)]))) == [(5.0, 12.0, "b")]
    assert list(outages(make_run())) == []


def test_marks_are_labelled_on_the_replica_that_they_are_of(five):
    first, second = plots.served_by_replica(five).axes
    assert [text.get_text() for text in first.texts] == ["crash", "unhealthy", "recover", "healthy"]
    assert not second.texts


def test_the_distribution_ends_at_one_and_at_the_slowest(five):
    lines = {line.get_label(): line for line in plots.latency_cdf(five).axes[0].lines}
    assert list(lines["E2E"].get_xdata()) == [2000, 6000, 8000]
    assert lines["E2E"].get_ydata()[-1] == 1
    assert list(lines["TPOT"].get_xdata()) == [1000, 3500]


def test_load_and_cache_show_the_samples(five):
    running = plots.load_over_time(five).axes[0]
    assert list(running.lines[0].get_ydata()) == [at % 3 for at in range(10)]
    held = plots.cache_over_time(five).axes[0].lines[0].get_ydata()
    assert held[0] == 64
    assert np.isnan(held[3])


def test_gantt_shows_no_negative_phase_after_a_lost_replica(five):
    widths = [
        patch.get_width() for axes in plots.gantt(five).axes for box in axes.containers for patch in box
    ]
    assert min(widths) >= 0
    assert sum(widths) == pytest.approx(6 + 2 + 8)


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


def test_every_picture_has_a_caption():
    assert set(CAPTIONS) == set(plots.plots)


@pytest.mark.parametrize("kind", ["played", "five", "nothing", "many"])
def test_every_picture_of_every_run_can_be_drawn_and_is_the_same_twice(kind, request, make_run, tmp_path):
    if kind == "nothing":
        run = make_run()
    elif kind == "many":
        row = {"outcome": "completed", "prompt_tokens": 9, "output_tokens": 4}
        times = ("arrival_ns", "admitted_ns", "started_ns", "first_token_ns", "finished_ns")
        rows = [
            {**row, "replica": "ab"[n % 2], **{t: n * S // 10 + i * S // 7 for i, t in enumerate(times)}}
            for n in range(20_000)
        ]
        run = make_run(rows, virtual_s=2001.0)
    else:
        run = request.getfixturevalue(kind)
    paths = save_all(run, tmp_path / "plots")
    assert [path.stem for path in paths] == list(plots.plots)
    for path in paths:
        data = path.read_bytes()
        assert data.startswith(b"\x89PNG")
        assert 5_000 < len(data) < 400_000
    again = io.BytesIO()
    plots.gantt(run).savefig(again, format="png", dpi=plots.DPI, metadata={"Software": None})
    assert again.getvalue() == (tmp_path / "plots" / "gantt.png").read_bytes()
