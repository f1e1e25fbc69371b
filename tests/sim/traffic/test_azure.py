import csv
import gzip
import io
import re
import tracemalloc
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.traffic import AzureWorkload, BadTrace, Trace, draw
from sim.traffic.azure import rows
from sim.traffic.lines import LINE_BYTES
from sim.traffic.sample import write_sample

SERVED = datetime.fromisoformat("1970-01-01"), datetime.fromisoformat("2200-12-31")
HEADER = b"TIMESTAMP,ContextTokens,GeneratedTokens\n"
ROW = b"2023-11-16 18:15:46.6805900,374,44\n"
IMAGES = b"TIMESTAMP,NumImages,ContextTokens,GeneratedTokens\n"
TRACES = Path(__file__).parents[4] / "shared" / "traces"


def read(path, **options):
    return draw(AzureWorkload(path=str(path), **({"requests": None} | options)), 1, ["m"])


@pytest.fixture
def written(tmp_path):
    def write(content, name="trace.csv"):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


def refusal(path, **options):
    with pytest.raises(BadTrace) as refused:
        read(path, **options)
    return str(refused.value)


def test_a_file_becomes_a_trace(written):
    path = written(HEADER + ROW + b"2023-11-16 18:15:50.9951690,396,109\n")
    trace = read(path)
    assert trace.arrival_ns.tolist() == [0, 4_314_579_000]
    assert trace.prompt_tokens.tolist() == [374, 396]
    assert trace.output_tokens.tolist() == [44, 109]
    assert (trace.prefix.tolist(), trace.prefixes) == ([-1, -1], [])
    assert (trace.source, trace.dropped_rows) == ("azure:trace.csv", 0)
    assert trace.request(1).num_prompt_tokens == 396


@pytest.mark.parametrize("name", ["trace.csv", "trace.csv.gz"])
def test_gzip_is_told_by_content_and_not_by_name(written, name):
    for content in (HEADER + ROW, gzip.compress(HEADER + ROW), gzip.compress(HEADER) + gzip.compress(ROW)):
        assert len(read(written(content, name))) == 1


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + HEADER + ROW,
        (HEADER + ROW).replace(b"\n", b"\r\n"),
        (HEADER + ROW).rstrip(b"\n"),
        HEADER + ROW + b"\n  \n\r\n",
        b"  TIMESTAMP , ContextTokens\t, GeneratedTokens  \n" + b" 2023-11-16 18:15:46.68059 ,\t374 , 44 \n",
        b'"TIMESTAMP","ContextTokens","GeneratedTokens"\n"2023-11-16 18:15:46.68059",374,"44"\n',
        b'TIMESTAMP,Note,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68059,"a, b",374,44\n',
    ],
)
def test_marks_line_ends_and_spaces_around_values_do_not_matter(written, content):
    trace = read(written(content))
    assert (trace.prompt_tokens.tolist(), trace.output_tokens.tolist()) == ([374], [44])


@pytest.mark.parametrize(
    ("timestamp", "expected_ns"),
    [
        ("1970-01-01 00:00:00", 0),
        ("1970-01-01 00:00:01.5", 1_500_000_000),
        ("1970-01-01 00:00:59.000000001", 59_000_000_001),
        ("1970-01-01 00:01:00.1234567", 60_123_456_700),
        ("1970-01-01 00:00:00Z", 0),
        ("1970-01-01 02:00:00.5+02:00", 500_000_000),
        ("1970-01-01 00:00:00-05:30", 19_800_000_000_000),
        ("2024-02-29 23:59:59.999999999", 1_709_251_199_999_999_999),
    ],
)
def test_timestamps_are_exact_to_the_nanosecond(written, timestamp, expected_ns):
    assert next(rows(written(HEADER + f"{timestamp},1,1\n".encode()))) == (expected_ns, 1, 1)


@settings(deadline=None)
@given(when=st.datetimes(*SERVED), tail=st.integers(0, 999))
def test_any_date_agrees_with_the_standard_library(tmp_path_factory, when, tail):
    path = tmp_path_factory.getbasetemp() / "dates.csv"
    path.write_bytes(HEADER + f"{when:%Y-%m-%d %H:%M:%S.%f}{tail:03d},1,1\n".encode())
    expected_ns = int(np.datetime64(when, "us").astype(np.int64)) * 1000 + tail
    assert next(rows(path))[0] == expected_ns


