"""Folders in Hugging Face's layout: every file in them is plain, and really in them."""

import json
import os

import numpy as np
import pytest
from safetensors.numpy import save_file

from engine.errors import BadModel
from engine.formats.hugging_face import read_folder, read_licence


@pytest.fixture
def folder(tmp_path):
    """A folder with a configuration and weights in two shards."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "llama"}')
    save_file({"a": np.zeros(2, np.float32)}, path / "model-00001-of-00002.safetensors")
    save_file({"b": np.zeros(3, np.float16), "c": np.zeros(1)}, path / "model-00002-of-00002.safetensors")
    index(path, a="model-00001-of-00002.safetensors", b="model-00002-of-00002.safetensors")
    return path


def index(path, **weight_map):
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_shards_are_one_model(folder):
    read = read_folder(folder)
    assert read.config == {"model_type": "llama"}
    assert [each.name for each in read.files] == [f"model-0000{part}-of-00002.safetensors" for part in (1, 2)]
    assert {name: (info.kind, info.path.name[:11]) for name, info in read.tensors.items()} == {
        "a": ("F32", "model-00001"),
        "b": ("F16", "model-00002"),
    }


def test_a_single_file_needs_no_index(folder):
    save_file({"a": np.zeros(2, np.float32)}, folder / "model.safetensors")
    read = read_folder(folder)
    assert [each.name for each in read.files] == ["model.safetensors"]
    assert list(read.tensors) == ["a"]


@pytest.mark.parametrize(
    "name",
    [
        "../model-00001-of-00002.safetensors",
        "/etc/model.safetensors",
        "sub/model.safetensors",
        "sub\\model.safetensors",
        "C:model.safetensors",
        "model\0.safetensors",
        "..",
        "",
        "x" * 300 + ".safetensors",
        "\ud800.safetensors",
        "pytorch_model.bin",
        7,
        None,
        ["model.safetensors"],
        {"model.safetensors": 1},
    ],
)
def test_a_shard_has_a_plain_name(folder, name):
    index(folder, a="model-00001-of-00002.safetensors", b=name)
    with pytest.raises(
        BadModel, match=r"index.json: puts tensor 'b' into .* not the plain name of a .safetensors file"
    ):
        read_folder(folder)


def test_a_missing_shard_is_named(folder):
    index(folder, a="model-00003-of-00003.safetensors")
    with pytest.raises(
        BadModel, match=r"names 'model-00003-of-00003.safetensors', but there is no such file"
    ):
        read_folder(folder)


def test_a_tensor_that_is_not_where_the_index_says_is_named(folder):
    index(folder, b="model-00001-of-00002.safetensors")
    with pytest.raises(
        BadModel, match=r"says that tensor 'b' lies in model-00001-of-00002.safetensors, but it does not"
    ):
        read_folder(folder)


@pytest.mark.parametrize("text", ["{}", '{"weight_map": {}}', '{"weight_map": ["a"]}'])
def test_an_index_without_a_map_is_refused(folder, text):
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(BadModel, match="has no weight_map"):
        read_folder(folder)


@pytest.mark.skipif(os.name != "posix", reason="needs symlinks and pipes")
def test_links_may_not_leave_the_folder(folder, tmp_path):
    outside = tmp_path / "outside.safetensors"
    save_file({"a": np.zeros(2, np.float32)}, outside)
    shard = folder / "model-00001-of-00002.safetensors"
    inside = shard.rename(folder / "other.safetensors")
    shard.symlink_to(inside.name)
    assert list(read_folder(folder).tensors) == ["a", "b"]
    shard.unlink()
    shard.symlink_to(outside)
    with pytest.raises(
        BadModel, match=r"00001-of-00002.safetensors: is a symlink to a place outside the folder"
    ):
        read_folder(folder)
    shard.unlink()
    os.mkfifo(shard)
    with pytest.raises(BadModel, match="is a named pipe"):
        read_folder(folder)


@pytest.mark.skipif(os.name != "posix", reason="needs symlinks")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_neither_may_the_configuration(folder, tmp_path, name):
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    with pytest.raises(BadModel, match="is a symlink to a place outside the folder"):
        read_folder(folder)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"a": NaN}', "NaN is not a number"),
        ('{"a": 1, "a": 1}', "stands there twice"),
        ("[]", "must be an object"),
        (" " * (2**24 + 1), "has 16,777,217 bytes, but at most 16,777,216 are read"),
    ],
)
def test_a_bad_configuration_is_refused(folder, text, why):
    (folder / "config.json").write_text(text)
    with pytest.raises(BadModel, match=f"config.json: .*{why}"):
        read_folder(folder)


def test_a_folder_without_what_it_needs_says_so(folder):
    for file in folder.glob("*.safetensors.index.json"):
        file.unlink()
    with pytest.raises(
        BadModel, match=r"has safetensors, but neither model.safetensors nor model.safetensors.index"
    ):
        read_folder(folder)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(BadModel, match="has no weights"):
        read_folder(folder)
    (folder / "config.json").unlink()
    with pytest.raises(BadModel, match=r"has no config.json"):
        read_folder(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.PTH", "model.ckpt", "weights.pkl"])
def test_a_folder_of_pickles_is_told_why_it_is_refused(tmp_path, name):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(b"\x80\x02.")
    with pytest.raises(
        BadModel, match=f"only as pickles \\('{name}'\\), which are never loaded .* to safetensors"
    ):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    ("readme", "licence"),
    [
        ("---\nlicense: apache-2.0\n---\n# Model", "apache-2.0"),
        ("---\r\ntags:\r\n- a\r\nlicense: 'mit'\r\n---\r\n", "mit"),
        ("---\nlicense: other\nlicense_name: qwen-research\n---\n", "qwen-research"),
        ("---\nlicense: other\n---\n", "other"),
        ("---\ntags: []\n---\nlicense: mit\n", None),
        ("license: mit\n", None),
        ("---\nlicense: mit\n", None),
        ("---\n" + "x: y\n" * 20_000 + "license: mit\n---\n", None),
        ("---\nlicense: <script>\n---\n", None),
        ("", None),
    ],
)
def test_the_licence_is_what_the_front_matter_says(tmp_path, readme, licence):
    (tmp_path / "README.md").write_bytes(readme.encode())
    assert read_licence(tmp_path) == licence


def test_no_readme_no_licence(tmp_path):
    assert read_licence(tmp_path) is None
