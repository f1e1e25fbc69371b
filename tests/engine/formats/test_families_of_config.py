"""config.json of every family, as transformers itself writes and understands it."""

import json
import os
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import BadModel
from engine.formats.families_of_config import llama3_factors, read_config_family
from engine.formats.required_tensors import expected_tensors
from engine.settings import Architecture

if find_spec("transformers") is None:
    pytest.skip("transformers, the oracle, is not installed", allow_module_level=True)
os.environ.setdefault("HF_HUB_OFFLINE", "1")

PATH = Path("config.json")
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
}
COMMON = {
    "layers": 6,
    "hidden": 64,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 16,
    "ffn": 96,
    "vocab": 300,
    "context_tokens": 512,
    "norm_eps": 1e-6,
    "tied_embeddings": False,
}
GEMMA = {
    "head_dim": 32,
    "tied_embeddings": True,
    "post_norms": True,
    "activation": "gelu_tanh",
    "embedding_scale": 8.0,
    "attention_scale": 256**-0.5,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
PATTERN = ["sliding_attention", "sliding_attention", "full_attention"] * 2

CASES = {
    "llama": ("LlamaConfig", {}, {}),
    "llama, 3.2": (
        "LlamaConfig",
        {
            "rope_theta": 5e5,
            "rope_scaling": LLAMA3,
            "tie_word_embeddings": True,
            "head_dim": 32,
            "rms_norm_eps": 1e-5,
        },
        {
            "rope_theta": 5e5,
            "head_dim": 32,
            "tied_embeddings": True,
            "norm_eps": 1e-5,
            "rope_factors": llama3_factors(5e5, 32, factor=32.0, low=1.0, high=4.0, trained_tokens=64),
        },
    ),
    "llama, linear": (
        "LlamaConfig",
        {"rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope_factors": [4.0] * 8},
    ),
    "llama, every head its own keys": ("LlamaConfig", {"num_key_value_heads": None}, {"kv_heads": 4}),
    "mistral": ("MistralConfig", {"sliding_window": None}, {"family": "mistral"}),
    "mistral, 0.1": ("MistralConfig", {}, {"family": "mistral", "window_tokens": 4096}),
    "mistral, nemo": (
        "MistralConfig",
        {"head_dim": 24, "sliding_window": None, "rope_theta": 1e6},
        {"family": "mistral", "head_dim": 24, "rope_theta": 1e6},
    ),
    "qwen2": ("Qwen2Config", {"rope_theta": 1e6}, {"family": "qwen2", "qkv_bias": True, "rope_theta": 1e6}),
    "qwen2, window everywhere": (
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": 128, "max_window_layers": 0},
        {"family": "qwen2", "qkv_bias": True, "window_tokens": 128},
    ),
    "qwen2, window nowhere": (
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": 128},
        {"family": "qwen2", "qkv_bias": True},
    ),
    "qwen2, windows switched off": (
        "Qwen2Config",
        {"use_sliding_window": False, "sliding_window": 128, "max_window_layers": 0},
        {"family": "qwen2", "qkv_bias": True},
    ),
    "qwen3": (
        "Qwen3Config",
        {"tie_word_embeddings": True},
        {"family": "qwen3", "qk_norm": True, "head_dim": 128, "tied_embeddings": True},
    ),
    "qwen3, a pattern of windows": (
        "Qwen3Config",
        {"use_sliding_window": True, "sliding_window": 64, "layer_types": PATTERN},
        {"family": "qwen3", "qk_norm": True, "head_dim": 128, "window_tokens": 64, "global_every": 3},
    ),
    "phi3": (
        "Phi3Config",
        {"sliding_window": 2047},
        {"family": "phi3", "norm_eps": 1e-5, "window_tokens": 2047},
    ),
    "phi3, half of each head turns": (
        "Phi3Config",
        {"partial_rotary_factor": 0.75, "tie_word_embeddings": True},
        {"family": "phi3", "norm_eps": 1e-5, "rotary_dim": 12, "tied_embeddings": True},
    ),
    "gemma2": (
        "Gemma2Config",
        {"head_dim": 32, "sliding_window": 256},
        {
            "family": "gemma2",
            **GEMMA,
            "attention_softcap": 50.0,
            "final_softcap": 30.0,
            "window_tokens": 256,
            "global_every": 2,
        },
    ),
    "gemma2, without softcaps": (
        "Gemma2Config",
        {
            "head_dim": 32,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "query_pre_attn_scalar": 32,
        },
        {"family": "gemma2", **GEMMA, "attention_scale": None, "window_tokens": 4096, "global_every": 2},
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {"head_dim": 32, "sliding_window": 128},
        {
            "family": "gemma3",
            **GEMMA,
            "qk_norm": True,
            "rope_theta": 1e6,
            "rope_local_theta": 1e4,
            "window_tokens": 128,
            "global_every": 6,
        },
    ),
    "gemma3, no windows": (
        "Gemma3TextConfig",
        {"head_dim": 32, "layer_types": ["full_attention"] * 6},
        {"family": "gemma3", **GEMMA, "qk_norm": True, "rope_theta": 1e6},
    ),
    "gemma3, 4B and more": (
        "Gemma3TextConfig",
        {
            "head_dim": 32,
            "rope_theta": 2e6,
            "rope_local_base_freq": 5e3,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "sliding_window_pattern": 3,
            "query_pre_attn_scalar": 168,
        },
        {
            "family": "gemma3",
            **GEMMA,
            "attention_scale": 168**-0.5,
            "qk_norm": True,
            "rope_theta": 2e6,
            "rope_factors": [8.0] * 16,
            "rope_local_theta": 5e3,
            "window_tokens": 4096,
            "global_every": 3,
        },
    ),
}


def model_type(config_class):
    import transformers  # noqa: PLC0415 - takes a second

    return getattr(transformers, config_class).model_type


def saved(config_class, given, folder):
    """What transformers writes today for a configuration in the older layout."""
    import transformers  # noqa: PLC0415

    getattr(transformers, config_class)(**json.loads(json.dumps(given))).save_pretrained(folder)
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("name", CASES)
def test_a_configuration_is_read_in_the_older_layout(name):
    config_class, given, expected = CASES[name]
    read = read_config_family(PATH, {"model_type": model_type(config_class), **SMALL, **given}, {})
    assert read.why_not is None
    assert read.shape == Architecture(**{**COMMON, **expected})


@pytest.mark.parametrize("name", CASES)
def test_a_configuration_is_read_in_todays_layout(name, tmp_path):
    config_class, given, expected = CASES[name]
    config = saved(config_class, {**SMALL, **given}, tmp_path)
    assert "rope_scaling" not in config
    read = read_config_family(PATH, config, {})
    assert read.shape == Architecture(**{**COMMON, **expected})


@pytest.mark.torch
@pytest.mark.parametrize("name", CASES)
def test_the_tensors_are_those_that_transformers_makes(name):
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    config_class, given, expected = CASES[name]
    config = getattr(transformers, config_class)(**json.loads(json.dumps({**SMALL, **given})))
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    theirs = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    if expected.get("tied_embeddings"):
        del theirs["lm_head.weight"]
    assert dict(expected_tensors(Architecture(**{**COMMON, **expected}), "safetensors")) == theirs


@pytest.mark.torch
@pytest.mark.parametrize("theta", [1e4, 5e5])
@pytest.mark.parametrize("trained", [64, 8192])
def test_llama_3_divides_frequencies_as_transformers_does(theta, trained):
    import torch  # noqa: PLC0415
    from transformers import LlamaConfig  # noqa: PLC0415
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # noqa: PLC0415

    scaling = {**LLAMA3, "original_max_position_embeddings": trained}
    config = LlamaConfig(**SMALL, head_dim=128, rope_theta=theta, rope_scaling=scaling)
    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    factors = llama3_factors(theta, 128, factor=32.0, low=1.0, high=4.0, trained_tokens=trained)
    assert len(set(factors)) > 3, "there are short, long and middle waves"
    ours = theta ** (-torch.arange(0, 128, 2, dtype=torch.float64) / 128) / torch.tensor(
        factors, dtype=torch.float64
    )
    torch.testing.assert_close(theirs.double(), ours, rtol=2e-5, atol=0)


def test_gemma_3_has_defaults_for_what_its_files_leave_out():
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "model_type": "gemma3_text",
    }
    text |= {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}
    read = read_config_family(PATH, {"model_type": "gemma3", "text_config": text}, {})
    assert read.architecture == "gemma3"
    shape = read.shape
    assert (shape.family, shape.layers, shape.hidden, shape.vocab) == ("gemma3", 34, 2560, 262_208)
    assert (shape.heads, shape.kv_heads, shape.head_dim, shape.tied_embeddings) == (8, 4, 256, True)
    assert (shape.rope_factors, shape.attention_scale, shape.window_tokens) == ([8.0] * 128, None, 1024)


