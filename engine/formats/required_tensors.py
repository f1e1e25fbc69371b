"""The tensors that a family needs, by the names that each format gives them, and whether a checkpoint has them."""

from collections.abc import Iterator

from engine.errors import BadModel
from engine.formats.checkpoint import Checkpoint
from engine.settings import Architecture

ROPE_FREQS = "rope_freqs.weight"


def check_tensors(checkpoint: Checkpoint) -> None:
    """Raise BadModel unless every tensor that the family needs is there, in the shape that its metadata promise."""
    if checkpoint.shape is None:
        return
    for name, shape in expected_tensors(checkpoint.shape, checkpoint.format):
        tensor = checkpoint.tensors.get(name)
        if tensor is None:
            raise BadModel(checkpoint.path, f"has no tensor {name}, which should be {list(shape)}")
        if tensor.shape != shape:
            raise BadModel(tensor.path, f"tensor {name} is {list(tensor.shape)}, but should be {list(shape)}")
    factors = checkpoint.tensors.get(ROPE_FREQS) if checkpoint.format == "gguf" else None
    pairs = ((checkpoint.shape.rotary_dim or checkpoint.shape.head_dim) // 2,)
    if factors is not None and (factors.shape != pairs or factors.kind != "F32"):
        raise BadModel(
            factors.path,
            f"tensor {ROPE_FREQS} is {factors.kind} {list(factors.shape)}, but should be F32 {list(pairs)}",
        )


def expected_tensors(shape: Architecture, file_format: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor of a model in that format ("gguf" or "safetensors")."""
    names, prefix = (_GGUF_NAMES, "blk.{}.") if file_format == "gguf" else (_CONFIG_NAMES, "model.layers.{}.")
    if shape.post_norms and file_format != "gguf":
        names = {**names, **_CONFIG_POST_NORM_NAMES}
    hidden = shape.hidden
    yield names["embedding"], (shape.vocab, hidden)
    yield names["norm"], (hidden,)
    if not shape.tied_embeddings:
        yield names["head"], (shape.vocab, hidden)
    of_layer = [(names[part], size) for part, size in _layer_parts(shape)]
    for layer in range(shape.layers):
        start = prefix.format(layer)
        for name, size in of_layer:
            yield start + name, size


def _layer_parts(shape: Architecture) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, ffn = shape.hidden, shape.ffn
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield "attention_norm", (hidden,)
    yield "ffn_norm", (hidden,)
    yield "attention_out", (hidden, queries)
    yield "down", (hidden, ffn)
    if shape.family == "phi3":
        yield "qkv", (queries + 2 * keys, hidden)
        yield "gate_up", (2 * ffn, hidden)
    else:
        yield from (("q", (queries, hidden)), ("k", (keys, hidden)), ("v", (keys, hidden)))
        yield from (("gate", (ffn, hidden)), ("up", (ffn, hidden)))
    if shape.qkv_bias:
        yield from (("q_bias", (queries,)), ("k_bias", (keys,)), ("v_bias", (keys,)))
    if shape.qk_norm:
        yield from (("q_norm", (shape.head_dim,)), ("k_norm", (shape.head_dim,)))
    if shape.post_norms:
        yield from (("attention_post_norm", (hidden,)), ("ffn_post_norm", (hidden,)))


_GGUF_NAMES = {
    "embedding": "token_embd.weight",
    "norm": "output_norm.weight",
    "head": "output.weight",
    "attention_norm": "attn_norm.weight",
    "attention_out": "attn_output.weight",
    "attention_post_norm": "post_attention_norm.weight",
    "ffn_norm": "ffn_norm.weight",
    "ffn_post_norm": "post_ffw_norm.weight",
    "q": "attn_q.weight",
    "k": "attn_k.weight",
    "v": "attn_v.weight",
    "qkv": "attn_qkv.weight",
    "q_bias": "attn_q.bias",
    "k_bias": "attn_k.bias",
    "v_bias": "attn_v.bias",
    "q_norm": "attn_q_norm.weight",
    "k_norm": "attn_k_norm.weight",
    "gate": "ffn_gate.weight",
    "up": "ffn_up.weight",
    "gate_up": "ffn_up.weight",
    "down": "ffn_down.weight",
}
_CONFIG_NAMES = {
    "embedding": "model.embed_tokens.weight",
    "norm": "model.norm.weight",
    "head": "lm_head.weight",
    "attention_norm": "input_layernorm.weight",
    "attention_out": "self_attn.o_proj.weight",
    "ffn_norm": "post_attention_layernorm.weight",
    "q": "self_attn.q_proj.weight",
    "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight",
    "qkv": "self_attn.qkv_proj.weight",
    "q_bias": "self_attn.q_proj.bias",
    "k_bias": "self_attn.k_proj.bias",
    "v_bias": "self_attn.v_proj.bias",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "gate_up": "mlp.gate_up_proj.weight",
    "down": "mlp.down_proj.weight",
}
_CONFIG_POST_NORM_NAMES = {
    "attention_post_norm": "post_attention_layernorm.weight",
    "ffn_norm": "pre_feedforward_layernorm.weight",
    "ffn_post_norm": "post_feedforward_layernorm.weight",
}
