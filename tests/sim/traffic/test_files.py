"""Trace files of every format: told apart by their first row, whole or refused with their line, and scaled."""

import gzip
import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from engine.errors import BadSettings
from sim.config import read as configured
from sim.stage import Stage
from sim.traffic import BadTrace, TraceWorkload, draw
from sim.traffic.describe import ideal_token_hit_ratio
from sim.traffic.formats import detect, load

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


def test_times_that_are_not_rounded_are_left_alone_and_steps_may_be_off_by_a_millisecond(trace):
    exact = [0, 1234, 6000, 6001]
    assert (trace("".join(mooncake(at, [0]) for at in exact)).arrival_ns // 10**6).tolist() == exact
    assert trace("".join(mooncake(at, [0]) for at in (0, 2999, 6001))).arrival_ns[1] % 10**6
    found = trace(BURSTGPT + "5.5,7,1,GPT-4,9,9,18,API log\n6.0,7,1,GPT-4,9,9,18,API log\n")
    assert found.arrival_ns.tolist() == [0, 5 * 10**8]


def test_turns_that_share_a_step_stay_in_their_order(trace):
    rows = "".join(
        f"{number // 40},{number % 4},1,GPT-4,{number + 1},9,18,API log\n" for number in range(400)
    )
    found = trace(BURSTGPT + rows)
    assert found.prompt_tokens.tolist() == list(range(1, 401))
    within_s = found.arrival_ns % 10**9 / 1e9
    assert within_s.mean() == pytest.approx(0.5, abs=0.06)


def rows(count, gap_s=1.0):
    return CANONICAL + "".join(f"{number * gap_s},m,t,{number + 1},1,,\n" for number in range(count))


def test_a_trace_is_cut_by_its_own_time(trace):
    found = trace(rows(100), from_s=10.0, until_s=20.0)
    assert found.prompt_tokens.tolist() == list(range(11, 21))
    assert found.arrival_ns[0] == 0
    assert len(trace(rows(100), from_s=10.0, requests=3)) == 3
    with pytest.raises(BadTrace, match="must have a row from 500 s on, but ends at 99 s"):
        trace(rows(100), from_s=500.0)


def test_a_row_that_is_dropped_counts_as_the_first(trace):
    content = CANONICAL + "7,m,t,1,0,,\n" + "".join(f"{at},m,t,{at},1,,\n" for at in (17, 27, 37))
    assert trace(content, from_s=15.0, until_s=30.0).prompt_tokens.tolist() == [27]


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


def test_sessions_that_names_of_blocks_tell_are_left_out_as_a_whole(trace):
    content = "".join(
        mooncake(60_000 * turn + 10 * number, [*range(10 * number, 10 * number + 2 + turn)])
        for turn in range(4)
        for number in range(200)
    )
    found = trace(content, rate_scale=0.5)
    assert found.session is None
    heads = found.block_ids[np.concatenate(([0], found.block_end[:-1]))]
    kept, turns = np.unique(heads, return_counts=True)
    assert 70 < len(kept) < 130
    assert set(turns.tolist()) == {4}


def test_sessions_that_names_of_blocks_tell_wait_where_that_is_asked_for(trace):
    found = trace(mooncake(0, [0, 1]) + mooncake(1000, [7]) + mooncake(60_000, [0, 1, 2]), wait=True)
    assert found.session[0] == found.session[2] != found.session[1]
    assert found.after.tolist() == [-1, -1, 0]
    with pytest.raises(BadSettings, match="wait is True, but must be false, since the file tells neither"):
        trace(AZURE, wait=True)


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
        ("", "is empty, but must have a header or a JSON object in its first line"),
        (gzip.compress(b"", mtime=0), "is empty, but must have a header"),
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
        (CANONICAL + '0,"m"\r,t,1,1,,\n', "line 2 has a carriage return in the middle"),
        (
            FILES["mooncake"] + FILES["bailian"],
            "line 3 has a chat_id like a row of bailian, but the first row",
        ),
        (FILES["bailian"] + FILES["mooncake"], "line 4, key chat_id is missing"),
        (AZURE + FILES["canonical"], "line 3 has the fields .*, but must have three: TIMESTAMP"),
        (CANONICAL + "0,m,t,1,1,,\n" + CANONICAL, "line 3, column timestamp_s is 'timestamp_s'"),
        (CANONICAL + "1e309,m,t,1,1,,\n", "line 2, column timestamp_s is '1e309', but must be seconds"),
        (CANONICAL + "9223372037,m,t,1,1,,\n", "line 2, column timestamp_s is '9223372037'"),
        (CANONICAL + "1_0,m,t,1,1,,\n", "line 2, column timestamp_s is '1_0'"),
        (CANONICAL + "\N{FULLWIDTH DIGIT ONE},m,t,1,1,,\n", "line 2, column timestamp_s is"),
        (CANONICAL + "0,m,t,1,NaN,,\n", "line 2, column output_tokens is 'NaN'"),
        (CANONICAL + "0,m,t,,1,,\n", "line 2, column input_tokens is ''"),
        (CANONICAL + "0,m,t,1,1,s,first\n", "line 2, column turn is 'first'"),
        (
            BURSTGPT + "5,7,1,GPT-4,9223372036854775808,1,1,API log\n",
            "line 2, column Request tokens is '92233",
        ),
        (mooncake(-1, [0]), "line 1, key timestamp is -1, but must be milliseconds"),
        (mooncake(0, [0]).replace("0,", "1e999,", 1), "line 1, key timestamp is inf"),
        (mooncake(0, [0]).replace("8", "true"), "line 1, key output_length is True"),
        (mooncake(0, [0], 99999999999999999999), "line 1, key input_length is 9999"),
        (mooncake(3000, [0]) + mooncake(0, [1]), "line 2 is 3 s before a row above it"),
        (bailian(1, -1, 5.0, [1]) + bailian(2, -1, 4.0, [2]), "line 2 is 1 s before a row above it"),
        (
            mooncake(0, [0]) + '{"timestamp": 0, "input_le',
            "line 2, column .*; the file ends in this line and may be",
        ),
        (FILES["mooncake"] + "timestamp,input_length\n", "line 3, column 1 must be JSON"),
        (
            FILES["bailian"] + '{"chat_id": 1, "chat_id": 2}\n',
            "line 4 must be a flat JSON object .* each key once",
        ),
        (bailian(1, -1, float("nan"), [1]), "line 1, key timestamp is nan"),
        (bailian(1, -1, 0.0, [1, 2, 3], 16), "line 1, key hash_ids has 3 blocks, but must have 1"),
        (gzip.compress(FILES["canonical"].encode(), mtime=0)[:-9], "must be a whole gzip file"),
    ],
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