def llama(**changes):
    return {"model_type": "llama", **SMALL, **changes}


NOT_RUN = {
    "another architecture": (
        {"model_type": "mamba"},
        "the architecture 'mamba' is none that our decoder runs .l",
    ),
    "experts": ({"model_type": "mixtral"}, "the architecture 'mixtral' is none"),
    "yarn": (
        llama(rope_scaling={"rope_type": "yarn", "factor": 4.0}),
        "scales rotary positions in the way 'yarn'",
    ),
    "dynamic": (llama(rope_scaling={"type": "dynamic", "factor": 4.0}), "in the way 'dynamic'"),
    "longrope": (
        {"model_type": "phi3", **SMALL, "rope_scaling": {"type": "longrope", "long_factor": [1.0] * 8}},
        "in the way 'longrope'",
    ),
    "biases": (llama(attention_bias=True), "has biases .attention_bias. that our decoder does not add"),
    "biases of the feed-forward": (llama(mlp_bias=True), "has biases .mlp_bias."),
    "another activation": (
        llama(hidden_act="gelu"),
        "its hidden_act is 'gelu'; our decoder has silu for llama",
    ),
    "quantised": (llama(quantization_config={"quant_method": "awq"}), "its weights are quantised by 'awq'"),
    "a classifier": (
        llama(architectures=["LlamaForSequenceClassification"]),
        "Classification, which does not",
    ),
    "a part of each head": (llama(partial_rotary_factor=0.5), "a part of each head only"),
    "windows from some layer on": (
        {"model_type": "qwen2", **SMALL, "use_sliding_window": True, "max_window_layers": 3},
        "alternate in a way",
    ),
    "another pattern": (
        {"model_type": "gemma3_text", **SMALL, "layer_types": [*PATTERN[:5], "sliding_attention"]},
        "alternate in a way",
    ),
    "too few layer types": (
        {"model_type": "gemma3_text", **SMALL, "layer_types": PATTERN[:5]},
        "5 layers .* has 6",
    ),
    "unknown layer types": (
        {"model_type": "gemma3_text", **SMALL, "layer_types": ["chunked_attention"] * 6},
        "layer_types has others",
    ),
    "both directions": (
        {"model_type": "gemma3_text", **SMALL, "use_bidirectional_attention": True},
        "tokens to come",
    ),
    "turns by layer type": (
        llama(rope_parameters={"full_attention": {"rope_theta": 1e4}}),
        "differ by the type of the layer",
    ),
    "scaled windows": (
        {
            "model_type": "gemma3_text",
            **SMALL,
            "rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}},
        },
        "scales the rotary positions of its windowed layers",
    ),
}


