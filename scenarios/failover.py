"""One replica of the fleet dies under load and comes back. Callers should not notice."""

from collections.abc import Iterator
from dataclasses import dataclass

from engine.settings import above, at_least as least, require
from sim.checks import Check, at_least, at_most, p99_at_most
from sim.faults import crash, recover
from sim.runs import Run
from sim.stage import Stage

FEWEST_TO_SHARE = 20
"""Below this, one request more or less moves a share by over 5 points."""


@dataclass
class Settings:
    """Every number of the story; times in seconds from the first arrival."""

    name: str
    victim: str
    dies_at_s: float
    dies_holding: int
    patience_s: float
    returns_at_s: float
    max_unhealthy_after_s: float
    max_share_error: float
    max_misrouted: int
    max_p99_ttft_s: float
    max_p99_e2e_s: float
    max_back_after_s: float
    min_share_after: float

    def __post_init__(self) -> None:
        least("scenario.dies_at_s", self.dies_at_s, 0)
        least("scenario.dies_holding", self.dies_holding, 0)
        least("scenario.patience_s", self.patience_s, 0)
        above("scenario.returns_at_s", self.returns_at_s, self.dies_at_s)
        patient = self.dies_at_s + self.patience_s < self.returns_at_s
        require("scenario.patience_s", self.patience_s, patient, "short enough to end before returns_at_s")


def script(stage: Stage, s: Settings) -> None:
    stage.at(s.dies_at_s, crash(s.victim, holding=s.dies_holding, patience_s=s.patience_s))
    stage.at(s.returns_at_s, recover(s.victim))


def checks(run: Run, s: Settings) -> Iterator[Check]:
    died_s, returned_s = run.mark_s("crash", s.victim), run.mark_s("recover", s.victim)
    outage, after = run.between(died_s, returned_s), run.after(run.mark_s("healthy", s.victim))
    in_hand = run.at_mark("requests_in_hand", "crash", s.victim)
    survivors = [replica for replica in run.replicas if replica != s.victim]
    yield at_most("requests that did not complete", run.whole.not_completed, 0, f"n={run.whole.count}")
    yield at_least("requests in the victim's hands when it died", in_hand, s.dies_holding)
    yield at_most(
        "requests of the outage served by the victim", outage.served_by(s.victim), 0, f"n={outage.count}"
    )
    yield at_most(
        "largest distance of a survivor from an equal share",
        outage.share_error(survivors, fewest=FEWEST_TO_SHARE),
        s.max_share_error,
        " ".join(f"{name} {outage.served_by(name)}" for name in survivors),
    )
    yield at_most(
        "unhealthy after its death, s",
        run.first_mark_after("unhealthy", s.victim, died_s),
        s.max_unhealthy_after_s,
    )
    yield at_most(
        "requests that needed a second try",
        run.whole.second_tries,
        (in_hand or 0) + s.max_misrouted,
        "those in its hands, and at most a few more",
    )
    yield p99_at_most("p99 TTFT of the outage, s", outage.ttft_s, s.max_p99_ttft_s)
    yield p99_at_most("p99 E2E of the outage, s", outage.e2e_s, s.max_p99_e2e_s)
    yield at_most(
        "first request served after its return, s",
        run.first_served_after(s.victim, returned_s),
        s.max_back_after_s,
    )
    yield at_least(
        "its share once it is healthy again",
        after.share(s.victim, fewest=FEWEST_TO_SHARE),
        s.min_share_after,
        f"n={after.count}",
    )
