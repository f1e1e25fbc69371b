"""A user talks to any model, and keeps the one that she met; after a long pause she meets one anew, and keeps that.

The crowd around her talks with pauses, too: what was said lies in the cache of the model that a session keeps.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from engine.routing.decisions import SESSION
from engine.settings import above, require
from engine.settings import at_least as least
from sim.checks import Check, all_completed, at_least, at_most, gains
from sim.metrics import token_hit_ratio
from sim.runs import Run, Window
from sim.stage import Stage
from sim.traffic import Trace
from sim.traffic.woven import woven


@dataclass
class Settings:
    """Whom the story follows, when she talks, and how much better conversations must be remembered."""

    name: str
    session: str
    begins_s: float
    turns: int  # before her pause, and after it
    every_s: float
    pause_s: float  # from her last turn to the next
    user_tokens: int  # what each turn adds
    output_tokens: int
    min_gain: float

    def __post_init__(self) -> None:
        least("scenario.begins_s", self.begins_s, 0)
        require("scenario.turns", self.turns, self.turns >= 2, "at least 2")  # noqa: PLR2004  one keeps nothing
        for name in ("every_s", "pause_s", "user_tokens", "output_tokens"):
            above(f"scenario.{name}", getattr(self, name), 0)
        require("scenario.pause_s", self.pause_s, self.pause_s > self.every_s, "above scenario.every_s")

    @property
    def returns_s(self) -> float:
        """When her pause ends."""
        return self.begins_s + (self.turns - 1) * self.every_s + self.pause_s


def traffic(trace: Trace, s: Settings) -> Trace:
    require("workload", trace.source, trace.session is not None, "traffic with sessions, such as mix_b_auto")
    turns = [number * s.every_s for number in range(s.turns)]
    at_s = [begin + each for begin in (s.begins_s, s.returns_s) for each in turns]
    return woven(trace, s.session, at_s, s.user_tokens, s.output_tokens)


def script(stage: Stage, s: Settings) -> None:
    """Nothing happens but that people talk."""


def checks(run: Run, s: Settings) -> Iterator[Check]:
    yield all_completed(run.whole)
    before = hers(run.between(0.0, s.returns_s), s)
    after = hers(run.after(s.returns_s), s)
    met = first(before.requests, "model"), first(after.requests, "model")
    for window, when, model in ((before, "before", met[0]), (after, "after", met[1])):
        kept = int((window.completed["model"] == model).sum())
        published = f"{s.turns} of {s.turns}" if when == "before" else ""
        yield at_least(f"turns on one model {when} the pause", kept, s.turns, f"{model}", published=published)
        follow_ups = window.requests["request_id"].iloc[1:]
        yield at_least(
            f"turns that found their session {when} the pause", found(run, follow_ups), s.turns - 1
        )
    anew = found(run, after.requests["request_id"].iloc[:1])
    yield at_most("first turns after the pause that found their session", anew, 0, f"{met[0]}, then {met[1]}")
    note = "of what was said before, over the same strategy without sessions"
    yield gains("more of their prompts remembered, share", gained(run, s), s.min_gain, note, published="22 %")


def hers(window: Window, s: Settings) -> Window:
    """The requests of her session."""
    return Window(window.requests[window.requests["session"] == s.session])


def first(requests: pd.DataFrame, column: str) -> str | None:
    """The value of a column in the first row; None where there is none."""
    return str(requests[column].iloc[0]) if len(requests) else None


def found(run: Run, request_ids: "pd.Series[int]") -> int | None:
    """How many of those requests went where they went because of their session; None where none are on record."""
    decisions = run.decisions[run.decisions["request_id"].isin(request_ids)]
    return int((decisions["reason"] == SESSION).sum()) if len(decisions) else None


def gained(run: Run, s: Settings) -> list[float]:
    """What sessions add to the hit ratio of the crowd's follow-up turns, seed by seed, as a share of it without."""
    pairs = zip(run.beside.get("itself", []), run.beside.get("no_sessions", []), strict=False)
    ratios = [[token_hit_ratio(follow_ups(each, s)) for each in pair] for pair in pairs]
    return [ours / theirs - 1 for ours, theirs in ratios if ours is not None and theirs]


def follow_ups(run: Run, s: Settings) -> pd.DataFrame:
    """The completed requests of the crowd that have something said before them."""
    turns = run.requests[run.requests["session"] != s.session].sort_values("arrival_ns")
    return turns[turns.duplicated("session") & (turns["outcome"] == "completed")]
