"""One door for all formats: what `open_checkpoint` says of a model, and what it refuses."""

import json

import pytest

from engine.errors import BadModel
from engine.formats import open_checkpoint
from engine.formats.opening import as_version, commonest_kind, slug
from engine.formats.required_tensors import expected_tensors
from engine.settings import Architecture

SHAPE = Architecture(
    family="llama", layers=2, hidden=64, heads=4, kv_heads=2, head_dim=16, ffn=96, vocab=10, context_tokens=512,
    norm_eps=0.5,
)  # fmt: skip
KEYS = {
    "llama.block_count": 2,
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 96,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.context_length": 512,
    "llama.attention.layer_norm_rms_epsilon": 0.5,
}
CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 10,
    "max_position_embeddings": 512,
    "rms_norm_eps": 0.5,
    "tie_word_embeddings": True,
}
TENSORS = dict(expected_tensors(SHAPE, "gguf"))


def test_a_gguf_file_says_what_it_is(write_gguf):
    general = {
        "name": "My Model 7B",
        "version": "v1.2",
        "license": "mit",
        "file_type": 15,
        "tags": ["chat", "de"],
    }
    path = write_gguf(
        "llama", {**{f"general.{key}": value for key, value in general.items()}, **KEYS}, TENSORS
    )
    path = path.rename(path.with_name("My-Model-7B.Q4_K_M.gguf"))
    model = open_checkpoint(path)
    assert (model.format, model.path, model.files) == ("gguf", path, (path,))
    assert (model.name, model.version, model.licence, model.tags) == (
        "my-model-7b",
        "1.2.0",
        "mit",
        ("chat", "de"),
    )
    assert (model.architecture, model.family, model.quantisation) == ("llama", "llama", "Q4_K_M")
    assert (model.shape, model.why_not, model.context_tokens) == (SHAPE, None, 512)
    assert (model.parameters, model.size_bytes) == (SHAPE.parameters, path.stat().st_size)
    assert model.metadata["llama.block_count"] == 2


def test_a_folder_says_the_same(write_folder):
    folder = write_folder({**CONFIG, "_name_or_path": "someone/My-Model"}, SHAPE)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    model = open_checkpoint(folder)
    assert (model.format, model.path, model.files) == ("safetensors", folder, (folder / "model.safetensors",))
    assert (model.name, model.version, model.licence, model.tags) == ("my-model", "1.0.0", "mit", ())
    assert (model.architecture, model.family, model.quantisation) == ("llama", "llama", "F16")
    assert (model.shape, model.why_not, model.context_tokens) == (SHAPE, None, 512)
    assert (model.parameters, model.size_bytes) == (
        SHAPE.parameters,
        (folder / "model.safetensors").stat().st_size,
    )
    assert model.metadata == json.loads((folder / "config.json").read_text())


def test_what_our_decoder_does_not_run_opens_with_a_reason(write_gguf, write_folder):
    model = open_checkpoint(
        write_gguf("mamba", {"mamba.context_length": 100}, {"token_embd.weight": (10, 64)})
    )
    assert (model.architecture, model.family, model.shape, model.context_tokens) == (
        "mamba",
        "mamba",
        None,
        100,
    )
    assert "mamba" in model.why_not
    folder = write_folder({**CONFIG, "quantization_config": {"quant_method": "awq", "bits": 4}}, SHAPE)
    assert open_checkpoint(folder).quantisation == "awq"


@pytest.mark.parametrize("name", TENSORS)
def test_a_missing_tensor_is_named(write_gguf, name):
    without = {key: shape for key, shape in TENSORS.items() if key != name}
    with pytest.raises(BadModel, match=f"has no tensor {name}"):
        open_checkpoint(write_gguf("llama", KEYS, without))


def test_a_tensor_of_another_shape_is_named(write_gguf, write_folder):
    wrong = {**TENSORS, "blk.1.attn_k.weight": (64, 64)}
    with pytest.raises(BadModel, match=r"tensor blk.1.attn_k.weight is \[64, 64\], but should be \[32, 64\]"):
        open_checkpoint(write_gguf("llama", KEYS, wrong))
    name = "model.layers.0.mlp.up_proj.weight"
    with pytest.raises(
        BadModel, match=rf"model.safetensors: tensor {name} is \[96, 32\], but should be \[96, 64\]"
    ):
        open_checkpoint(write_folder(CONFIG, SHAPE, **{name: (96, 32)}))