def test_columns_beside_the_three_are_left_alone_and_an_offset_from_utc_counts(written):
    rows = b"2024-10-15 00:00:00.5+00:00,2,100,5\n2024-10-15 02:00:01.5+02:00,0,200,6\n"
    trace = read(written(IMAGES + rows))
    assert trace.prompt_tokens.tolist() == [100, 200]
    assert trace.output_tokens.tolist() == [5, 6]
    assert trace.arrival_ns.tolist() == [0, 1_000_000_000]
    turned = b"GeneratedTokens,TIMESTAMP,ContextTokens\r\n5,2024-10-15 00:00:00,100\r\n"
    assert read(written(turned)).prompt_tokens.tolist() == [100]


def test_rows_without_prompt_or_output_are_dropped_and_counted(written):
    content = HEADER + ROW.replace(b"374", b"0") + ROW + ROW.replace(b"44", b"0") + ROW
    trace = read(written(content))
    assert (len(trace), trace.dropped_rows) == (2, 2)


def test_only_the_first_requests_are_kept_and_only_their_neighbours_counted(written):
    zero = ROW.replace(b"374", b"0")
    trace = read(written(HEADER + zero + ROW * 3 + zero), requests=2)
    assert (len(trace), trace.dropped_rows) == (2, 1)


def test_fewer_rows_than_asked_for_are_all_kept(written):
    assert len(read(written(HEADER + ROW), requests=200)) == 1


def test_rows_behind_the_last_one_kept_are_checked(written):
    assert "line 4, column ContextTokens is 'x'" in refusal(
        written(HEADER + ROW * 2 + ROW.replace(b"374", b"x")), requests=1
    )


def test_rows_are_sorted_by_arrival_and_stretched(written):
    content = HEADER + b"2023-11-16 18:15:48,3,1\n2023-11-16 18:15:46,1,1\n2023-11-16 18:15:46,2,1\n"
    trace = read(written(content), time_scale=0.5, sort=True)
    assert trace.prompt_tokens.tolist() == [1, 2, 3]
    assert trace.arrival_ns.tolist() == [0, 0, 1_000_000_000]


@pytest.mark.parametrize(
    "value", ["-5", "x", "NaN", "inf", "3.0", "1e3", "", "1_000", "+5", "10000001", "9" * 5000]
)
@pytest.mark.parametrize("column", ["ContextTokens", "GeneratedTokens"])
def test_a_length_that_is_no_count_is_refused(written, column, value):
    old = b"374" if column == "ContextTokens" else b"44"
    said = refusal(written(HEADER + ROW + ROW.replace(old, value.encode())))
    shown = repr(value) if len(value) < 60 else f"'{'9' * 60}'..."
    assert said.endswith(
        f"trace.csv, line 3, column {column} is {shown}, but must be a whole number from 0 to 10,000,000"
    )


def test_ten_million_tokens_are_allowed(written):
    assert read(written(HEADER + ROW.replace(b"374", b"10000000"))).prompt_tokens.tolist() == [10_000_000]


