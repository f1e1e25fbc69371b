import hashlib
import json
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, dequantize
from safetensors.numpy import load_file

from engine.errors import BadSettings, UnknownName
from engine.formats import open_checkpoint, read_gguf
from engine.stand_ins import REFERENCE, designs, make_stand_ins
from engine.stand_ins.folder import hugging_face_name
from engine.stand_ins.gguf_file import Pairs, gguf_bytes, paired_rows
from engine.stand_ins.weights import KINDS, Stored

SOME = ["Mistral-7B-Instruct-v0.3"]
BITS = {"Q8_0": 8.5, "Q4_0": 4.5, "F16": 16, "F32": 32}


def _bytes(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _from_gguf(path):
    """Every tensor as numbers, by name, with the official reader."""
    return {each.name: dequantize(each.data, each.tensor_type) for each in GGUFReader(path).tensors}


def _from_folder(folder):
    found = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


def test_the_five_reference_models_are_made_when_no_names_are_given(tmp_path):
    told = []
    paths = make_stand_ins(tmp_path / "models", progress=told.append)
    assert [path.name for path in paths] == [f"{name}-Q8_0.gguf" for name in REFERENCE]
    assert sorted(paths) == sorted((tmp_path / "models").iterdir())
    assert [line.partition(":")[0] for line in told] == [path.name for path in paths]


def test_made_twice_they_are_the_same_bytes(made, tmp_path):
    make_stand_ins(tmp_path, list(designs), formats=("gguf", "safetensors"))
    assert _bytes(tmp_path) == _bytes(made)


def test_made_in_another_process_they_are_the_same_bytes(made, tmp_path):
    script = "import pathlib, sys; from engine.stand_ins import *; make_stand_ins(pathlib.Path(sys.argv[1]))"
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, cwd=root)
    for name, data in _bytes(tmp_path).items():
        assert data == (made / name).read_bytes()


def test_nothing_in_one_stand_in_is_in_another(made):
    digests = Counter()
    for name in designs:
        for tensor, values in _from_folder(made / name).items():
            if "norm" not in tensor:
                digests[hashlib.sha256(values.tobytes()).digest(), tensor] += 1
    assert len(digests) > 100
    assert set(digests.values()) == {1}


