"""Decisions on record: who could have served, what each would have cost, who did, and why; and the same again."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from engine.chance import draws
from engine.request import Request
from engine.routing.seats import Seat, Tools
from engine.routing.strategies import Blend, Strategy, make_strategy

SESSION, STRATEGY, RAMP, RETRY, ONLY = "session", "strategy", "slow start", "another try", "the only one"
OVERRULED = "overruled"
"""Why somebody was chosen."""


@dataclass(slots=True)
class Candidate:
    """One replica as the strategy saw it. `blocks` of the prefix lie there; they save `saved_blocks` of prefill."""

    name: str
    model: str
    holder: str
    tokens_in_flight: int
    requests_in_flight: int
    weight: float
    latency_ns: float
    token_ns: float
    prefill_ns: float
    headroom: float
    turn: int = 0
    observed_ns: int = 0
    num_observed: int = 0
    blocks: int = 0
    saved_blocks: float = 0.0


@dataclass(slots=True, init=False)
class Choice:
    """One choice, whole: enough to make it again, with the same strategy or another.

    `seen` has a row for each candidate, the fields of `Candidate` in order: that is all that is done on the way of a
    request. `guards` are replicas that were not asked, and why. `drawn` are the random numbers used, `state` is what
    the strategy remembered before.
    """

    at_ns: int
    request_id: int
    attempt: int
    pool: str
    strategy: str
    options: Mapping[str, Any]
    chosen: str
    reason: str
    seen: list[tuple[Any, ...]]
    guards: list[tuple[str, str]]
    session: str | None
    prompt_tokens: int
    max_output_tokens: int
    block_tokens: int
    drawn: list[float]
    state: Any
    verdict: str

    def __init__(
        self,
        at_ns: int,
        request_id: int,
        attempt: int,
        pool: str,
        strategy: str,
        options: Mapping[str, Any],
        chosen: str,
        reason: str,
        seen: list[tuple[Any, ...]],
        guards: list[tuple[str, str]] | None = None,
        session: str | None = None,
        prompt_tokens: int = 0,
        max_output_tokens: int = 0,
        block_tokens: int = 16,
        drawn: list[float] | None = None,
        state: Any = None,
        verdict: str = "",
    ) -> None:
        self.at_ns = at_ns
        self.request_id = request_id
        self.attempt = attempt
        self.pool = pool
        self.strategy = strategy
        self.options = options
        self.chosen = chosen
        self.reason = reason
        self.seen = seen
        self.guards = [] if guards is None else guards
        self.session = session
        self.prompt_tokens = prompt_tokens
        self.max_output_tokens = max_output_tokens
        self.block_tokens = block_tokens
        self.drawn = [] if drawn is None else drawn
        self.state = state
        self.verdict = verdict

    @property
    def candidates(self) -> list[Candidate]:
        """Who could have been chosen, as they were."""
        return [Candidate(*row) for row in self.seen]

    def terms(self) -> dict[str, list[float]]:
        """The cost of each candidate by each part of the strategy that can say; least is best."""
        seats, request, strategy = _again(self, self.strategy, self.options, self.drawn)
        return terms_of(self.strategy, strategy, request, seats, self.at_ns)

    def lines(self) -> list[str]:
        """The decision for people: one line a candidate, the chosen one marked."""
        costs_of = self.terms()
        told = [f"{self.pool}: {self.chosen}, because of {self.reason} ({self.strategy}, try {self.attempt})"]
        for place, each in enumerate(self.candidates):
            mark = "*" if each.name == self.chosen else " "
            terms = " ".join(f"{name} {costs[place]:.4g}" for name, costs in costs_of.items())
            told.append(
                f"{mark} {each.name}: {each.tokens_in_flight} tokens in flight, {each.saved_blocks:g} blocks saved"
                + (f"; cost by {terms}" if terms else "")
            )
        told += [f"  {name}: not asked, {why}" for name, why in self.guards]
        if self.verdict:
            told.append(f"  quota: {self.verdict}")
        return told


NAME, MODEL, LOAD = 0, 1, 3
"""Where it is found in a row."""


def seen(seats: Sequence[Seat], cache: "Depths | None", request: Request) -> list[tuple[Any, ...]]:
    """What a strategy can see of the candidates, of which `cache` knows who has how much of a prefix."""
    rows: list[tuple[Any, ...]] = [  # written out: a fifth of what `attrgetter` takes
        (
            seat.name,
            seat.model,
            seat.holder,
            seat.tokens_in_flight,
            seat.requests_in_flight,
            seat.weight,
            seat.latency_ns,
            seat.token_ns,
            seat.prefill_ns,
            seat.room.left,
            seat.turn,
            seat.observed_ns,
            seat.num_observed,
        )
        for seat in seats
    ]
    if cache is None:
        return rows
    depths, saved = cache(request, seats)
    return [(*row, depth, blocks) for row, depth, blocks in zip(rows, depths, saved, strict=True)]


Depths = Callable[[Request, Sequence[Seat]], tuple[list[int], list[float]]]


def cache_of(strategy: Strategy) -> Depths | None:
    """Who knows where a request's prefix lies: the strategy, or a part of it; None for one that does not look."""
    for part in parts_of(strategy).values():
        if hasattr(part, "depths"):
            found: Depths = part.depths
            return found
    return None