@pytest.mark.parametrize(
    "content",
    [
        FILES["canonical"].encode("utf-8-sig"),
        FILES["canonical"].replace("\n", "\r\n").encode(),
        FILES["canonical"].rstrip("\n").encode(),
        FILES["canonical"].encode() + b"\n\r\n",
        FILES["canonical"].replace("acme", '"acme"').encode(),
        FILES["canonical"].replace(",", " , ").encode(),
        b"\xef\xbb\xbf"
        b'"'
        + CANONICAL.strip().replace(",", '","').encode()
        + b'"\n'
        + FILES["canonical"].removeprefix(CANONICAL).encode(),
    ],
    ids=["mark", "crlf", "no end", "blank ends", "quotes", "spaces", "quoted header"],
)
def test_how_lines_are_written_does_not_matter(content, trace):
    found = trace(content)
    assert found.prompt_tokens.tolist() == [100, 200]
    assert found.tenants[:1] == ("acme",)


def test_a_pipe_is_refused_since_its_first_row_would_be_gone():
    end, other = os.pipe()
    with os.fdopen(other, "wb") as writer, os.fdopen(end, "rb"):
        writer.write(FILES["canonical"].encode())
        writer.flush()
        with pytest.raises(BadTrace, match=f"/dev/fd/{end} is a pipe, but must be a file"):
            detect(Path(f"/dev/fd/{end}"))


def test_a_mark_before_json_does_not_matter(trace):
    assert len(trace(FILES["mooncake"].encode("utf-8-sig"))) == 2


def test_names_may_be_of_any_script_and_have_commas(trace):
    found = trace(CANONICAL + '0,m,"ζ, 北京",10,1,,\n')
    assert found.tenants == ("ζ, 北京",)


def test_a_file_with_a_header_alone_has_no_row(trace):
    with pytest.raises(BadTrace, match="must have a row with both prompt and output tokens, but has none"):
        trace(CANONICAL)


def test_failed_requests_are_told_from_other_rows_that_nobody_can_serve(trace):
    rows = "5,7,1,ChatGPT,100,10,110,x\n6,7,1,GPT-4,200,0,200,x\n7,7,1,GPT-4,0,5,5,x\n"
    found = trace(BURSTGPT + rows)
    assert (len(found), found.dropped_rows, found.failed_rows) == (1, 2, 1)


