import tracemalloc
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.traffic import AzureWorkload, MixWorkload, Trace, draw, mooncake
from sim.traffic.describe import describe, ideal_token_hit_ratio, known_blocks
from sim.traffic.generator import GeneratedWorkload, PrefixSettings

S = 1_000_000_000
TRACES = Path(__file__).parents[4] / "shared" / "traces"


def trace(arrival_s, **columns):
    count = len(arrival_s)
    given = {
        "arrival_ns": (np.array(arrival_s, np.float64) * S).astype(np.int64),
        "prompt_tokens": np.full(count, 100, np.int32),
        "output_tokens": np.full(count, 10, np.int32),
        "prefix": np.full(count, -1, np.int32),
        "prefixes": [],
    }
    return Trace(**given | columns, model="m", vocab=4096, seed=1, source="by hand")


def column(*values):
    return np.array(values, np.int32)


def poisson(rate, count, seed=1):
    return np.cumsum(np.random.default_rng(seed).standard_exponential(count)) / rate


def test_arrivals_at_even_times_vary_in_nothing():
    found = describe(trace(range(601))).arrivals
    assert (found.span_s, found.rate, found.gap_cv, found.local_cv) == (600, 1, 0, 0)
    assert found.peaks == {1: 1, 10: 1, 60: 1}
    assert found.dispersions == {10: 0, 60: 0}


def test_poisson_arrivals_have_a_dispersion_of_one():
    found = describe(trace(poisson(5.0, 52_000))).arrivals
    assert found.span_s > 10_000  # a thousand windows of ten seconds
    assert found.dispersions[10] == pytest.approx(1, abs=0.18)
    assert found.gap_cv == pytest.approx(1, abs=0.03)
    assert found.local_cv == pytest.approx(1, abs=0.03)


