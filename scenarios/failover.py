"""One replica of the fleet dies under load and comes back. Callers should not notice."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

from engine.settings import above, require
from engine.settings import at_least as least
from sim.checks import (
    Check,
    all_completed,
    at_least,
    at_most,
    equal_share,
    evidence,
    grown,
    p99_at_most,
    within,
)
from sim.faults import crash, recover
from sim.runs import Run
from sim.stage import Stage


@dataclass
class Settings:
    """Every number of the story. A time that is not given follows from the share of requests arrived by then."""

    name: str
    victim: str
    dies_at_share: float
    returns_at_share: float
    dies_at_s: float | None
    returns_at_s: float | None
    dies_holding: int
    patience_s: float
    max_unhealthy_after_s: float
    max_share_error: float
    max_second_tries: int
    max_p99_growth: float
    max_p99_ttft_s: float
    max_p99_e2e_s: float
    max_back_after_s: float
    min_share_after: float
    min_outage_requests: int

    def __post_init__(self) -> None:
        for name in ("dies_at_share", "returns_at_share"):
            share = getattr(self, name)
            require(f"scenario.{name}", share, 0 <= share < 1, "at least 0 and below 1")
        for name in ("dies_at_s", "returns_at_s"):
            if (time_s := getattr(self, name)) is not None:
                least(f"scenario.{name}", time_s, 0)
        least("scenario.dies_holding", self.dies_holding, 0)
        least("scenario.patience_s", self.patience_s, 0)
        least("scenario.min_outage_requests", self.min_outage_requests, 0)
        above("scenario.max_share_error", self.max_share_error, 0)

    @property
    def fewest_to_share(self) -> int:
        """With fewer requests even strict alternation can miss an equal share by more than is allowed."""
        return ceil(1 / (2 * self.max_share_error))


def script(stage: Stage, s: Settings) -> None:
    arrival_s = stage.trace.arrival_s
    dies_s = s.dies_at_s if s.dies_at_s is not None else arrival_s(s.dies_at_share)
    returns_s = s.returns_at_s if s.returns_at_s is not None else arrival_s(s.returns_at_share)
    require(
        "scenario.returns_at_s", returns_s, returns_s > dies_s, f"after the replica's death at {dies_s:g} s"
    )
    patience_s = min(s.patience_s, (returns_s - dies_s) / 2)
    stage.at(dies_s, crash(s.victim, holding=s.dies_holding, patience_s=patience_s), "scenario.victim")
    stage.at(returns_s, recover(s.victim), "scenario.victim")


def checks(run: Run, s: Settings) -> Iterator[Check]:
    died_s, returned_s = run.mark_s("crash", s.victim), run.mark_s("recover", s.victim)
    back_s = run.mark_s("healthy", s.victim, returned_s)
    outage, after = run.between(died_s, returned_s), run.after(back_s)
    in_hand = run.at_mark("requests_in_hand", "crash", s.victim)
    survivors = [replica for replica in run.replicas if replica != s.victim]
    served = " ".join(f"{name} {outage.served_by(name)}" for name in survivors)

    yield all_completed(run.whole, published="0")
    yield evidence("requests after its death", outage.count, s.min_outage_requests, published="100")
    yield evidence("requests in its hands when it died", in_hand, s.dies_holding)
    given = outage.given_to(s.victim, returned_s)  # who waited until it was back may well go there
    yield at_most("requests of the outage that it served", given, 0, f"n={outage.count}", published="0")
    error = outage.share_error(survivors, s.fewest_to_share)
    name = "distance of a survivor from an equal share"
    count, parts = outage.count, len(survivors)
    yield equal_share(name, error, s.max_share_error, count, parts, served, published="50/50 of three")
    delay_s = run.delay_s("unhealthy", s.victim, died_s)
    name, was_due = "unhealthy after its death, s", returned_s is not None
    yield within(name, delay_s, s.max_unhealthy_after_s, was_due=was_due, published="30 s")
    tries = (in_hand or 0) + s.max_second_tries
    yield at_most(
        "requests that needed a second try",
        run.whole.second_tries,
        tries,
        f"{in_hand or 0} were in its hands",
    )
    calm = run.between(0.0, died_s)
    ttft_limit_s = grown(calm.ttft_s, s.max_p99_growth, s.max_p99_ttft_s)
    yield p99_at_most("p99 TTFT in the outage, s", outage.ttft_s, ttft_limit_s)
    e2e_limit_s = grown(calm.e2e_s, s.max_p99_growth, s.max_p99_e2e_s)
    yield p99_at_most("p99 E2E in the outage, s", outage.e2e_s, e2e_limit_s)
    delay_s = run.served_again_s(s.victim, returned_s)
    name, was_due = "serves again after its return, s", after.count > 0
    yield within(name, delay_s, s.max_back_after_s, was_due=was_due, published="60 s")
    share = after.share(s.victim, s.fewest_to_share)
    yield at_least("its share once it is healthy again", share, s.min_share_after, f"n={after.count}")
