"""Families as config.json describes them, in the layouts of transformers 4 and 5, with each family's defaults."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import pi
from pathlib import Path
from typing import Any

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
from engine.settings import Architecture

BIASES = {  # the switches of those that have one
    "llama": ("attention_bias", "mlp_bias"),
    "qwen3": ("attention_bias",),
    "gemma2": ("attention_bias",),
    "gemma3": ("attention_bias",),
}
VISION = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")

_GEMMA = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "sliding_window": 4096}
_GEMMA |= {"hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26}
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048},
    "mistral": {"max_position_embeddings": 131_072, "num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {"max_position_embeddings": 32_768, "sliding_window": 4096},
    "qwen3": {"max_position_embeddings": 32_768, "sliding_window": 4096, "head_dim": 128},
    "phi3": {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
    "gemma2": {**_GEMMA, "vocab_size": 256_000, "max_position_embeddings": 8192},
    "gemma3": {**_GEMMA, "vocab_size": 262_208, "max_position_embeddings": 131_072},
}
"""What each family's configuration means where it says nothing. An explicit null is not nothing."""


def read_config_family(path: Path, config: dict[str, Any], tensors: Mapping[str, TensorInfo]) -> Reading:
    """What a Hugging Face folder is; `path` is its config.json. Raises BadModel for a key that cannot be."""
    keys = Keys(path, config)
    name = keys.word("model_type")
    family = "gemma3" if name == "gemma3_text" else name
    if name == "gemma3" and (nested := keys.below("text_config")) is not None:
        keys = nested
    return reading(
        name, family, keys, "max_position_embeddings", lambda: _config_shape(keys, family, config, tensors)
    )


def _config_shape(
    keys: Keys, family: str, config: dict[str, Any], tensors: Mapping[str, TensorInfo]
) -> Architecture:
    given = keys
    keys = Keys(keys.path, {**DEFAULTS[family], **keys.values})
    _check_config_features(keys, family, config, tensors)
    layers = keys.count("num_hidden_layers", most=MAX_LAYERS)
    hidden, heads = keys.count("hidden_size"), keys.count("num_attention_heads")
    head_dim = keys.count("head_dim", share(hidden, heads))
    context = keys.count("max_position_embeddings", most=MAX_CONTEXT)
    window = _config_window(keys, family, layers)
    is_gemma = family in GEMMAS
    rope = _config_rope(given, family, head_dim, context)
    scalar = keys.number("query_pre_attn_scalar", 256.0) if is_gemma else float(head_dim)
    if scalar <= 0:
        keys.refuse("query_pre_attn_scalar", scalar, "above 0")
    return Architecture(
        family=family,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=keys.count("num_key_value_heads", heads),
        head_dim=head_dim,
        ffn=keys.count("intermediate_size"),
        vocab=keys.count("vocab_size"),
        context_tokens=context,
        rope_theta=rope.theta,
        rope_factors=rope.factors,
        rotary_dim=None if rope.dimensions == head_dim else rope.dimensions,
        rope_local_theta=rope.local_theta if window["window_tokens"] else None,
        norm_eps=keys.number("rms_norm_eps", 1e-6),
        tied_embeddings=_is_tied(given, config, is_gemma),
        qkv_bias=family == "qwen2",
        qk_norm=family in ("qwen3", "gemma3"),
        post_norms=is_gemma,
        activation="gelu_tanh" if is_gemma else "silu",
        embedding_scale=hidden**0.5 if is_gemma else 1.0,
        attention_scale=None if scalar == head_dim else scalar**-0.5,
        attention_softcap=_softcap(keys, "attn_logit_softcapping", family, 50.0),
        final_softcap=_softcap(keys, "final_logit_softcapping", family, 30.0),
        **window,
    )


def _check_config_features(
    keys: Keys, family: str, config: dict[str, Any], tensors: Mapping[str, TensorInfo]
) -> None:
    if any(name.startswith(VISION) for name in tensors):
        raise NotRunError("it sees images, which our decoder does not")
    quantised = config.get("quantization_config")
    if quantised is not None:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise NotRunError(f"its weights are quantised by {shown(method)}; of those only GGUF's are read")
    classes = config.get("architectures")
    if isinstance(classes, list) and classes and not any(map(_generates, classes)):
        raise NotRunError(f"it is a {shown(classes[0], quoted=False)}, which does not generate text")
    for name in BIASES.get(family, ()):
        if keys.flag(name):
            raise NotRunError(f"it has biases ({name}) that our decoder does not add")
    if family in GEMMAS and keys.flag("use_bidirectional_attention"):
        raise NotRunError("it looks at tokens to come, so it cannot generate")
    name, allowed = ("hidden_activation", "gelu_pytorch_tanh") if family in GEMMAS else ("hidden_act", "silu")
    activation = keys.get(name)
    if activation not in (None, allowed):
        raise NotRunError(f"its {name} is {shown(activation)}; our decoder has {allowed} for {family}")


def _generates(name: object) -> bool:
    return isinstance(name, str) and name.endswith(("ForCausalLM", "ForConditionalGeneration"))


def _is_tied(keys: Keys, config: dict[str, Any], is_gemma: bool) -> bool:
    """Gemma ties its head to the embedding unless it says otherwise, the others do not. The outer word counts."""
    outer = Keys(keys.path, config)
    return outer.flag("tie_word_embeddings", keys.flag("tie_word_embeddings", is_gemma))


