"""Tables of made-up runs, whose times are known."""

import numpy as np
import pandas as pd
import pytest

MS = 1_000_000


def made_run(ttft_ms, tpot_ms, *, tokens=11, gap_ms=10, **columns):
    """A run of one request each `gap_ms`, whose first token and whose others take so long."""
    count = len(ttft_ms)
    arrival = np.arange(count) * gap_ms * MS
    first = arrival + np.rint(np.asarray(ttft_ms) * MS).astype(np.int64)
    table = pd.DataFrame({"request_id": range(count), "arrival_ns": arrival, "first_token_ns": first})
    table["finished_ns"] = first + np.rint(np.asarray(tpot_ms) * (tokens - 1) * MS).astype(np.int64)
    table["prompt_tokens"], table["output_tokens"] = 100, tokens
    for tier in ("gpu", "ram", "ssd", "network", "cloud"):
        table[f"cached_tokens_{tier}"] = 0
    table["replica"], table["outcome"] = "a", "completed"
    return table.assign(**columns)


@pytest.fixture
def drawn():
    """So many times around a mean, others for another seed."""

    def draw(mean_ms, count=400, seed=1):
        return mean_ms * np.random.default_rng(seed).gamma(4, 1 / 4, count)

    return draw


@pytest.fixture
def make_run():
    return made_run
