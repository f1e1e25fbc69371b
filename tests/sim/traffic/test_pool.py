"""Pools of clients are read in both layouts, whole or refused with file and line."""

import gzip
import json
from pathlib import Path

import pytest

from sim.traffic import BadTrace
from sim.traffic.clients import figures
from sim.traffic.formats import detect
from sim.traffic.pool import HEADER, read

RATES = Path(__file__).parents[4] / "shared" / "traces" / "servegen_language_week1_client_rates.csv.gz"
HEAD = ",".join(HEADER) + "\n"
ROWS = "big,1,0,2.0,1.1,Gamma,0.8,0.6\nbig,1,600,4.0,2.0,Weibull,0.5,0.1\nsmall,7,0,0,,,,\nbig,2,0,1,1,Gamma,1,1\n"
CHUNK = "0,2.0,1.1,Gamma,0.8,0.6\n600,0,0,,0,0\n1200,4.0,2.0,Weibull,0.5,0.1\n"
DATASET = {"0": {"input_tokens": "{10: 0.25, 20: 0.75}", "output_tokens": "{1: 1}", "other": "{}"}}
LENGTHS = (
    '{"model":"big","client_id":1,"window_start_s":0,"input_tokens":{"5":1},"output_tokens":{"7":1,"9":1}}\n'
)


@pytest.fixture
def one_file(tmp_path):
    def write(rates=HEAD + ROWS, lengths=LENGTHS):
        (tmp_path / "x_rates.csv").write_text(rates)
        (tmp_path / "x_lengths.jsonl").write_text(lengths)
        return tmp_path / "x_rates.csv"

    return write


@pytest.fixture
def folder(tmp_path):
    def write(chunk=CHUNK, dataset=DATASET):
        inner = tmp_path / "m-large"
        inner.mkdir(exist_ok=True)
        (inner / "chunk-3-trace.csv").write_text(chunk)
        (inner / "chunk-12-trace.csv.gz").write_bytes(gzip.compress(CHUNK.encode()))
        (inner / "chunk-3-dataset.json").write_text(
            dataset if isinstance(dataset, str) else json.dumps(dataset)
        )
        return tmp_path

    return write


def test_a_file_of_rates_is_read_with_the_lengths_beside_it(one_file):
    path = one_file()
    assert detect(path) == "servegen"
    pool = read(path, None)
    assert [client.tenant for client in pool.clients] == ["big/c1", "big/c2"]
    assert (pool.idle_rows, pool.models, pool.end_s) == (1, ("big",), 1200)
    first, second = pool.clients
    assert (list(first.rate), list(first.shape), list(first.family)) == ([2, 4], [0.8, 0.5], [0, 1])
    assert first.lengths[0].output.tokens.tolist() == [7, 9]
    assert first.lengths[0].output.mean() == 8
    assert second.lengths == []


def test_every_file_of_a_pool_may_begin_with_a_byte_order_mark(one_file, folder):
    marked = read(one_file(f"\ufeff{HEAD}{ROWS}", f"\ufeff{LENGTHS}"), None)
    assert [len(client.lengths) for client in marked.clients] == [1, 0]
    inner = folder(f"\ufeff{CHUNK}", f"\ufeff{json.dumps(DATASET)}") / "m-large"
    for path in (inner, inner / "chunk-3-trace.csv"):
        first = read(path, None).clients[0]
        assert (list(first.start_s), len(first.lengths)) == ([0, 1200], 1)


def test_a_folder_of_chunks_is_a_model_in_the_order_of_their_numbers(folder):
    path = folder()
    pool = read(path, None)
    assert [client.tenant for client in pool.clients] == ["m-large/c3", "m-large/c12"]
    assert list(pool.clients[0].start_s) == [0, 1200]
    assert pool.idle_rows == 2
    assert pool.clients[0].lengths[0].input.mean() == 17.5
    assert pool.clients[1].lengths == []
    assert len(read(path / "m-large", None).clients) == 2
    chunk = path / "m-large" / "chunk-3-trace.csv"
    assert detect(chunk) == "servegen"
    assert [client.tenant for client in read(chunk, None).clients] == ["m-large/c3"]
    assert read(chunk, None).clients[0].lengths != []


def test_lengths_are_those_of_the_last_window_that_has_begun(folder):
    later = {"1200": {"input_tokens": "{99: 1}", "output_tokens": "{1: 1}"}} | DATASET
    client = read(folder(dataset=later), None).clients[0]
    assert [client.lengths_at(time_s).input.tokens[-1] for time_s in (0, 1199, 1200, 9999)] == [
        20,
        20,
        99,
        99,
    ]


