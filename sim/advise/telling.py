"""What is said and kept of a search: the choice with its lines, the evidence for it, and all other candidates."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sim.advise.evidence import Candidate
from sim.advise.search import INFEASIBLE, MEETS, UNDECIDED, Search, Verdict
from sim.advise.settings import TPOT, TTFT, Goal
from sim.advise.space import is_number
from sim.copies import SAME
from sim.intervals import Interval
from sim.plan import label
from sim.stats import difference

MOST_SHOWN = 12
FINITE = float("inf")


class Advice:
    """A search that has ended, in words and tables."""

    def __init__(self, search: Search, found: Verdict) -> None:
        self.search, self.found = search, found
        self.goals = search.goals
        self.seeds = search.seeds
        """Of the search."""

    @property
    def verdict(self) -> str:
        """meets, undecided or infeasible."""
        return self.found.verdict

    @property
    def exit_code(self) -> int:
        return {MEETS: 0, INFEASIBLE: 1, UNDECIDED: 3}[self.verdict]

    @property
    def chosen(self) -> Candidate | None:
        return self.found.chosen

    @property
    def overrides(self) -> list[str]:
        """The lines that make the choice; without a choice there are none."""
        if self.chosen is None or self.verdict == INFEASIBLE:
            return []
        return list(self.search.space.lines(self.chosen.number))

    @property
    def fresh(self) -> list[int]:
        """The seeds on which the choice was verified."""
        if self.chosen is None:
            return []
        return [seed for seed in sorted(self.chosen.outcomes) if seed not in self.seeds]

    def sentence(self) -> str:
        """The answer."""
        one, space = self.chosen, self.search.space
        goals = "; ".join(goal.told for goal in self.goals)
        if one is None:
            errors = sorted({each.error for each in self.search.candidates.values() if each.error})
            return f"no candidate could be played: {errors[0]}"
        if self.verdict == INFEASIBLE:
            played = f"{len(self.search.candidates)} of {len(space)} candidates that were played"
            return f"infeasible: none of the {played} meets {goals}. {self.binding()}"
        name = label(space.combinations[one.number])
        if self.verdict == MEETS:
            told = "" if self.fresh else f"; {SAME}, and no other traffic was seen"
            return f"{name} meets {goals}, for {one.cost:.6g} an hour{self._least()}{told}"
        told = (
            "on average, but not surely"
            if self.fresh
            else "on the seeds of the search; the budget ended there"
        )
        return f"undecided: {name} meets {goals} {told}, for {one.cost:.6g} an hour{self._least()}"

    def binding(self) -> str:
        """Which goal the closest candidate misses, by how much, and which of its sizes are the largest there are."""
        one, space = self.chosen, self.search.space
        if one is None:
            return ""
        seeds = sorted(one.outcomes)
        goal = min(self.goals, key=lambda goal: one.share(goal, seeds).mean - goal.share)
        combination = space.combinations[one.number]
        at_most = [
            f"{name}={value}"
            for name, value in combination.items()
            if is_number(value) and float(value) == max(map(float, space.plan.swept[name]))
        ]
        limits = (
            f"with {', '.join(at_most)}, the most that may be chosen"
            if at_most
            else "with no size at its largest"
        )
        within, beyond = 100 * one.share(goal, seeds).mean, self._beyond(one, goal, seeds)
        return (
            f"The closest, {label(combination)} ({one.cost:.6g} an hour), has {within:.4g} % of requests within it "
            f"where {100 * goal.share:.4g} % are asked for{beyond}, {limits}."
        )

    def table(self) -> pd.DataFrame:
        """candidates.csv: one row a candidate that was played, the best first."""
        return pd.DataFrame([self._row(place, each) for place, each in enumerate(self._order(), start=1)])

    def told(self) -> dict[str, Any]:
        """advice.json."""
        settings, one = self.search.settings, self.chosen
        return {
            "verdict": self.verdict,
            "sentence": self.sentence(),
            "overrides": self.overrides,
            "cost_per_hour": None if one is None else one.cost,
            "goals": [{"name": goal.name, "share": goal.share, "told": goal.told} for goal in self.goals],
            "prices_per_hour": settings.prices.told(),
            "candidates": len(self.search.space),
            "candidates_played": len(self.search.candidates),
            "all_cheaper_ones_played": self.found.is_whole,
            "budget": settings.budget,
            "simulations": self.found.spent,
            "search_seeds": self.seeds,
            "verification_seeds": self.fresh,
            "verification": {} if one is None or not self.fresh else self._evidence(one, self.fresh),
        }

    def markdown(self) -> str:
        """advice.md: for people."""
        settings = self.search.settings
        prices = ", ".join(f"{name} {price:g}" for name, price in settings.prices.told().items())
        parts = [f"# Advice: {self.verdict}", "", f"{self.sentence()}.".replace("..", ".")]
        if self.overrides:
            parts += ["", "```bash", "python -m sim " + " ".join(map(_typed, self.overrides)), "```"]
        if self.chosen is not None and self.fresh:
            parts += ["", f"On seeds {self.fresh[0]} to {self.fresh[-1]}, which the search did not use:", ""]
            parts += ["| figure | mean | 95 % +- | n |", "|---|---|---|---|"]
            for name, row in self._evidence(self.chosen, self.fresh).items():
                half = "" if row["half_width"] is None else f"{row['half_width']:.2g}"
                mean = "none" if row["mean"] is None else f"{row['mean']:.4g}"
                parts.append(f"| {name} | {mean} | {half} | {row['n']} |")
        search, seeds = self.search, f"seeds {self.seeds[0]} to {self.seeds[-1]}"
        effort = (
            f"{len(search.candidates)} of {len(search.space)} candidates were played in {self.found.spent} of "
            f"{settings.budget} simulations, on {seeds} (candidates.csv; pareto.png). One that missed a goal by far "
            "on its first seed was not played on the others."
        )
        paid = (
            f"Prices an hour, of an accelerator for each replica and of a GiB in each tier: {prices}. Those that "
            "were not given are assumptions."
        )
        parts += ["", effort, "", paid]
        return "\n".join(parts) + "\n"

    def show(self, out: Console) -> None:
        """The candidates, the best first, and the answer."""
        swept = self.search.space.plan.swept
        table = Table(
            box=SIMPLE_HEAD,
            title=f"{len(self.search.candidates)} of {len(self.search.space)} candidates in {self.found.spent} "
            f"simulations; means over seeds with 95 % intervals",
        )
        names = [name for name in (TTFT, TPOT) if any(name in each.latencies_s for each in self._outcomes())]
        heads = [f"p{100 * self.goals[0].share:.4g} {name.upper()}, s" for name in names]
        for head in ("", *swept, "cost/h", *(f"within {goal.name}" for goal in self.goals), *heads, "n", ""):
            table.add_column(head, justify="left" if head in swept else "right", no_wrap=True)
        for place, each in enumerate(self._order()[:MOST_SHOWN], start=1):
            known = sorted(each.outcomes)
            shown = [] if each.error else [_share(each.share(goal, known)) for goal in self.goals]
            shown += [] if each.error else [_with(each.latency_s(name, known)) for name in names]
            shown = shown or [""] * (len(self.goals) + len(names))
            values = self.search.space.combinations[each.number].values()
            table.add_row(str(place), *values, f"{each.cost:.6g}", *shown, str(len(known)), self.state(each))
        out.print(table)
        out.print(self.sentence(), highlight=False, markup=False, soft_wrap=True)
        if self.overrides:
            line = "python -m sim " + " ".join(map(_typed, self.overrides))
            out.print(f"use     {line}", highlight=False, markup=False, soft_wrap=True)

    def points(self) -> list[tuple[str, float, Interval]]:
        """Of pareto.png: name, cost and the latency at the first goal's share, where one is known."""
        name = self.figure
        return [
            (
                label(self.search.space.combinations[each.number]),
                each.cost,
                each.latency_s(name, sorted(each.outcomes)),
            )
            for each in self._order()
            if not each.error and each.latency_s(name, sorted(each.outcomes)).mean < FINITE
        ]

    @property
    def figure(self) -> str:
        """The latency of the goal that is hardest to meet, for the picture."""
        goal = self.goals[0]
        if self.chosen is not None and not self.chosen.error:
            seeds, one = sorted(self.chosen.outcomes), self.chosen
            goal = min(self.goals, key=lambda goal: one.share(goal, seeds).mean - goal.share)
        return TTFT if goal.ttft_s is not None else TPOT

    def state(self, one: Candidate) -> str:
        """What became of a candidate."""
        if one.error:
            return f"failed: {one.error}"
        if one.number in self.found.verified:
            return f"{self.found.verified[one.number]}, {'the same' if one.is_same_on_all else 'verified'}"
        if len(one.on(self.seeds)) < len(self.seeds):
            return "misses by far"
        return MEETS if one.meets(self.seeds) else "misses"

    def _least(self) -> str:
        return (
            ", the least of all candidates"
            if self.found.is_whole
            else ", the least that the budget has found"
        )

    def _order(self) -> list[Candidate]:
        ranked = self.search.ranked()
        return sorted(ranked, key=lambda each: each is not self.chosen)

    def _outcomes(self) -> list[Any]:
        return [each for one in self.search.candidates.values() for each in one.outcomes.values()]

    def _beyond(self, one: Candidate, goal: Goal, seeds: Sequence[int]) -> str:
        parts = []
        for name, limit_s in ((TTFT, goal.ttft_s), (TPOT, goal.tpot_s)):
            if limit_s is not None:
                mean = one.latency_s(name, seeds).mean
                beyond = f"{mean:.4g} s, {mean - limit_s:+.3g} s" if mean < FINITE else "not served at all"
                parts.append(f"p{100 * goal.share:.4g} {name.upper()} is {beyond}")
        return f" ({'; '.join(parts)})" if parts else ""

    def _evidence(self, one: Candidate, seeds: Sequence[int]) -> dict[str, dict[str, Any]]:
        found = {f"share within {goal.name}": one.share(goal, seeds) for goal in self.goals}
        share = 100 * self.goals[0].share
        for name in (TTFT, TPOT):
            if all(name in each.latencies_s for each in one.on(seeds)):
                found[f"p{share:.4g}_{name}_s"] = one.latency_s(name, seeds)
        return {
            name: {
                "mean": each.mean if each.mean < FINITE else None,
                "half_width": each.half_width,
                "n": len(one.on(seeds)),
            }
            for name, each in found.items()
        }

    def _row(self, place: int, one: Candidate) -> dict[str, Any]:
        known = sorted(one.outcomes)
        row: dict[str, Any] = {"place": place, **self.search.space.combinations[one.number]}
        row |= {"cost_per_hour": one.cost, "seeds": len(known), "state": self.state(one)}
        if one.error:
            return row
        for name, each in self._evidence(one, known).items():
            row |= {name: each["mean"], f"{name} half_width": each["half_width"]}
        return row | self._against_chosen(one)

    def _against_chosen(self, one: Candidate) -> dict[str, Any]:
        """The paired difference of its shares from the choice's, over the seeds that both were played on."""
        if self.chosen is None or one is self.chosen or self.chosen.error:
            return {}
        both = [seed for seed in sorted(one.outcomes) if seed in self.chosen.outcomes]
        if one.is_same_on_all and self.chosen.is_same_on_all:
            both = both[:1]
        found: dict[str, Any] = {}
        for goal in self.goals:
            first, second = (
                [each.shares[goal.name] for each in side.on(both)] for side in (self.chosen, one)
            )
            gap = difference(first, second)
            found |= {
                f"{goal.name} share less the choice's": gap.mean,
                f"{goal.name} difference half_width": gap.half_width,
            }
        return found


def _share(found: Interval) -> str:
    return f"{found.mean:.2%}" + ("" if found.half_width is None else f" +- {100 * found.half_width:.2g}")


def _with(found: Interval) -> str:
    if found.mean == FINITE:
        return "not served"
    return f"{found.mean:.4g}" + ("" if found.half_width is None else f" +- {found.half_width:.2g}")


def _typed(line: str) -> str:
    """A line as a shell takes it."""
    return f"'{line}'" if set(line) & set(' []{}()*?$&;|<>"') else line
