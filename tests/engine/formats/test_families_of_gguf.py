"""GGUF metadata of every family, and what is made of what they leave out."""

import re
from pathlib import Path

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import BadModel
from engine.formats.checkpoint import TensorInfo
from engine.formats.families_of_gguf import read_gguf_family
from engine.formats.gguf import GgufHeader, read_gguf
from engine.formats.required_tensors import expected_tensors
from engine.settings import FAMILIES, Architecture

KEYS = {
    "block_count": 6,
    "embedding_length": 64,
    "feed_forward_length": 96,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "context_length": 512,
    "attention.layer_norm_rms_epsilon": 0.5,
}
COMMON = {
    "layers": 6,
    "hidden": 64,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 16,
    "ffn": 96,
    "vocab": 10,
    "context_tokens": 512,
    "norm_eps": 0.5,
}
TIED = {"token_embd.weight": (10, 64)}
GEMMA = {"post_norms": True, "activation": "gelu_tanh", "embedding_scale": 8.0}
GEMMA2 = {**GEMMA, "family": "gemma2", "attention_softcap": 50.0, "final_softcap": 30.0, "global_every": 2}
GEMMA3 = {**GEMMA, "family": "gemma3", "qk_norm": True, "rope_theta": 1e6}
WINDOWS = {"window_tokens": 128, "rope_local_theta": 1e4, "global_every": 6}


def read(write_gguf, architecture, changes=(), tensors=TIED, **general):
    keys = {key: value for key, value in {**KEYS, **dict(changes)}.items() if value is not None}
    metadata = {f"general.{key}": value for key, value in general.items()}
    metadata |= {key if key.startswith("tokenizer.") else f"{architecture}.{key}": keys[key] for key in keys}
    return read_gguf_family(read_gguf(write_gguf(architecture, metadata, tensors)))


