"""What a pool of clients is like: how unequal their shares are, and how their gaps vary, model by model."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sim.traffic.arrivals import Floats
from sim.traffic.pool import FAMILIES, Client, Histogram, Pool

BURSTY = 1.2  # a CV from which on a client's window counts as more than Poisson
MOST = 0.9  # of the load


@dataclass(slots=True, kw_only=True)
class Clients:
    """The figures of one model's clients over all windows of the pool. Lengths: mean, p50, p90, p99; None if unknown.

    `rate` is that of all together: mean, then percentiles 5 and 95 over the windows in which there is any. `cvs` are
    percentiles 50 and 90 of the CV over clients and windows, `weighted_cvs` 25, 50, 75 and 90 where each counts with
    its requests. `gamma` is the share of the windows whose gaps are of the Gamma family.
    """

    model: str
    clients: int
    unknown_lengths: int
    rate: tuple[float, float, float]
    peak: float
    most_of_load: int
    top: tuple[float, float]
    cvs: tuple[float, float]
    weighted_cvs: tuple[float, float, float, float]
    bursty: float
    gamma: float
    input: tuple[float, float, float, float] | None
    output: tuple[float, float, float, float] | None

    def rows(self) -> list[tuple[str, str]]:
        """What each figure is called, and the figure."""
        return [
            ("clients", f"{self.clients:,}"),
            ("of these without lengths", f"{self.unknown_lengths:,}"),
            ("requests a second: mean / p5 / p95", _shown(self.rate)),
            ("fullest window over mean", _shown((self.peak,))),
            (f"clients for {MOST:.0%} of the load", f"{self.most_of_load:,}"),
            ("load of the largest / the ten largest, share", _shown(self.top)),
            ("CV of gaps of a window: p50 / p90", _shown(self.cvs)),
            ("the same by load: p25 / p50 / p75 / p90", _shown(self.weighted_cvs)),
            (f"load with CV above {BURSTY:g}, share", _shown((self.bursty,))),
            ("windows with Gamma gaps, share", _shown((self.gamma,))),
            ("input, tokens: mean / p50 / p90 / p99", _shown(self.input)),
            ("output, tokens: mean / p50 / p90 / p99", _shown(self.output)),
        ]


def figures(pool: Pool) -> list[Clients]:
    """The figures of each model of a pool, in the order in which they appear."""
    return [
        _figures(model, [client for client in pool.clients if client.model == model], pool.window_s)
        for model in pool.models
    ]


def _figures(model: str, clients: Sequence[Client], window_s: float) -> Clients:
    rate = np.concatenate([np.frombuffer(client.rate) for client in clients])
    cv = np.concatenate([np.frombuffer(client.cv) for client in clients])
    family = np.concatenate([np.frombuffer(client.family, np.int8) for client in clients])
    start = np.concatenate([np.frombuffer(client.start_s) for client in clients])
    window = (start // window_s).astype(np.int64)
    total = np.bincount(window - window.min(), rate)
    load = np.sort([sum(client.rate) for client in clients])[::-1] / rate.sum()
    least, most = np.percentile(total[total > 0], (5, 95))
    weighted = [_weighted(cv, rate, share) for share in (0.25, 0.5, 0.75, 0.9)]
    known = [client for client in clients if client.lengths]
    return Clients(
        model=model,
        clients=len(clients),
        unknown_lengths=len(clients) - len(known),
        rate=(float(total.mean()), float(least), float(most)),
        peak=float(total.max() / total.mean()),
        most_of_load=int(np.searchsorted(np.cumsum(load), MOST * (1 - 1e-12))) + 1,
        top=(float(load[0]), float(load[:10].sum())),
        cvs=(float(np.percentile(cv, 50)), float(np.percentile(cv, 90))),
        weighted_cvs=(weighted[0], weighted[1], weighted[2], weighted[3]),
        bursty=float(rate[cv > BURSTY].sum() / rate.sum()),
        gamma=float((family == FAMILIES.index("Gamma")).mean()),
        input=_mixture([(sum(client.rate), client.lengths[0].input) for client in known]),
        output=_mixture([(sum(client.rate), client.lengths[0].output) for client in known]),
    )


def _weighted(values: Floats, weights: Floats, share: float) -> float:
    """The value below which that share of the weights lies."""
    order = np.argsort(values, kind="stable")
    upto = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(upto, share * upto[-1])])


def _mixture(parts: Sequence[tuple[float, Histogram]]) -> tuple[float, float, float, float] | None:
    """Mean and percentiles of the lengths of clients, each with its weight."""
    if not parts:
        return None
    tokens = np.concatenate([one.tokens for _, one in parts]).astype(np.float64)
    weights = np.concatenate([weight * np.diff(one.upto, prepend=0.0) for weight, one in parts])
    p50, p90, p99 = (_weighted(tokens, weights, share) for share in (0.5, 0.9, 0.99))
    return float(np.dot(tokens, weights) / weights.sum()), p50, p90, p99


def _shown(values: Sequence[float] | None) -> str:
    """Figures with three digits that count, whole from 1,000 on."""
    if values is None:
        return "-"
    return " / ".join(f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" for value in values)  # noqa: PLR2004
