"""Metrics: plain integers counted on the way, given to Prometheus only when it asks.

A labelled increment of the client library costs over a microsecond; an integer costs 40 ns.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import attrgetter
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from engine.figures import (
    LATENCY_BUCKETS_S,
    TOGETHER,
    Counted,
    Distribution,
    Figure,
    Histogram,
    Values,
    cumulative,
)
from engine.telemetry.events import (
    AttemptLost,
    Ended,
    Event,
    FellBack,
    HealthChanged,
    HttpAnswered,
    ModeChanged,
    ModelMoved,
    Preempted,
    RouterChanged,
    StoreFailed,
)
from engine.telemetry.exposition import (
    OPEN_METRICS,
    PLAIN,
    Family,
    Names,
    text_of,
    wants_open_metrics,
)
from engine.telemetry.served import FINISHED, Ends, Objective, Served

__all__ = ["LATENCY_BUCKETS_S", "Histogram", "Meter", "render"]

UNKNOWN = "unknown"
"""The model of a request whose name nobody knows: what clients write becomes no label."""

WHAT = attrgetter("method", "route", "status", "is_aborted")

LOAD_BUCKETS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0, 600.0)

OF_MODEL = ("model_name",)

COUNTERS = (
    ("vllm:prompt_tokens", "Prompt tokens of completed requests.", "prompt_tokens"),
    ("vllm:generation_tokens", "Tokens generated.", "output_tokens"),
    ("vllm:prefix_cache_hits", "Prompt tokens found in the cache.", "cached_tokens"),
)
QUERIES = ("vllm:prefix_cache_queries", "Prompt tokens looked for in the cache.", "prompt_tokens")
GOOD = ("modelyard:requests_within_slo", "Completed requests that were fast enough.", "good")

LATENCIES = (
    ("vllm:time_to_first_token_seconds", "From arrival to the first token.", "ttft"),
    ("vllm:e2e_request_latency_seconds", "From arrival to the last token.", "e2e"),
)
PHASES = (
    ("vllm:request_queue_time_seconds", "In the line of a replica.", "queue"),
    ("vllm:request_prefill_time_seconds", "From the start of prefill to the first token.", "prefill"),
    ("vllm:request_decode_time_seconds", "From the first token to the last.", "decode"),
    ("vllm:request_inference_time_seconds", "From the start of prefill to the last token.", "inference"),
    ("vllm:request_time_per_output_token_seconds", "Mean gap between a request's tokens.", "tpot"),
    ("vllm:inter_token_latency_seconds", "Gaps between tokens, each as its request's mean.", "token_gaps"),
    ("modelyard:quota_wait_seconds", "In the line of a quota, of those who had to wait.", "quota_wait"),
    ("vllm:request_prompt_tokens", "Prompt tokens of a request.", "prompt_sizes"),
    ("vllm:request_generation_tokens", "Tokens generated for a request.", "output_sizes"),
)


class Meter(Collector):
    """A sink that counts, and a collector that Prometheus can scrape.

    Names are vLLM's where vLLM has the metric (`vllm:...`), ours otherwise (`modelyard:...`); labels are models,
    replicas, arms, outcomes and states, all of which are bounded by the configuration, and by `Names` beyond that.
    """

    kinds = frozenset(
        {
            Ended,
            AttemptLost,
            FellBack,
            HealthChanged,
            HttpAnswered,
            ModeChanged,
            ModelMoved,
            Preempted,
            RouterChanged,
            StoreFailed,
        }
    )

    def __init__(self, objective: Objective | None = None) -> None:
        """`objective` says which answers were good; the default where nobody does."""
        self.sources: list[Callable[[], Iterable[Family]]] = []  # of figures that somebody else counts
        self._objective = objective if objective is not None else Objective()
        self._names = Names()
        self._ended: list[Ended] = []  # that are not counted yet
        self._answered: list[HttpAnswered] = []  # the same of these
        self._ends: dict[str, Ends] = {}
        self._reasons: Counter[tuple[str, ...]] = Counter()
        self._arms: Counter[tuple[str, ...]] = Counter()
        self._replicas: Counter[tuple[str, ...]] = Counter()
        self._lost: Counter[tuple[str, ...]] = Counter()
        self._health: Counter[tuple[str, ...]] = Counter()
        self._preempted: Counter[tuple[str, ...]] = Counter()
        self._states: Counter[tuple[str, ...]] = Counter()
        self._fallbacks: Counter[tuple[str, ...]] = Counter()
        self._router: Counter[tuple[str, ...]] = Counter()
        self._modes: Counter[tuple[str, ...]] = Counter()
        self._store: Counter[tuple[str, ...]] = Counter()
        self._loads: dict[tuple[str, ...], Histogram] = {}
        self._loading: dict[str, int] = {}  # since when
        self._answers: Counter[tuple[str, ...]] = Counter()
        self._aborted: Counter[tuple[str, ...]] = Counter()
        self._answer_times: dict[tuple[str, ...], Histogram] = {}
        self.takers: dict[type[Event], Callable[[Any], None]] = {
            Ended: self._take_end,
            AttemptLost: self._count_loss,
            FellBack: self._count_fallback,
            HealthChanged: self._count_health,
            HttpAnswered: self._take_answer,
            ModeChanged: self._count_mode,
            ModelMoved: self._count_move,
            Preempted: self._count_preemption,
            RouterChanged: self._count_router,
            StoreFailed: self._count_store,
        }

    def emit(self, event: Event) -> None:
        take = self.takers.get(type(event))
        if take is not None:
            take(event)

    def _take_end(self, end: Ended) -> None:
        self._ended.append(end)
        if len(self._ended) >= TOGETHER:
            self._count_ended()

    def _take_answer(self, answer: HttpAnswered) -> None:
        self._answered.append(answer)
        if len(self._answered) >= TOGETHER:
            self._count_answered()

    def _count_ended(self) -> None:
        """Count the requests that have ended since the last time."""
        ended, self._ended = self._ended, []
        of_model: dict[str, list[Ended]] = {}
        for end in ended:
            of_model.setdefault(end.model or UNKNOWN, []).append(end)
        for model, ends in of_model.items():
            told = self._ends.get(model)
            if told is None:
                told = self._ends_of(model)
            self._count_outcomes(ends, told)
            served = [
                end
                for end in ends
                if end.outcome == "completed" and end.first_token_ns is not None and end.replica is not None
            ]
            if served:
                for replica, number in Counter([end.replica or "" for end in served]).items():
                    self._replicas[(self._names.of("replica", replica),)] += number
                if told.served is None:
                    told.served = Served(self._objective)
                told.served.count(served)

    def _count_outcomes(self, ends: list[Ended], told: Ends) -> None:
        told.outcomes.update([end.outcome for end in ends])
        told.finished.update([end.finish_reason or "length" for end in ends if end.outcome == "completed"])
        told.finished.update([FINISHED[end.outcome] for end in ends if end.outcome in FINISHED])
        self._reasons.update([(end.outcome, end.reason) for end in ends if end.reason is not None])
        self._arms.update(
            [(*end.arm.partition("/")[::2], end.outcome) for end in ends if end.arm is not None]
        )

    def _ends_of(self, model: str) -> Ends:
        """Those of a model that is not known yet; whoever is too much has them together."""
        return self._ends.setdefault(self._names.of("model_name", model), Ends())

    def _count_loss(self, event: AttemptLost) -> None:
        self._lost[(self._names.of("replica", event.replica),)] += 1

    def _count_fallback(self, event: FellBack) -> None:
        self._fallbacks[self._names.of("model_name", event.after), event.reason] += 1

    def _count_health(self, event: HealthChanged) -> None:
        self._health[self._names.of("replica", event.replica), event.after] += 1

    def _count_answered(self) -> None:
        """Count the answers that have been given since the last time."""
        answered, self._answered = self._answered, []
        for (method, route, status, is_aborted), number in Counter(map(WHAT, answered)).items():
            name = self._names.of("route", route or UNKNOWN)
            self._answers[name, self._names.of("method", method), str(status)] += number
            if is_aborted:
                self._aborted[(name,)] += number
        of_route: dict[str, list[int]] = {}
        for answer in answered:
            of_route.setdefault(answer.route, []).append(answer.duration_ns)
        for route, durations_ns in of_route.items():
            name = self._names.of("route", route or UNKNOWN)
            times = self._answer_times.get((name,))
            if times is None:
                times = self._answer_times[(name,)] = Histogram()
            times.observe_all(durations_ns)

    def _count_mode(self, event: ModeChanged) -> None:
        self._modes[event.before, event.after] += 1

    def _count_move(self, event: ModelMoved) -> None:
        model = self._names.of("model_name", event.model)
        self._states[model, event.after] += 1
        begun_ns = self._loading.pop(event.model, None)
        if event.after == "loading":
            self._loading[event.model] = event.at_ns
        elif begun_ns is not None and event.after in ("healthy", "degraded"):
            self._loads.setdefault((model,), Histogram(LOAD_BUCKETS_S)).observe(event.at_ns - begun_ns)

    def _count_preemption(self, event: Preempted) -> None:
        self._preempted[(self._names.of("replica", event.replica),)] += 1

    def _count_router(self, event: RouterChanged) -> None:
        self._router[self._names.of("subject", event.subject), event.change] += 1

    def _count_store(self, event: StoreFailed) -> None:
        self._store[(self._names.of("tier", event.tier),)] += 1

    def families(self) -> Iterator[Family]:
        """All that is counted here and by the sources, each name once. What nobody has counted yet is left out."""
        self._count_ended()
        self._count_answered()
        served: dict[tuple[str, ...], Served] = {
            (model,): ends.served for model, ends in self._ends.items() if ends.served is not None
        }
        for name, help_text, field in COUNTERS:
            yield _counts_of(name, help_text, field, served)
        for name, help_text, field in LATENCIES:
            yield _spread_of(name, help_text, field, served)
        outcomes: Values = {
            (model, outcome): number
            for model, ends in self._ends.items()
            for outcome, number in ends.outcomes.items()
        }
        yield Figure("modelyard:requests", "Requests by outcome.", ("model_name", "outcome"), outcomes)
        of_replica = ("replica",)
        yield _figure("modelyard:replica_requests", "Requests completed.", of_replica, self._replicas)
        yield _figure(
            "modelyard:replica_lost_attempts", "Attempts lost with a replica.", of_replica, self._lost
        )
        yield _figure(
            "vllm:num_preemptions", "KV given back to those who began earlier.", of_replica, self._preempted
        )
        yield _figure(
            "modelyard:model_states", "Changes of a model's state.", ("model_name", "state"), self._states
        )
        yield _figure("modelyard:health_changes", "Changes of health.", ("replica", "state"), self._health)
        for family in self._more(served):
            if family.values:
                yield family
        for source in self.sources:
            for family in source():
                yield self._names.fold(family) if isinstance(family, Figure) else family

    def _more(self, served: dict[tuple[str, ...], Served]) -> Iterator[Family]:
        """What has no place in a scrape before it has happened."""
        yield _counts_of(*QUERIES, served)
        yield _counts_of(*GOOD, served)
        finished: Values = {
            (model, reason): number
            for model, ends in self._ends.items()
            for reason, number in ends.finished.items()
        }
        yield Figure(
            "vllm:request_success",
            "Requests that ended, and why.",
            ("model_name", "finished_reason"),
            finished,
        )
        for name, help_text, field in PHASES:
            yield _spread_of(name, help_text, field, served)
        yield _figure(
            "modelyard:request_failures",
            "Requests that were not completed.",
            ("outcome", "reason"),
            self._reasons,
        )
        yield _figure(
            "modelyard:experiment_outcomes",
            "How requests in an arm ended.",
            ("experiment", "arm", "outcome"),
            self._arms,
        )
        yield _figure(
            "modelyard:router_fallbacks", "To what, and why.", ("model_name", "reason"), self._fallbacks
        )
        yield _figure(
            "modelyard:router_changes",
            "Replicas ejected and back, pools in panic and out of it.",
            ("subject", "change"),
            self._router,
        )
        yield _figure(
            "modelyard:quota_mode_changes", "Steps between modes.", ("before", "after"), self._modes
        )
        yield _figure(
            "modelyard:cache_store_failures", "What the store of a tier failed to do.", ("tier",), self._store
        )
        yield _figure(
            "modelyard:http_requests",
            "Answers given, by route.",
            ("route", "method", "status"),
            self._answers,
        )
        yield _figure("modelyard:http_aborted", "Answers that nobody waited for.", ("route",), self._aborted)
        yield Distribution(
            "modelyard:http_request_duration_seconds",
            "From the request's head to the answer's end.",
            ("route",),
            self._answer_times,
        )
        yield Distribution(
            "modelyard:model_load_seconds", "From asked for to serving.", OF_MODEL, self._loads
        )

    def collect(self) -> Iterator[Metric]:
        for family in self.families():
            yield _metric(family)

    def exposition(self) -> str:
        """The metrics in Prometheus' text format."""
        return text_of(self.families())