CASES = {
    "llama": ("llama", {}, TIED, {}),
    "llama, untied": ("llama", {}, {**TIED, "output.weight": (10, 64)}, {"tied_embeddings": False}),
    "llama, each head its own keys": ("llama", {"attention.head_count_kv": None}, TIED, {"kv_heads": 4}),
    "llama, larger heads": (
        "llama",
        {"attention.key_length": 32, "attention.value_length": 32, "rope.dimension_count": 32},
        TIED,
        {"head_dim": 32},
    ),
    "llama, factors in a tensor": ("llama", {}, {**TIED, "rope_freqs.weight": (8,)}, {}),
    "llama, another theta": ("llama", {"rope.freq_base": 5e5}, TIED, {"rope_theta": 5e5}),
    "llama, linear": (
        "llama",
        {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
        TIED,
        {"rope_factors": [4.0] * 8},
    ),
    "llama, scaling switched off": ("llama", {"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, TIED, {}),
    "llama, biases": ("llama", {}, {**TIED, "blk.0.attn_q.bias": (64,)}, {"qkv_bias": True}),
    "qwen2": ("qwen2", {"rope.freq_base": 1e6}, TIED, {"family": "qwen2", "qkv_bias": True, "rope_theta": 1e6}),
    "qwen3": ("qwen3", {"attention.key_length": 32, "attention.value_length": 32}, TIED,
              {"family": "qwen3", "qk_norm": True, "head_dim": 32, "rotary_dim": None}),
    "phi3": ("phi3", {"rope.dimension_count": 12, "attention.sliding_window": 2047}, TIED,
             {"family": "phi3", "rotary_dim": 12, "window_tokens": 2047}),
    "gemma2": ("gemma2", {"attention.sliding_window": 256, "attn_logit_softcapping": 20.0}, TIED,
               {**GEMMA2, "attention_softcap": 20.0, "window_tokens": 256}),
    "gemma2 of the first days": ("gemma2", {}, TIED, {**GEMMA2, "window_tokens": 4096}),
    "gemma2, 27B": ("gemma2", {"block_count": 46, "attention.key_length": 32, "attention.value_length": 32}, TIED,
                    {**GEMMA2, "layers": 46, "head_dim": 32, "window_tokens": 4096, "attention_scale": 16**-0.5}),
    "gemma3": ("gemma3", {"attention.sliding_window": 128}, TIED, {**GEMMA3, **WINDOWS}),
    "gemma3, 4B and more": (
        "gemma3",
        {"attention.sliding_window": 128, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
        TIED,
        {**GEMMA3, **WINDOWS, "rope_factors": [8.0] * 8},
    ),
    "gemma3, 27B": ("gemma3", {"block_count": 62, "attention.sliding_window": 128}, TIED,
                    {**GEMMA3, **WINDOWS, "layers": 62, "attention_scale": 16**-0.5}),
    "gemma3, a pattern by number": (
        "gemma3",
        {"attention.sliding_window": 128, "attention.sliding_window_pattern": 3, "rope.freq_base_swa": 500.0},
        TIED,
        {**GEMMA3, **WINDOWS, "global_every": 3, "rope_local_theta": 500.0},
    ),
    "gemma3, a pattern by layer": (
        "gemma3",
        {"attention.sliding_window": 128, "attention.sliding_window_pattern": [True, False] * 3},
        TIED,
        {**GEMMA3, **WINDOWS, "global_every": 2},
    ),
    "gemma3, no windows": ("gemma3", {}, TIED, GEMMA3),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_metadata_become_an_architecture(write_gguf, name):
    architecture, changes, tensors, expected = CASES[name]
    found = read(write_gguf, architecture, {"rope.dimension_count": None, **changes}, tensors)
    if "rotary_dim" not in expected and "rope.dimension_count" not in changes:
        assert found.shape.rotary_dim is None
    assert found.why_not is None
    assert found.shape == Architecture(**{**COMMON, **expected})


@pytest.mark.parametrize(
    ("general", "family"),
    [
        ({"name": "Mistral 7B Instruct v0.3"}, "mistral"),
        ({"name": "x", "basename": "Mistral-Nemo"}, "mistral"),
        ({"name": "x", "finetune": "mistral-dpo"}, "mistral"),
        ({"name": "Zephyr 7B", "base_model.0.name": "Mistral 7B v0.1"}, "mistral"),
        ({"name": "Llama 3.2 1B"}, "llama"),
        ({}, "llama"),
    ],
)
def test_mistral_is_known_by_what_it_is_called(write_gguf, general, family):
    found = read(write_gguf, "llama", **general)
    assert (found.architecture, found.family, found.shape.family) == ("llama", family, family)


NOT_RUN = {
    "another architecture": (
        "mamba",
        {},
        TIED,
        "the architecture 'mamba' is none that our decoder runs",
    ),
    "experts": ("llama", {"expert_count": 8}, TIED, "it is a mixture of 8 experts"),
    "a vocabulary": ("llama", {}, {}, "a vocabulary without a model"),
    "both directions": ("gemma3", {"attention.causal": False}, TIED, "looks at tokens to come"),
    "yarn": ("qwen2", {"rope.scaling.type": "yarn"}, TIED, "scales rotary positions in the way 'yarn'"),
    "longrope": ("phi3", {}, {**TIED, "rope_factors_long.weight": (8,)}, "rotary positions by length"),
    "biases": (
        "llama",
        {},
        {**TIED, "blk.0.attn_output.bias": (64,)},
        "biases .blk.0.attn_output.bias. that our",
    ),
    "heads by layer": (
        "llama",
        {"attention.head_count_kv": [1, 2, 4, 4, 4, 4]},
        TIED,
        "head_count_kv differs",
    ),
    "other values": (
        "llama",
        {"attention.value_length": 8},
        TIED,
        "its values have another size than its keys",
    ),
    "another pattern": (
        "gemma3",
        {
            "attention.sliding_window": 128,
            "attention.sliding_window_pattern": [False, True, True] * 2,
        },
        TIED,
        "alternate in a way",
    ),
}


@pytest.mark.parametrize("name", NOT_RUN)
def test_what_our_decoder_does_not_run_has_a_reason_and_no_shape(write_gguf, name):
    architecture, changes, tensors, why = NOT_RUN[name]
    found = read(write_gguf, architecture, changes, tensors)
    assert found.shape is None
    assert re.search(why, found.why_not)
    assert found.context_tokens == 512


ABSURD = {
    "no layers": ({"block_count": None}, "has no llama.block_count"),
    "1e9 layers": (
        {"block_count": 10**9},
        "block_count is 1000000000, but must be a whole number from 1 to 1,000",
    ),
    "zero heads": ({"attention.head_count": 0}, "llama.attention.head_count is 0"),
    "negative heads": ({"attention.head_count": -4}, "llama.attention.head_count is -4"),
    "a text": ({"embedding_length": "64"}, "llama.embedding_length is '64'"),
    "a float": ({"embedding_length": 64.0}, "llama.embedding_length is 64.0"),
    "no norm": ({"attention.layer_norm_rms_epsilon": None}, "has no llama.attention.layer_norm_rms_epsilon"),
    "not a number": ({"rope.freq_base": float("nan")}, "llama.rope.freq_base is nan, but must be a number"),
    "an endless scale": ({"rope.scaling.factor": float("inf")}, "llama.rope.scaling.factor is inf"),
    "more tokens than rows": (
        {"tokenizer.ggml.tokens": ["a"] * 11},
        "lists 11 tokens, but token_embd.weight has",
    ),
    "no context": ({"context_length": None}, "has no llama.context_length"),
    "keys that do not share": ({"attention.head_count_kv": 3}, "must be a multiple of kv_heads"),
}


@pytest.mark.parametrize("name", ABSURD)
def test_what_cannot_be_is_a_fault_of_the_file(write_gguf, name):
    changes, why = ABSURD[name]
    with pytest.raises(BadModel, match=f"model.gguf: .*{why}"):
        read(write_gguf, "llama", changes)


def test_a_model_without_an_embedding_is_refused(write_gguf):
    with pytest.raises(BadModel, match=r"has no tensor token_embd.weight"):
        read(write_gguf, "llama", tensors={"output_norm.weight": (64,)})


def test_a_file_that_does_not_say_what_it_is_is_refused(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes([3, *[0] * 19]))
    with pytest.raises(BadModel, match=r"has no general.architecture"):
        read_gguf_family(read_gguf(path))


OTHERS = [
    "attention.key_length",
    "attention.value_length",
    "rope.dimension_count",
    "rope.freq_base",
    "expert_count",
]
OTHERS += [
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scale_linear",
    "rope.freq_base_swa",
    "attention.causal",
]
OTHERS += ["attention.sliding_window", "attention.sliding_window_pattern", "final_logit_softcapping"]
VALUES = st.booleans() | st.integers(-1, 64) | st.integers(-(2**63), 2**64) | st.floats()
VALUES |= st.sampled_from(["", "linear", "none", "yarn"])


@settings(max_examples=300, deadline=None)
@given(
    name=st.sampled_from(["llama", "qwen2", "qwen3", "phi3", "gemma2", "gemma3"]),
    changes=st.dictionaries(st.sampled_from([*KEYS, *OTHERS]), VALUES, min_size=1, max_size=4),
)
def test_whatever_stands_in_the_metadata_they_are_read_or_refused(name, changes):
    path = Path("model.gguf")
    metadata = {f"{name}.{key}": value for key, value in {**KEYS, **changes}.items()} | {
        "general.architecture": name
    }
    tensors = {"token_embd.weight": TensorInfo("token_embd.weight", (10, 64), "F32", path, 0, 2560)}
    try:
        found = read_gguf_family(GgufHeader(path, 3, metadata, tensors, 32, 0, (path,)))
    except BadModel:
        return
    assert (found.shape is None) == (found.why_not is not None)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tensors_have_the_names_of_the_reference(family):
    number = gguf.MODEL_ARCH[("llama" if family == "mistral" else family).upper()]
    theirs = {gguf.TENSOR_NAMES[tensor].format(bid=0) for tensor in gguf.MODEL_TENSORS[number]}
    switches = {"qk_norm": family in ("qwen3", "gemma3"), "post_norms": family.startswith("gemma")}
    shape = Architecture(
        **{**COMMON, "layers": 1, "family": family, "tied_embeddings": family == "gemma2", **switches}
    )
    ours = {name.removesuffix(".weight") for name, _ in expected_tensors(shape, "gguf")}
    optional = {"output", "rope_freqs", "rope_factors_long", "rope_factors_short"}
    if family == "phi3":  # has them in one
        optional |= {"blk.0.attn_q", "blk.0.attn_k", "blk.0.attn_v"}
    older = {each for each in theirs if re.search("exp|rot_embd|inp", each)}
    assert ours <= theirs
    assert theirs - older - optional <= ours