def test_models_and_tenants_are_renamed_and_left_out(trace):
    content = CANONICAL + "0,x,a,1,1,,\n1,y,b,2,1,,\n2,z,c,3,1,,\n3,x,b,4,1,,\n"
    found = trace(
        content,
        model_zipf=0.0,
        rename_models={"x": "b", "*": "a"},
        rename_tenants={"c": None, "a": "whale"},
    )
    requests = [found.request(index) for index in range(len(found))]
    assert [request.model for request in requests] == ["b", "a", "b"]  # as the models of the fleet are called
    assert [request.tenant for request in requests] == ["whale", "b", "b"]
    assert found.prompt_tokens.tolist() == [1, 2, 4]
    everybody = trace(content, rename_tenants={"*": "one"})
    assert everybody.tenants == ("one",)
    with pytest.raises(BadSettings, match=r"workload\.rename_models is 'w', but must be one of the models"):
        trace(content, rename_models={"w": "a"})
    with pytest.raises(BadTrace, match="must have a row that is wanted"):
        trace(content, rename_models={"*": None})


def test_more_models_than_the_fleet_has_are_told_by_name_with_what_to_do(trace):
    content = CANONICAL + "0,x,t,1,1,,\n1,y,t,2,1,,\n2,z,t,2,1,,\n"
    with pytest.raises(BadSettings) as caught:
        trace(content, model_zipf=0.0)
    assert str(caught.value) == (
        "the file asks for 3 models (x, y, z), but the fleet has 2 (a, b): workload.rename_models gives them "
        "other names, as in {*: NAME}; with workload.model_zipf=null all requests ask for the first"
    )
    assert len(trace(content, model_zipf=0.0, rename_models={"*": "a"})) == 3
    assert len(trace(content)) == 3


def test_names_of_the_fleet_mean_its_models_in_any_order(trace):
    found = trace(CANONICAL + "0,b,t,1,1,,\n1,a,t,2,1,,\n", model_zipf=0.0)
    assert [found.request(index).model for index in (0, 1)] == ["b", "a"]


def test_a_rest_that_is_no_full_block_may_have_no_name(trace):
    found = trace(mooncake(0, [7, 8], 1100) + mooncake(1, [7, 8, 9], 1100), quantum_s=0.0)
    first, second = found.prompt(0), found.prompt(1)
    assert (len(first), len(second)) == (1100, 1100)
    assert np.array_equal(first[:1024], second[:1024])
    assert not np.array_equal(first[1024:], second[1024:])
    with pytest.raises(
        BadTrace, match=r"has 2 blocks, but must have 5: .*workload\.block_tokens: what a name"
    ):
        trace(mooncake(0, [7, 8], 1100), block_tokens=256)


@pytest.mark.parametrize("model_zipf", [None, 0.0])
def test_a_rest_is_not_found_by_a_full_block_of_its_name(model_zipf, trace):
    rows = [mooncake(0, [7, 8], 600), mooncake(1, [7, 8]), mooncake(2, [7, 8]), mooncake(3, [7, 8], 600)] * 5
    found = trace("".join(rows), sort=True, quantum_s=0.0, model_zipf=model_zipf)
    known = ideal_token_hit_ratio(found, 64) * found.prompt_tokens.sum()
    assert known == pytest.approx(ideal_by_looking(found))


def ideal_by_looking(trace):
    seen, known = set(), 0
    for index in range(len(trace)):
        prompt, model = trace.prompt(index), 0 if trace.model_of is None else int(trace.model_of[index])
        heads = [(model, bytes(prompt[:end])) for end in range(512, len(prompt) + 1, 512)]
        leading = next((place for place, head in enumerate(heads) if head not in seen), len(heads))
        known += min(leading * 512, len(prompt) - 1)
        seen.update(heads)
    return known


def test_names_that_stand_for_a_block_alone_count_behind_the_same_prefix_only(trace):
    blocks = ([1, 2, 3], [5, 2, 3], [1, 2, 9], [5, 2, 3])
    found = trace("".join(mooncake(time, each) for time, each in enumerate(blocks)), quantum_s=0.0)
    names = [tuple(part) for part in np.split(found.block_ids, found.block_end[:-1])]
    assert names[0][0] != names[1][0]
    assert names[0][1] != names[1][1]
    assert names[0][:2] == names[2][:2]
    assert names[1] == names[3]
    known = ideal_token_hit_ratio(found, 512) * found.prompt_tokens.sum()
    assert known == 2 * 512 + 3 * 512 - 1