def render(meter: Meter, accept: str = "") -> tuple[bytes, str]:
    """What a scrape gets that accepts this, and the content type of it: OpenMetrics where it is asked for."""
    is_open = wants_open_metrics(accept)
    return text_of(meter.families(), is_open=is_open).encode(), OPEN_METRICS if is_open else PLAIN


def _counts_of(name: str, help_text: str, field: str, served: dict[tuple[str, ...], Served]) -> Figure:
    count = attrgetter(field)
    return Figure(name, help_text, OF_MODEL, {model: count(each) for model, each in served.items()})


def _spread_of(name: str, help_text: str, field: str, served: dict[tuple[str, ...], Served]) -> Distribution:
    histogram: Callable[[Served], Counted] = attrgetter(field)
    return Distribution(name, help_text, OF_MODEL, {model: histogram(each) for model, each in served.items()})


def _figure(
    name: str, help_text: str, labels: tuple[str, ...], counts: Mapping[tuple[str, ...], int]
) -> Figure:
    return Figure(name, help_text, labels, dict(counts))


def _metric(family: Family) -> Metric:
    """A family as the client library has it."""
    if isinstance(family, Distribution):
        told = HistogramMetricFamily(family.name, family.help_text, labels=list(family.labels))
        for values in sorted(family.values):
            counted = family.values[values]
            told.add_metric(values, cumulative(counted), counted.total)
        return told
    kind = GaugeMetricFamily if family.is_gauge else CounterMetricFamily
    numbers = kind(family.name, family.help_text, labels=list(family.labels))
    for values in sorted(family.values):
        numbers.add_metric(values, family.values[values])
    return numbers
