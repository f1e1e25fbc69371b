import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import BadSettings
from sim.replay import clairvoyant, endless, replay_reference
from sim.replay.reference import PlainLFU, PlainLRU
from sim.traffic import BadTrace
from sim.traffic.lines import LINE_BYTES
from sim.traffic.mooncake import STEP_S, read

TRACE = Path(__file__).parents[4] / "shared" / "traces" / "mooncake_conversation_first30min.jsonl.gz"


def row(timestamp=0, prompt=1100, output=5, blocks=(0, 1, 2), **more):
    values = {
        "timestamp": timestamp,
        "input_length": prompt,
        "output_length": output,
        "hash_ids": list(blocks),
    }
    return (json.dumps(values | more) + "\n").encode()


@pytest.fixture
def written(tmp_path):
    def write(*rows):
        path = tmp_path / "trace.jsonl"
        path.write_bytes(b"".join(rows))
        return path

    return write


@pytest.fixture(scope="module")
def published():
    if not TRACE.is_file():
        pytest.skip(f"no published trace at {TRACE}")
    return read(TRACE)


def refusal(path, **options):
    with pytest.raises(BadTrace) as refused:
        read(path, **options)
    return str(refused.value)


def of_all_blocks(outcome):
    """Of the prompts' blocks, the partial last ones counted."""
    return outcome.hits.sum() / outcome.chains.run_blocks.sum()


def test_a_file_becomes_chains_of_which_full_blocks_can_be_found(written):
    made = read(written(row(0), row(3000, 1600, 9, (0, 1, 7, 8)), row(6000, 512, 1, (0,))))
    assert made.arrival_ns.tolist() == [0, 3 * 10**9, 6 * 10**9]
    assert [made.chain(index) for index in range(3)] == [[0, 1, 2], [0, 1, 7, 8], [0]]
    assert made.prompt_blocks.tolist() == [2, 3, 1]
    assert made.output_tokens.tolist() == [5, 9, 1]
    assert (made.block_tokens, made.source, made.unique_blocks()) == (512, "mooncake:trace.jsonl", 5)
    assert endless(made).hits[:, 0].tolist() == [0, 2, 1]


def test_rows_are_sorted_by_time_and_start_at_zero(written):
    made = read(written(row(9000, blocks=(5, 4, 3)), row(4000), row(4000, 3, 1, (9,))))
    assert made.arrival_ns.tolist() == [0, 0, 5 * 10**9]
    assert [made.chain(index) for index in range(3)] == [[0, 1, 2], [9], [5, 4, 3]]


def test_rows_without_a_prompt_are_dropped_and_counted_and_gzip_is_read(tmp_path):
    path = tmp_path / "trace"
    path.write_bytes(gzip.compress(row(prompt=0, blocks=()) + row() + row(5)))
    assert (len(read(path)), read(path).dropped_rows, len(read(path, requests=1))) == (2, 1, 1)


def test_block_sizes_and_further_keys_may_be_others(written):
    made = read(written(row(prompt=64, blocks=(1, 2, 3, 4), session_id="a", delay=None)), block_tokens=16)
    assert (made.chain(0), made.prompt_blocks.tolist()) == ([1, 2, 3, 4], [4])


