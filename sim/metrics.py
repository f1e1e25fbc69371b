"""Every figure's definition, in one place; the names are those of the serving field, the units stand in them.

Times of a request: a arrival, m admission, f first token, l last token; p prompt tokens, n output tokens, c prompt
tokens found in the cache. Latencies are over completed requests; shares name their denominators.
"""

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd

from engine.clock import NS_PER_S
from engine.telemetry.phases import PHASES
from sim.breakdown import means_s

Floats = npt.NDArray[np.float64]

OUTCOMES = ("completed", "rejected", "failed", "timed_out", "cancelled")
PERCENTILES = (50.0, 90.0, 95.0, 99.0)
LEAST_SAMPLES = {99.0: 100, 99.9: 1_000}  # from this percentile on; with fewer it would rest on one or two
TIERS = ("gpu", "ram", "ssd", "network", "cloud")


class RunLike(Protocol):
    """What the figures are taken from."""

    requests: pd.DataFrame

    @property
    def replicas(self) -> list[str]: ...
    @property
    def parts(self) -> pd.DataFrame: ...


def ttft_s(requests: pd.DataFrame) -> Floats:
    """Time to first token, f - a: queueing is inside."""
    return _seconds(requests["first_token_ns"] - requests["arrival_ns"])


def e2e_s(requests: pd.DataFrame) -> Floats:
    """End-to-end latency, l - a."""
    return _seconds(requests["finished_ns"] - requests["arrival_ns"])


def queue_s(requests: pd.DataFrame) -> Floats:
    """Time before the quota let the request in, m - a."""
    return _seconds(requests["admitted_ns"] - requests["arrival_ns"])


def tpot_s(requests: pd.DataFrame) -> Floats:
    """Time per output token after the first, (l - f) / (n - 1), over requests with n > 1."""
    several = requests[requests["output_tokens"] > 1]
    gaps: Floats = several["output_tokens"].to_numpy(dtype=np.float64) - 1
    return _seconds(several["finished_ns"] - several["first_token_ns"]) / gaps


def percentile(values: Floats, q: float) -> float | None:
    """The q-th percentile (0 to 100), linear; None when the sample is too small to have one."""
    least = max((samples for from_q, samples in LEAST_SAMPLES.items() if q >= from_q), default=1)
    if len(values) < least:
        return None
    return float(np.percentile(values, q))


def token_hit_ratio(requests: pd.DataFrame) -> float | None:
    """Sum of c / sum of p over completed requests: the part of the prompts that needed no prefill."""
    prompt_tokens = int(requests["prompt_tokens"].sum())
    return int(cached_tokens(requests).sum()) / prompt_tokens if prompt_tokens else None


def request_hit_ratio(requests: pd.DataFrame) -> float | None:
    """The part of the completed requests with c > 0."""
    return float((cached_tokens(requests) > 0).mean()) if len(requests) else None


def cached_tokens(requests: pd.DataFrame) -> npt.NDArray[np.int64]:
    """The c of each request, over all tiers."""
    by_tier: npt.NDArray[np.int64] = requests[[f"cached_tokens_{tier}" for tier in TIERS]].to_numpy(
        dtype=np.int64
    )
    total: npt.NDArray[np.int64] = by_tier.sum(axis=1)
    return total


def jain_index(shares: Floats) -> float | None:
    """(sum x)^2 / (k sum x^2): 1 when all k parts are equal, 1/k when one has everything (Jain et al., 1984)."""
    squares = float((shares**2).sum())
    return float(shares.sum()) ** 2 / (len(shares) * squares) if squares else None


def goodput_per_s(requests: pd.DataFrame, ttft_slo_s: float, tpot_slo_s: float) -> float | None:
    """Completed requests that met both objectives (a single token has TPOT 0) per second of `duration_s`."""
    duration = duration_s(requests)
    return _num_good(requests, ttft_slo_s, tpot_slo_s) / duration if duration else None


def slo_attainment(requests: pd.DataFrame, ttft_slo_s: float, tpot_slo_s: float) -> float | None:
    """The part of all requests offered, refused and failed ones included, that met both objectives."""
    return _num_good(requests, ttft_slo_s, tpot_slo_s) / len(requests) if len(requests) else None


def duration_s(requests: pd.DataFrame) -> float:
    """From the first arrival to the last end."""
    if requests.empty:
        return 0.0
    return (int(requests["finished_ns"].max()) - int(requests["arrival_ns"].min())) / NS_PER_S


def summary(run: RunLike) -> dict[str, float | int | None]:
    """The figures of a whole run. A figure that does not exist is None, never NaN."""
    requests = run.requests
    completed = requests[requests["outcome"] == "completed"]
    duration, outputs = duration_s(requests), int(completed["output_tokens"].sum())
    figures: dict[str, float | int | None] = {
        outcome: int((requests["outcome"] == outcome).sum()) for outcome in OUTCOMES
    }
    figures |= {
        "duration_s": duration,
        "request_throughput_per_s": len(completed) / duration if duration else None,
        "output_throughput_tokens_per_s": outputs / duration if duration else None,
        "total_prompt_tokens": int(completed["prompt_tokens"].sum()),
        "total_output_tokens": outputs,
        "token_hit_ratio": token_hit_ratio(completed),
        "request_hit_ratio": request_hit_ratio(completed),
        **{f"cached_tokens_{tier}": int(completed[f"cached_tokens_{tier}"].sum()) for tier in TIERS},
        "second_tries": int((requests["attempts"] > 1).sum()),
    }
    for name, latency in (("ttft", ttft_s), ("tpot", tpot_s), ("e2e", e2e_s), ("queue", queue_s)):
        figures |= _spread(name, latency(completed))
    phases = means_s(run.parts.loc[completed.index]).iloc[0] if len(completed) else None
    for name in PHASES:
        figures[f"mean_phase_{name}_s"] = float(phases[f"{name}_s"]) if phases is not None else None
    served = np.array([(completed["replica"] == replica).sum() for replica in run.replicas], dtype=np.float64)
    for replica, count in zip(run.replicas, served, strict=True):
        figures[f"share_{replica}"] = float(count) / len(completed) if len(completed) else None
    figures["jain_index_of_replicas"] = jain_index(served)
    return figures


def _num_good(requests: pd.DataFrame, ttft_slo_s: float, tpot_slo_s: float) -> int:
    completed = requests[requests["outcome"] == "completed"]
    spans_s = _seconds(completed["finished_ns"] - completed["first_token_ns"])
    gaps = np.maximum(completed["output_tokens"].to_numpy(dtype=np.float64) - 1, 1)
    return int(((ttft_s(completed) <= ttft_slo_s) & (spans_s / gaps <= tpot_slo_s)).sum())


def _spread(name: str, values: Floats) -> dict[str, float | int | None]:
    """Mean and percentiles of a latency, with the number of samples."""
    figures: dict[str, float | int | None] = {
        f"n_{name}": len(values),
        f"mean_{name}_s": float(values.mean()) if len(values) else None,
    }
    return figures | {f"p{q:g}_{name}_s": percentile(values, q) for q in PERCENTILES}


def _seconds(durations_ns: "pd.Series[Any]") -> Floats:
    nanoseconds: Floats = durations_ns.to_numpy(dtype=np.float64)
    return nanoseconds / NS_PER_S
