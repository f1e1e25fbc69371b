"""Tables of made-up runs, whose times are known."""

import numpy as np
import pandas as pd
import pytest

from sim.fidelity.bench import COST_NAMES, DELAY_NAMES, CaseResult, points
from sim.fidelity.cases import CASES
from sim.fidelity.compare import cells, distances, shares

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


def slower(run, factor):
    """The same run, each of its times so much longer."""
    longer = run.copy()
    for name in ("first_token_ns", "finished_ns"):
        longer[name] = run["arrival_ns"] + ((run[name] - run["arrival_ns"]) * factor).astype("int64")
    return longer


def made_case(run, name="poisson70", factor=1.0, real_factor=1.0, voids=()):
    """A case that ran twice, whose second real run was so much slower and whose simulation by another factor."""
    case = CASES[name]
    real, simulated = [run, slower(run, real_factor)], [slower(run, factor)] * 2
    turns = pd.DataFrame({"source": "compared", "kind": "decode", "batch": 1}, index=range(300))
    turns["foreseen_ns"], turns["took_ns"] = np.arange(300) * 1e4 + 1e6, np.arange(300) * 1.1e4 + 1e6
    figures = {
        f"{side} {metric}": 0.02 for side in ("real", "simulated") for metric in ("TTFT", "TPOT", "E2E")
    }
    return CaseResult(
        name=name,
        title=case.title,
        system=case.system,
        load=case.load,
        rate=20.0 * case.load,
        requests=len(run),
        repeats=2,
        cells=cells(real, simulated, case.marks),
        shares=shares(real, simulated, is_calm=False, is_judged=case.marks is not None),
        distances=distances(real, simulated),
        engine=figures,
        schedule_delay=0.001,
        host=dict.fromkeys((*COST_NAMES, *DELAY_NAMES), 1.0) | {"tier_wait_s": 0.0},
        turns=[0.99, 1.02],
        untold=cells(real, [slower(run, 1.01)] * 2, None),
        core_share=0.98,
        yard_share=0.03,
        speeds=[1.04, 0.97],
        voids=list(voids),
        real_s=10.0,
        simulated_s=0.1,
        points=points(name, real, simulated),
        residuals=turns,
    )


@pytest.fixture
def run(make_run, drawn):
    return make_run(drawn(20.0), drawn(3.0, seed=2))


@pytest.fixture
def make_case(run):
    """A case made of a run, or of the one that is at hand."""

    def make(name="poisson70", of=None, **settings):
        return made_case(run if of is None else of, name, **settings)

    return make


@pytest.fixture(name="slower")
def slower_fixture():
    return slower
