"""Synthetic traffic: each column of the trace is drawn from a stream of its own, so none can move another."""

from dataclasses import dataclass
from math import log

import numpy as np

from engine.clock import NS_PER_S
from engine.request import Tokens
from engine.settings import above, at_least, require
from sim.streams import stream
from sim.traffic.trace import MAX_TOKENS, Lengths, Times, Trace
from sim.traffic.workload import (
    MAX_REQUESTS,
    YEAR_S,
    check_kind,
    check_popularity,
    check_vocab,
    whole,
    workloads,
)

MAX_PREFIX_TOKENS = 131_072  # the context of today's larger models
MAX_TEMPLATES = 1_000_000
MAX_TEMPLATE_TOKENS = 250_000_000  # 1 GB: they are drawn before the run
MAX_SIGMA = 10.0  # of a logarithm: the middle half of the draws then spans six orders of magnitude


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
    model_zipf: float | None = None

    def __post_init__(self) -> None:
        check_kind(self.kind, "synthetic")
        whole("workload.requests", self.requests, 1, MAX_REQUESTS)
        above("workload.rate", self.rate, 0)
        least = self.requests / YEAR_S
        require("workload.rate", self.rate, self.rate >= least, f"at least {least:g}: a run ends in a year")
        for part in ("prompt", "output", "prefix"):
            self._check_log_normal(part)
        for part in ("prompt", "output"):
            self._check_clip(part)
        whole("workload.prefixes", self.prefixes, 0, MAX_TEMPLATES)
        at_least("workload.prefix_zipf", self.prefix_zipf, 0)
        require("workload.prefix_share", self.prefix_share, 0 <= self.prefix_share <= 1, "from 0 to 1")
        check_vocab(self.vocab)
        check_popularity(self.model_zipf)

    def draw(self, seed: int, model: str) -> Trace:
        return trace(self, seed, model)

    def _check_log_normal(self, part: str) -> None:
        median, sigma = getattr(self, f"{part}_median_tokens"), getattr(self, f"{part}_sigma")
        above(f"workload.{part}_median_tokens", median, 0)
        require(f"workload.{part}_median_tokens", median, median <= MAX_TOKENS, f"at most {MAX_TOKENS:,}")
        require(f"workload.{part}_sigma", sigma, 0 <= sigma <= MAX_SIGMA, f"from 0 to {MAX_SIGMA:g}")

    def _check_clip(self, part: str) -> None:
        least, most = getattr(self, f"{part}_min_tokens"), getattr(self, f"{part}_max_tokens")
        whole(f"workload.{part}_min_tokens", least, 1, MAX_TOKENS)
        whole(f"workload.{part}_max_tokens", most, least, MAX_TOKENS)


def trace(settings: SyntheticWorkload, seed: int, model: str) -> Trace:
    """The trace of these settings. With more `requests` it begins with the same ones."""
    prefixes = templates(settings, seed)
    prefix = chosen_prefixes(settings, seed)
    own_tokens = log_normal_tokens(
        stream(seed, "prompt_tokens"),
        settings.requests,
        settings.prompt_median_tokens,
        settings.prompt_sigma,
        settings.prompt_min_tokens,
        settings.prompt_max_tokens,
    )
    output_tokens = log_normal_tokens(
        stream(seed, "output_tokens"),
        settings.requests,
        settings.output_median_tokens,
        settings.output_sigma,
        settings.output_min_tokens,
        settings.output_max_tokens,
    )
    shared_tokens = np.array([*map(len, prefixes), 0], np.int32)  # the last one is read by prefix -1: none
    return Trace(
        arrival_ns=poisson_arrivals(stream(seed, "arrivals"), settings.requests, settings.rate),
        prompt_tokens=own_tokens + shared_tokens[prefix],
        output_tokens=output_tokens,
        prefix=prefix,
        prefixes=prefixes,
        model=model,
        vocab=settings.vocab,
        seed=seed,
        source="synthetic",
    )


def poisson_arrivals(random: np.random.Generator, requests: int, rate: float) -> Times:
    """Arrival times in ns of a Poisson process with `rate` arrivals a second; the first follows a gap, too.

    Nothing is rescaled to hit a count: its variance is what fills queues.
    """
    gaps = random.standard_exponential(requests)
    return np.rint(np.cumsum(gaps) * (NS_PER_S / rate)).astype(np.int64)


def log_normal_tokens(
    random: np.random.Generator, count: int, median: float, sigma: float, least: int, most: int
) -> Lengths:
    """`count` log-normal lengths, rounded, then clipped to [least, most]; sigma is that of the logarithm."""
    drawn = np.exp(log(median) + sigma * random.standard_normal(count))
    return np.clip(np.rint(drawn), least, most).astype(np.int32)


def templates(settings: SyntheticWorkload, seed: int) -> list[Tokens]:
    """The shared prefixes, the most popular first. Each has its own stream: one more changes no other."""
    lengths = log_normal_tokens(
        stream(seed, "prefix_lengths"),
        settings.prefixes,
        settings.prefix_median_tokens,
        settings.prefix_sigma,
        1,
        MAX_PREFIX_TOKENS,
    )
    check_templates("workload.prefixes", settings.prefixes, lengths)
    return [
        stream(seed, f"prefix_tokens.{index}").integers(settings.vocab, size=length, dtype=np.int32)
        for index, length in enumerate(lengths)
    ]


def check_templates(key: str, count: int, lengths: Lengths) -> None:
    """Raise BadSettings for `key` when templates of these lengths are more than memory should hold."""
    total = int(lengths.sum(dtype=np.int64))
    allowed = f"so few that all have at most {MAX_TEMPLATE_TOKENS:,} tokens; these have {total:,}"
    require(key, count, total <= MAX_TEMPLATE_TOKENS, allowed)


def chosen_prefixes(settings: SyntheticWorkload, seed: int) -> Lengths:
    """Each request's index of a prefix, i with weight (i + 1)^-zipf, or -1 for all but `prefix_share`."""
    if settings.prefixes == 0:
        return np.full(settings.requests, -1, np.int32)
    weights = np.arange(1, settings.prefixes + 1, dtype=np.float64) ** -settings.prefix_zipf
    upto = np.cumsum(weights) / weights.sum()
    index = np.searchsorted(upto[:-1], stream(seed, "prefix").random(settings.requests), side="right")
    shares = stream(seed, "prefix_share").random(settings.requests) < settings.prefix_share
    return np.where(shares, index, -1).astype(np.int32)