def test_sessions_of_mooncake_rows_and_their_delays(trace):
    def row(**values):
        return json.dumps({"input_length": 512, "output_length": 8, "hash_ids": [1]} | values) + "\n"

    content = row(timestamp=0, session_id="a") + row(timestamp=500.5, session_id="b")
    content += row(session_id="a", delay=4000) + row(timestamp=900)
    found = trace(content, quantum_s=0.0, wait=True)
    assert found.arrival_ns.tolist() == [0, 500_500_000, 900_000_000, 4_000_000_000]
    assert found.session[0] == found.session[3]
    assert found.after.tolist() == [-1, -1, -1, 0]
    assert found.think_ns[3] == 4_000_000_000
    with pytest.raises(BadTrace, match="line 1, key timestamp is missing"):
        trace(row(session_id="a", delay=1))


@pytest.mark.parametrize("at_s", [0.067, 0.268, 1.001, 4.35, 8.7])
def test_a_cut_at_the_time_of_a_row_is_before_it(at_s, trace):
    rows = CANONICAL + f"0,m,t,1,1,,\n{at_s},m,t,2,1,,\n"
    assert trace(rows, until_s=at_s).prompt_tokens.tolist() == [1]
    assert trace(rows, from_s=at_s).prompt_tokens.tolist() == [2]


def test_a_row_told_by_its_delay_lets_no_other_go_back_in_time(trace):
    def row(**values):
        return json.dumps({"input_length": 512, "output_length": 8, "hash_ids": [1]} | values) + "\n"

    head = row(timestamp=0, session_id="a") + row(session_id="a", delay=9000)
    late = row(timestamp=5000)
    with pytest.raises(BadTrace, match="line 4 is 1 s before a row above it"):
        trace(head + late + row(timestamp=4000))
    found = trace(head + late + row(timestamp=4000), sort=True, quantum_s=0.0)
    assert found.arrival_ns.tolist() == [0, 4 * 10**9, 5 * 10**9, 9 * 10**9]
    with pytest.raises(BadTrace, match=r"line 3, key delay is 4000000000000, but must be so short"):
        trace(head + row(session_id="a", delay=4 * 10**12))


@pytest.mark.parametrize("seed", range(5))
def test_sorted_rows_have_the_sessions_that_they_have_in_order(seed, trace):
    random = np.random.default_rng(seed)
    parents = [-1, *(int(random.choice([-1, 9000, random.integers(chat)])) for chat in range(1, 40))]
    rows = [bailian(chat, parent, float(chat), [chat]) for chat, parent in enumerate(parents)]
    plain = trace("".join(rows)).session.tolist()
    mixed = trace("".join(random.permutation(rows)), sort=True).session.tolist()
    assert len(set(zip(plain, mixed, strict=True))) == len(set(plain)) == len(set(mixed))


def test_parents_in_a_circle_are_one_session(trace):
    chains = [(1, 11), (2, 12), (3, 13), (11, 2), (12, 3), (13, 1)]
    rows = [bailian(chat, parent, float(place), [chat]) for place, (chat, parent) in enumerate(chains)]
    assert set(trace("".join(rows), sort=True).session.tolist()) == {0}


def test_a_chat_is_not_called_like_the_parent_of_a_root(trace):
    with pytest.raises(BadTrace, match="line 2, key chat_id is -1, but must be a whole number from 0 to"):
        trace(bailian(0, -1, 0.5, [9]) + bailian(-1, -1, 1.5, [8]) + bailian(2, -1, 2.5, [7]))


def test_times_since_1970_are_times(trace):
    found = trace(CANONICAL + "1763000000.25,m,t,1,1,,\n1763000001.5,m,t,1,1,,\n")
    assert found.span_ns == pytest.approx(1.25e9, abs=1e3)
    with pytest.raises(BadSettings, match="small enough that a run ends in a year"):
        trace(CANONICAL + "0,m,t,1,1,,\n1763000000,m,t,1,1,,\n")


@pytest.mark.parametrize("begins", [CANONICAL.encode(), b"", b"{", mooncake(0, [0]).encode()])
def test_a_gigabyte_without_a_line_end_is_refused_in_little_memory(begins, tmp_path):
    path = tmp_path / "holes"
    with path.open("wb") as file:
        file.write(begins)
        file.truncate(1 << 30)
    tracemalloc.start()
    with pytest.raises(BadTrace, match=rf"{path}, line [12] must be at most [0-9,]+ bytes long"):
        load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 << 20


@pytest.mark.parametrize("kept", [1, 9, 12, 40, -9, -1])
@pytest.mark.parametrize("form", FILES)
def test_a_gzip_file_cut_anywhere_is_refused(form, kept, written):
    path = written(gzip.compress(FILES[form].encode())[:kept])
    with pytest.raises(BadTrace, match=str(path)):
        load(path)
