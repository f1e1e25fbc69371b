"""A seat: what the router knows of one replica, and all that a strategy may know."""

from collections.abc import Callable
from typing import Final

from engine.request import Request

NEVER_NS: Final = 1 << 62


class Room:
    """What is left of a model's limits, as of late: the smallest remaining share, from 0 to 1."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = 1.0


class Seat:
    """A replica's place at the router. Loads are our own count, changed within the decision.

    `latency_ns` is a smoothed time to first token, `token_ns` a smoothed time per output token, 0 while nothing was
    seen. `prefill_ns` is what the executor says of a prompt token. Seats with the same `holder` find the same blocks
    in the cache. `room` is shared by the seats of a model. `turn` tells when it was chosen last.
    """

    __slots__ = (
        "credit",
        "holder",
        "is_drained",
        "is_ejected",
        "is_healthy",
        "is_open",
        "latency_ns",
        "model",
        "name",
        "num_ejections",
        "num_observed",
        "num_routed",
        "observed_ns",
        "pools",
        "prefill_ns",
        "ramp_since_ns",
        "requests_in_flight",
        "room",
        "token_ns",
        "tokens_in_flight",
        "true_requests",
        "true_tokens",
        "turn",
        "watchers",
        "weight",
    )

    def __init__(self, name: str, model: str, holder: str = "", weight: float = 1.0) -> None:
        self.name = name
        self.model = model
        self.holder = holder or name
        self.weight = weight
        self.tokens_in_flight = 0
        self.requests_in_flight = 0
        self.true_tokens = 0  # where the loads that strategies see are refreshed only now and then
        self.true_requests = 0
        self.num_routed = 0
        self.turn = 0  # when it was chosen last, in decisions
        self.latency_ns = 1.0
        self.token_ns = 0.0
        self.prefill_ns = 0.0
        self.observed_ns = 0
        self.num_observed = 0
        self.room = Room()
        self.is_healthy = True
        self.is_ejected = False
        self.is_drained = False  # by an operator
        self.is_open = True  # may be given requests
        self.num_ejections = 0
        self.ramp_since_ns = NEVER_NS
        self.credit = 0.0
        self.pools: tuple[str, ...] = ()
        self.watchers: list[Callable[[Seat], None]] = []  # told when the load has become less

    def __repr__(self) -> str:
        return f"Seat({self.name!r}, {self.tokens_in_flight} tokens, {self.requests_in_flight} requests)"


Draw = Callable[[], float]
"""The next random number, uniform in [0, 1)."""

Headroom = Callable[[str], float]
"""The smallest remaining share of a model's limits, from 0 to 1."""

Price = Callable[[Seat, Request, int], float]
"""What so many leading blocks of a request are worth at a seat that holds them: in blocks of prefill saved."""


def all_free(_model: str) -> float:
    """The headroom where nobody has limits."""
    return 1.0


def full_price(_seat: Seat, _request: Request, num_blocks: int) -> float:
    """Blocks that lie where the executor takes them from: each saves its whole prefill."""
    return float(num_blocks)


class Turns:
    """Counts decisions, so that of equals the one chosen longest ago is next, whichever pool chose it."""

    __slots__ = ("last",)

    def __init__(self) -> None:
        self.last = 0


class Tools:
    """What strategies are made with: chance, headroom, and the worth of cached blocks, from whoever knows."""

    __slots__ = ("block_tokens", "draw", "headroom", "index_blocks", "price", "turns")

    def __init__(
        self,
        draw: Draw,
        headroom: Headroom = all_free,
        price: Price = full_price,
        block_tokens: int = 16,
        index_blocks: int = 1 << 18,
        turns: Turns | None = None,
    ) -> None:
        self.draw = draw
        self.headroom = headroom
        self.price = price
        self.block_tokens = block_tokens
        self.index_blocks = index_blocks
        self.turns = turns or Turns()
