"""What a server counts of itself, beside the events: its loop's lag, and what clients ask for."""

from collections.abc import Iterator

from engine.clock import NS_PER_S
from engine.figures import TOGETHER, Distribution, Figure, Histogram, LogHistogram, Values
from engine.telemetry.exposition import Family
from engine.telemetry.served import TOKEN_BOUNDS

LAG_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
CHOICE_BOUNDS = 8  # 1, 2, 4, ... 128


class OwnCounts:
    """Counts for one server: give `figures` to the meter's sources."""

    def __init__(self) -> None:
        self.http_in_flight = 0
        self._lag = Histogram(LAG_BUCKETS_S)
        self._lag_latest_ns = 0
        self._asked: list[tuple[int, int | None]] = []  # choices and tokens that are not counted yet
        self._choices = LogHistogram(CHOICE_BOUNDS)
        self._max_tokens = LogHistogram(TOKEN_BOUNDS)

    def asked(self, choices: int, max_tokens: int | None) -> None:
        """What a client asked for in one request; None: it set no limit."""
        self._asked.append((choices, max_tokens))
        if len(self._asked) >= TOGETHER:
            self._count_asked()

    def _count_asked(self) -> None:
        asked, self._asked = self._asked, []
        self._choices.observe_all([choices for choices, _ in asked])
        self._max_tokens.observe_all([tokens for _, tokens in asked if tokens is not None])

    def lagged(self, lag_ns: int) -> None:
        """So much later than it was due, the loop came back to a callback."""
        self._lag_latest_ns = lag_ns
        self._lag.observe(lag_ns)

    def figures(self) -> Iterator[Family]:
        """All of it for a scrape."""
        self._count_asked()
        in_flight: Values = {(): float(self.http_in_flight)}
        yield Figure(
            "modelyard:http_requests_in_flight",
            "HTTP requests without their whole answer.",
            (),
            in_flight,
            is_gauge=True,
        )
        yield Distribution("modelyard:loop_lag_seconds", "How late the loop was.", (), {(): self._lag})
        latest: Values = {(): self._lag_latest_ns / NS_PER_S}
        yield Figure(
            "modelyard:loop_lag_latest_seconds", "The last time somebody looked.", (), latest, is_gauge=True
        )
        yield Distribution("vllm:request_params_n", "Choices asked for.", (), {(): self._choices})
        yield Distribution(
            "vllm:request_params_max_tokens", "Output tokens allowed.", (), {(): self._max_tokens}
        )
