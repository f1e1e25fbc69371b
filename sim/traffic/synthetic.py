"""Synthetic traffic: each column of the trace is drawn from a stream of its own, so none can move another."""

from math import log
from typing import TYPE_CHECKING

import numpy as np

from engine.clock import NS_PER_S
from engine.request import Tokens
from sim.streams import stream
from sim.traffic.trace import Lengths, Times, Trace

if TYPE_CHECKING:
    from sim.traffic.workload import SyntheticWorkload

MAX_PREFIX_TOKENS = 131_072  # the context of today's larger models


def draw(settings: "SyntheticWorkload", seed: int, model: str) -> Trace:
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


def templates(settings: "SyntheticWorkload", seed: int) -> list[Tokens]:
    """The shared prefixes, the most popular first. Each has its own stream: one more changes no other."""
    lengths = log_normal_tokens(
        stream(seed, "prefix_lengths"),
        settings.prefixes,
        settings.prefix_median_tokens,
        settings.prefix_sigma,
        1,
        MAX_PREFIX_TOKENS,
    )
    return [
        stream(seed, f"prefix_tokens.{index}").integers(settings.vocab, size=length, dtype=np.int32)
        for index, length in enumerate(lengths)
    ]


def chosen_prefixes(settings: "SyntheticWorkload", seed: int) -> Lengths:
    """Each request's index of a prefix, i with weight (i + 1)^-zipf, or -1 for all but `prefix_share`."""
    if settings.prefixes == 0:
        return np.full(settings.requests, -1, np.int32)
    weights = np.arange(1, settings.prefixes + 1, dtype=np.float64) ** -settings.prefix_zipf
    upto = np.cumsum(weights) / weights.sum()
    index = np.searchsorted(upto[:-1], stream(seed, "prefix").random(settings.requests), side="right")
    shares = stream(seed, "prefix_share").random(settings.requests) < settings.prefix_share
    return np.where(shares, index, -1).astype(np.int32)
