"""Workloads: the settings of each kind of traffic, made once at the door, and the trace that they become."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from engine.named import Named
from engine.settings import above, at_least, require
from sim.traffic import azure, synthetic
from sim.traffic.trace import MAX_TOKENS, Trace

MAX_REQUESTS = 100_000_000
MAX_SIGMA = 10.0  # of a logarithm: the middle half of the draws then spans nearly six orders of magnitude
YEAR_S = 366 * 86_400


class Workload(Protocol):
    """Traffic of one kind, as it was set."""

    kind: str

    def draw(self, seed: int, model: str) -> Trace:
        """All requests of a run, a function of the settings and `seed` (>= 0) alone. Raises BadSettings."""


workloads: Named[Workload] = Named("workload")


def draw(settings: Workload, seed: int, model: str) -> Trace:
    """The trace of one run: every request that will arrive, for `model`. Raises BadSettings."""
    whole("seed", seed, 0, 2**63)
    return settings.draw(seed, model)


@workloads("synthetic")
@dataclass(slots=True, kw_only=True)
class SyntheticWorkload:
    """Poisson arrivals, log-normal lengths, and prefixes that requests share by Zipf's law.

    `prompt_*` is the part of a prompt that is the request's own; a shared prefix comes on top. The least and
    the most clip what is drawn. `prefix_share` of the requests begin with one of the `prefixes`.
    """

    kind: str = "synthetic"
    requests: int
    rate: float  # requests a second
    prompt_median_tokens: float
    prompt_sigma: float  # standard deviation of the logarithm
    prompt_min_tokens: int
    prompt_max_tokens: int
    output_median_tokens: float
    output_sigma: float
    output_min_tokens: int
    output_max_tokens: int
    prefixes: int = 0
    prefix_zipf: float = 1.0
    prefix_median_tokens: float = 256.0
    prefix_sigma: float = 0.6
    prefix_share: float = 1.0
    vocab: int = 4096

    def __post_init__(self) -> None:
        _is_kind(self.kind, "synthetic")
        whole("workload.requests", self.requests, 1, MAX_REQUESTS)
        above("workload.rate", self.rate, 0)
        least = self.requests / YEAR_S
        require("workload.rate", self.rate, self.rate >= least, f"at least {least:g}: a run ends in a year")
        for part in ("prompt", "output", "prefix"):
            self._check_log_normal(part)
        for part in ("prompt", "output"):
            self._check_clip(part)
        whole("workload.prefixes", self.prefixes, 0, MAX_REQUESTS)
        at_least("workload.prefix_zipf", self.prefix_zipf, 0)
        require("workload.prefix_share", self.prefix_share, 0 <= self.prefix_share <= 1, "from 0 to 1")
        _is_vocab(self.vocab)

    def draw(self, seed: int, model: str) -> Trace:
        return synthetic.draw(self, seed, model)

    def _check_log_normal(self, part: str) -> None:
        median, sigma = getattr(self, f"{part}_median_tokens"), getattr(self, f"{part}_sigma")
        above(f"workload.{part}_median_tokens", median, 0)
        require(f"workload.{part}_median_tokens", median, median <= MAX_TOKENS, f"at most {MAX_TOKENS:,}")
        require(f"workload.{part}_sigma", sigma, 0 <= sigma <= MAX_SIGMA, f"from 0 to {MAX_SIGMA:g}")

    def _check_clip(self, part: str) -> None:
        least, most = getattr(self, f"{part}_min_tokens"), getattr(self, f"{part}_max_tokens")
        whole(f"workload.{part}_min_tokens", least, 1, MAX_TOKENS)
        whole(f"workload.{part}_max_tokens", most, least, MAX_TOKENS)


@workloads("azure")
@dataclass(slots=True, kw_only=True)
class AzureWorkload:
    """A file in the format of the Azure LLM inference traces, plain or gzip."""

    kind: str = "azure"
    path: str
    requests: int | None = 200  # the first so many; None is all
    time_scale: float = 1.0  # multiplies every arrival: above 1 is slower
    vocab: int = 4096

    def __post_init__(self) -> None:
        _is_kind(self.kind, "azure")
        require("workload.path", self.path, self.path != "", "the path of a trace file")
        if self.requests is not None:
            whole("workload.requests", self.requests, 1, MAX_REQUESTS)
        above("workload.time_scale", self.time_scale, 0)
        _is_vocab(self.vocab)

    def draw(self, seed: int, model: str) -> Trace:
        return azure.read(
            Path(self.path),
            requests=self.requests,
            time_scale=self.time_scale,
            vocab=self.vocab,
            seed=seed,
            model=model,
        )


def whole(key: str, value: float, least: int, most: int) -> None:
    """Raise BadSettings for `key` unless its value is an integer from `least` to `most`."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    require(key, value, is_whole and least <= value <= most, f"a whole number from {least:,} to {most:,}")


def _is_kind(value: str, kind: str) -> None:
    require("workload.kind", value, value == kind, f"{kind!r} for these settings")


def _is_vocab(value: int) -> None:
    whole("workload.vocab", value, 2, 2**31 - 1)
