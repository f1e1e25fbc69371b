"""The fit against costs that were planted: found, not disturbed by noise or drift, and blind to what is held out."""

from dataclasses import replace

import numpy as np
import pytest

from engine.errors import BadSettings
from engine.execution.profile_file import read_profile
from sim.profile import fit
from sim.profile.fitting import HELD_OUT, even_steps, held_out, noise, robust_costs


def test_planted_costs_are_found(make_points, planted):
    profile = fit(make_points(), 1)
    for name, cost in planted.items():
        assert profile.costs_ns[name] == pytest.approx(cost, rel=1e-3, abs=1.0), name
    assert profile.errors["held_out"]["max_abs"] < 1e-4


def test_the_spread_of_steps_comes_back_as_it_was(make_points):
    profile = fit(make_points(spread=0.1, visits=6), 1)
    assert profile.errors["held_out"]["mean_abs"] < 0.03
    for pool in (profile.prefill_ratios, profile.decode_ratios):
        assert np.std(np.log(pool)) == pytest.approx(0.1, abs=0.015)
        assert np.mean(pool) == pytest.approx(1, abs=0.02)
        assert len(pool) <= 256


def test_a_machine_that_slows_down_is_seen_on_the_yardstick(make_points):
    slow = lambda number: 1 + (number % 97) / 60  # noqa: E731
    even, blind = fit(make_points(slow=slow), 1), make_points(slow=slow)
    for visit in blind.visits:
        visit.yard_ns = [1_000_000] * 4
    assert even.errors["held_out"]["mean_abs"] < 0.02
    assert even.errors["held_out"]["mean_abs"] < fit(blind, 1).errors["held_out"]["mean_abs"] / 5
    assert even.measured["drift"] > 0.3


def test_a_few_disturbed_visits_change_little(make_points):
    rows, values = np.ones((20, 1)), np.full(20, 100.0)
    values[3] = 1000.0
    assert robust_costs(rows, values)[0] == pytest.approx(100, rel=0.01)
    profile = fit(make_points(spread=0.02, outliers=25), 1)
    assert profile.errors["held_out"]["p90_abs"] < 0.05


def test_what_is_held_out_is_never_fitted(make_points):
    points = make_points(spread=0.05)
    profile = fit(points, 3)
    cells, _ = even_steps(points)
    kept = {cell for cell, out in zip(cells, held_out(len(cells), 3), strict=True) if out}
    assert len(kept) == round(HELD_OUT * len(cells))
    for visit in points.visits:
        if visit.cell in kept:
            visit.durations_ns = [11 * each for each in visit.durations_ns]
    other = fit(points, 3)
    assert other.costs_ns == profile.costs_ns
    assert (other.prefill_ratios, other.decode_ratios) == (profile.prefill_ratios, profile.decode_ratios)
    assert other.errors["fitted"] == profile.errors["fitted"]
    assert other.errors["held_out"]["mean_abs"] > 0.8
    assert other.errors["held_out"]["points"] == len(kept)


def test_a_seed_holds_out_the_same_points_and_another_seed_others():
    assert (held_out(100, 1) == held_out(100, 1)).all()
    assert (held_out(100, 1) != held_out(100, 2)).any()
    assert held_out(100, 1).sum() == 30


def test_a_term_that_the_truth_lacks_is_seen_in_what_was_held_out(make_points):
    points = make_points()
    for visit in points.visits:
        cell = points.cells[visit.cell]
        visit.durations_ns = [each * (1 + cell.batch) ** 2 for each in visit.durations_ns]
    assert fit(points, 1).errors["held_out"]["mean_abs"] > 0.1


def test_noise_is_that_of_a_point(make_points):
    assert noise(make_points(spread=0.0)) < 1e-5
    once = noise(make_points(spread=0.2, visits=4))
    assert noise(make_points(spread=0.2, visits=16)) == pytest.approx(once / 2, rel=0.2)
    assert noise(make_points(spread=0.2, visits=1)) == 0.0


def test_the_same_points_give_the_same_file(make_points, tmp_path):
    for name in ("one.json", "two.json"):
        fit(make_points(spread=0.1), 1).save(tmp_path / name)
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    assert read_profile(tmp_path / "one.json") == fit(make_points(spread=0.1), 1)


def test_too_few_points_are_said_to_be_too_few(make_points):
    points = make_points()
    few = replace(points, visits=points.visits[:5])
    with pytest.raises(
        BadSettings, match="5 points were measured, but a fit needs at least 10: raise budget_s"
    ):
        fit(few, 1)
    with pytest.raises(BadSettings, match="0 points"):
        fit(replace(points, visits=[]), 1)