def test_windows_without_arrivals_count():
    arrival_s = np.concatenate((poisson(8, 900, 2), 400 + poisson(3, 700, 3)))
    found = describe(trace(arrival_s)).arrivals
    since = arrival_s - arrival_s[0]
    for window_s in (1, 10, 60):
        whole = int(since[-1] // window_s)
        counts, _ = np.histogram(since[since < whole * window_s], whole, (0, whole * window_s))
        assert found.peaks[window_s] == pytest.approx(counts.max() / counts.mean())
        if window_s > 1:
            assert found.dispersions[window_s] == pytest.approx(counts.var() / counts.mean())


def test_a_rate_that_changes_slowly_leaves_the_local_variation_alone():
    arrival_s = np.concatenate([300 * k + poisson(10.0 ** (k % 2), 4000, k)[:250] for k in range(10)])
    found = describe(trace(np.sort(arrival_s))).arrivals
    assert found.gap_cv > 1.5
    each = []
    for k in range(10):
        gaps = np.diff([at for at in np.sort(arrival_s) - arrival_s.min() if 300 * k <= at < 300 * (k + 1)])
        each.append(gaps.std() / gaps.mean())
    assert found.local_cv == pytest.approx(np.median(each))


@pytest.mark.parametrize("arrival_s", [[3], [3, 3], [0, 0.5]])
def test_short_traces_have_no_figures_that_need_more(arrival_s):
    found = describe(trace(arrival_s))
    assert found.arrivals.peaks == found.arrivals.dispersions == {}
    assert found.arrivals.local_cv is None
    assert dict(found.rows())["CV of gaps"] == ("0" if len(set(arrival_s)) == 2 else "-")


def test_lengths_have_percentiles_and_a_correlation():
    random = np.random.default_rng(4)
    prompts = random.integers(1, 5000, 1000, dtype=np.int32)
    outputs = (prompts // 7 + random.integers(1, 500, 1000)).astype(np.int32)
    found = describe(trace(range(1000), prompt_tokens=prompts, output_tokens=outputs))
    assert (found.input.p50, found.input.p99) == tuple(np.percentile(prompts, (50, 99)))
    assert (found.output.mean, found.output.most) == (outputs.mean(), outputs.max())
    assert found.correlation == pytest.approx(np.corrcoef(prompts, outputs)[0, 1])
    assert describe(trace(range(3))).correlation is None


def test_shares_are_the_largest_first_and_without_those_of_nobody():
    tenant_of = column(*[2] * 50, *[0] * 25, *[3] * 25)
    found = describe(trace(range(100), tenants=("a", "b", "c", "d"), tenant_of=tenant_of)).tenants
    assert found.names == ["c", "a", "d"]
    assert found.shares == [0.5, 0.25, 0.25]


def test_shares_by_zipfs_law_have_its_exponent():
    counts = np.rint(60_000 * np.arange(1, 6.0) ** -1.5).astype(np.int64)
    model_of = np.repeat(np.arange(5, dtype=np.int32), counts)
    found = describe(trace(range(len(model_of)), models=tuple("abcde"), model_of=model_of)).models
    assert found.zipf == pytest.approx(1.5, abs=0.001)


def test_equal_shares_have_the_exponent_zero_and_nothing_near_it():
    for count in (2, 5, 50):
        model_of = np.tile(np.arange(count, dtype=np.int32), 7)
        names = tuple(f"m{index}" for index in range(count))
        rows = describe(trace(range(7 * count), models=names, model_of=model_of)).rows()
        assert dict(rows)["models: Zipf exponent"] == "0"


def test_sessions_are_told_by_their_turns_and_gaps():
    found = describe(trace([0, 1, 11, 400, 401, 500], session=column(7, 3, 7, 7, 3, 5))).sessions
    assert found.count == 3
    assert (found.turns.mean, found.turns.most) == (2, 3)
    assert found.gaps_s.mean == pytest.approx((11 + 389 + 400) / 3)
    assert found.late == pytest.approx(2 / 3)


def test_what_a_trace_does_not_have_is_not_told():
    found = describe(trace(range(10)))
    assert (found.models, found.tenants, found.sessions, found.ideal_token_hit_ratio) == (None,) * 4
    names = [name for name, _ in found.rows()]
    assert "turns: mean" not in names
    assert len(names) == len(set(names))


def ideal_by_tokens(trace, block_tokens):
    """An endless cache that remembers every prompt and answer, token by token."""
    remembered = defaultdict(set)
    grown = replace(trace, prompt_tokens=(trace.prompt_tokens + trace.output_tokens).astype(np.int32))
    found = 0
    for index in range(len(trace)):
        model = 0 if trace.model_of is None else int(trace.model_of[index])
        prompt, whole = trace.prompt(index), grown.prompt(index)
        blocks = 0
        while (blocks + 1) * block_tokens <= len(prompt):
            if prompt[: (blocks + 1) * block_tokens].tobytes() not in remembered[model]:
                break
            blocks += 1
        found += min(blocks * block_tokens, len(prompt) - 1)
        ends = range(block_tokens, len(whole) + 1, block_tokens)
        remembered[model].update(whole[:end].tobytes() for end in ends)
    return found / int(trace.prompt_tokens.sum())


@pytest.mark.parametrize("block_tokens", [16, 64])
@pytest.mark.parametrize(
    "workload",
    [
        MixWorkload(mix="B", requests=150, rate=20.0, model_zipf=1.0),
        MixWorkload(mix="D", requests=100, rate=40.0),
        GeneratedWorkload(requests=300, prefixes=PrefixSettings(count=4, share=0.7), model_zipf=1.0),
    ],
)
def test_the_ideal_hit_ratio_is_that_of_a_cache_that_remembers_every_token(workload, block_tokens):
    drawn = draw(workload, 2, list("abcde"))
    expected = ideal_by_tokens(drawn, block_tokens)
    assert 0.1 < expected < 1
    assert ideal_token_hit_ratio(drawn, block_tokens) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("model_of", [None, column(0, 1, 0, 1, 0)])
def test_prompts_that_are_shorter_than_their_template_find_no_more_than_they_have(model_of):
    template = np.arange(64, dtype=np.int32)
    columns = {"prompt_tokens": column(20, 90, 20, 32, 70), "prefix": column(0, 0, 0, 0, 0)}
    made = trace(range(5), prefixes=[template], models=("a", "b"), model_of=model_of, **columns)
    expected = (16 + 16 + 31 + 64) / 232 if model_of is None else (16 + 31 + 16) / 232
    assert ideal_token_hit_ratio(made, 16) == pytest.approx(expected)


def known_by_looking(chains, full):
    seen, known = set(), []
    for chain, most in zip(chains, full, strict=True):
        leading = next((place for place, name in enumerate(chain) if name not in seen), len(chain))
        known.append(min(leading, most))
        seen.update(chain)
    return known


@given(st.lists(st.lists(st.integers(0, 6), max_size=4), min_size=1, max_size=8))
def test_known_blocks_are_those_that_a_set_has_seen(chains):
    ids = np.array([name for chain in chains for name in chain], np.int64)
    end = np.cumsum([len(chain) for chain in chains])
    full = np.array([max(len(chain) - index % 2, 0) for index, chain in enumerate(chains)])
    assert known_blocks(ids, end, full).tolist() == known_by_looking(chains, full)


def test_the_published_blocks_have_their_ideal_hit_ratio():
    path = TRACES / "mooncake_conversation_first30min.jsonl.gz"
    if not path.exists():
        pytest.skip("the published traces are not here")
    chains = mooncake.read(path)
    ids, end = chains.flat()
    known = known_blocks(ids, end, np.diff(end, prepend=0))  # whole or not
    assert known.sum() / len(ids) == pytest.approx(0.3409, abs=0.0001)


def test_mix_b_has_its_ideal_hit_ratio():
    drawn = draw(MixWorkload(mix="B", model_zipf=1.0), 1, list("abcde"))
    assert describe(drawn).ideal_token_hit_ratio == pytest.approx(0.919, abs=0.015)


@pytest.mark.parametrize(
    ("name", "rate", "gap_cv", "local_cv", "peaks", "prompts", "outputs"),
    [
        ("conv", 5.6, 1.09, 1.04, (2.7, 1.6, 1.4), (1243, 1033, 4076), (217, 134, 427)),
        ("code", 3.2, 13.2, 11.0, (21, 10.3, 3.3), (2028, 1460, 5012), (27, 13, 53)),
    ],
)
def test_published_traces_have_their_figures(name, rate, gap_cv, local_cv, peaks, prompts, outputs):
    path = TRACES / f"azure_llm_2023_{name}_first30min.csv.gz"
    if not path.exists():
        pytest.skip("the published traces are not here")
    found = describe(draw(AzureWorkload(path=str(path), requests=None), 1, ["m"]))
    assert found.arrivals.rate == pytest.approx(rate, rel=0.01)
    assert found.arrivals.gap_cv == pytest.approx(gap_cv, rel=0.04)
    assert found.arrivals.local_cv == pytest.approx(local_cv, rel=0.12)
    assert tuple(found.arrivals.peaks.values()) == pytest.approx(peaks, rel=0.04)
    assert (found.input.mean, found.input.p50, found.input.p90) == pytest.approx(prompts, rel=0.001)
    assert (found.output.mean, found.output.p50, found.output.p90) == pytest.approx(outputs, rel=0.02)


def test_a_description_takes_memory_in_proportion_to_the_columns():
    count = 1_000_000
    random = np.random.default_rng(5)
    made = trace(
        poisson(50, count),
        session=np.sort(random.integers(0, count // 3, count, dtype=np.int32)),
        tenants=tuple(map(str, range(100))),
        tenant_of=random.integers(0, 100, count, dtype=np.int32),
    )
    tracemalloc.start()
    describe(made)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100 * count
