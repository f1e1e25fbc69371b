import numpy as np
import pytest

from sim.fidelity.ranking import LEAST_PAIRS, Pair, ranking, separated

REAL = {
    "slow": [0.40, 0.44, 0.41, 0.43],
    "best": [0.10, 0.11, 0.10, 0.11],
    "middle": [0.20, 0.22, 0.20, 0.21],
    "twin": [0.21, 0.21, 0.22, 0.20],  # of middle: reality does not tell them apart
}


def times(side, **factors):
    """The same figures, those of some configurations longer."""
    return {name: [factors.get(name, 1.0) * each for each in values] for name, values in side.items()}


def test_the_same_order_is_a_tau_of_one_however_far_off_the_figures_are():
    made = ranking("TTFT", REAL, times(REAL, slow=2.0, best=2.0, middle=2.0, twin=2.0))
    assert (made.verdict, made.tau, made.regret) == ("pass", 1.0, 0.0)
    assert [each.configuration for each in made.standings] == ["best", "middle", "twin", "slow"]
    assert [each.error for each in made.standings] == pytest.approx([1.0] * 4)
    assert (made.best, made.winners, made.num_pairs) == ("best", ["best"], 6)


def test_a_pair_that_reality_does_not_separate_costs_nothing_in_either_order():
    made = ranking("TTFT", REAL, times(REAL, middle=1.3))
    assert {frozenset((each.first, each.second)) for each in made.pairs} == {
        frozenset(pair)
        for pair in (
            ("slow", "best"),
            ("slow", "middle"),
            ("slow", "twin"),
            ("best", "middle"),
            ("best", "twin"),
        )
    }
    assert (made.verdict, made.tau) == ("pass", 1.0)
    assert [each.simulated_rank for each in made.standings] == [1, 3, 2, 4]


def test_another_order_fails_and_says_what_its_winner_costs():
    made = ranking("E2E", REAL, times(REAL, best=2.5))
    assert made.verdict == "fail"
    assert made.tau == pytest.approx((3 - 2) / 5)
    assert made.winners == ["middle"]
    assert made.regret == pytest.approx(0.2075 / 0.105 - 1)
    assert {(each.first, each.second) for each in made.pairs if each.sign < 0} == {
        ("best", "middle"),
        ("best", "twin"),
    }


def test_a_simulation_that_sees_no_difference_agrees_with_nobody():
    alike = dict.fromkeys(REAL, [0.2] * 4)
    made = ranking("TTFT", REAL, alike)
    assert (made.tau, made.verdict) == (0.0, "fail")
    assert made.winners == ["best", "middle", "twin", "slow"]
    assert made.regret == pytest.approx((0.105 + 0.2075 + 0.21 + 0.42) / 4 / 0.105 - 1)


def test_reality_that_separates_nothing_decides_nothing():
    noisy = {"one": [0.1, 0.3, 0.2], "other": [0.3, 0.1, 0.25], "third": [0.2, 0.2, 0.2]}
    made = ranking("TTFT", noisy, times(noisy, one=0.5))
    assert (made.pairs, made.tau, made.verdict) == ([], None, "inconclusive")


def test_a_winner_that_reality_does_not_tell_from_the_best_is_no_failure():
    close = {"one": [0.10, 0.13, 0.10, 0.12], "other": [0.12, 0.11, 0.13, 0.12], "far": [0.4, 0.5, 0.4, 0.5]}
    made = ranking("TTFT", close, times(close, other=0.5))
    assert made.winners == ["other"]
    assert made.regret > 0.02
    assert made.verdict == "inconclusive"


def test_many_pairs_are_not_separated_by_chance():
    """Of 190 pairs of alike configurations one in twenty would be, if each were looked at alone."""
    random = np.random.default_rng(5)
    alike = {f"c{number}": (1 + 0.1 * random.random(5)).tolist() for number in range(20)}
    assert separated(alike, alike) == []


def test_tpot_is_shown_and_not_judged():
    assert ranking("TPOT", REAL, times(REAL, best=9.0)).verdict == "shown"


def test_a_pair_says_in_which_order_it_is():
    pair = Pair(first="a", second="b", real=0.5, simulated=-0.1, p_value=0.01)
    assert pair.sign == -1
    assert LEAST_PAIRS == 3
