"""What is counted of one model's requests: plain integers, one look-up a request."""

from collections import Counter
from dataclasses import dataclass

from engine.clock import to_ns
from engine.figures import Histogram, LogHistogram
from engine.telemetry.events import Ended

TOKEN_BOUNDS = 18
"""Buckets of token counts: up to 1, 2, 4, ... 131,072."""

FINISHED = {"timed_out": "abort", "cancelled": "abort", "failed": "error"}
"""How a request that was let in ended, in vLLM's words; one that completed says "stop" or "length" itself."""

TOKEN_GAPS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)


@dataclass(slots=True, kw_only=True)
class Objective:
    """When an answer was good: its first token within `ttft_s`, the others `tpot_s` apart on the mean."""

    ttft_s: float = 1.0
    tpot_s: float = 0.1


class Served:
    """One model's requests that got an answer, and how long that took."""

    __slots__ = (
        "_tpot_slo_ns",
        "_ttft_slo_ns",
        "cached_tokens",
        "decode",
        "e2e",
        "good",
        "inference",
        "output_sizes",
        "output_tokens",
        "prefill",
        "prompt_sizes",
        "prompt_tokens",
        "queue",
        "quota_wait",
        "token_gaps",
        "tpot",
        "ttft",
    )

    def __init__(self, objective: Objective) -> None:
        self._ttft_slo_ns = to_ns(objective.ttft_s)
        self._tpot_slo_ns = to_ns(objective.tpot_s)
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.cached_tokens = 0
        self.good = 0
        self.ttft = Histogram()
        self.e2e = Histogram()
        self.queue = Histogram()
        self.quota_wait = Histogram()
        self.prefill = Histogram()
        self.decode = Histogram()
        self.inference = Histogram()
        self.tpot = Histogram(TOKEN_GAPS_S)
        self.token_gaps = Histogram(TOKEN_GAPS_S)
        self.prompt_sizes = LogHistogram(TOKEN_BOUNDS)
        self.output_sizes = LogHistogram(TOKEN_BOUNDS)

    def count(self, end: Ended, first_token_ns: int) -> None:
        """A request that completed. What happened before a replica was lost counts for the last attempt's phases."""
        at_ns, arrival_ns, output_tokens = end.at_ns, end.arrival_ns, end.output_tokens
        self.prompt_tokens += end.prompt_tokens
        self.output_tokens += output_tokens
        self.cached_tokens += end.cached_tokens
        self.prompt_sizes.observe(end.prompt_tokens)
        self.output_sizes.observe(output_tokens)
        ttft_ns, decode_ns = first_token_ns - arrival_ns, at_ns - first_token_ns
        self.ttft.observe(ttft_ns)
        self.e2e.observe(at_ns - arrival_ns)
        self.decode.observe(decode_ns)
        gaps = output_tokens - 1
        gap_ns = decode_ns // gaps if gaps > 0 else 0
        if gaps > 0:
            self.tpot.observe(gap_ns)
            self.token_gaps.observe(gap_ns, gaps)
        if ttft_ns <= self._ttft_slo_ns and gap_ns <= self._tpot_slo_ns:
            self.good += 1
        started_ns, queued_ns = end.started_ns, end.queued_ns
        if started_ns is not None:
            self.inference.observe(at_ns - started_ns)
            self.prefill.observe(max(0, first_token_ns - started_ns))
            if queued_ns is not None:
                self.queue.observe(max(0, started_ns - queued_ns))
        if end.admitted_ns is not None and end.loaded_ns is not None and end.admitted_ns > end.loaded_ns:
            self.quota_wait.observe(end.admitted_ns - end.loaded_ns)


class Ends:
    """How one model's requests ended: all of them by outcome, and those that were answered."""

    __slots__ = ("finished", "outcomes", "served")

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.finished: Counter[str] = Counter()
        self.served: Served | None = None
