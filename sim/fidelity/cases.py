"""The cases: kinds of traffic on kinds of systems, none of which a cost model was fitted to."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from engine.clock import NS_PER_S
from engine.routing.targets import AUTO
from engine.settings import require
from sim.config import RunSettings, TimedFault
from sim.config import read as read_run
from sim.faults import crash, recover
from sim.streams import stream
from sim.traffic import Trace, draw
from sim.traffic.synthetic import log_normal_tokens
from sim.traffic.trace import Lengths, Times

COMMON = ("scenario=steady", "executor=torch", "workload=chat", "quotas=off", "report.plots=false")
NO_LINE = ("quotas=concurrent", "quotas.queue_capacity=0")  # whom a limit keeps out is refused at once
LIMIT_BURST = 5
MOST_CROWDED = 120  # requests: a few batches full, and no line that is longer than any that is compared

SMALL_TIERS = ("tiers=ram_ssd", "tiers.ssd.write=back", "tiers.load=always")

SYSTEMS: dict[str, tuple[str, ...]] = {
    "one": ("fleet=three_small", "fleet.replicas=1", "fleet.max_batch=16"),
    "three": ("fleet=three_small", "fleet.replicas=3", "fleet.max_batch=8", "strategy=least_loaded"),
    "routed": (
        "fleet=three_small",
        "fleet.replicas=3",
        "fleet.max_batch=8",
        "strategy=power_of_two",
        *NO_LINE,
    ),
    "five": (
        "fleet=reference_five",
        "fleet.max_batch=8",
        "workload.model_zipf=1.0",
        "workload.prefixes=3",
        *SMALL_TIERS,
        "tiers.ram.gib=0.008",
    ),
    "ranked": (
        "fleet=reference_five",
        "fleet.max_batch=8",
        "workload.prefixes=12",
        *SMALL_TIERS,
        "tiers.ram.gib=0.006",
    ),
    "tiered": (
        "fleet=three_small",
        "fleet.replicas=1",
        "fleet.max_batch=16",
        *SMALL_TIERS,
        "tiers.ram.gib=0.002",
    ),
}
"""What serves: overrides over the common ones. Batches are small, so that a short burst fills them: it tells the
capacity, which is measured once for each."""

SESSIONS = 24  # conversations that go on at a time
MEAN_TURNS = 4.0
TEMPLATES, TEMPLATE_TOKENS = 8, 192
USER_TOKENS, ANSWER_TOKENS = (48, 0.6), (24, 0.5)  # median and sigma of the logarithm


@dataclass(slots=True, frozen=True, kw_only=True)
class Marks:
    """How far a mean and a p99 may be off, as shares of the real figure."""

    mean: float
    p99: float


CALM, BUSY, STRESSED = Marks(mean=0.02, p99=0.04), Marks(mean=0.03, p99=0.06), Marks(mean=0.05, p99=0.10)


@dataclass(slots=True, frozen=True, kw_only=True)
class Case:
    """Traffic at a share of the measured capacity; `marks` None: its figures are shown, and held against nothing."""

    title: str
    load: float
    marks: Marks | None
    system: str = "one"
    cv: float = 1.0  # of the gaps between arrivals: 1 is Poisson
    is_conversation: bool = False
    is_for_any: bool = False  # who answers is the router's to say, of all models
    fails: bool = False  # a replica dies at half time and comes back after another quarter
    limit: float | None = None  # how much of its rate a tenant's limit lets in


CASES = {
    "decisions": Case(
        title="three replicas by the power of two choices, a tenant at its limit, 10 % load",
        load=0.10,
        marks=None,
        system="routed",
        limit=0.9,
    ),
    "poisson50": Case(title="Poisson, 50 % load", load=0.5, marks=CALM),
    "poisson70": Case(title="Poisson, 70 % load", load=0.7, marks=CALM),
    "poisson85": Case(title="Poisson, 85 % load", load=0.85, marks=BUSY),
    "poisson100": Case(title="Poisson, 100 % load", load=1.0, marks=None),
    "bursty": Case(title="Gamma arrivals of CV 3, 70 % load", load=0.7, marks=STRESSED, cv=3.0),
    "five": Case(
        title="five models by Zipf 1, cache pressure, ssd, 70 % load", load=0.7, marks=STRESSED, system="five"
    ),
    "conversations": Case(
        title="conversations, cache pressure, ssd, 70 % load",
        load=0.7,
        marks=STRESSED,
        system="tiered",
        is_conversation=True,
    ),
    "failover": Case(
        title="a replica of three dies at half time, 70 % load",
        load=0.7,
        marks=STRESSED,
        system="three",
        fails=True,
    ),
}

RANKED = Case(
    title="five models of which any may answer, cache pressure, ssd, 70 % load",
    load=0.7,
    marks=None,
    system="ranked",
    is_for_any=True,
)
"""What strategies and allocations are ranked on. Replicas of one model share the core, so it hardly matters which of
them is chosen; models of several sizes do not answer alike."""


def run_settings(case: Case, count: int, overrides: Sequence[str], rate: float | None = None) -> RunSettings:
    """What runs on both sides, with a workload of so many requests; with its limits if it comes at that `rate`.

    Raises BadSettings.
    """
    limits = []
    if case.limit is not None and rate is not None:
        limit = f"tenant: '*', requests_per_s: {case.limit * rate:.6f}, burst_requests: {LIMIT_BURST}"
        limits = [f"quotas.limits=[{{{limit}}}]"]
    return read_run([*COMMON, *SYSTEMS[case.system], f"workload.requests={count}", *limits, *overrides])


def traffic(case: Case, run: RunSettings, count: int, rate: float, seed: int) -> Trace:
    """So many requests at that rate, at times that are known beforehand (an open loop). Raises BadSettings."""
    names = [model.name for model in run.engine.fleet.models]
    if case.is_conversation:
        trace = conversations(count, seed, names[0], vocab=4096)
    else:
        trace = draw(run.workload, seed, [AUTO] if case.is_for_any else names)
        is_open = trace.after is None
        require("workload.kind", run.workload.kind, is_open, "one whose requests wait for no answer")
    return replace(trace, arrival_ns=arrivals(len(trace), rate, case.cv, seed))


def at_once(trace: Trace) -> Trace:
    """The same requests, all at time zero: what a machine makes of as much as it can take."""
    return replace(trace, arrival_ns=np.zeros(len(trace), dtype=np.int64))


def crowd_of(count: int) -> int:
    """How many of so many requests of a calibration run come at once."""
    return min(count // 3, MOST_CROWDED)


def with_burst(trace: Trace) -> Trace:
    """The same requests, the last ones of them at once: calm and crowded, a machine shows all that it does."""
    arrival_ns = trace.arrival_ns.copy()
    first = len(trace) - crowd_of(len(trace))
    arrival_ns[first:] = arrival_ns[min(first, len(trace) - 1)]
    return replace(trace, arrival_ns=arrival_ns)


def arrivals(count: int, rate: float, cv: float, seed: int) -> Times:
    """Arrival times whose gaps are Gamma of mean 1/`rate` and that coefficient of variation."""
    shape = 1 / cv**2
    gaps = stream(seed, "fidelity.arrivals").gamma(shape, 1 / (shape * rate), count)
    return np.rint(np.cumsum(gaps) * NS_PER_S).astype(np.int64)


def faults(case: Case, run: RunSettings, trace: Trace) -> list[TimedFault]:
    """What strikes in that case, besides the faults that were configured."""
    if not case.fails:
        return run.faults
    victim = next(iter(run.engine.fleet.replicas))
    dies_s, returns_s = trace.arrival_s(0.5), trace.arrival_s(0.75)
    own = [TimedFault(at_s=dies_s, fault=crash(victim)), TimedFault(at_s=returns_s, fault=recover(victim))]
    return [*run.faults, *own]


def conversations(count: int, seed: int, model: str, vocab: int) -> Trace:
    """Turns of conversations that begin with shared templates: each prompt is the whole history. Times are all 0."""
    random = stream(seed, "fidelity.conversations")
    user = log_normal_tokens(random, count, *USER_TOKENS, 4, 512)
    answer = log_normal_tokens(random, count, *ANSWER_TOKENS, 2, 128)
    slots = random.integers(SESSIONS, size=count)
    ends = random.random(count) < 1 / MEAN_TURNS
    session, prompt = threaded(slots, ends, user, answer)
    templates = [
        stream(seed, f"fidelity.template.{number}").integers(vocab, size=TEMPLATE_TOKENS, dtype=np.int32)
        for number in range(TEMPLATES)
    ]
    return Trace(
        arrival_ns=np.zeros(count, dtype=np.int64),
        prompt_tokens=prompt,
        output_tokens=answer,
        prefix=(session % TEMPLATES).astype(np.int32),
        prefixes=templates,
        session=session,
        model=model,
        vocab=vocab,
        seed=seed,
        source=f"conversations of {MEAN_TURNS:g} turns, {SESSIONS} at a time",
    )


def threaded(
    slots: "np.ndarray[tuple[int], np.dtype[np.int64]]",
    ends: "np.ndarray[tuple[int], np.dtype[np.bool_]]",
    user: Lengths,
    answer: Lengths,
) -> tuple[Lengths, Lengths]:
    """The session of each turn and the length of its prompt: all that was said before, and what is said now."""
    session, prompt = np.zeros(len(user), dtype=np.int32), np.zeros(len(user), dtype=np.int32)
    current = list(range(SESSIONS))
    history = [TEMPLATE_TOKENS] * SESSIONS
    begun = SESSIONS
    for turn, slot in enumerate(slots.tolist()):
        session[turn], prompt[turn] = current[slot], history[slot] + user[turn]
        history[slot] = int(prompt[turn] + answer[turn])
        if ends[turn]:
            current[slot], history[slot] = begun, TEMPLATE_TOKENS
            begun += 1
    return session, prompt
