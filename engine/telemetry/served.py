"""What is counted of one model's requests: plain integers, for many requests at a time."""

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

    def count(self, ends: list[Ended]) -> None:
        """Requests that completed, each with a first token.

        What happened before a replica was lost counts for the last attempt's phases.
        """
        prompts, outputs = [end.prompt_tokens for end in ends], [end.output_tokens for end in ends]
        self.prompt_tokens += sum(prompts)
        self.output_tokens += sum(outputs)
        self.cached_tokens += sum([end.cached_tokens for end in ends])
        firsts_ns = [end.first_token_ns or 0 for end in ends]
        ttfts_ns = [first_ns - end.arrival_ns for first_ns, end in zip(firsts_ns, ends, strict=True)]
        decodes_ns = [end.at_ns - first_ns for first_ns, end in zip(firsts_ns, ends, strict=True)]
        self._count_gaps(ttfts_ns, decodes_ns, outputs)
        self.prompt_sizes.observe_all(prompts)
        self.output_sizes.observe_all(outputs)
        self.ttft.observe_all(ttfts_ns)
        self.decode.observe_all(decodes_ns)
        self.e2e.observe_all([end.at_ns - end.arrival_ns for end in ends])
        self._count_phases(ends)

    def _count_gaps(self, ttfts_ns: list[int], decodes_ns: list[int], outputs: list[int]) -> None:
        """How far apart tokens came, and whether the answers were good."""
        most_ttft_ns, most_gap_ns = self._ttft_slo_ns, self._tpot_slo_ns
        for ttft_ns, decode_ns, output_tokens in zip(ttfts_ns, decodes_ns, outputs, strict=True):
            gap_ns, gaps = 0, output_tokens - 1
            if gaps > 0:
                gap_ns = decode_ns // gaps
                self.tpot.observe(gap_ns)
                self.token_gaps.observe(gap_ns, gaps)
            if ttft_ns <= most_ttft_ns and gap_ns <= most_gap_ns:
                self.good += 1

    def _count_phases(self, ends: list[Ended]) -> None:
        inference_ns, prefill_ns, queue_ns, quota_ns = [], [], [], []
        for end in ends:
            started_ns, queued_ns = end.started_ns, end.queued_ns
            admitted_ns, loaded_ns = end.admitted_ns, end.loaded_ns
            if started_ns is not None:
                inference_ns.append(end.at_ns - started_ns)
                prefill_ns.append(max(0, (end.first_token_ns or 0) - started_ns))
                if queued_ns is not None:
                    queue_ns.append(max(0, started_ns - queued_ns))
            if admitted_ns is not None and loaded_ns is not None and admitted_ns > loaded_ns:
                quota_ns.append(admitted_ns - loaded_ns)
        self.inference.observe_all(inference_ns)
        self.prefill.observe_all(prefill_ns)
        self.queue.observe_all(queue_ns)
        self.quota_wait.observe_all(quota_ns)


class Ends:
    """How one model's requests ended: all of them by outcome, and those that were answered."""

    __slots__ = ("finished", "outcomes", "served")

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.finished: Counter[str] = Counter()
        self.served: Served | None = None
