"""The exact side of class A: small runs that never change, and what must be equal of them."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

from sim.faults import Crash, Recover
from sim.gate.fleet import conversations, five_models, prompts, three_replicas
from sim.gate.worker import Tell
from sim.metrics import TIERS
from sim.stage import Stage


@dataclass(frozen=True, slots=True)
class Counts:
    """What happened in a run, as integers, and the digest of its requests table."""

    events: int
    routed: int
    completed: int
    second_tries: int
    hit_tokens: int
    stored_bytes: int
    blocks: int
    digest: str


def failover() -> Stage:
    """Three replicas of one model; one dies with requests in its hands and comes back."""
    stage = Stage(three_replicas(), prompts(200))
    stage.at(2.0, Crash("b", holding=2, patience_s=1.0), "replica")
    stage.at(6.0, Recover("b"), "replica")
    return stage


def five() -> Stage:
    """Five models behind tiers that are soon full."""
    return Stage(five_models(), conversations(250))


RUNS: dict[str, Callable[[], Stage]] = {"failover": failover, "five_models": five}


def runs(tell: Tell, names: list[str]) -> None:
    """Tell the counts of each run."""
    for name in names:
        tell({"name": name, **asdict(played(RUNS[name]()))})


def played(stage: Stage) -> Counts:
    try:
        stage.play()
        requests = stage.recorder.requests()
        return Counts(
            stage.events,
            len(stage.recorder.decisions()),
            int((requests["outcome"] == "completed").sum()),
            int((requests["attempts"] > 1).sum()),
            int(requests[[f"cached_tokens_{tier}" for tier in TIERS]].to_numpy().sum()),
            sum(tier.used_bytes for tier in stage.engine.cache.tiers),
            len(stage.engine.cache),
            stage.recorder.digest(),
        )
    finally:
        stage.close()