@pytest.mark.parametrize(
    "timestamp",
    [
        "",
        "yesterday",
        "1700000000",
        "2023-11-16",
        "2023-11-16T18:15:46",
        "2023-11-16 18:15",
        "2023-13-16 18:15:46",
        "2023-02-29 18:15:46",
        "2023-11-16 24:15:46",
        "2023-11-16 18:60:46",
        "2023-11-16 18:15:60",
        "2023-11-16 18:15:46.",
        "2023-11-16 18:15:46.1234567890",
        "2023-11-16 18:15:46+99:00",
        "2023-11-16 18:15:46 UTC",
        "0001-01-01 00:00:00+14:00",
        "1969-12-31 23:59:59",
        "2201-01-01 00:00:00",
        "9999-12-31 23:59:59-14:00",
    ],
)
def test_a_timestamp_that_is_none_is_refused(written, timestamp):
    said = refusal(written(HEADER + f"{timestamp},1,1\n".encode()))
    assert said.endswith(
        f"trace.csv, line 2, column TIMESTAMP is {timestamp!r}, but must be "
        "YYYY-MM-DD HH:MM:SS, up to 9 digits of a second, years 1970 to 2200"
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty, but must begin with the header 'TIMESTAMP,ContextTokens,GeneratedTokens'"),
        (gzip.compress(b"", mtime=0), "is empty, but must begin with the header"),
        (HEADER, "must have a row with both prompt and output tokens, but has none below the header"),
        (
            HEADER + b"\n\n",
            "must have a row with both prompt and output tokens, but has none below the header",
        ),
        (HEADER + ROW.replace(b"44", b"0"), "must have a row with both .* tokens, but has 1 without"),
        (b"\n" + HEADER, "line 1: the header is '', but must be 'TIMESTAMP,"),
        (ROW, "line 1: the header is '2023-11-16 18:15:46.6805900,374,44', but must be 'TIMESTAMP,"),
        (b"Timestamp,ContextTokens,GeneratedTokens\n", "line 1: the header is 'Timestamp,Context"),
        (
            b"TIMESTAMP,NumImages,GeneratedTokens\n",
            "line 1: the header is 'TIMESTAMP,NumImages,Gen.*, but must be",
        ),
        (b"TIMESTAMP," + HEADER, "line 1: the header is .*, but must have each column once"),
        (IMAGES + b"2024-10-15 00:00:00,1,5\n", "line 2 has 3 fields, but must have 4: TIMESTAMP,NumImages"),
        (IMAGES + b"2024-10-15 00:00:00,1,x,5\n", "line 2, column ContextTokens is 'x', but must be"),
        (
            HEADER + ROW + ROW.replace(b":46", b":45"),
            "line 3 is 1 s before a row above it, but time must not go back",
        ),
        (
            HEADER.decode().encode("utf-16"),
            r"the header is '\\xff\\xfeT\\x00I.*\.\.\., but must be 'TIMESTAMP,",
        ),
        (
            HEADER + b"2023-11-16 18:15:46,1\n",
            "line 2 has the fields .*46,1', but must have three: TIMESTAMP",
        ),
        (HEADER + b"2023-11-16 18:15:46,1,2,3\n", "line 2 has the fields .*,1,2,3', but must have three"),
        (HEADER + ROW + b"2023-11-16 18:15", "line 3 .*; the file ends in this line and may be cut short"),
        (HEADER + ROW.replace(b"374", b'"374"\r'), "line 2, column ContextTokens is"),
        (HEADER + ROW + b"\n" + ROW, "line 3 is blank, but must be a row, since others follow"),
        (HEADER + ROW.replace(b"374", b"3\xff4"), "line 2, byte 30 is 0xff, but must be UTF-8"),
        (HEADER + ROW.replace(b"374", b"3\x004"), "line 2, byte 30 is NUL, but must be text"),
        (
            HEADER + ROW.replace(b"374", "\N{FULLWIDTH DIGIT THREE}".encode()),
            r"line 2, column ContextTokens is '\\xef\\xbc",
        ),
        (HEADER + ROW.replace(b"374", b"\xc2\xa0374"), "line 2, column ContextTokens is"),
        (HEADER + ROW + b"9" * LINE_BYTES + b"\n", "line 3 must be at most 65,536 bytes long"),
        (HEADER.replace(b"\n", b"\r") + ROW, "line 1: the header is"),
    ],
)
def test_a_malformed_file_is_refused_with_its_place(written, content, said):
    path = written(content)
    assert re.match(f"{re.escape(str(path))},? {said}|{re.escape(str(path))}.*{said}", refusal(path))


def test_a_line_of_the_longest_length_is_read(written):
    padded = ROW.rstrip(b"\n").ljust(LINE_BYTES - 1) + b"\n"
    assert len(read(written(HEADER + padded))) == 1


def test_a_file_that_is_one_endless_line_is_not_read_whole(written):
    path = written(gzip.compress(HEADER + bytes(50_000_000)))
    tracemalloc.start()
    assert "line 2 must be at most 65,536 bytes long" in refusal(path)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 5_000_000


def test_every_cut_of_a_gzip_file_is_refused(written):
    content = gzip.compress(HEADER + ROW * 3)
    for length in range(2, len(content)):
        said = refusal(written(content[:length]))
        assert "must be a whole gzip file, but after line" in said


def test_a_gzip_file_cut_behind_the_rows_wanted_is_refused(written):
    stamps = [f"2023-11-16 18:{minute:02}:{second:02},1,1\n" for minute in range(60) for second in range(60)]
    content = gzip.compress(HEADER + "".join(stamps).encode())
    said = refusal(written(content[:-20]), requests=1)
    assert "must be a whole gzip file, but after line" in said


