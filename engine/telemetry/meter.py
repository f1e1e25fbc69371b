"""Metrics: plain integers counted on the way, given to Prometheus only when it asks.

A labelled increment of the client library costs over a microsecond; an integer costs 40 ns.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from engine.clock import NS_PER_S
from engine.figures import Figure
from engine.telemetry.events import AttemptLost, Ended, Event, HealthChanged, ModelMoved, Preempted

LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Histogram:
    """Counts of durations by bucket. Upper bounds are inclusive, as Prometheus has them."""

    __slots__ = ("_bounds_ns", "counts", "sum_ns")

    def __init__(self) -> None:
        self._bounds_ns = [round(bound_s * NS_PER_S) for bound_s in LATENCY_BUCKETS_S]
        self.counts = [0] * (len(LATENCY_BUCKETS_S) + 1)
        self.sum_ns = 0

    def observe(self, duration_ns: int) -> None:
        self.counts[bisect_left(self._bounds_ns, duration_ns)] += 1
        self.sum_ns += duration_ns

    def buckets(self) -> list[tuple[str, float]]:
        bounds = [*map(str, LATENCY_BUCKETS_S), "+Inf"]
        return list(zip(bounds, map(float, accumulate(self.counts)), strict=True))


class Meter(Collector):
    """A sink that counts, and a collector that Prometheus can scrape.

    Names are vLLM's where vLLM has the metric (`vllm:...`), ours otherwise (`modelyard:...`); labels are models,
    replicas, outcomes and states, all of which are bounded by the configuration.
    """

    kinds = frozenset({Ended, AttemptLost, HealthChanged, Preempted, ModelMoved})

    def __init__(self) -> None:
        self.sources: list[Callable[[], Iterable[Figure]]] = []  # of figures that somebody else counts
        self._ended: Counter[tuple[str, str]] = Counter()
        self._prompt_tokens: Counter[str] = Counter()
        self._output_tokens: Counter[str] = Counter()
        self._cached_tokens: Counter[str] = Counter()
        self._served: Counter[str] = Counter()
        self._lost: Counter[str] = Counter()
        self._health: Counter[tuple[str, str]] = Counter()
        self._preempted: Counter[str] = Counter()
        self._states: Counter[tuple[str, str]] = Counter()
        self._ttft: dict[str, Histogram] = {}
        self._e2e: dict[str, Histogram] = {}

    def emit(self, event: Event) -> None:
        if isinstance(event, Ended):
            self._count_end(event)
        elif isinstance(event, AttemptLost):
            self._lost[event.replica] += 1
        elif isinstance(event, HealthChanged):
            self._health[event.replica, event.after] += 1
        elif isinstance(event, Preempted):
            self._preempted[event.replica] += 1
        elif isinstance(event, ModelMoved):
            self._states[event.model, event.after] += 1

    def _count_end(self, end: Ended) -> None:
        model = end.model or "unknown"
        self._ended[model, end.outcome] += 1
        if end.outcome != "completed" or end.first_token_ns is None or end.replica is None:
            return
        self._served[end.replica] += 1
        self._prompt_tokens[model] += end.prompt_tokens
        self._output_tokens[model] += end.output_tokens
        self._cached_tokens[model] += end.cached_tokens
        self._ttft.setdefault(model, Histogram()).observe(end.first_token_ns - end.arrival_ns)
        self._e2e.setdefault(model, Histogram()).observe(end.at_ns - end.arrival_ns)

    def collect(self) -> Iterator[Metric]:
        yield _counter(
            "vllm:prompt_tokens", "Prompt tokens of completed requests.", "model_name", self._prompt_tokens
        )
        yield _counter("vllm:generation_tokens", "Tokens generated.", "model_name", self._output_tokens)
        yield _counter(
            "vllm:prefix_cache_hits", "Prompt tokens found in the cache.", "model_name", self._cached_tokens
        )
        yield _histogram("vllm:time_to_first_token_seconds", "From arrival to the first token.", self._ttft)
        yield _histogram("vllm:e2e_request_latency_seconds", "From arrival to the last token.", self._e2e)
        yield _pairs("modelyard:requests", "Requests by outcome.", ("model_name", "outcome"), self._ended)
        yield _counter("modelyard:replica_requests", "Requests completed.", "replica", self._served)
        yield _counter(
            "modelyard:replica_lost_attempts", "Attempts lost with a replica.", "replica", self._lost
        )
        yield _counter(
            "vllm:num_preemptions", "KV given back to those who began earlier.", "replica", self._preempted
        )
        yield _pairs(
            "modelyard:model_states", "Changes of a model's state.", ("model_name", "state"), self._states
        )
        yield _pairs("modelyard:health_changes", "Changes of health.", ("replica", "state"), self._health)
        for source in self.sources:
            for figure in source():
                yield _family(figure)

    def exposition(self) -> str:
        """The metrics in Prometheus' text format."""
        registry = CollectorRegistry()
        registry.register(self)
        return generate_latest(registry).decode()


def _counter(name: str, help_text: str, label: str, counts: Counter[str]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, help_text, labels=[label])
    for value in sorted(counts):
        family.add_metric([value], counts[value])
    return family


def _pairs(
    name: str, help_text: str, labels: tuple[str, str], counts: Counter[tuple[str, str]]
) -> CounterMetricFamily:
    family = CounterMetricFamily(name, help_text, labels=labels)
    for values in sorted(counts):
        family.add_metric(values, counts[values])
    return family


def _family(figure: Figure) -> Metric:
    kind = GaugeMetricFamily if figure.is_gauge else CounterMetricFamily
    family = kind(figure.name, figure.help_text, labels=list(figure.labels))
    for values in sorted(figure.values):
        family.add_metric(values, figure.values[values])
    return family


def _histogram(name: str, help_text: str, histograms: dict[str, Histogram]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, help_text, labels=["model_name"])
    for model in sorted(histograms):
        family.add_metric([model], histograms[model].buckets(), histograms[model].sum_ns / NS_PER_S)
    return family
