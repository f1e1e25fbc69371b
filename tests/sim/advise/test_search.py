"""The search over candidates whose worth is known by construction: what it finds, and what it spends."""

import pytest

from engine.errors import BadSettings
from sim.advise.evidence import Outcome
from sim.advise.search import INFEASIBLE, MEETS, UNDECIDED, Search
from sim.advise.settings import AdviceSettings
from sim.advise.space import Space
from sim.advise.telling import Advice
from sim.plan import Plan

STRATEGIES = ["poor", "good", "fair"]


class Base:
    """All that a search asks of a run's settings."""

    seed = 11


def space(gibs):
    plan = Plan(
        {"strategy": STRATEGIES, "tiers.ram.gib": [str(gib) for gib in gibs]}, ["scenario=steady"], [11]
    )
    combinations = plan.combinations
    return Space(plan, Base(), combinations, [10.0 + float(each["tiers.ram.gib"]) for each in combinations])


class World:
    """Requests are good where there is memory enough for the strategy: `good` needs 4 GiB, the others 3 more."""

    def __init__(self, among, noise=0.0, fresh=0.0, wanting=1):
        self.among, self.noise, self.fresh, self.wanting = among, noise, fresh, wanting
        self.played = []

    def play(self, pairs):
        self.played += pairs
        return [self.outcome(self.among.combinations[number], seed) for number, seed in pairs]

    def outcome(self, combination, seed):
        spare = float(combination["tiers.ram.gib"]) - 4 - 3 * (combination["strategy"] != "good")
        share = min(1.0, 0.9 + 0.02 * spare + (self.noise if seed % 2 else -self.noise))
        share -= self.fresh * (seed > 13 and spare < self.wanting)
        return Outcome(100, {"ttft": max(share, 0)}, {"ttft": 0.5 - 0.05 * spare})


def search(world, **settings):
    asked = AdviceSettings(ttft_s=0.5, percentile=90, **settings)
    return Search(world.among, asked, world.play)


def test_the_cheapest_that_meets_the_goal_is_found_when_all_can_be_played():
    world = World(space([1, 2, 4, 8, 16]))
    one = search(world, budget=50, seeds=3, verify=5)
    found = one.run()
    assert found.verdict == MEETS
    assert world.among.combinations[found.chosen.number] == {"strategy": "good", "tiers.ram.gib": "4"}
    assert found.is_whole
    assert found.spent == len(world.played) == len(set(world.played))
    assert {seed for _, seed in world.played} == {11, 12, 13, 14, 15, 16, 17, 18}
    dearest = max(world.among.costs[number] for number, _ in world.played)
    assert dearest == 14  # nothing was played that costs more than the answer


def test_one_that_misses_by_far_is_played_once():
    world = World(space([1, 2, 4, 8]))
    search(world, budget=50, seeds=3, verify=5).run()
    far = [number for number, each in enumerate(world.among.combinations) if each["tiers.ram.gib"] == "1"]
    assert [sum(number == one for number, _ in world.played) for one in far] == [1, 1, 1]


@pytest.mark.parametrize("budget", [8, 9, 20, 37])
def test_the_budget_is_kept(budget):
    world = World(space(range(1, 17)), noise=0.01)
    found = search(world, budget=budget, seeds=3, verify=5).run()
    assert len(world.played) == found.spent <= budget


def test_of_many_a_search_plays_few_and_twice_the_same():
    answers = []
    for _ in range(2):
        world = World(space([gib / 4 for gib in range(1, 101)]))
        found = search(world, budget=90, seeds=2, verify=3).run()
        answers.append((world.played, found.chosen.number))
    assert answers[0] == answers[1]
    assert found.verdict == MEETS
    chosen = world.among.combinations[found.chosen.number]
    assert chosen["strategy"] == "good"
    assert 4 <= float(chosen["tiers.ram.gib"]) <= 5  # of 300, from 0.25 to 25 GiB; the least is 4
    assert len({number for number, _ in world.played}) < 90
    best = float("inf")
    for number, seed in world.played:
        assert seed != 11 or world.among.costs[number] <= best  # nothing dearer than what is known to do
        if seed == 12:
            met = world.outcome(world.among.combinations[number], seed).shares["ttft"] >= 0.9
            best = min(best, world.among.costs[number]) if met else best


def test_what_fails_on_fresh_seeds_is_not_the_answer():
    world = World(space([1, 2, 4, 8, 16]), fresh=0.5)
    one = search(world, budget=80, seeds=3, verify=5)
    found = one.run()
    assert found.verdict == MEETS
    assert world.among.combinations[found.chosen.number] == {"strategy": "good", "tiers.ram.gib": "8"}
    (refused,) = [number for number, told in found.verified.items() if told != MEETS]
    assert Advice(one, found).state(one.candidates[refused]) == "misses, verified"


def test_what_is_met_on_average_only_is_undecided():
    world = World(space([4]), noise=0.01)
    one = search(world, budget=60, seeds=3, verify=4)
    found = one.run()
    assert found.verdict == UNDECIDED
    assert Advice(one, found).exit_code == 3
    assert len(found.chosen.outcomes) == 3 + 2 * 4  # twice as many fresh seeds as for one that is clear


def test_a_budget_that_ends_before_the_answer_is_verified_says_so():
    world = World(space([4, 8, 16]), fresh=0.5, wanting=5)
    one = search(world, budget=32, seeds=3, verify=5)
    found = one.run()
    assert found.verdict == UNDECIDED
    assert list(found.verified.values()) == ["misses"] * 3
    assert "on the seeds of the search; the budget ended there" in Advice(one, found).sentence()


def test_infeasible_names_the_goal_how_far_it_is_and_the_limit_that_binds():
    world = World(space([1, 2, 3]))
    one = search(world, budget=60, seeds=3, verify=5)
    found = one.run()
    assert found.verdict == INFEASIBLE
    advice = Advice(one, found)
    assert advice.exit_code == 1
    assert advice.overrides == []
    told = advice.sentence()
    assert (
        "none of the 9 of 9 candidates that were played meets 90 % of all requests with TTFT within 0.5 s"
        in told
    )
    assert "The closest, strategy=good tiers.ram.gib=3 (13 an hour), has 88 % of requests within it" in told
    assert "(p90 TTFT is 0.55 s, +0.05 s)" in told
    assert "with tiers.ram.gib=3, the most that may be chosen" in told


def test_a_candidate_that_cannot_be_played_does_not_stop_the_search():
    world = World(space([1, 4]))

    def play(pairs):
        return [
            Outcome(error="no room") if world.among.combinations[number]["strategy"] == "poor" else one
            for (number, _), one in zip(pairs, world.play(pairs), strict=True)
        ]

    one = Search(world.among, AdviceSettings(ttft_s=0.5, percentile=90, budget=60, seeds=3, verify=5), play)
    found = one.run()
    assert found.verdict == MEETS
    assert any(Advice(one, found).state(each) == "failed: no room" for each in one.candidates.values())


def test_optuna_is_asked_for_only_where_it_is_needed(monkeypatch):
    monkeypatch.setattr("sim.advise.search.find_spec", lambda _module: None)
    search(World(space([1, 2])), budget=30, seeds=2, verify=3).check()
    with pytest.raises(
        BadSettings, match=r"300 candidates .* needs Optuna: pip install 'modelyard\[advise\]'"
    ):
        search(World(space(range(1, 101))), budget=30, seeds=2, verify=3).check()