def test_a_damaged_gzip_file_is_refused(written):
    content = bytearray(gzip.compress(HEADER + ROW * 100))
    for place in (12, 40, len(content) - 6):  # deflate data, deflate data, checksum
        damaged = bytearray(content)
        damaged[place] ^= 0xFF
        refusal(written(bytes(damaged)))
    assert "must be a whole gzip file" in refusal(written(bytes(content) + b"garbage"))


def test_what_cannot_be_opened_is_refused(tmp_path):
    missing = tmp_path / "missing.csv"
    said = f"workload.path is '{missing}', but must be a readable file: No such file or directory"
    assert refusal(missing) == said
    assert "must be a readable file: Is a directory" in refusal(tmp_path)
    (tmp_path / "file.csv").touch()
    assert "must be a readable file: Not a directory" in refusal(tmp_path / "file.csv" / "trace.csv")
    assert "must be a readable file: embedded null byte" in refusal("trace\0.csv")


def trace_or_refusal(path):
    try:
        trace = read(path)
    except BadTrace as error:
        assert str(path) in str(error)  # noqa: PT017
    else:
        assert isinstance(trace, Trace)


@settings(max_examples=300, deadline=None)
@given(content=st.binary(max_size=300), framed=st.booleans(), packed=st.booleans())
def test_any_bytes_are_a_trace_or_refused(tmp_path_factory, content, framed, packed):
    path = tmp_path_factory.getbasetemp() / "garbage.csv"
    content = HEADER + content if framed else content
    path.write_bytes(gzip.compress(content) if packed else content)
    trace_or_refusal(path)


@settings(max_examples=500, deadline=None)
@given(
    place=st.integers(0, 140),
    removed=st.integers(0, 4),
    added=st.one_of(st.binary(max_size=4), st.text("0123456789-+.:,Z \t\r\n\v\f\x1c\x85\xa0", max_size=4)),
    packed=st.booleans(),
)
def test_any_damage_leaves_a_trace_or_is_refused(tmp_path_factory, place, removed, added, packed):
    path = tmp_path_factory.getbasetemp() / "damaged.csv"
    content = HEADER + ROW * 3
    content = gzip.compress(content) if packed else content
    added = added if isinstance(added, bytes) else added.encode()
    path.write_bytes(content[:place] + added + content[place + removed :])
    trace_or_refusal(path)


def naive(path):
    """The file as the standard library reads it: (seconds since the first row, prompt, output)."""
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw).decode()
    for row in csv.DictReader(io.StringIO(text)):
        whole, _, fraction = row["TIMESTAMP"].partition(".")
        seconds = int(datetime.fromisoformat(whole + "+00:00").timestamp())
        arrival_ns = seconds * 10**9 + int(fraction.ljust(9, "0"))
        yield arrival_ns, int(row["ContextTokens"]), int(row["GeneratedTokens"])


@settings(max_examples=30, deadline=None)
@given(requests=st.integers(1, 300), seed=st.integers(0, 2**32), name=st.sampled_from(["a.csv", "a.csv.gz"]))
def test_a_sample_is_read_as_the_standard_library_reads_it(tmp_path_factory, requests, seed, name):
    path = tmp_path_factory.getbasetemp() / name
    write_sample(path, requests, 5.5, seed)
    assert list(rows(path)) == list(naive(path))
    assert len(read(path)) == requests


@pytest.mark.parametrize(
    ("name", "count", "rate", "prompt_p50", "output_p50"),
    [
        ("azure_llm_2023_conv_first30min.csv.gz", 10_108, 5.53, 1020, 129),
        ("azure_llm_2023_code_first30min.csv.gz", 5_740, 2.57, 1469, 13),
    ],
)
def test_the_published_traces_are_read_whole(name, count, rate, prompt_p50, output_p50):
    path = TRACES / name
    if not path.exists():
        pytest.skip(f"no published trace at {path}")
    trace = read(path)
    assert (len(trace), trace.dropped_rows) == (count, 0)
    summary = trace.summary()  # of the first half hour; expected are the figures of the whole hour
    assert summary["requests_per_s"] == pytest.approx(rate, rel=0.25)
    assert summary["prompt_tokens_p50"] == pytest.approx(prompt_p50, rel=0.1)
    assert summary["output_tokens_p50"] == pytest.approx(output_p50, rel=0.1)
    assert [row[1:] for row in rows(path)] == [row[1:] for row in naive(path)]
    assert sum(row[0] for row in rows(path)) == sum(row[0] for row in naive(path))
