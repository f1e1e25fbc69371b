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

ASKED_A_RUN = 20
"""Proposals that TPE may make for each run of the budget: many are known or too dear."""

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
        """Search, and play the cheapest that meets the goals on seeds that the search has not seen."""
        if self.is_small:
            self._in_order()
        else:
            self._proposed()
        return self._verified()

    def ranked(self) -> list[Candidate]:
        """The candidates that were played: those that met the goals by cost, then the others by what they lack."""
        good: list[Candidate] = []
        bad: list[Candidate] = []
        for each in self.candidates.values():
            (good if each.meets(self.seeds) else bad).append(each)
        good.sort(key=lambda each: (each.cost, -each.margin(self.seeds), each.number))
        bad.sort(key=lambda each: (-each.margin(self.seeds), each.cost, each.number))
        return [*good, *bad]

    def _best_cost(self) -> float:
        good = [each.cost for each in self.candidates.values() if each.meets(self.seeds)]
        return min(good, default=float("inf"))

    def _in_order(self) -> None:
        numbers = sorted(range(len(self.space)), key=lambda number: (self.space.costs[number], number))
        for cost, alike in groupby(numbers, lambda number: self.space.costs[number]):
            if cost > self._best_cost():
                return
            group = list(alike)
            for begin in range(0, len(group), BATCH):
                self._try(group[begin : begin + BATCH])

    def _proposed(self) -> None:
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
        for _ in range(ASKED_A_RUN * self.settings.budget // BATCH):
            if not self._room():
                return
            trials = [study.ask(distributions) for _ in range(BATCH)]
            chosen = [
                numbers[tuple(axis.values[trial.params[axis.name]] for axis in axes)] for trial in trials
            ]
            best = self._best_cost()
            self._try(each for each in dict.fromkeys(chosen) if self.space.costs[each] <= best)
            for trial, number in zip(trials, chosen, strict=True):
                for goal in self.goals:
                    trial.set_constraint(goal.name, self._missed(number, goal))
                study.tell(trial, self.space.costs[number])

    def _missed(self, number: int, goal: Goal) -> float:
        """How far a candidate is from a goal; 0 of one that was too dear to be played."""
        one = self.candidates.get(number)
        if one is None:
            return 0.0
        return goal.share if one.error else goal.share - one.share(goal, self.seeds).mean

    def _room(self) -> int:
        """Candidates that can be played on all seeds before the budget for verifying is touched."""
        return (self.settings.budget - self.settings.verify - self.spent) // self.settings.seeds

    def _try(self, numbers: Iterable[int]) -> None:
        """Play candidates that are not known: all on the first seed, those not far from their goals on the others."""
        new = [number for number in numbers if number not in self.candidates][: self._room()]
        first, *others = self.seeds
        self._play([(number, first) for number in new])
        close = [
            number
            for number in new
            if not self.candidates[number].error and self.candidates[number].margin([first]) >= -FAR
        ]
        self._play([(number, seed) for number in close for seed in others])

    def _play(self, pairs: Sequence[tuple[int, int]]) -> None:
        self.spent += len(pairs)
        assert self.spent <= self.settings.budget, "the budget is kept"
        for (number, seed), outcome in zip(pairs, self.play(pairs) if pairs else (), strict=True):
            one = self.candidates.setdefault(
                number, Candidate(number, self.space.costs[number], self.goals, wanted=self.settings.seeds)
            )
            one.outcomes[seed] = outcome

    def _verified(self) -> Verdict:
        """Play those that met the goals on fresh seeds, the cheapest first, while the budget lasts.

        One that meets them on average there, but not surely, is played on as many seeds more.
        """
        verified: dict[int, str] = {}
        settings = self.settings
        for one in [each for each in self.ranked() if each.meets(self.seeds)]:
            for count in (settings.verify, 2 * settings.verify):
                missing = [seed for seed in self.fresh(count) if seed not in one.outcomes]
                if self.spent + len(missing) > settings.budget:
                    break
                self._play([(one.number, seed) for seed in missing])
                verified[one.number] = self._on_fresh(one, self.fresh(count))
                if verified[one.number] != UNDECIDED:
                    break
            if verified.get(one.number) == MEETS:
                return Verdict(MEETS, one, verified, self.spent, self._is_whole(one.cost))
        perhaps = [number for number, told in verified.items() if told == UNDECIDED]
        if perhaps:
            one = self.candidates[perhaps[0]]
            return Verdict(UNDECIDED, one, verified, self.spent, self._is_whole(one.cost))
        good = [each for each in self.ranked() if each.meets(self.seeds) and each.number not in verified]
        if good:  # the budget did not last for them
            return Verdict(UNDECIDED, good[0], verified, self.spent, self._is_whole(good[0].cost))
        closest = max(
            (each for each in self.candidates.values() if not each.error),
            key=lambda each: (each.margin(self._known(each)), -each.number),
            default=None,
        )
        return Verdict(INFEASIBLE, closest, verified, self.spent, self._is_whole(float("inf")))

    def _known(self, one: Candidate) -> list[int]:
        """All seeds that it was played on."""
        return sorted(one.outcomes)

    def _on_fresh(self, one: Candidate, seeds: Sequence[int]) -> str:
        if one.error or one.margin(seeds) < 0:
            return MISSES
        surely = all(one.share(goal, seeds).low >= goal.share for goal in self.goals)
        return MEETS if surely else UNDECIDED

    def _is_whole(self, cost: float) -> bool:
        return all(number in self.candidates for number, other in enumerate(self.space.costs) if other < cost)