@pytest.mark.parametrize("name", NOT_RUN)
def test_what_our_decoder_does_not_run_has_a_reason_and_no_shape(name):
    config, why = NOT_RUN[name]
    read = read_config_family(PATH, config, {})
    assert read.shape is None
    assert re.search(why, read.why_not)
    assert read.context_tokens == config.get("max_position_embeddings", 0)


def test_a_model_that_sees_images_has_no_shape():
    config = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", **SMALL}}
    tensors = {"vision_tower.vision_model.embeddings.patch_embedding.weight": None}
    assert read_config_family(PATH, config, tensors).why_not == "it sees images, which our decoder does not"


ABSURD = {
    "no type": ({}, "has no model_type"),
    "a type that is a number": ({"model_type": 3}, "model_type is 3, but must be a word"),
    "a type with an escape in it": ({"model_type": "a\x1b[31m"}, "model_type is .* but must be a word"),
    "no layers": ({**llama(), "num_hidden_layers": None}, "has no num_hidden_layers"),
    "zero heads": (
        llama(num_attention_heads=0),
        "num_attention_heads is 0, but must be a whole number from 1",
    ),
    "1e9 layers": (
        llama(num_hidden_layers=10**9),
        "num_hidden_layers is 1000000000, but must be .* to 1,000",
    ),
    "negative size": (llama(hidden_size=-64), "hidden_size is -64"),
    "a fraction of a head": (llama(num_attention_heads=4.0), "num_attention_heads is 4.0"),
    "true heads": (llama(num_attention_heads=True), "num_attention_heads is True"),
    "a text": (llama(vocab_size="300"), "vocab_size is '300'"),
    "heads that do not share": (llama(num_attention_heads=6), "has no head_dim"),
    "keys that do not share": (
        llama(num_key_value_heads=3),
        "architecture.heads is 4, but must be a multiple",
    ),
    "odd heads": (llama(head_dim=15), "architecture.head_dim is 15, but must be even"),
    "an endless theta": (llama(rope_theta=float("inf")), "rope_theta is inf, but must be a number"),
    "theta of zero": (llama(rope_theta=0), "architecture.rope_theta is 0.0, but must be above 0"),
    "a number with 400 digits": (llama(rope_theta=10**400), "rope_theta is 1000.* but must be a number"),
    "rope that is a list": (llama(rope_scaling=[1]), "rope_scaling is .1., but must be an object"),
    "scaling without a factor": (llama(rope_scaling={"type": "linear"}), "has no factor"),
    "a factor of zero": (
        llama(rope_scaling={"type": "linear", "factor": 0}),
        "factor is 0, but must be .* from 1",
    ),
    "tied by a text": (
        llama(tie_word_embeddings="yes"),
        "tie_word_embeddings is 'yes', but must be true or false",
    ),
    "no scale": (
        {"model_type": "gemma2", **SMALL, "query_pre_attn_scalar": 0},
        "query_pre_attn_scalar is 0.0, but must be above 0",
    ),
    "a pattern of zero": (
        {"model_type": "gemma3_text", **SMALL, "sliding_window_pattern": 0},
        "pattern is 0",
    ),
}