def test_another_seed_is_another_model_of_that_name(made, tmp_path):
    other = replace(designs["phi-4"], seed=7)
    (path,) = make_stand_ins(tmp_path, [other])
    first, second = _from_gguf(made / path.name), _from_gguf(path)
    assert first.keys() == second.keys()
    assert not any(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", designs)
@pytest.mark.parametrize("where", ["made", "made_in_parts"])
def test_both_formats_hold_the_same_numbers_bit_for_bit(name, where, request):
    folder, stand_in = request.getfixturevalue(where), designs[name]
    shape = stand_in.architecture
    gguf = {}
    for path in folder.glob(f"{name}-Q8_0*.gguf"):
        gguf |= _from_gguf(path)
    factors = gguf.pop("rope_freqs.weight", None)
    assert (factors is None) == (not shape.rope_factors)
    folder_weights = _from_folder(folder / name)
    assert {hugging_face_name(shape, each) for each in gguf} == folder_weights.keys()
    for tensor, values in gguf.items():
        there = folder_weights[hugging_face_name(shape, tensor)]
        if shape.family in {"llama", "mistral"} and ".attn_q." in tensor:
            there = paired_rows(there, shape.heads)
        if shape.family in {"llama", "mistral"} and ".attn_k." in tensor:
            there = paired_rows(there, shape.kv_heads)
        if shape.family.startswith("gemma") and tensor.endswith("norm.weight"):
            there = there + np.float32(1)
        assert values.tobytes() == there.tobytes(), tensor


def test_tensors_of_any_size_begin_where_a_reader_expects_them(tmp_path):
    pairs = Pairs()
    pairs.text("general.architecture", "llama")
    sizes = {"a": 3, "b": 9, "c": 1}
    values = {name: np.arange(size, dtype=np.float32) for name, size in sizes.items()}
    tensors = [Stored(name, each.shape, "F32", each) for name, each in values.items()]
    (tmp_path / "odd.gguf").write_bytes(gguf_bytes(pairs, tensors))
    assert [each.offset % 32 for each in read_gguf(tmp_path / "odd.gguf").tensors.values()] == [0, 0, 0]
    found = _from_gguf(tmp_path / "odd.gguf")
    assert {name: each.tolist() for name, each in found.items()} == {n: v.tolist() for n, v in values.items()}


def test_rotary_partners_lie_side_by_side():
    rows = np.arange(16)[:, None] * np.ones(3)
    assert paired_rows(rows, heads=2)[:, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]


@pytest.mark.parametrize("name", designs)
def test_our_reader_finds_the_shape_that_was_designed(name, made, made_in_parts):
    designed = designs[name].architecture
    for path in (
        made / f"{name}-Q8_0.gguf",
        made / name,
        made_in_parts / f"{name}-Q8_0-00001-of-00003.gguf",
        made_in_parts / name,
    ):
        checkpoint = open_checkpoint(path)
        assert checkpoint.why_not is None
        assert (checkpoint.name, checkpoint.licence) == (name.lower(), "apache-2.0")
        assert checkpoint.parameters == designed.parameters + len(designed.rope_factors) * path.name.endswith(
            "gguf"
        )
        found, wanted = asdict(checkpoint.shape), asdict(designed)
        if path.name.endswith("gguf"):  # there they are a tensor
            found["rope_factors"] = wanted["rope_factors"]
        for key, value in wanted.items():
            assert found[key] == (
                pytest.approx(value, rel=1e-6) if isinstance(value, float | list) else value
            ), key


@pytest.mark.parametrize("kind", KINDS)
def test_matrices_take_the_bits_of_their_kind(kind, tmp_path):
    (path,) = make_stand_ins(tmp_path, SOME, kind=kind)
    checkpoint = open_checkpoint(path)
    assert checkpoint.quantisation == kind
    for tensor in checkpoint.tensors.values():
        is_matrix = len(tensor.shape) > 1
        assert tensor.kind == (kind if is_matrix else "F32")
        assert tensor.num_bytes * 8 == np.prod(tensor.shape) * (BITS[kind] if is_matrix else 32)


def test_a_quantised_stand_in_is_nearly_the_one_it_was_drawn_as(tmp_path):
    drawn, rounded = (_from_gguf(make_stand_ins(tmp_path, SOME, kind=kind)[0]) for kind in ("F32", "Q8_0"))
    for name, values in drawn.items():
        assert np.abs(values - rounded[name]).max() <= np.abs(values).max() / 250


def test_parts_of_a_split_file_have_every_tensor_once(made, made_in_parts):
    for name in designs:
        parts = sorted(made_in_parts.glob(f"{name}-Q8_0-*.gguf"))
        assert [path.name[-20:] for path in parts] == [f"-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
        headers = [read_gguf(path) for path in parts]
        tensors = [tensor for header in headers for tensor in header.tensors]
        assert sorted(tensors) == sorted(read_gguf(made / f"{name}-Q8_0.gguf").tensors)
        for number, header in enumerate(headers):
            assert header.metadata["split.no"] == number
            assert header.metadata["split.tensors.count"] == len(tensors)


def test_shards_hold_what_fits_and_the_index_says_where(made_in_parts):
    folder = made_in_parts / "phi-4"
    weight_map = json.loads((folder / "model.safetensors.index.json").read_bytes())["weight_map"]
    assert not (folder / "model.safetensors").exists()
    shards = sorted(folder.glob("*.safetensors"))
    assert sorted(set(weight_map.values())) == [path.name for path in shards]
    assert len(shards) > 2
    for path in shards:
        tensors = load_file(path)
        assert {weight_map[name] for name in tensors} == {path.name}
        assert len(tensors) == 1 or sum(values.nbytes for values in tensors.values()) <= 300_000


def test_other_files_stay_and_weights_of_an_earlier_making_go(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (folder,) = make_stand_ins(tmp_path, SOME, formats=("safetensors",))
    (folder / "notes.txt").write_text("mine too")
    make_stand_ins(tmp_path, SOME, formats=("safetensors",), max_shard_bytes=100_000)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (folder / "notes.txt").read_text() == "mine too"
    assert not (folder / "model.safetensors").exists()
    make_stand_ins(tmp_path, SOME, formats=("safetensors",))
    assert [path.name for path in folder.glob("model*")] == ["model.safetensors"]


def test_a_file_that_cannot_be_finished_leaves_the_old_one_and_no_rest(tmp_path, monkeypatch):
    (path,) = make_stand_ins(tmp_path, SOME)
    before = path.read_bytes()

    def half(self, data):
        with self.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="no space left"):
        make_stand_ins(tmp_path, [replace(designs[SOME[0]], seed=7)])
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before


def test_an_unknown_name_is_answered_with_those_there_are(tmp_path):
    with pytest.raises(UnknownName) as failure:
        make_stand_ins(tmp_path / "models", ["phi-5"])
    assert str(failure.value) == f"no stand-in is called 'phi-5'; choose from {', '.join(designs)}"
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"kind": "Q4_K_M"}, "'Q4_K_M'; choose from Q8_0, Q4_0, F16, F32"),
        ({"formats": ("onnx",)}, "formats of stand-ins are onnx, but must be some of gguf, safetensors"),
        ({"formats": ()}, "formats of stand-ins are none"),
        ({"parts": 0}, "split into 0 parts; choose 1 to 16"),
        ({"parts": 17}, "split into 17 parts"),
        ({"max_shard_bytes": 0}, "max_shard_bytes is 0"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(wish, words, tmp_path):
    with pytest.raises(BadSettings, match=words):
        make_stand_ins(tmp_path / "models", **wish)
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("below", ["", "models"])
def test_a_file_in_the_place_of_the_folder_is_named(below, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BadSettings, match=r"cannot be written into .*file.* is a file, but must be a folder"):
        make_stand_ins(tmp_path / "file" / below)
    assert (tmp_path / "file").read_text() == "mine"