def test_a_head_that_is_promised_has_to_be_there(write_folder):
    with pytest.raises(BadModel, match=r"has no tensor lm_head.weight, which should be \[10, 64\]"):
        open_checkpoint(write_folder({**CONFIG, "tie_word_embeddings": False}, SHAPE))


def test_rotary_factors_in_a_tensor_have_the_right_shape(write_gguf):
    assert open_checkpoint(write_gguf("llama", KEYS, {**TENSORS, "rope_freqs.weight": (8,)})).shape == SHAPE
    with pytest.raises(BadModel, match=r"tensor rope_freqs.weight is F32 \[9\], but should be F32 \[8\]"):
        open_checkpoint(write_gguf("llama", KEYS, {**TENSORS, "rope_freqs.weight": (9,)}))


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("Llama-3.2-1B-Instruct-Q4_K_M.gguf", "llama-3.2-1b-instruct"),
        ("model.Q8_0.gguf", "model"),
        ("model-F16.gguf", "model"),
        ("model-bf16.gguf", "model"),
        ("model-IQ2_XXS.gguf", "model"),
        ("model-UD-Q4_K_XL.gguf", "model"),
        ("Phi-3-mini-4k-instruct-q4.gguf", "phi-3-mini-4k-instruct"),
        ("qwen2.5-7b.gguf", "qwen2.5-7b"),
        ("q4.gguf", "q4"),
    ],
)
def test_a_file_without_a_name_is_called_as_it_is_named(write_gguf, file, name):
    assert open_checkpoint(write_gguf("llama", KEYS, TENSORS, file)).name == name


def test_a_file_whose_name_has_nothing_to_call_it_by_is_refused(write_gguf):
    with pytest.raises(BadModel, match="has no name"):
        open_checkpoint(write_gguf("llama", KEYS, TENSORS, "名.gguf"))


def test_a_folder_without_a_name_is_called_as_it_is_named(write_folder, monkeypatch):
    folder = write_folder({**CONFIG, "_name_or_path": "./"}, SHAPE, "My Folder")
    assert open_checkpoint(folder).name == "my-folder"
    monkeypatch.chdir(folder)
    assert open_checkpoint(type(folder)()).name == "my-folder"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Llama 3.2  1B Instruct", "llama-3.2-1b-instruct"),
        ("../../etc/passwd", "etcpasswd"),
        ("a\nb\x1b[31m", "a-b31m"),
        ("Ünïcode", "ncode"),
        ("-._", ""),
        ("x" * 10_000, "x" * 96),
    ],
)
def test_a_name_can_stand_in_an_address(text, name):
    assert slug(text) == name


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("1.2.3", "1.2.3"),
        ("v1.2", "1.2.0"),
        ("V3", "3.0.0"),
        ("2.0.0-rc.1", "2.0.0-rc.1"),
        ("", "1.0.0"),
        ("latest", "1.0.0"),
        ("1.2.3.4", "1.0.0"),
        ("9" * 10_000, "1.0.0"),
    ],
)
def test_a_version_is_one_of_semver(text, version):
    assert as_version(text) == version


def test_without_a_file_type_most_bytes_decide(write_gguf):
    assert open_checkpoint(write_gguf("llama", KEYS, TENSORS)).quantisation == "F32"
    assert (
        open_checkpoint(write_gguf("llama", {**KEYS, "general.file_type": 999}, TENSORS)).quantisation
        == "F32"
    )
    assert commonest_kind([]) == "none"


def test_what_is_neither_file_nor_folder_of_a_model_is_refused(tmp_path):
    with pytest.raises(BadModel, match="there is no such file"):
        open_checkpoint(tmp_path / "missing.gguf")
    with pytest.raises(BadModel, match=r"has no config.json"):
        open_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"PK\x03\x04" + bytes(100))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(BadModel, match=r"model.safetensors: this is a zip archive"):
        open_checkpoint(tmp_path)
