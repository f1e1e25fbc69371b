"""Headers of safetensors files: as the library writes them, and in every way in which they can lie."""

import json
import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from engine.errors import BadModel
from engine.formats.safe_tensors import MAX_HEADER, read_safetensors


def packed(header, data=b""):
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + data


def entry(kind="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": kind, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.fixture
def file(tmp_path):
    def write(data):
        path = tmp_path / "model.safetensors"
        path.write_bytes(data)
        return path

    return write


def test_what_the_library_writes_is_read(tmp_path):
    path = tmp_path / "model.safetensors"
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.arange(4, dtype=np.int8),
        "c": np.float16([1.5]).reshape(()),
        "d": np.zeros((0, 4), dtype=np.int64),
    }
    save_file(arrays, path, metadata={"format": "pt"})
    read = read_safetensors(path)
    assert read.metadata == {"format": "pt"}
    assert read.tensors.keys() == arrays.keys()
    data = path.read_bytes()
    for name, array in arrays.items():
        info = read.tensors[name]
        assert info.shape == array.shape
        assert data[info.offset : info.offset + info.num_bytes] == array.tobytes()
    assert {name: info.kind for name, info in read.tensors.items()} == {
        "a": "F32",
        "b": "I8",
        "c": "F16",
        "d": "I64",
    }


def test_types_of_less_than_a_byte_are_read(file):
    read = read_safetensors(file(packed({"a": entry("F4", (4, 3), (0, 6))}, bytes(6))))
    assert read.tensors["a"].num_bytes == 6