@pytest.mark.parametrize("name", ABSURD)
def test_what_cannot_be_is_a_fault_of_the_file(name):
    config, why = ABSURD[name]
    with pytest.raises(BadModel, match=f"^config.json: .*{why}"):
        read_config_family(PATH, config, {})


KEYS = [*SMALL, "head_dim", "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters", "sliding_window"]
KEYS += [
    "layer_types",
    "sliding_window_pattern",
    "max_window_layers",
    "use_sliding_window",
    "tie_word_embeddings",
]
KEYS += [
    "query_pre_attn_scalar",
    "final_logit_softcapping",
    "attention_bias",
    "hidden_act",
    "hidden_activation",
]
KEYS += [
    "architectures",
    "quantization_config",
    "text_config",
    "partial_rotary_factor",
    "rope_local_base_freq",
]
INNER = ["rope_type", "type", "factor", "rope_theta", "low_freq_factor", "high_freq_factor", "full_attention"]
INNER += ["sliding_attention", "original_max_position_embeddings", "partial_rotary_factor"]
LEAVES = st.none() | st.booleans() | st.integers() | st.integers(0, 64) | st.floats()
LEAVES |= st.sampled_from(["", "linear", "llama3", "default", "full_attention", "sliding_attention", "silu"])
VALUES = st.recursive(
    LEAVES,
    lambda each: st.lists(each, max_size=7) | st.dictionaries(st.sampled_from(INNER), each, max_size=6),
)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(["llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3", "gemma3_text"]),
    changes=st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=4),
)
def test_whatever_stands_in_a_configuration_it_is_read_or_refused(name, changes):
    try:
        read = read_config_family(PATH, {"model_type": name, **SMALL, **changes}, {})
    except BadModel:
        return
    assert (read.shape is None) == (read.why_not is not None)