def _softcap(keys: Keys, name: str, family: str, default: float) -> float:
    if family not in GEMMAS:
        return 0.0
    if name in keys.values and keys.values[name] is None:
        return 0.0
    return keys.number(name, default if family == "gemma2" else 0.0)


def _config_window(keys: Keys, family: str, layers: int) -> dict[str, Any]:
    """Which layers see only the latest tokens, and how many."""
    everything = {"window_tokens": 0, "global_every": 0}
    if family == "llama" or keys.get("sliding_window") is None:
        return everything
    if family.startswith("qwen") and not keys.flag("use_sliding_window"):
        return everything
    window = keys.count("sliding_window", least=0, most=MAX_CONTEXT)
    if not window:
        return everything
    if family in ("mistral", "phi3"):
        return {"window_tokens": window, "global_every": 0}
    every = layer_pattern(_windowed_layers(keys, family, layers), layers)
    return everything if every is None else {"window_tokens": window, "global_every": every}


def _windowed_layers(keys: Keys, family: str, layers: int) -> list[bool]:
    listed = keys.get("layer_types")
    if listed is not None:
        if not isinstance(listed, list) or not {"full_attention", "sliding_attention"}.issuperset(
            map(str, listed)
        ):
            raise NotRunError("its layer_types has others than full_attention and sliding_attention")
        return [each == "sliding_attention" for each in listed[: MAX_LAYERS + 1]]
    if family in GEMMAS:
        every = keys.count("sliding_window_pattern", 6) if family == "gemma3" else GEMMA_GLOBAL_EVERY[family]
        return [(layer + 1) % every > 0 for layer in range(layers)]
    first = keys.count("max_window_layers", 28, least=0)
    return [layer >= first for layer in range(layers)]


@dataclass(slots=True)
class _Rope:
    """How the layers that see everything turn, and the local theta of the others."""

    theta: float
    factors: list[float]
    dimensions: int
    local_theta: float | None


def _config_rope(keys: Keys, family: str, head_dim: int, context: int) -> _Rope:
    """In today's layout `rope_parameters` holds it all, for Gemma 3 by layer type; before, it lay side by side."""
    found = keys.below("rope_scaling") or keys.below("rope_parameters") or Keys(keys.path, {})
    local_theta = None
    if family == "gemma3":
        found, local_theta = _gemma3_rope(keys)
    elif any(isinstance(value, dict) for value in found.values.values()):
        raise NotRunError("its rotary positions differ by the type of the layer")
    default = GEMMA3_THETA if family == "gemma3" else THETA
    theta = found.number("rope_theta", keys.number("rope_theta", default))
    share = found.number("partial_rotary_factor", keys.number("partial_rotary_factor", 1.0))
    if share != 1 and family != "phi3":
        raise NotRunError("it turns a part of each head only, which our decoder knows of phi3 alone")
    dimensions = int(head_dim * min(share, 1.0))
    return _Rope(theta, _rope_factors(found, theta, dimensions, context), dimensions, local_theta)


def _gemma3_rope(keys: Keys) -> tuple[Keys, float]:
    nested = keys.below("rope_parameters")
    full = (nested and nested.below("full_attention")) or Keys(keys.path, {})
    local = (nested and nested.below("sliding_attention")) or Keys(keys.path, {})
    older = keys.below("rope_scaling")
    if older is not None:
        full = Keys(keys.path, {**full.values, **older.values})
    if _rope_type(local) != "default":
        raise NotRunError("it scales the rotary positions of its windowed layers, which our decoder does not")
    return full, local.number("rope_theta", keys.number("rope_local_base_freq", GEMMA3_LOCAL_THETA))


def _rope_type(found: Keys) -> str:
    return str(found.get("rope_type") or found.get("type") or "default")


def _rope_factors(found: Keys, theta: float, dimensions: int, context: int) -> list[float]:
    kind = _rope_type(found)
    if kind == "default":
        return []
    if kind == "linear":
        factor = found.number("factor", least=1.0)
        return [] if factor == 1 else [factor] * (dimensions // 2)
    if kind == "llama3":
        return llama3_factors(
            theta,
            dimensions,
            factor=found.number("factor", least=1.0),
            low=found.number("low_freq_factor"),
            high=found.number("high_freq_factor"),
            trained_tokens=found.count("original_max_position_embeddings", context, most=MAX_CONTEXT),
        )
    raise NotRunError(f"it scales rotary positions in the way {shown(kind)}, which our decoder does not")


def llama3_factors(
    theta: float, dimensions: int, *, factor: float, low: float, high: float, trained_tokens: int
) -> list[float]:
    """By what Llama 3.1 divides each rotary frequency: short waves by 1, long ones by `factor`, smoothly between.

    A wave is short when more than `high` of them fit into the tokens trained on, and long when fewer than `low` do.
    """
    factors = []
    for pair in range(dimensions // 2):
        turns = trained_tokens * theta ** (-2 * pair / dimensions) / (2 * pi)
        if turns > high:
            factors.append(1.0)
        elif turns < low:
            factors.append(factor)
        else:
            share = (turns - low) / (high - low) if high > low else 1.0
            factors.append(1 / ((1 - share) / factor + share))
    return factors