HOSTILE = {
    "an empty file": (b"", "has 0 bytes, too few for a safetensors header"),
    "a length alone": (bytes(8), "has 8 bytes, too few"),
    "a header of 2^60": (
        (2**60).to_bytes(8, "little") + b"{}",
        "announces a header of 1,152,921,504,606,846,976",
    ),
    "a header longer than the file": (packed({})[:9], "announces a header of 2 bytes, but has 9 in all"),
    "a header longer than is read": (
        (MAX_HEADER + 1).to_bytes(8, "little") + b"{" + bytes(MAX_HEADER),
        "but at most 4,194,304 are read",
    ),
    "a list": (packed([]), r"its header does not begin with {"),
    "no JSON": (packed(b"{nonsense}"), "its header is no valid JSON"),
    "a key twice": (packed(b'{"a": {}, "a": {}}'), "the key 'a' stands there twice"),
    "a key twice inside": (
        packed(b'{"a": {"dtype": "F32", "dtype": "F16", "shape": [2], "data_offsets": [0, 8]}}', bytes(8)),
        "the key 'dtype' stands there twice",
    ),
    "deep nesting": (packed(b'{"a":' * 50_000 + b"1" + b"}" * 50_000), "its header is nested too deeply"),
    "an infinity": (packed(b'{"a": Infinity}'), "Infinity is not a number"),
    "metadata that are no text": (
        packed({"__metadata__": {"a": 1}}),
        "__metadata__ is something else than strings",
    ),
    "no object": (packed({"a": [1]}), "tensor 'a' must have dtype, shape and data_offsets"),
    "a key too many": (packed({"a": {**entry(), "b": 1}}, bytes(8)), "and nothing else"),
    "an unknown type": (packed({"a": entry("F128")}, bytes(8)), "tensor 'a' has the unknown dtype 'F128'"),
    "a type that is a list": (packed({"a": entry(["F32"])}, bytes(8)), "has the unknown dtype"),
    "a negative size": (packed({"a": entry(shape=(-2,))}, bytes(8)), r"has the shape \[-2\]"),
    "a fraction": (packed({"a": entry(shape=(2.0,))}, bytes(8)), r"has the shape \[2.0\]"),
    "a truth value": (packed({"a": entry(shape=(True, 2))}, bytes(8)), r"has the shape \[True, 2\]"),
    "2^63 elements": (packed({"a": entry(shape=(2**32, 2**32))}, bytes(8)), "2\\^63 elements or more"),
    "a size of 2^64": (packed({"a": entry(shape=(2**64,))}, bytes(8)), "has the shape"),
    "too many dimensions": (packed({"a": entry(shape=(1,) * 33)}, bytes(8)), "but must have up to 32 counts"),
    "one offset": (packed({"a": entry(offsets=(0,))}, bytes(8)), r"has the data_offsets \[0\]"),
    "offsets that go back": (
        packed({"a": entry(offsets=(8, 0))}, bytes(8)),
        r"has the data_offsets \[8, 0\]",
    ),
    "a span too short": (
        packed({"a": entry(offsets=(0, 7))}, bytes(7)),
        r"7 bytes, but F32 of shape \[2\] needs 8",
    ),
    "half a byte": (packed({"a": entry("F4", (3,), (0, 2))}, bytes(2)), "has 2 bytes, but F4 .* needs 1.5"),
    "a hole": (
        packed({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20)),
        "'b' leaves a hole before it",
    ),
    "a hole at the beginning": (
        packed({"a": entry(offsets=(4, 12))}, bytes(12)),
        "'a' leaves a hole before it",
    ),
    "an overlap": (
        packed({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)),
        "'b' overlaps what lies before",
    ),
    "the same bytes twice": (
        packed({"a": entry(), "b": entry()}, bytes(8)),
        "'b' overlaps what lies before it",
    ),
    "bytes of nobody": (packed({"a": entry()}, bytes(9)), "but its tensors end at"),
    "a byte too few": (packed({"a": entry()}, bytes(7)), "but its tensors end at"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_are_refused_in_words(file, name):
    data, why = HOSTILE[name]
    path = file(data)
    with pytest.raises(BadModel, match=why) as refused:
        read_safetensors(path)
    assert str(refused.value).startswith(f"{path}: ")


class Canary:
    """What it does when it is unpickled would be seen."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("protocol", range(2, 6))
def test_a_pickle_under_another_name_is_refused_and_not_loaded(file, tmp_path, protocol):
    path = file(pickle.dumps({"weights": Canary(tmp_path / "canary")}, protocol=protocol) + bytes(100))
    with pytest.raises(
        BadModel, match=r"this is a pickle, which is never loaded .* convert it to safetensors"
    ):
        read_safetensors(path)
    assert not (tmp_path / "canary").exists()


@pytest.mark.torch
@pytest.mark.parametrize(("is_zip", "word"), [(True, "zip archive"), (False, "pickle")])
def test_what_torch_saves_is_refused_and_not_loaded(tmp_path, is_zip, word):
    import torch  # noqa: PLC0415 - takes a second

    path = tmp_path / "model.safetensors"
    torch.save({"a": torch.zeros(3)}, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(BadModel, match=f"this is a {word}"):
        read_safetensors(path)


SMALL = packed({"__metadata__": {"a": "b"}, "a": entry(), "b": entry("I8", (3, 1), (8, 11))}, bytes(11))


def test_a_header_that_begins_like_a_pickle_is_read(file):
    name = "x" * (0x280 - len(json.dumps({"": entry()})))
    data = packed({name: entry()}, bytes(8))
    assert data.startswith(b"\x80\x02")
    assert list(read_safetensors(file(data)).tensors) == [name]


def test_a_file_cut_at_any_byte_is_refused(file):
    assert list(read_safetensors(file(SMALL)).tensors) == ["a", "b"]
    for length in range(len(SMALL)):
        with pytest.raises(BadModel):
            read_safetensors(file(SMALL[:length]))


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flips=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), min_size=1, max_size=4))
def test_whatever_bytes_change_the_file_is_read_or_refused(file, flips):
    data = bytearray(SMALL)
    for position, value in flips:
        data[position % len(data)] = value
    try:
        read = read_safetensors(file(bytes(data)))
    except BadModel:
        return
    assert sum(each.num_bytes for each in read.tensors.values()) == 11


ENTRY = b'"t%d":{"dtype":"F32","shape":[1],"data_offsets":[%d,%d]}'


@pytest.mark.parametrize(
    "body",
    [
        b"{" + b",".join(b'"%d":{}' % number for number in range(300_000)) + b"}",
        b'{"a":[' + b",".join([b"1234567"] * 400_000) + b"]}",
        b'{"a":[' + b",".join([b"[]"] * 250_000) + b"]}",
        b'{"a":' + b"[" * 3_000_000 + b"}",
        b'{"a":"' + b"x" * 4_000_000 + b'"}',
        b"{" + b",".join(ENTRY % (each, 4 * each, 4 * each + 4) for each in range(16_000)) + b"}",
    ],
    ids=["objects", "numbers", "lists", "nesting", "a string", "the most tensors, and nothing behind them"],
)
def test_a_header_that_holds_too_much_is_refused_before_it_fills_the_memory(tmp_path, body):
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(body).to_bytes(8, "little") + body)
    tracemalloc.start()
    with pytest.raises(BadModel):
        read_safetensors(path)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 16 * 2**20
