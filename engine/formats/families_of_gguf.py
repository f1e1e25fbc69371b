"""Families as GGUF metadata describe them: keys that begin with the architecture, and which tensors there are.

Llama 3's rotary factors are a tensor here, `rope_freqs.weight`. No weights are read: the shape of such a file has no
`rope_factors`, and who loads its tensors sets them.
"""

from collections.abc import Mapping
from typing import Any

from engine.errors import BadModel
from engine.formats.checkpoint import TensorInfo
from engine.formats.families import (
    GEMMA3_LOCAL_THETA,
    GEMMA3_THETA,
    GEMMA_GLOBAL_EVERY,
    GEMMAS,
    MAX_CONTEXT,
    MAX_LAYERS,
    THETA,
    Keys,
    NotRunError,
    Reading,
    layer_pattern,
    reading,
    share,
)
from engine.formats.files import shown
from engine.formats.gguf import GgufArray, GgufHeader, read_numbers
from engine.settings import Architecture

MAX_PATTERN = 2**10
SCALED_BY_HIDDEN = {("gemma2", 46), ("gemma3", 62)}  # the 27B models, told by their layers as llama.cpp does


def read_gguf_family(header: GgufHeader) -> Reading:
    """What a GGUF file is. Raises BadModel for a key that is missing or absurd."""
    name = Keys(header.path, header.metadata, "general.").word("architecture")
    family = "mistral" if name == "llama" and _is_called_mistral(header.metadata) else name
    keys = Keys(header.path, header.metadata, f"{name}.")
    return reading(name, family, keys, "context_length", lambda: _gguf_shape(keys, family, header.tensors))


def _is_called_mistral(metadata: Mapping[str, Any]) -> bool:
    """Mistral's files say "llama"; only what they are called tells them apart."""
    places = ("name", "basename", "finetune", "base_model.0.name", "base_model.0.repo_url")
    said = " ".join(str(metadata.get(f"general.{place}", "")) for place in places).lower()
    return "mistral" in said or "mixtral" in said


def _gguf_shape(keys: Keys, family: str, tensors: Mapping[str, TensorInfo]) -> Architecture:
    _check_gguf_features(keys, tensors)
    layers = keys.count("block_count", most=MAX_LAYERS)
    hidden, heads = keys.count("embedding_length"), keys.count("attention.head_count")
    head_dim = keys.count("attention.key_length", share(hidden, heads))
    if keys.count("attention.value_length", head_dim) != head_dim:
        raise NotRunError("its values have another size than its keys")
    rotary = keys.count("rope.dimension_count", head_dim)
    is_gemma = family in GEMMAS
    factor = _gguf_rope_factor(keys)
    return Architecture(
        family=family,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=keys.count("attention.head_count_kv", heads),
        head_dim=head_dim,
        ffn=keys.count("feed_forward_length"),
        vocab=_gguf_vocab(keys, tensors),
        context_tokens=keys.count("context_length", most=MAX_CONTEXT),
        rope_theta=keys.number("rope.freq_base", GEMMA3_THETA if family == "gemma3" else THETA),
        rope_factors=[] if factor == 1 else [factor] * (rotary // 2),
        rotary_dim=None if rotary == head_dim else rotary,
        norm_eps=keys.number("attention.layer_norm_rms_epsilon"),
        tied_embeddings="output.weight" not in tensors,
        qkv_bias=family == "qwen2" or "blk.0.attn_q.bias" in tensors,
        qk_norm=family in ("qwen3", "gemma3"),
        post_norms=is_gemma,
        activation="gelu_tanh" if is_gemma else "silu",
        embedding_scale=hidden**0.5 if is_gemma else 1.0,
        attention_scale=(hidden / heads) ** -0.5 if (family, layers) in SCALED_BY_HIDDEN else None,
        attention_softcap=keys.number("attn_logit_softcapping", 50.0) if family == "gemma2" else 0.0,
        final_softcap=keys.number("final_logit_softcapping", 30.0 if family == "gemma2" else 0.0)
        if is_gemma
        else 0.0,
        **_gguf_window(keys, family, layers),
    )


def _check_gguf_features(keys: Keys, tensors: Mapping[str, TensorInfo]) -> None:
    if not tensors:
        raise NotRunError("it is a vocabulary without a model: it has no tensors")
    if keys.count("expert_count", 0, least=0):
        raise NotRunError(
            f"it is a mixture of {keys.count('expert_count')} experts, which our decoder does not run"
        )
    if not keys.flag("attention.causal", True):
        raise NotRunError("it looks at tokens to come, so it cannot generate")
    for name in ("blk.0.attn_output.bias", "blk.0.ffn_up.bias", "blk.0.ffn_down.bias"):
        if name in tensors:
            raise NotRunError(f"it has biases ({name}) that our decoder does not add")
    for name in ("rope_factors_long.weight", "rope_factors_short.weight"):
        if name in tensors:
            raise NotRunError(f"it scales rotary positions by length ({name}), which our decoder does not")


def _gguf_vocab(keys: Keys, tensors: Mapping[str, TensorInfo]) -> int:
    embedding, tokens = tensors.get("token_embd.weight"), keys.values.get("tokenizer.ggml.tokens")
    listed = tokens.count if isinstance(tokens, GgufArray) else None
    if embedding is None:
        raise BadModel(keys.path, "has no tensor token_embd.weight")
    rows = embedding.shape[0]
    if listed is not None and listed > rows:
        raise BadModel(keys.path, f"lists {listed:,} tokens, but token_embd.weight has rows for {rows:,}")
    return rows


def _gguf_rope_factor(keys: Keys) -> float:
    kind = keys.get("rope.scaling.type")
    if kind == "none":
        return 1.0
    if kind not in (None, "linear"):
        raise NotRunError(f"it scales rotary positions in the way {shown(kind)}, which our decoder does not")
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 1.0))
    return factor or 1.0


def _gguf_window(keys: Keys, family: str, layers: int) -> dict[str, Any]:
    window = keys.count(
        "attention.sliding_window", 4096 if family == "gemma2" else 0, least=0, most=MAX_CONTEXT
    )
    if not window or family.startswith("qwen"):
        return {}
    every = GEMMA_GLOBAL_EVERY.get(family, 0)
    pattern = keys.get("attention.sliding_window_pattern")
    if isinstance(pattern, GgufArray):
        if pattern.count > MAX_PATTERN:
            keys.refuse("attention.sliding_window_pattern", pattern.count, f"at most {MAX_PATTERN} layers")
        found = layer_pattern([bool(each) for each in read_numbers(pattern)], layers)
        if found is None:
            return {}
        every = found
    elif pattern is not None:
        every = keys.count("attention.sliding_window_pattern", least=0, most=MAX_PATTERN)
    local = keys.number("rope.freq_base_swa", GEMMA3_LOCAL_THETA) if family == "gemma3" else None
    return {"window_tokens": window, "global_every": every, "rope_local_theta": local}
