"""Trace files of every format: told apart by their first row, whole or refused with their line, and scaled."""

import gzip
import json
import tracemalloc

import numpy as np
import pytest

from engine.errors import BadSettings
from sim.config import read as configured
from sim.stage import Stage
from sim.traffic import BadTrace, TraceWorkload, draw
from sim.traffic.files import detect, load

CANONICAL = "timestamp_s,model,tenant,input_tokens,output_tokens,session_id,turn\n"
BURSTGPT = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
OLD_BURSTGPT = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n"


def mooncake(timestamp, blocks, prompt=None):
    row = {
        "timestamp": timestamp,
        "input_length": prompt or 512 * len(blocks),
        "output_length": 8,
        "hash_ids": blocks,
    }
    return json.dumps(row) + "\n"


def bailian(chat, parent, timestamp, blocks, prompt=None):
    row = {"chat_id": chat, "parent_chat_id": parent, "timestamp": timestamp, "turn": 1, "type": "text"}
    return (
        json.dumps(
            {**row, "input_length": prompt or 16 * len(blocks), "output_length": 8, "hash_ids": blocks}
        )
        + "\n"
    )


FILES = {
    "azure": AZURE,
    "canonical": CANONICAL + "0.5,big,acme,100,10,s1,1\n1.5,small,acme,200,20,s1,2\n2.0,big,other,300,0,,\n",
    "burstgpt": BURSTGPT + "5,7,1,ChatGPT,100,10,110,Conversation log\n6,7,1,GPT-4,200,0,200,API log\n",
    "mooncake": mooncake(0, [0, 1, 2]) + mooncake(3000, [0, 1, 5], 1500),
    "bailian": bailian(1, -1, 0.5, [9, 8]) + bailian(2, 1, 4.5, [9, 8, 7]) + bailian(3, 99, 5.0, [4]),
}


