"""Conversations begin with one of a few long templates. What others have computed of them is found, and the first
token comes sooner than where everybody computes everything. The same for agents, of many short turns.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from engine.settings import require
from sim import metrics
from sim.checks import Check, all_completed, at_least, gains
from sim.runs import Run, Window
from sim.stage import Stage

KINDS = {"conversations": ("itself", "off", "endless"), "agents": ("agents", "agents_off", "agents_endless")}
"""Of each kind of traffic, the runs with sharing, with no cache, and with one that nothing ever leaves."""


@dataclass
class Settings:
    """What sharing has to save: of the prompts, of what could be saved at all, of the time to first token."""

    name: str
    min_saved: float
    min_of_ideal: float
    min_sooner: float
    min_sooner_at_first: float

    def __post_init__(self) -> None:
        for name in ("min_saved", "min_of_ideal", "min_sooner", "min_sooner_at_first"):
            share = getattr(self, name)
            require(f"scenario.{name}", share, 0 <= share <= 1, "from 0 to 1")


def script(stage: Stage, _: Settings) -> None:
    """Nothing happens but requests."""


def checks(run: Run, s: Settings) -> Iterator[Check]:
    yield all_completed(run.whole)
    for kind, (shared, off, endless) in KINDS.items():
        sharing, alone, ideal = (run.beside.get(name, []) for name in (shared, off, endless))
        if shared == "itself":
            sharing = sharing or [run]
        yield saved(kind, sharing, s)
        yield of_ideal(kind, sharing, ideal, s)
        sooner = [by(ours.whole, theirs.whole) for ours, theirs in zip(sharing, alone, strict=False)]
        name = f"{kind}: part of the time to first token saved"
        yield gains(name, sooner, s.min_sooner, seconds(sharing, alone), published="30 % and more")
        sooner = [by(first(ours), first(theirs)) for ours, theirs in zip(sharing, alone, strict=False)]
        name = f"{kind}: the same of first turns, by what other sessions left"
        yield gains(name, sooner, s.min_sooner_at_first)


def saved(kind: str, runs: Sequence[Run], s: Settings) -> Check:
    """The part of all prompts that needed no prefill."""
    found = sum(int(metrics.cached_tokens(each.whole.completed).sum()) for each in runs)
    asked = sum(int(each.whole.completed["prompt_tokens"].sum()) for each in runs)
    note = f"{found:,} of {asked:,} tokens in {len(runs)} runs"
    return at_least(f"{kind}: part of the prompts saved", found / asked if asked else None, s.min_saved, note)


def of_ideal(kind: str, runs: Sequence[Run], endless: Sequence[Run], s: Settings) -> Check:
    """What was found, as a part of what a cache without end finds."""
    ours, ideal = (
        [each.whole.hit_ratio or 0.0 for each in several] for several in (runs[: len(endless)], endless)
    )
    name = f"{kind}: of what an endless cache would have saved"
    if not ideal or not sum(ideal):
        return at_least(name, None, s.min_of_ideal)
    return at_least(name, sum(ours) / sum(ideal), s.min_of_ideal, f"ideal {np.mean(ideal):.3f}")


def by(ours: Window, theirs: Window) -> float:
    """How much sooner the first token comes, as a part of what it takes without."""
    return 1 - float(ours.ttft_s.mean() / theirs.ttft_s.mean())


def seconds(sharing: Sequence[Run], alone: Sequence[Run]) -> str:
    """The mean times to first token of both."""
    if not alone:
        return ""
    with_it, without = (np.mean([each.whole.ttft_s.mean() for each in runs]) for runs in (sharing, alone))
    return f"{with_it:.3g} s instead of {without:.3g} s"


def first(run: Run) -> Window:
    """The first request of each session: what it finds in the cache, somebody else left there."""
    ordered = run.requests.sort_values(["arrival_ns", "request_id"])
    return Window(ordered[~ordered["session"].duplicated()])