def parts_of(strategy: Strategy) -> dict[str, Strategy]:
    """The parts of a blend by name; of any other strategy, itself."""
    if isinstance(strategy, Blend):
        return {name: part for _, name, part in strategy.terms}
    return {"": strategy}


def terms_of(
    name: str, strategy: Strategy, request: Request, seats: Sequence[Seat], now_ns: int
) -> dict[str, list[float]]:
    """The cost of each candidate by each part of a strategy that can say."""
    found = {}
    for part, each in parts_of(strategy).items():
        if hasattr(each, "costs"):
            found[part or name] = each.costs(request, seats, now_ns)
    return found


def replay(decision: Choice, strategy: str | None = None, options: Mapping[str, Any] | None = None) -> str:
    """Who is chosen when this decision is made again; `strategy` another one, with its `options`.

    With the strategy of the record, the random numbers and the turn are those of then. Another strategy begins anew,
    with numbers of its own. Raises UnknownName or BadSettings.
    """
    same = strategy is None or strategy == decision.strategy
    if same and decision.reason in (SESSION, ONLY, OVERRULED):
        return decision.chosen
    drawn, chosen_options = (decision.drawn, decision.options) if same else ([], options or {})
    seats, request, again = _again(decision, strategy or decision.strategy, chosen_options, drawn)
    return again.pick(request, seats, decision.at_ns).name


def _again(
    decision: Choice, strategy: str, options: Mapping[str, Any], drawn: Sequence[float]
) -> tuple[list[Seat], Request, Strategy]:
    """The world of that decision once more: seats, request, and the strategy with its memory of then."""
    candidates = decision.candidates
    seats = [_seat(each) for each in candidates]
    fresh = draws(decision.request_id, f"replay {decision.pool}")
    numbers = chain(drawn, iter(fresh, None))
    worth = {each.name: each.saved_blocks / max(1, each.blocks) for each in candidates}
    rooms = {each.model: each.headroom for each in candidates}
    tools = Tools(
        numbers.__next__,
        lambda model: rooms[model],
        lambda seat, _request, blocks: blocks * worth[seat.name],
        decision.block_tokens,
    )
    again = make_strategy(strategy, tools, options)
    if strategy == decision.strategy and decision.state is not None and hasattr(again, "resume"):
        again.resume(seats, decision.state)
    request = _request(decision)
    _remember(again, request, seats, decision)
    return seats, request, again


def _seat(each: Candidate) -> Seat:
    made = Seat(each.name, each.model, each.holder, each.weight)
    made.tokens_in_flight, made.requests_in_flight = each.tokens_in_flight, each.requests_in_flight
    made.latency_ns, made.token_ns, made.prefill_ns = each.latency_ns, each.token_ns, each.prefill_ns
    made.room.left, made.turn = each.headroom, each.turn
    made.num_observed, made.observed_ns = each.num_observed, each.observed_ns
    return made


def _request(decision: Choice) -> Request:
    """The request, as far as strategies look: lengths, session, and a prefix with names of our own."""
    deepest = max([each.blocks for each in decision.candidates], default=0)
    return Request(
        decision.request_id,
        decision.pool,
        np.zeros(decision.prompt_tokens, dtype=np.int32),
        decision.max_output_tokens,
        decision.at_ns,
        session=decision.session,
        prefix_keys=[number.to_bytes(4, "big") for number in range(deepest)],
    )


def _remember(strategy: Strategy, request: Request, seats: Sequence[Seat], decision: Choice) -> None:
    """Let the strategy know who held how much of the prefix."""
    for part in parts_of(strategy).values():
        if hasattr(part, "holds"):
            for seat, each in zip(seats, decision.candidates, strict=True):
                part.holds(request.prefix_keys[: each.blocks], seat)
