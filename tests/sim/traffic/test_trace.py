import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.clock import NS_PER_S
from engine.errors import BadSettings
from sim.traffic import Trace
from sim.traffic.trace import from_rows, tokens


def a_trace(lengths=(5, 3, 8, 2), prefix=(-1, 0, 0, 1), **changed):
    columns = {
        "arrival_ns": np.arange(len(lengths), dtype=np.int64) * NS_PER_S,
        "prompt_tokens": np.array(lengths, np.int32),
        "output_tokens": np.array([10, 20, 30, 40][: len(lengths)], np.int32),
        "prefix": np.array(prefix, np.int32),
        "prefixes": [np.array([7, 7, 7, 7], np.int32), np.array([9], np.int32)],
    }
    return Trace(**(columns | {"model": "m", "vocab": 4096, "seed": 1, "source": "test"} | changed))


def test_a_request_carries_its_row():
    request = a_trace(tenant="acme").request(2)
    assert (request.id, request.model, request.tenant) == (2, "m", "acme")
    assert (request.arrival_ns, request.num_prompt_tokens, request.max_output_tokens) == (2 * NS_PER_S, 8, 30)
    assert type(request.arrival_ns) is type(request.max_output_tokens) is int
    assert request.prompt_tokens.dtype == np.int32


def test_a_prompt_is_its_template_and_then_tokens_of_its_own():
    trace = a_trace()
    long, other = trace.request(2).prompt_tokens, trace.request(3).prompt_tokens
    assert long[:4].tolist() == [7, 7, 7, 7]
    assert other[0] == 9
    assert long[4] != other[1]


def test_a_prompt_shorter_than_its_template_is_the_template_cut():
    assert a_trace().request(1).prompt_tokens.tolist() == [7, 7, 7]


def test_changing_a_prompt_changes_no_template():
    trace = a_trace()
    np.asarray(trace.request(1).prompt_tokens)[:] = 0
    np.asarray(trace.request(2).prompt_tokens)[:] = 0
    assert trace.request(2).prompt_tokens[:4].tolist() == [7, 7, 7, 7]


def test_the_order_of_asking_changes_no_prompt():
    one, two = a_trace(), a_trace()
    order = [2, 0, 3, 1, 1, 2]
    shuffled = {index: two.request(index).prompt_tokens.tolist() for index in order}
    assert [one.request(index).prompt_tokens.tolist() for index in range(4)] == [
        shuffled[i] for i in range(4)
    ]


def test_another_seed_asks_for_other_tokens():
    assert a_trace().request(0).prompt_tokens.tolist() != a_trace(seed=2).request(0).prompt_tokens.tolist()


@pytest.mark.parametrize("index", [-1, 4])
def test_there_is_no_request_outside_of_the_trace(index):
    with pytest.raises(IndexError, match=f"no request {index} in a trace of 4"):
        a_trace().request(index)


def test_the_summary_is_made_of_plain_numbers():
    summary = a_trace().summary()
    assert summary == {
        "requests": 4,
        "dropped_rows": 0,
        "span_s": 3.0,
        "requests_per_s": 1.0,
        "prompt_tokens_mean": 4.5,
        "prompt_tokens_p50": 4.0,
        "prompt_tokens_p99": pytest.approx(7.91),
        "output_tokens_mean": 25.0,
        "output_tokens_p50": 25.0,
        "output_tokens_p99": pytest.approx(39.7),
    }
    assert {type(value) for value in summary.values()} == {int, float}


def test_a_trace_of_one_moment_has_no_rate():
    trace = a_trace(lengths=(5,), prefix=(-1,))
    assert (trace.span_ns, trace.summary()["requests_per_s"]) == (0, 0.0)


@pytest.mark.parametrize(
    "defect",
    [
        {"arrival_ns": np.array([0, 2, 1, 3])},
        {"arrival_ns": np.array([-1, 0, 1, 2])},
        {"arrival_ns": np.array([], np.int64)},
        {"output_tokens": np.array([1, 2, 3], np.int32)},
        {"prompt_tokens": np.array([1, 0, 1, 1], np.int32)},
        {"prefixes": []},
    ],
)
def test_columns_that_contradict_each_other_are_a_defect(defect):
    with pytest.raises(AssertionError):
        a_trace(**defect)


