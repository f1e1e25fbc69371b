import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sim.traffic import SyntheticWorkload, draw

ROOT = Path(__file__).parents[3]
COLUMNS = ("arrival_ns", "prompt_tokens", "output_tokens", "prefix")


def chat(**changed):
    settings = {
        "requests": 20_000,
        "rate": 30.0,
        "prompt_median_tokens": 96.0,
        "prompt_sigma": 1.0,
        "prompt_min_tokens": 1,
        "prompt_max_tokens": 100_000,
        "output_median_tokens": 64.0,
        "output_sigma": 0.6,
        "output_min_tokens": 1,
        "output_max_tokens": 512,
        "prefixes": 8,
        "prefix_zipf": 1.0,
    }
    return SyntheticWorkload(**(settings | changed))


def columns_that_differ(one, two):
    return {name for name in COLUMNS if getattr(one, name).tolist() != getattr(two, name).tolist()}


def templates_of(trace):
    return [template.tolist() for template in trace.prefixes]


def test_the_same_seed_draws_the_same_trace_and_another_moves_every_column():
    trace = draw(chat(), 1, ["m"])
    assert columns_that_differ(trace, draw(chat(), 1, ["m"])) == set()
    other = draw(chat(), 2, ["m"])
    assert columns_that_differ(trace, other) == set(COLUMNS)
    assert templates_of(trace) != templates_of(other)


@pytest.mark.parametrize(
    ("change", "moved", "same_templates"),
    [
        ({"rate": 60.0}, {"arrival_ns"}, True),
        ({"output_sigma": 0.9}, {"output_tokens"}, True),
        ({"output_max_tokens": 64}, {"output_tokens"}, True),
        ({"prompt_sigma": 0.5}, {"prompt_tokens"}, True),
        ({"prompt_median_tokens": 50.0}, {"prompt_tokens"}, True),
        ({"prefix_zipf": 2.0}, {"prefix", "prompt_tokens"}, True),
        ({"prefix_share": 0.5}, {"prefix", "prompt_tokens"}, True),
        ({"prefix_median_tokens": 512.0}, {"prompt_tokens"}, False),
        ({"vocab": 512}, set(), False),
    ],
)
def test_a_setting_moves_no_column_but_its_own(change, moved, same_templates):
    trace, changed = draw(chat(), 1, ["m"]), draw(chat(**change), 1, ["m"])
    assert columns_that_differ(trace, changed) == moved
    assert (templates_of(trace) == templates_of(changed)) is same_templates


def test_a_longer_trace_begins_with_the_shorter():
    short, long = draw(chat(requests=500), 1, ["m"]), draw(chat(requests=900), 1, ["m"])
    for name in COLUMNS:
        assert getattr(long, name)[:500].tolist() == getattr(short, name).tolist()
    assert long.request(499).prompt_tokens.tolist() == short.request(499).prompt_tokens.tolist()


def test_one_more_prefix_changes_none_of_the_others():
    few, more = draw(chat(prefixes=8), 1, ["m"]), draw(chat(prefixes=9), 1, ["m"])
    assert templates_of(more)[:8] == templates_of(few)


def test_no_template_begins_like_another():
    trace = draw(chat(prefixes=50), 1, ["m"])
    assert len({tuple(template[:8].tolist()) for template in trace.prefixes}) == 50


def test_columns_do_not_follow_each_other():
    trace = draw(chat(prefix_share=0.5, prefix_sigma=0.0, prefix_median_tokens=1.0), 1, ["m"])
    gaps = np.diff(trace.arrival_ns, prepend=0)
    ranks = [column.argsort().argsort() for column in (gaps, trace.prompt_tokens, trace.output_tokens)]
    correlations = np.corrcoef([*ranks, trace.prefix])
    assert np.abs(correlations - np.eye(4)).max() < 4 / np.sqrt(len(trace))


