"""Which candidate meets the goals at least cost, within a budget of simulations.

What a candidate costs is known before anything is simulated, so that nothing is played which costs more than the best
one that was found. A few candidates are taken in the order of their costs, and all that are cheaper than the answer
have been played; of many, Optuna's TPE proposes batches. A batch has the same size whatever the number of workers, so
the search is the same. A candidate that misses a goal by far on its first seed is not played on the others.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import groupby
from typing import Self

from engine.errors import BadSettings
from sim.advise.evidence import Candidate, Outcome
from sim.advise.settings import AdviceSettings, Goal
from sim.advise.space import Space, is_number

BATCH = 4
FAR = 0.05
"""A goal missed by so much on the first seed is missed."""

MOST_IDLE = 10
"""Batches in a row without a candidate that is new and not too dear."""

MEETS, MISSES, UNDECIDED, INFEASIBLE = "meets", "misses", "undecided", "infeasible"

Play = Callable[[Sequence[tuple[int, int]]], Sequence[Outcome]]
"""Play candidates (by number) on seeds; what each run says, in their order."""


@dataclass(slots=True)
class Verdict:
    """What the search found."""

    verdict: str
    chosen: Candidate | None
    """The cheapest that meets the goals on fresh seeds; where none does, the one that misses them by least."""
    verified: dict[int, str]
    """By number of each candidate that was played on fresh seeds: meets, misses, undecided."""
    spent: int
    is_whole: bool
    """Whether every candidate that is cheaper than the chosen one was played."""


@dataclass(frozen=True, slots=True)
class Axis:
    """A setting that is searched; `is_row`: its values have an order, and are in it."""

    name: str
    values: list[str]
    is_row: bool

    @classmethod
    def of(cls, name: str, values: Sequence[str]) -> Self:
        is_row = all(map(is_number, values))
        return cls(name, sorted(values, key=float) if is_row else list(values), is_row)


@dataclass(slots=True)
class Search:
    """One search."""

    space: Space
    settings: AdviceSettings
    play: Play
    candidates: dict[int, Candidate] = field(default_factory=dict)
    verified: dict[int, str] = field(default_factory=dict)
    spent: int = 0

    @property
    def seeds(self) -> list[int]:
        """Of the search."""
        return list(range(self.space.base.seed, self.space.base.seed + self.settings.seeds))

    def fresh(self, count: int) -> list[int]:
        """Seeds that the search does not use."""
        first = self.seeds[-1] + 1
        return list(range(first, first + count))

    @property
    def goals(self) -> list[Goal]:
        return self.settings.goals

    @property
    def is_small(self) -> bool:
        """Whether the budget is enough for all candidates."""
        return len(self.space) * self.settings.seeds <= self.settings.budget - self.settings.verify

    def check(self) -> None:
        """Raise BadSettings where Optuna is needed and is not there."""
        if not self.is_small and find_spec("optuna") is None:
            enough = len(self.space) * self.settings.seeds + self.settings.verify
            raise BadSettings(
                f"to search {len(self.space):,} candidates with a budget of {self.settings.budget} needs Optuna: "
                f"pip install 'modelyard[advise]'; with budget={enough} all of them are played without it"
            )

    def run(self) -> Verdict:
        """Search, and play the cheapest that meets the goals on seeds that the search has not seen.

        Where it does not meet them there, surely, the search goes on among those that cost more.
        """
        go_on = self._in_order if self.is_small else self._proposing()
        while True:
            go_on()
            one = self._cheapest()
            if one is None or not self._verify(one) or self.verified[one.number] == MEETS:
                return self._found(one)

    def ranked(self) -> list[Candidate]:
        """The candidates that were played: those that met the goals by cost, then the others by what they lack."""
        good: list[Candidate] = []
        bad: list[Candidate] = []
        for each in self.candidates.values():
            (good if each.meets(self.seeds) else bad).append(each)
        good.sort(key=lambda each: (each.cost, -each.margin(self.seeds), each.number))
        bad.sort(key=lambda each: (-each.margin(self.seeds), each.cost, each.number))
        return [*good, *bad]

    def _cheapest(self) -> Candidate | None:
        """Of those that met the goals and were not found wanting on fresh seeds."""
        good = (each for each in self.ranked() if each.meets(self.seeds))
        return next((each for each in good if each.number not in self.verified), None)

    def _best_cost(self) -> float:
        one = self._cheapest()
        return float("inf") if one is None else one.cost

    def _in_order(self) -> None:
        numbers = sorted(range(len(self.space)), key=lambda number: (self.space.costs[number], number))
        for cost, alike in groupby(numbers, lambda number: self.space.costs[number]):
            if cost > self._best_cost():
                return
            group = list(alike)
            for begin in range(0, len(group), BATCH):
                self._try(group[begin : begin + BATCH])

    def _proposing(self) -> Callable[[], None]:
        """A search by Optuna's TPE that can be gone on with."""
        import optuna  # noqa: PLC0415  an extra, and slow to import

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        axes = [Axis.of(name, values) for name, values in self.space.plan.swept.items()]
        numbers = {tuple(each.values()): number for number, each in enumerate(self.space.combinations)}
        distributions: dict[str, optuna.distributions.BaseDistribution] = {
            axis.name: optuna.distributions.IntDistribution(0, len(axis.values) - 1)
            if axis.is_row
            else optuna.distributions.CategoricalDistribution(list(range(len(axis.values))))
            for axis in axes
        }
        sampler = optuna.samplers.TPESampler(seed=self.space.base.seed, multivariate=True, constant_liar=True)
        study = optuna.create_study(sampler=sampler, direction="minimize")
        for end in (-1, 0):  # the largest says whether it can be done at all, and the smallest costs least
            study.enqueue_trial(
                {axis.name: range(len(axis.values))[end] if axis.is_row else 0 for axis in axes}
            )

        def propose() -> None:
            idle = 0
            while self._room() and idle < MOST_IDLE:
                trials = [study.ask(distributions) for _ in range(BATCH)]
                chosen = [
                    numbers[tuple(axis.values[trial.params[axis.name]] for axis in axes)] for trial in trials
                ]
                idle = 0 if self._try(chosen) or self._try(self._next_cheaper()) else idle + 1
                for trial, number in zip(trials, chosen, strict=True):
                    for goal in self.goals:
                        trial.set_constraint(goal.name, self._missed(number, goal))
                    study.tell(trial, self.space.costs[number])

        return propose

    def _next_cheaper(self) -> list[int]:
        """Those just below the best that were not played, for when the sampler proposes nothing that is new."""
        best = self._best_cost()
        if best == float("inf"):
            return []
        costs = self.space.costs
        cheaper = [
            number for number, cost in enumerate(costs) if cost < best and number not in self.candidates
        ]
        return sorted(cheaper, key=lambda number: (-costs[number], number))[:BATCH]

    def _missed(self, number: int, goal: Goal) -> float:
        """How far a candidate is from a goal; 0 of one that was too dear to be played."""
        one = self.candidates.get(number)
        if one is None:
            return 0.0
        return goal.share if one.error else goal.share - one.share(goal, self.seeds).mean

    def _room(self) -> int:
        """Candidates that can be played on all seeds before the budget for verifying is touched."""
        return max(0, (self.settings.budget - self.settings.verify - self.spent) // self.settings.seeds)

    def _try(self, numbers: Iterable[int]) -> bool:
        """Play those that are not known and not dearer than the best; whether there were any.

        All on the first seed, and those that are not far from their goals on the others.
        """
        best = self._best_cost()
        new = [number for number in dict.fromkeys(numbers) if number not in self.candidates]
        new = [number for number in new if self.space.costs[number] <= best][: self._room()]
        first, *others = self.seeds
        self._play([(number, first) for number in new])
        close = [
            number
            for number in new
            if not self.candidates[number].error and self.candidates[number].margin([first]) >= -FAR
        ]
        self._play([(number, seed) for number in close for seed in others])
        return bool(new)

    def _play(self, pairs: Sequence[tuple[int, int]]) -> None:
        self.spent += len(pairs)
        assert self.spent <= self.settings.budget, "the budget is kept"
        for (number, seed), outcome in zip(pairs, self.play(pairs) if pairs else (), strict=True):
            one = self.candidates.setdefault(
                number, Candidate(number, self.space.costs[number], self.goals, wanted=self.settings.seeds)
            )
            one.outcomes[seed] = outcome

    def _verify(self, one: Candidate) -> bool:
        """Play it on fresh seeds, twice as many where it meets the goals on average only; whether there was room.

        Where no seed changes anything, fresh ones would not either.
        """
        if one.is_same_on_all:
            self.verified[one.number] = MEETS
            return True
        for count in (self.settings.verify, 2 * self.settings.verify):
            missing = [seed for seed in self.fresh(count) if seed not in one.outcomes]
            if self.spent + len(missing) > self.settings.budget:
                break
            self._play([(one.number, seed) for seed in missing])
            self.verified[one.number] = self._on_fresh(one, self.fresh(count))
            if self.verified[one.number] != UNDECIDED:
                break
        return one.number in self.verified

    def _found(self, last: Candidate | None) -> Verdict:
        """The answer, once there is nothing left to verify, or nothing to verify it with."""
        perhaps = [number for number, told in self.verified.items() if told == UNDECIDED]
        if last is not None and self.verified.get(last.number) == MEETS:
            verdict, chosen = MEETS, last
        elif perhaps:
            verdict, chosen = UNDECIDED, self.candidates[perhaps[0]]
        elif last is not None:  # the budget did not last for it
            verdict, chosen = UNDECIDED, last
        else:
            return Verdict(
                INFEASIBLE, self._closest(), self.verified, self.spent, self._is_whole(float("inf"))
            )
        return Verdict(verdict, chosen, self.verified, self.spent, self._is_whole(chosen.cost))

    def _closest(self) -> Candidate | None:
        """The one that misses the goals by least, over all seeds that it was played on."""
        return max(
            (each for each in self.candidates.values() if not each.error),
            key=lambda each: (each.margin(self._known(each)), -each.excess(self._known(each)), -each.number),
            default=None,
        )

    def _known(self, one: Candidate) -> list[int]:
        """All seeds that it was played on."""
        return sorted(one.outcomes)

    def _on_fresh(self, one: Candidate, seeds: Sequence[int]) -> str:
        if not one.meets(seeds):
            return MISSES
        surely = all(one.share(goal, seeds).low >= goal.share for goal in self.goals)
        return MEETS if surely else UNDECIDED

    def _is_whole(self, cost: float) -> bool:
        return all(number in self.candidates for number, other in enumerate(self.space.costs) if other < cost)
