"""A stand-in as a Hugging Face folder: config, tokenizer, and safetensors in float32, in one file or several.

The numbers are those that a reader of the GGUF gets, bit for bit: both formats are the same model.
"""

import json
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from engine.settings import Architecture
from engine.stand_ins.designs import StandIn
from engine.stand_ins.vocabulary import Vocabulary, tokenizer_config, tokenizer_json
from engine.stand_ins.weights import Floats, Stored, is_gemma

ALIGNMENT = 8

CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
}
MODEL_TYPES = {"gemma3": "gemma3_text"}
ACTIVATIONS = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh"}

WHOLE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
GEMMA_BLOCK = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
PHI_BLOCK = {"ffn_up": "mlp.gate_up_proj"}


def folder_files(
    stand_in: StandIn, vocabulary: Vocabulary, weights: Sequence[Stored], max_shard_bytes: int | None
) -> dict[str, bytes]:
    """Every file of the folder and its contents; config.json, which makes it a model, comes last."""
    tensors = {
        hugging_face_name(stand_in.architecture, each.name): _as_kept_here(stand_in, each) for each in weights
    }
    return {
        **_weight_files(tensors, max_shard_bytes),
        "README.md": _readme(stand_in).encode(),
        "tokenizer.json": _json(tokenizer_json(stand_in, vocabulary)),
        "tokenizer_config.json": _json(tokenizer_config(stand_in, vocabulary)),
        "generation_config.json": _json(_ids(stand_in, vocabulary, all_ends=True)),
        "config.json": _json(config(stand_in, vocabulary)),
    }


def hugging_face_name(shape: Architecture, name: str) -> str:
    """What the folder calls the tensor that GGUF calls `name`."""
    stem, _, suffix = name.rpartition(".")
    if not stem.startswith("blk."):
        return f"{WHOLE[stem]}.{suffix}"
    _, layer, part = stem.split(".")
    block = BLOCK
    if shape.post_norms:
        block = BLOCK | GEMMA_BLOCK
    if shape.family == "phi3":
        block = BLOCK | PHI_BLOCK
    return f"model.layers.{layer}.{block[part]}.{suffix}"


def config(stand_in: StandIn, vocabulary: Vocabulary) -> dict[str, Any]:
    """The contents of config.json."""
    shape = stand_in.architecture
    return {
        "architectures": [CLASSES[shape.family]],
        "attention_dropout": 0.0,
        **_ids(stand_in, vocabulary, all_ends=False),
        "dtype": "float32",
        "head_dim": shape.head_dim,
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.ffn,
        "max_position_embeddings": shape.context_tokens,
        "model_type": MODEL_TYPES.get(shape.family, shape.family),
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": shape.norm_eps,
        "rope_parameters": _rope(stand_in),
        "tie_word_embeddings": shape.tied_embeddings,
        "use_cache": True,
        "vocab_size": shape.vocab,
        **_switches(shape),
    }


def safetensors_bytes(tensors: dict[str, Floats]) -> bytes:
    """A whole file: the length of the header, the header, and the tensors without a hole."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, values in tensors.items():
        header[name] = {"dtype": "F32", "shape": values.shape, "data_offsets": (end, end + values.nbytes)}
        end += values.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    data = (np.ascontiguousarray(values, "<f4").tobytes() for values in tensors.values())
    return b"".join((struct.pack("<Q", len(text)), text, *data))


def _weight_files(tensors: dict[str, Floats], max_shard_bytes: int | None) -> dict[str, bytes]:
    shards = list(_shards(tensors, max_shard_bytes))
    if len(shards) == 1:
        return {"model.safetensors": safetensors_bytes(tensors)}
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    index = {
        "metadata": {"total_size": sum(values.nbytes for values in tensors.values())},
        "weight_map": {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard},
    }
    files = {name: safetensors_bytes(shard) for name, shard in zip(names, shards, strict=True)}
    return {**files, "model.safetensors.index.json": _json(index)}


def _shards(tensors: dict[str, Floats], max_bytes: int | None) -> Iterator[dict[str, Floats]]:
    """Tensors in order, as many together as fit; one that is larger than that is alone."""
    shard: dict[str, Floats] = {}
    size = 0
    for name, values in tensors.items():
        if shard and max_bytes is not None and size + values.nbytes > max_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = values
        size += values.nbytes
    yield shard


def _as_kept_here(stand_in: StandIn, tensor: Stored) -> Floats:
    """The numbers as the folder has them: a Gemma's norms are what is added to 1."""
    if is_gemma(stand_in.architecture) and tensor.name.endswith("norm.weight"):
        return tensor.values - np.float32(1)
    return tensor.values


def _ids(stand_in: StandIn, vocabulary: Vocabulary, *, all_ends: bool) -> dict[str, Any]:
    chat = stand_in.chat
    ends = [vocabulary.id_of(token) for token in chat.eos]
    return {
        "bos_token_id": vocabulary.id_of(chat.bos),
        "eos_token_id": ends if all_ends and len(ends) > 1 else ends[0],
        "pad_token_id": vocabulary.id_of(chat.padding),
    }


def _rope(stand_in: StandIn) -> dict[str, Any]:
    shape, scaling = stand_in.architecture, stand_in.rope_scaling
    if shape.rope_local_theta is not None:
        return {
            "full_attention": {"rope_type": "default", "rope_theta": shape.rope_theta},
            "sliding_attention": {"rope_type": "default", "rope_theta": shape.rope_local_theta},
        }
    if scaling is None:
        return {"rope_type": "default", "rope_theta": shape.rope_theta}
    return {
        "factor": scaling.factor,
        "high_freq_factor": scaling.high_factor,
        "low_freq_factor": scaling.low_factor,
        "original_max_position_embeddings": scaling.original_tokens,
        "rope_theta": shape.rope_theta,
        "rope_type": "llama3",
    }


def _switches(shape: Architecture) -> dict[str, Any]:
    """What only this family's configuration has."""
    activation = ACTIVATIONS[shape.activation]
    if is_gemma(shape):
        return {"attention_bias": False, "hidden_activation": activation, **_gemma_switches(shape)}
    switches: dict[str, Any] = {"hidden_act": activation}
    if shape.family in {"mistral", "phi3"}:
        switches["sliding_window"] = None
    if shape.family in {"llama", "qwen3"}:
        switches["attention_bias"] = False
    if shape.family in {"qwen2", "qwen3"}:
        switches |= {"max_window_layers": shape.layers, "sliding_window": None, "use_sliding_window": False}
    if shape.family == "llama":
        switches["mlp_bias"] = False
    if shape.family == "phi3":
        switches["original_max_position_embeddings"] = shape.context_tokens
    return switches


def _gemma_switches(shape: Architecture) -> dict[str, Any]:
    windows = ["full" if shape.sees_everything(layer) else "sliding" for layer in range(shape.layers)]
    return {
        "attn_logit_softcapping": shape.attention_softcap or None,
        "final_logit_softcapping": shape.final_softcap or None,
        "layer_types": [f"{window}_attention" for window in windows],
        "query_pre_attn_scalar": shape.head_dim,
        "sliding_window": shape.window_tokens,
    }


def _readme(stand_in: StandIn) -> str:
    return (
        f"---\nlicense: apache-2.0\ntags:\n- stand-in\n---\n# {stand_in.name}, a stand-in\n\n"
        f"The architecture of {stand_in.name} with {stand_in.architecture.parameters:,} random weights, made for"
        " tests. It says nothing that makes sense.\n"
    )


def _json(contents: dict[str, Any]) -> bytes:
    return (json.dumps(contents, indent=2, ensure_ascii=False) + "\n").encode()