def test_a_prompt_is_its_prefix_and_a_part_of_its_own():
    trace = draw(chat(prefix_share=0.5), 1, ["m"])
    without = draw(chat(prefixes=0), 1, ["m"])
    lengths = np.array([*map(len, trace.prefixes), 0])
    assert (trace.prompt_tokens - without.prompt_tokens).tolist() == lengths[trace.prefix].tolist()
    index = int(np.flatnonzero(trace.prefix == 3)[0])
    begin = trace.request(index).prompt_tokens[: lengths[3]]
    assert begin.tolist() == trace.prefixes[3].tolist()
    assert (without.prefix.max(), without.prefixes) == (-1, [])


def test_the_rate_is_that_asked_for_within_four_sigma():
    trace = draw(chat(), 1, ["m"])
    seconds = trace.arrival_ns[-1] / 1e9
    assert seconds == pytest.approx(20_000 / 30, rel=4 / np.sqrt(20_000))


def test_arrivals_are_a_poisson_process():
    trace = draw(chat(requests=60_000, rate=50.0), 1, ["m"])
    counts = np.bincount(trace.arrival_ns // 10**9)[:1000]
    assert counts.var() / counts.mean() == pytest.approx(1, abs=4 * np.sqrt(2 / 1000))
    gaps = np.diff(trace.arrival_ns)
    assert gaps.std() / gaps.mean() == pytest.approx(1, abs=0.03)
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 4 / np.sqrt(60_000)


@pytest.mark.parametrize(("median", "sigma"), [(96.0, 1.0), (1100.0, 1.36), (500.0, 0.0)])
def test_lengths_are_log_normal(median, sigma):
    own = draw(chat(prompt_median_tokens=median, prompt_sigma=sigma, prefixes=0), 1, ["m"]).prompt_tokens
    error = 1.2533 * sigma / np.sqrt(len(own))  # of a sample median
    assert np.log(np.median(own)) == pytest.approx(np.log(median), abs=4 * error + 0.5 / median)
    assert np.log(own).std() == pytest.approx(sigma, abs=0.03)


def test_lengths_stay_between_the_least_and_the_most():
    trace = draw(chat(output_sigma=10.0, output_min_tokens=3, output_max_tokens=40), 1, ["m"])
    assert (trace.output_tokens.min(), trace.output_tokens.max()) == (3, 40)


@pytest.mark.parametrize("zipf", [0.0, 0.4, 1.0, 1.5])
def test_prefixes_are_as_popular_as_zipf_says(zipf):
    trace = draw(chat(prefix_zipf=zipf), 1, ["m"])
    weights = np.arange(1, 9.0) ** -zipf
    expected = weights / weights.sum()
    seen = np.bincount(trace.prefix, minlength=8) / len(trace)
    assert (np.abs(seen - expected) < 4 * np.sqrt(expected * (1 - expected) / len(trace))).all()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_share_of_the_requests_begins_with_a_prefix(share):
    trace = draw(chat(prefix_share=share), 1, ["m"])
    margin = 4 * np.sqrt(share * (1 - share) / len(trace))
    assert (trace.prefix >= 0).mean() == pytest.approx(share, abs=margin)


def test_an_extreme_popularity_leaves_one_prefix():
    assert set(draw(chat(prefix_zipf=1e9), 1, ["m"]).prefix.tolist()) == {0}


def test_columns_have_their_types():
    trace = draw(chat(), 1, ["m"])
    assert [getattr(trace, name).dtype.name for name in COLUMNS] == ["int64", "int32", "int32", "int32"]
    assert {template.dtype.name for template in trace.prefixes} == {"int32"}


def test_a_trace_is_the_same_in_another_process():
    code = (
        "import hashlib, numpy as np\n"
        "from sim.traffic import SyntheticWorkload, draw\n"
        f"trace = draw({chat(requests=300)!r}, 42, 'm')\n"
        "prompts = [trace.request(i).prompt_tokens for i in range(300)]\n"
        "columns = [trace.arrival_ns, trace.output_tokens, trace.prefix, *prompts]\n"
        "print(hashlib.sha256(np.concatenate(columns).tobytes()).hexdigest())"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(said) == 1