@settings(deadline=None)
@given(
    key=st.integers(0, 2**64 - 1),
    index=st.integers(0, 10**8),
    count=st.integers(0, 300),
    vocab=st.integers(2, 2**31 - 1),
)
def test_tokens_lie_in_the_vocabulary_and_a_longer_draw_begins_with_a_shorter(key, index, count, vocab):
    drawn = tokens(key, index, count + 5, vocab)
    assert drawn.dtype == np.int32
    assert ((drawn >= 0) & (drawn < vocab)).all()
    assert tokens(key, index, count, vocab).tolist() == drawn[:count].tolist()


@pytest.mark.parametrize("vocab", [4096, 2**31 - 1])
def test_tokens_are_those_of_splitmix64(vocab):
    def naive(counter, vocab, key, mask=2**64 - 1):
        bits = (key + counter * 0x9E3779B97F4A7C15) & mask
        bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & mask
        bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & mask
        return ((bits ^ (bits >> 31)) >> 32) * vocab >> 32

    key, index = 2**63 + 12345, 77
    expected = [naive((index << 24) + position, vocab, key) for position in range(50)]
    assert tokens(key, index, 50, vocab).tolist() == expected
    for start in range(30, 51):  # of a few, each is made by itself
        assert tokens(key, index, 50, vocab, start).tolist() == expected[start:]


def test_tokens_are_uniform_and_independent_between_requests_and_positions():
    drawn = np.stack([tokens(1, index, 1000, 16) for index in range(200)])
    expected = drawn.size / 16
    chi_square = ((np.bincount(drawn.ravel(), minlength=16) - expected) ** 2 / expected).sum()
    assert chi_square < 15 + 4 * np.sqrt(2 * 15)
    for lag in (drawn[:, :-1] == drawn[:, 1:], drawn[:-1] == drawn[1:]):
        assert lag.mean() == pytest.approx(1 / 16, abs=4 * np.sqrt(15 / 256 / lag.size))


def test_a_million_requests_cost_only_their_columns():
    column = np.ones(1_000_000, np.int32)
    trace = from_rows(np.arange(1_000_000), column, column, **of_a_file())
    columns = (trace.arrival_ns, trace.prompt_tokens, trace.output_tokens, trace.prefix)
    assert sum(values.nbytes for values in columns) == 20_000_000
    assert sys.getsizeof(trace) < 1000


def of_a_file(**changed):
    options = {"model": "m", "vocab": 16, "seed": 1, "source": "test", "dropped_rows": 0, "time_scale": 1.0}
    return options | changed


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-(2**60), 2**60), st.integers(1, 1000)), min_size=1))
def test_rows_are_sorted_stably_and_rebased(rows):
    arrivals, prompts = (np.array(column) for column in zip(*rows, strict=True))
    trace = from_rows(arrivals, prompts.astype(np.int32), prompts.astype(np.int32), **of_a_file())
    expected = sorted(rows, key=lambda row: row[0])
    assert trace.prompt_tokens.tolist() == [prompt for _, prompt in expected]
    assert trace.arrival_ns[0] == 0
    gaps = [later - earlier for (earlier, _), (later, _) in pairwise(expected)]
    assert np.diff(trace.arrival_ns).tolist() == gaps


def test_a_time_scale_stretches_every_arrival():
    column = np.ones(3, np.int32)
    trace = from_rows(np.array([100, 300, 201]), column, column, **of_a_file(time_scale=2.5))
    assert trace.arrival_ns.tolist() == [0, 252, 500]


def test_a_time_scale_that_leaves_the_clock_is_refused():
    column = np.ones(2, np.int32)
    with pytest.raises(BadSettings, match=r"workload\.time_scale is 1e\+300, but must be small enough"):
        from_rows(np.array([0, NS_PER_S]), column, column, **of_a_file(time_scale=1e300))