def test_arrivals_of_a_step_are_spread_over_it_by_the_seed(written):
    path = written(*[row(3000 * (index // 50), 5, 1, (index,)) for index in range(200)])
    one, again, other = (read(path, spread_s=STEP_S, seed=seed).arrival_ns for seed in (1, 1, 2))
    assert one.tolist() == again.tolist() != other.tolist()
    assert len(np.unique(one)) == 200
    assert 11.5e9 < one[-1] < 12e9


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"{", "line 2, column 2 must be JSON"),
        (b'{"timestamp": 1', "the file ends in this line and may be cut short"),
        (b"[1, 2]\n", "line 2 is a JSON list, but must be an object"),
        (b"\xff\xfe\n", "line 2, byte 1 must be UTF-8"),
        (b"[" * 5000 + b"\n", "line 2 must be a flat JSON object"),
        (b'{"timestamp": ' + b"9" * 5000 + b"}\n", "line 2 must be a flat JSON object"),
        (row(-1), "line 2, key timestamp is -1, but must be a whole number from 0 to"),
        (row(1.5), "line 2, key timestamp is 1.5, but must be"),
        (row(prompt=True), "line 2, key input_length is True, but must be"),
        (row(prompt=10**9), "line 2, key input_length is 1000000000, but must be"),
        (row(output="7"), "line 2, key output_length is '7', but must be"),
        (row(output=None), "line 2, key output_length is missing, but must be"),
        (row(blocks=(0, 1, -2)), "line 2, key hash_ids has -2, but must have whole numbers"),
        (row(blocks=(0, 1, 2**63)), "line 2, key hash_ids has 9223372036854775808, but must"),
        (row(blocks=(0, 1)), "line 2, key hash_ids has 2 blocks, but must have 3: one for each 512"),
        (row(blocks=(0, 2, 1)), "has block 2 behind block 0, but an earlier row has it behind block 1"),
        (row(blocks=(1, 0, 2)), "has block 1 behind nothing, but an earlier row has it behind block 0"),
        (row().replace(b"[0, 1, 2]", b'"x"'), "line 2, key hash_ids is 'x', but must be a list"),
        (b"\n" + row(), "line 2 is blank, but must be a row, since others follow"),
        (b"x" * (LINE_BYTES + 1), "line 2 must be at most 65,536 bytes long"),
    ],
)
def test_a_line_that_is_no_row_is_refused_by_its_number_and_value(written, line, complaint):
    assert complaint in refusal(written(row(), line))


def test_files_without_rows_and_sizes_of_nothing_are_refused(written, tmp_path):
    assert "must have a row with prompt tokens, but has 0" in refusal(written(b""))
    assert "must be a readable file" in refusal(tmp_path / "none")
    assert "must have 35: one for each 32 tokens" in refusal(written(row()), block_tokens=32)
    for option in ({"block_tokens": 0}, {"spread_s": -1.0}):
        with pytest.raises(BadSettings, match="workload"):
            read(written(row()), **option)


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=60), place=st.integers(0, 300), removed=st.integers(0, 40))
def test_damage_makes_a_trace_or_one_sentence(tmp_path_factory, content, place, removed):
    whole = row() + row(3, 600, 1, (0, 5)) + row(9)
    path = tmp_path_factory.getbasetemp() / "damaged.jsonl"
    path.write_bytes(whole[:place] + content + whole[place + removed :])
    try:
        said = read(path).source
    except BadTrace as refused:
        said = str(refused)
    assert path.name in said
    assert "\n" not in said


def test_the_published_trace_is_read_whole(published):
    assert (len(published), published.dropped_rows, published.unique_blocks()) == (5719, 0, 96_534)
    with gzip.open(TRACE, "rt") as lines:
        rows = [json.loads(line) for line in lines]
    assert [published.chain(index) for index in range(5719)] == [values["hash_ids"] for values in rows]
    assert of_all_blocks(endless(published)) == pytest.approx(0.3409, abs=0.005)


@pytest.mark.parametrize(
    ("capacity", "lru", "lfu"),
    [
        (1_000, 0.0433, 0.0483),
        (3_000, 0.0641, 0.0808),
        (10_000, 0.2056, 0.1680),
        (30_000, 0.3126, 0.3037),
    ],
)
def test_plain_caches_find_of_the_published_trace_what_was_published(published, capacity, lru, lfu):
    found = [of_all_blocks(replay_reference(published, capacity, make)) for make in (PlainLRU, PlainLFU)]
    assert found == pytest.approx([lru, lfu], abs=0.0005)
    bound = of_all_blocks(clairvoyant(published, capacity))
    assert max(found) < bound <= of_all_blocks(endless(published))
