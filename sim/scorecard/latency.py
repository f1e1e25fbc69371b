"""What requests of three sizes take, where a model is alone and where it is one of five."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sim import metrics
from sim.play import run
from sim.runs import Run
from sim.scorecard.table import Table

SIZES = (50, 200, 1_000)
PUBLISHED = {1: (45, 78, 234), 5: (52, 89, 267)}
"""Milliseconds of the mean, by number of models."""
PUBLISHED_P99 = {1: 98, 5: 112}
ANSWER = 8
RATE = 0.5
FIXED = (
    "workload.prompt_sigma=0",
    f"workload.output_median_tokens={ANSWER}",
    "workload.output_sigma=0",
    "workload.prefixes=0",
    "workload.prefix_share=0",
)
MODEL = "Llama-3.3-70B-Instruct"
PLACES = {
    "stand-in, torch, this machine": ("executor=torch",),
    "full size, roofline of an H100": ("executor=roofline", "hardware=h100"),
}


def latency(requests: int, seed: int, folder: Path) -> Table:
    """The end-to-end time by the tokens of a prompt; one replica a model."""
    rows: list[tuple[str, ...]] = []
    for models, means_ms in PUBLISHED.items():
        rows.append(
            (str(models), "published", *(f"{ms} ms" for ms in means_ms), f"{PUBLISHED_P99[models]} ms")
        )
        for name, lines in PLACES.items():
            times = [times_s(_run(lines, models, tokens, requests, seed, folder)) for tokens in SIZES]
            p99_s = float(np.percentile(np.concatenate(times), 99))
            rows.append((str(models), name, *(_ms(float(each.mean())) for each in times), _ms(p99_s)))
    note = (
        f"Mean end-to-end time of requests to {MODEL} with so many prompt tokens and {ANSWER} of answer, no prefix "
        f"in common, {requests} of each size at {RATE:g} a second; of five models, as many to each of the others. "
        "Each model has a replica of its own, and in simulation an accelerator (or this machine) of its own. The "
        "stand-in is a small model of the same family. p99 is of all three sizes together."
    )
    heads = ("models", "where", *(f"{tokens:,} tokens" for tokens in SIZES), "p99")
    return Table("Latency by request type", heads, rows, note)


def times_s(played: Run) -> npt.NDArray[np.float64]:
    """End-to-end seconds of the requests to the model that is looked at."""
    done = played.whole.completed
    return metrics.e2e_s(done[done["model_requested"] == MODEL])


def _run(lines: Sequence[str], models: int, tokens: int, requests: int, seed: int, folder: Path) -> Run:
    """One size: so many requests to the model, and as many to each of the others."""
    sizes = [
        f"workload.prompt_median_tokens={tokens}",
        f"workload.prompt_max_tokens={tokens}",
        f"workload.requests={models * requests}",
        f"workload.model_zipf={0.0 if models > 1 else 'null'}",
        f"workload.rate={models * RATE}",
    ]
    where = [f"seed={seed}", "report=tables", f"report.folder={folder}"]
    return run("steady", ["fleet=reference_five", *lines, "workload=chat", *FIXED, *sizes, *where])


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms"