@pytest.mark.parametrize(
    ("rates", "told"),
    [
        (HEAD, "must have a window with a rate above zero, but has none"),
        (HEAD.replace(",shape", ""), "line 1 has no column shape, but must have model,"),
        (HEAD + "big,1,0,-2,1,Gamma,1,1\n", "line 2, column rate_rps is '-2', but must be a number from 0"),
        (HEAD + "big,1,0,nan,1,Gamma,1,1\n", "line 2, column rate_rps is 'nan'"),
        (HEAD + "big,1,0,1e309,1,Gamma,1,1\n", "line 2, column rate_rps is '1e309'"),
        (
            HEAD + "big,1,0,1,1,Normal,1,1\n",
            "line 2, column family is 'Normal', but must be Gamma or Weibull",
        ),
        (HEAD + "big,1,0,1,1,,1,1\n", "line 2, column family is ''"),
        (HEAD + "big,1,0,1,1,Gamma,0,1\n", "line 2, column shape is '0'"),
        (HEAD + "big,1,0,1,x,Gamma,1,1\n", "line 2, column iat_cv is 'x'"),
        (
            HEAD + ROWS + "big,1,600,1,1,Gamma,1,1\n",
            "line 6, column window_start_s is 600, but must be at least 600",
        ),
        (HEAD + "big,1,0,1\n", "line 2 has 4 fields, but must have 8"),
        (CHUNK + "1800,1\n", "line 4 has 2 fields, but must have six: window_start_s,rate_rps"),
    ],
)
def test_rates_that_are_none_are_refused_with_their_line(rates, told, one_file):
    with pytest.raises(BadTrace, match=told):
        read(one_file(rates), None)


@pytest.mark.parametrize(
    ("lengths", "told"),
    [
        (LENGTHS.replace('"5":1', '"5":-1'), "line 1, a share of the histogram is -1"),
        (
            LENGTHS.replace('"5":1', '"5.5":1'),
            "line 1, a length of the histogram is '5.5', but must be a whole",
        ),
        (LENGTHS.replace('"5":1', '"5":0'), "line 1, key input_tokens must have a share above zero"),
        (LENGTHS.replace('"5":1', '"99999999999":1'), "line 1, a length of the histogram is '99999999999'"),
        (
            LENGTHS.replace('{"5":1}', "3"),
            "line 1, key input_tokens is 3, but must be lengths and their shares",
        ),
        (LENGTHS + LENGTHS[:30], "line 2, column .* must be JSON"),
        (LENGTHS.replace('"window_start_s":0,', ""), "line 1, key window_start_s is missing"),
    ],
)
def test_lengths_that_are_none_are_refused_with_their_line(lengths, told, one_file):
    with pytest.raises(BadTrace, match=told):
        read(one_file(lengths=lengths), None)


@pytest.mark.parametrize(
    ("dataset", "told"),
    [
        ("{", "chunk-3-dataset.json must be a JSON object of windows"),
        ("[]", "is a JSON list, but must be an object of windows"),
        ({"x": {}}, "window 'x', .* is 'x', but must be a number"),
        ({"0": 3}, "window '0' is 3, but must be an object"),
        (
            {"0": {"input_tokens": "{1 0.5}", "output_tokens": "{1: 1}"}},
            "has '1 0.5', but must have LENGTH: SHARE",
        ),
        ({"0": {"input_tokens": "{1: 1}"}}, "window '0', key output_tokens is missing"),
    ],
)
def test_datasets_that_are_none_are_refused_with_their_window(dataset, told, folder):
    with pytest.raises(BadTrace, match=told):
        read(folder(dataset=dataset), None)


def test_a_folder_without_chunks_and_a_file_of_lengths_are_no_pool(tmp_path, one_file):
    with pytest.raises(BadTrace, match=r"has no chunk-N-trace\.csv"):
        read(tmp_path, None)
    one_file()
    with pytest.raises(BadTrace, match="line 1 has the lengths of a pool of clients, but must be a trace"):
        detect(tmp_path / "x_lengths.jsonl")


def test_the_published_clients_are_as_unequal_and_bursty_as_was_published():
    if not RATES.exists():
        pytest.skip("the published traces are not here")
    small, middle, large = figures(read(RATES, None))
    # clients, requests a second, share of the largest and of ten, CV p50 and p90, load above 1.2, Gamma windows;
    # the figures of all of the data, of which this is a week: hence the width
    for found, rate, top, ten, p50, p90, bursty in (
        (small, 1174, 0.30, 0.93, 1.2, 5.5, 0.53),
        (middle, 1790, 0.52, 0.79, 1.3, 5.1, 0.79),
        (large, 196, 0.16, 0.63, 1.2, 4.3, 0.50),
    ):
        assert found.rate[0] == pytest.approx(rate, rel=0.12)
        assert found.top == pytest.approx((top, ten), abs=0.08)
        assert found.cvs == pytest.approx((p50, p90), rel=0.12)
        assert found.bursty == pytest.approx(bursty, abs=0.11)
        assert 0.69 < found.gamma < 0.85
    assert large.input == pytest.approx((964, 677, 2370, 3776), rel=0.4)
    assert middle.output == pytest.approx((49, 34, 89, 318), rel=0.6)
