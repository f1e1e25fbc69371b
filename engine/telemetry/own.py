"""What a server counts of itself, beside the events: its loop's lag, its logs, its jobs, what clients ask for."""

from collections import Counter
from collections.abc import Iterator

from engine.figures import Distribution, Figure, Histogram, LogHistogram, Values
from engine.telemetry.exposition import Family
from engine.telemetry.served import TOKEN_BOUNDS

LAG_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
CHOICE_BOUNDS = 8  # 1, 2, 4, ... 128
JOB_BUCKETS_S = (0.01, 0.1, 1.0, 10.0, 60.0, 300.0, 1800.0, 3600.0)


class OwnCounts:
    """Counts for one server: give `figures` to the meter's sources. Labels are logs, kinds and states, no names."""

    def __init__(self) -> None:
        self.http_in_flight = 0
        self._lag = Histogram(LAG_BUCKETS_S)
        self._lag_latest_ns = 0
        self._choices = LogHistogram(CHOICE_BOUNDS)
        self._max_tokens = LogHistogram(TOKEN_BOUNDS)
        self._unwritten: Counter[tuple[str, ...]] = Counter()
        self._dropped: Counter[tuple[str, ...]] = Counter()
        self._jobs: dict[tuple[str, ...], float] = {}
        self._job_runs: Counter[tuple[str, ...]] = Counter()
        self._job_times: dict[tuple[str, ...], Histogram] = {}

    def asked(self, choices: int, max_tokens: int | None) -> None:
        """What a client asked for in one request; None: it set no limit."""
        self._choices.observe(choices)
        if max_tokens is not None:
            self._max_tokens.observe(max_tokens)

    def lagged(self, lag_ns: int) -> None:
        """So much later than it was due, the loop came back to a callback."""
        self._lag_latest_ns = lag_ns
        self._lag.observe(lag_ns)

    def unwritten(self, log: str) -> None:
        """A line of a log ("audit", "events", "traces") that could not be written."""
        self._unwritten[(log,)] += 1

    def dropped(self, log: str, lines: int = 1) -> None:
        """Lines left out on purpose, because there were too many."""
        self._dropped[(log,)] += lines

    def jobs(self, numbers: dict[tuple[str, str], int]) -> None:
        """How many jobs there are now, by kind and state ("waiting", "running"); those before are forgotten."""
        self._jobs = {names: float(number) for names, number in numbers.items()}

    def job_ended(self, kind: str, outcome: str, duration_ns: int) -> None:
        """A run of a job is over: "completed", "failed" or "cancelled"."""
        self._job_runs[kind, outcome] += 1
        self._job_times.setdefault((kind,), Histogram(JOB_BUCKETS_S)).observe(duration_ns)

    def figures(self) -> Iterator[Family]:
        """All of it for a scrape. Logs stand there before anything failed, so that a first failure is a step."""
        in_flight: Values = {(): float(self.http_in_flight)}
        yield Figure(
            "modelyard:http_requests_in_flight",
            "HTTP requests without their whole answer.",
            (),
            in_flight,
            is_gauge=True,
        )
        yield Distribution("modelyard:loop_lag_seconds", "How late the loop was.", (), {(): self._lag})
        latest: Values = {(): self._lag_latest_ns / 1e9}
        yield Figure(
            "modelyard:loop_lag_latest_seconds",
            "The last time that it was looked at.",
            (),
            latest,
            is_gauge=True,
        )
        yield Distribution(
            "vllm:request_params_n", "Choices that a client asks for.", (), {(): self._choices}
        )
        yield Distribution(
            "vllm:request_params_max_tokens", "Output tokens that it allows.", (), {(): self._max_tokens}
        )
        logs: dict[tuple[str, ...], float] = {("audit",): 0.0, ("events",): 0.0, ("traces",): 0.0}
        yield Figure(
            "modelyard:log_failures", "Lines that could not be written.", ("log",), logs | self._unwritten
        )
        yield Figure(
            "modelyard:log_dropped", "Lines left out, there were too many.", ("log",), logs | self._dropped
        )
        yield Figure("modelyard:jobs", "Jobs there are.", ("kind", "state"), self._jobs, is_gauge=True)
        yield Figure("modelyard:job_runs", "Runs that are over.", ("kind", "outcome"), dict(self._job_runs))
        yield Distribution("modelyard:job_duration_seconds", "What a run took.", ("kind",), self._job_times)