@pytest.fixture
def written(tmp_path):
    def write(content, name="trace"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.fixture
def trace(written):
    def made(content, fleet=("a", "b"), seed=1, **settings):
        return draw(TraceWorkload(path=str(written(content)), **settings), seed, list(fleet))

    return made


@pytest.mark.parametrize("form", FILES)
@pytest.mark.parametrize("packed", [False, True])
def test_a_format_is_told_by_its_first_row(form, packed, written):
    content = FILES[form].encode()
    path = written(gzip.compress(content) if packed else content)
    assert detect(path) == form
    assert len(load(path).arrival_ns) >= 1


def test_models_tenants_and_sessions_of_a_canonical_file(trace):
    found = trace(FILES["canonical"], model_zipf=0.0)
    assert len(found) == 2
    assert found.dropped_rows == 1
    assert [found.request(index).model for index in (0, 1)] == ["a", "b"]
    assert found.request(0).tenant == "acme"
    assert found.session[0] == found.session[1]
    assert found.arrival_ns.tolist() == [0, 10**9]
    turned = trace(FILES["canonical"], model_zipf=0.0, models=["small", "big"])
    assert [turned.request(index).model for index in (0, 1)] == ["b", "a"]
    with pytest.raises(BadSettings, match="a list that has 'small', which the file asks for"):
        trace(FILES["canonical"], model_zipf=0.0, models=["big"])


def test_the_next_turn_waits_where_it_is_told_to(trace):
    found = trace(FILES["canonical"], wait=True)
    assert found.after.tolist() == [-1, 0]
    assert found.think_ns.tolist() == [0, 10**9]


@pytest.mark.parametrize("header", [BURSTGPT, OLD_BURSTGPT])
def test_columns_are_found_by_name_and_failed_requests_are_counted(header, trace):
    rows = FILES["burstgpt"].splitlines(keepends=True)[1:]
    if header is OLD_BURSTGPT:
        rows = [",".join([row.split(",")[0], *row.split(",")[3:]]) for row in rows]
    found = trace(header + "".join(rows))
    assert (len(found), found.dropped_rows) == (1, 1)


def test_equal_names_of_blocks_are_equal_tokens(trace):
    found = trace(FILES["mooncake"], quantum_s=0.0)
    first, second = found.prompt(0), found.prompt(1)
    assert (len(first), len(second)) == (1536, 1500)
    assert np.array_equal(first[:1024], second[:1024])
    assert not np.array_equal(first[1024:1500], second[1024:])
    assert first.dtype == np.int32
    assert first.max() < found.vocab


def test_a_parent_that_was_cut_off_is_a_root(trace):
    found = trace(FILES["bailian"], wait=True)
    assert found.session[0] == found.session[1] != found.session[2]
    assert found.after.tolist() == [-1, 0, -1]


def test_steps_of_the_clock_are_spread(trace):
    content = "".join(mooncake(3000 * (number // 50), [number]) for number in range(500))
    found = trace(content)
    assert len(np.unique(found.arrival_ns)) == 500
    assert np.diff(found.arrival_ns).min() >= 0
    whole = trace(content, quantum_s=0.0)
    assert len(np.unique(whole.arrival_ns)) == 10


def rows(count, gap_s=1.0):
    return CANONICAL + "".join(f"{number * gap_s},m,t,{number + 1},1,,\n" for number in range(count))


def test_a_trace_is_cut_by_its_own_time(trace):
    found = trace(rows(100), from_s=10.0, until_s=20.0)
    assert found.prompt_tokens.tolist() == list(range(11, 21))
    assert found.arrival_ns[0] == 0
    assert len(trace(rows(100), from_s=10.0, requests=3)) == 3
    with pytest.raises(BadTrace, match="must have a row from 500 s on, but ends at 99 s"):
        trace(rows(100), from_s=500.0)


def test_a_lower_rate_leaves_requests_out_by_chance(trace):
    found = trace(rows(4_000), rate_scale=0.25)
    assert len(found) == pytest.approx(1_000, abs=4 * np.sqrt(4_000 * 0.25 * 0.75))
    assert set(found.prompt_tokens) < set(range(1, 4_001))


def test_a_higher_rate_lays_copies_over_it_with_sessions_and_blocks_of_their_own(trace):
    found = trace(FILES["bailian"], rate_scale=3.0)
    assert len(found) == 9
    assert len(np.unique(found.session)) == 6
    assert len(np.unique(found.block_ids)) == 3 * 4
    more = trace(rows(2_000), rate_scale=2.5)
    assert len(more) == pytest.approx(5_000, abs=4 * np.sqrt(2_000 * 0.25))
    assert (np.diff(more.arrival_ns) >= 0).all()


def test_time_is_stretched(trace):
    assert trace(rows(10), time_scale=0.5).span_ns == 4_500_000_000


def test_a_trace_with_blocks_is_played_and_its_prefixes_are_found(written):
    path = written("".join(mooncake(1000 * number, [0, 1, 2 + number]) for number in range(20)))
    lines = [
        "scenario=steady",
        "executor=roofline",
        "hardware=a100",
        "workload=trace",
        f"workload.path={path}",
    ]
    run = configured([*lines, "tiers.ram.gib=64"])
    stage = Stage(run.engine, draw(run.workload, run.seed, [run.engine.fleet.models[0].name]))
    stage.play()
    found = stage.recorder.requests()["cached_tokens_ram"].sum()
    stage.close()
    assert found > 0.5 * 19 * 1024


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "line 1 is '', but must be a header with"),
        ("a,b,c\n", "line 1 is 'a,b,c', but must be a header"),
        ('{"a": 1}\n', "line 1 has the keys a, but must have timestamp and hash_ids"),
        ("timestamp_s,model\n", "line 1 has no column tenant"),
        (CANONICAL.replace("turn", "model"), "line 1 has a column twice"),
        (CANONICAL + "0,m,t,1\n", "line 2 has 4 fields, but must have 7"),
        (CANONICAL + "0,m,t,1,1,,", "must have a row"),
        (CANONICAL + "nan,m,t,1,1,,\n", "line 2, column timestamp_s is 'nan', but must be seconds"),
        (CANONICAL + "inf,m,t,1,1,,\n", "line 2, column timestamp_s is 'inf'"),
        (CANONICAL + "-1,m,t,1,1,,\n", "line 2, column timestamp_s is '-1'"),
        (CANONICAL + "0,m,t,-5,1,,\n", "line 2, column input_tokens is '-5', but must be a whole number"),
        (CANONICAL + "0,m,t,99999999999999999999,1,,\n", "line 2, column input_tokens is '9999"),
        (CANONICAL + "0,m,t,1e3,1,,\n", "line 2, column input_tokens is '1e3'"),
        (CANONICAL + "5,m,t,1,1,,\n4,m,t,1,1,,\n", "line 3 is 1 s before a row above it"),
        (CANONICAL + "5,m,t,1,1,,\n" + FILES["mooncake"], "line 3 has .* fields, but must have 7"),
        (CANONICAL.encode() + b"0,\xff,t,1,1,,\n", "line 2, byte 3 must be UTF-8"),
        (CANONICAL + "0,m\0,t,1,1,,\n", "line 2 has a NUL byte"),
        (FILES["mooncake"] + FILES["bailian"], "line 3, key timestamp is 0.5"),
        (FILES["mooncake"] + "timestamp,input_length\n", "line 3, column 1 must be JSON"),
        (
            FILES["bailian"] + '{"chat_id": 1, "chat_id": 2}\n',
            "line 4 must be a flat JSON object .* each key once",
        ),
        (bailian(1, -1, float("nan"), [1]), "line 1, column timestamp is nan"),
        (bailian(1, -1, 0.0, [1, 2, 3], 16), "line 1, key hash_ids has 3 blocks, but must have 1"),
        (gzip.compress(FILES["canonical"].encode())[:-9], "must be a whole gzip file"),
    ],
    ids=range(23),
)
def test_a_damaged_file_is_refused_with_its_line(content, told, trace):
    if told == "must have a row":
        assert len(trace(content)) == 1  # a last line without its end is a line
        return
    with pytest.raises(BadTrace, match=told):
        trace(content)


def test_a_line_without_end_is_refused_without_being_read_whole(written):
    path = written(gzip.compress(CANONICAL.encode() + b"x" * 50_000_000, 1))
    tracemalloc.start()
    with pytest.raises(BadTrace, match="line 2 must be at most 65,536 bytes long"):
        load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000


def test_rows_in_any_order_are_taken_where_that_is_asked_for(trace):
    content = CANONICAL + "5,m,t,1,1,,\n4,m,t,2,1,,\n"
    assert trace(content, sort=True).prompt_tokens.tolist() == [2, 1]


def test_another_format_than_the_one_asked_for_is_refused(trace):
    with pytest.raises(BadTrace, match=r"workload\.format is 'mooncake', but .* is of the format azure"):
        trace(AZURE, format="mooncake")


@pytest.mark.slow
def test_a_long_file_takes_no_more_memory_than_its_columns(written):
    content = rows(200_000, 0.01)
    path = written(content)
    tracemalloc.start()
    table = load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(table.arrival_ns) == 200_000
    assert peak < 60 * 200_000
