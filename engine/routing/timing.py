"""How long decisions take, measured on some of them: the others pay for a look at a counter, or for nothing."""

from collections.abc import Iterator, Sequence

from engine.clock import stopwatch_ns
from engine.figures import Distribution, LogHistogram
from engine.request import Request
from engine.routing.router import Attempts, Router
from engine.routing.seats import Seat

NUM_BOUNDS = 20  # 0.1 us * 2^k, up to 52 ms
UNIT_NS = 100


class DecisionTimer:
    """Stands in for `router.attempts` and takes the time of one decision in `every`, on the machine's own watch.

    What is measured is no part of any decision; a run in simulation is the same with it and without it.
    """

    def __init__(self, router: Router, every: int) -> None:
        self._router = router
        self._every = every
        self._left = 1
        self.durations = LogHistogram(NUM_BOUNDS, UNIT_NS, 1e-9)

    def attempts(
        self, pool: str, request: Request, tokens: int, now_ns: int, without: Sequence[Seat] = ()
    ) -> Attempts:
        """As the router's. Raises NoReplica."""
        self._left -= 1
        if self._left:
            return self._router.attempts(pool, request, tokens, now_ns, without)
        self._left = self._every
        begun_ns = stopwatch_ns()
        found = self._router.attempts(pool, request, tokens, now_ns, without)
        self.durations.observe(stopwatch_ns() - begun_ns)
        return found

    def figures(self) -> Iterator[Distribution]:
        """The durations, in seconds."""
        yield Distribution(
            "modelyard:router_decision_duration_seconds",
            "What a choice takes, of those measured.",
            (),
            {(): self.durations},
        )
