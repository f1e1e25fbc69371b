"""The five models of the reference workload at full size, as far as a header goes: sparse files without weights.

`write_reference(folder)` writes the header that each model's GGUF file has, with every tensor's name, shape and type
and a vocabulary of the true length (its strings are made up), and stretches the file to its true size. The files take
23 MB of disk and 0.2 s to write. The mix of types is that of llama.cpp's Q4_K_M: more bits for attn_v and
ffn_down in the first and last eighth of the layers and in every third between, for the output, and for what has few
heads; other types where a row is no multiple of 256.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from engine.settings import Architecture
from engine.stand_ins.gguf_file import FLOAT32, INT32, STRING, Pairs

ALIGNMENT = 32
Q4_K_M, Q8_0_FILE = 15, 7
TYPES = {"F32": (0, 1, 4), "Q5_0": (6, 32, 22), "Q8_0": (8, 32, 34), "Q4_K": (12, 256, 144), "Q5_K": (13, 256, 176),
         "Q6_K": (14, 256, 210)}  # fmt: skip
LARGE_LAYERS = 80
FALLBACKS = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}  # for rows that are no multiple of 256

Tensor = tuple[str, tuple[int, ...], str]


@dataclass(frozen=True)
class Reference:
    """A model, its file, and the size of the file as its publisher's page gives it."""

    name: str
    file: str
    published_bytes: float
    shape: Architecture
    tokenizer: str
    pre: str
    merges: int = 0
    mix: bool = True
    rope_factors: bool = False
    bos: int | None = None
    eos: int = 0


REFERENCES = (
    Reference(
        "Llama 3.3 70B Instruct", "Llama-3.3-70B-Instruct-Q4_K_M.gguf", 42.52e9,
        Architecture(layers=80, hidden=8192, heads=64, kv_heads=8, head_dim=128, ffn=28_672, vocab=128_256,
                     context_tokens=131_072, rope_theta=500_000.0, tied_embeddings=False),
        "gpt2", "llama-bpe", merges=280_147, rope_factors=True, bos=128_000, eos=128_009,
    ),
    Reference(
        "Qwen2.5 72B Instruct", "Qwen2.5-72B-Instruct-Q4_K_M.gguf", 47.42e9,
        Architecture(family="qwen2", layers=80, hidden=8192, heads=64, kv_heads=8, head_dim=128, ffn=29_568,
                     vocab=152_064, context_tokens=32_768, rope_theta=1_000_000.0, norm_eps=1e-6, qkv_bias=True,
                     tied_embeddings=False),
        "gpt2", "qwen2", merges=151_387, bos=151_643, eos=151_645,
    ),
    Reference(
        "Phi 4", "phi-4-Q4_K_M.gguf", 9.05e9,
        Architecture(family="phi3", layers=40, hidden=5120, heads=40, kv_heads=10, head_dim=128, ffn=17_920,
                     vocab=100_352, context_tokens=16_384, rope_theta=250_000.0, tied_embeddings=False),
        "gpt2", "dbrx", merges=100_000, bos=100_257, eos=100_265,
    ),
    Reference(
        "Mistral 7B Instruct v0.3", "Mistral-7B-Instruct-v0.3-Q8_0.gguf", 7.70e9,
        Architecture(family="mistral", layers=32, hidden=4096, heads=32, kv_heads=8, head_dim=128, ffn=14_336,
                     vocab=32_768, context_tokens=32_768, rope_theta=1_000_000.0, tied_embeddings=False),
        "llama", "default", mix=False, bos=1, eos=2,
    ),
    Reference(
        "Gemma 2 9b It", "gemma-2-9b-it-Q4_K_M.gguf", 5.76e9,
        Architecture(family="gemma2", layers=42, hidden=3584, heads=16, kv_heads=8, head_dim=256, ffn=14_336,
                     vocab=256_000, context_tokens=8192, norm_eps=1e-6, post_norms=True, activation="gelu_tanh",
                     embedding_scale=3584**0.5, attention_softcap=50.0, final_softcap=30.0, window_tokens=4096,
                     global_every=2),
        "llama", "default", bos=2, eos=1,
    ),
)  # fmt: skip


def write_reference(folder: Path) -> list[Path]:
    """One sparse file for each of the five, in the order of REFERENCES."""
    paths = []
    for reference in REFERENCES:
        path = folder / reference.file
        head, size = _head(reference)
        path.write_bytes(head)
        os.truncate(path, size)
        paths.append(path)
    return paths


def _head(reference: Reference) -> tuple[bytes, int]:
    """Everything before the data, and the size of the whole file."""
    pairs, tensors = _metadata(reference), list(_tensors(reference))
    head = bytearray(struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), pairs.count))
    head += pairs.data
    end = 0
    for name, shape, kind in tensors:
        number, block, block_bytes = TYPES[kind]
        head += struct.pack("<Q", len(name)) + name.encode()
        head += struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), number, end)
        end += prod(shape) // block * block_bytes
        end += -end % ALIGNMENT
    head += bytes(-len(head) % ALIGNMENT)
    return bytes(head), len(head) + end


def _tensors(reference: Reference) -> Iterator[Tensor]:
    shape = reference.shape
    table = (shape.vocab, shape.hidden)
    if reference.rope_factors:
        yield "rope_freqs.weight", (shape.head_dim // 2,), "F32"
    yield "token_embd.weight", table, _kind(reference, "output" if shape.tied_embeddings else "", table)
    for layer in range(shape.layers):
        more = _more_bits(layer, shape.layers)
        for name, sizes in _block(shape):
            kind = "F32" if len(sizes) == 1 else _kind(reference, name, sizes, more=more)
            yield f"blk.{layer}.{name}", sizes, kind
    yield "output_norm.weight", (shape.hidden,), "F32"
    if not shape.tied_embeddings:
        yield "output.weight", table, _kind(reference, "output", table)


def _block(shape: Architecture) -> Iterator[tuple[str, tuple[int, ...]]]:
    heads_dim, kv_dim = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield "attn_norm.weight", (shape.hidden,)
    if shape.family == "phi3":
        yield "attn_qkv.weight", (heads_dim + 2 * kv_dim, shape.hidden)
    else:
        for name, rows in ("attn_q", heads_dim), ("attn_k", kv_dim), ("attn_v", kv_dim):
            yield f"{name}.weight", (rows, shape.hidden)
            if shape.qkv_bias:
                yield f"{name}.bias", (rows,)
    yield "attn_output.weight", (shape.hidden, heads_dim)
    yield "ffn_norm.weight", (shape.hidden,)
    if shape.family != "phi3":
        yield "ffn_gate.weight", (shape.ffn, shape.hidden)
    yield "ffn_up.weight", (shape.ffn * (2 if shape.family == "phi3" else 1), shape.hidden)
    yield "ffn_down.weight", (shape.hidden, shape.ffn)
    if shape.post_norms:
        yield "post_attention_norm.weight", (shape.hidden,)
        yield "post_ffw_norm.weight", (shape.hidden,)


def _kind(reference: Reference, name: str, sizes: tuple[int, ...], *, more: bool = False) -> str:
    if not reference.mix:
        return "Q8_0"
    large = (
        reference.shape.layers == LARGE_LAYERS
    )  # eight heads share each key there, so that more bits cost little
    kind = "Q4_K"
    if name == "output" or (name in {"attn_v.weight", "ffn_down.weight"} and more):
        kind = "Q6_K"
    elif name == "attn_qkv.weight" or (name == "attn_v.weight" and large):
        kind = "Q5_K"
    return FALLBACKS[kind] if sizes[-1] % 256 else kind


def _more_bits(layer: int, layers: int) -> bool:
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2  # noqa: PLR2004  every third


def _metadata(reference: Reference) -> Pairs:
    shape, pairs = reference.shape, Pairs()
    family = "llama" if shape.family == "mistral" else shape.family
    pairs.text("general.architecture", family)
    pairs.text("general.type", "model")
    pairs.text("general.name", reference.name)
    pairs.count_of(f"{family}.block_count", shape.layers)
    pairs.count_of(f"{family}.context_length", shape.context_tokens)
    pairs.count_of(f"{family}.embedding_length", shape.hidden)
    pairs.count_of(f"{family}.feed_forward_length", shape.ffn)
    pairs.count_of(f"{family}.attention.head_count", shape.heads)
    pairs.count_of(f"{family}.attention.head_count_kv", shape.kv_heads)
    pairs.number(f"{family}.attention.layer_norm_rms_epsilon", shape.norm_eps)
    if shape.family != "gemma2":
        pairs.number(f"{family}.rope.freq_base", shape.rope_theta)
    if family in {"llama", "phi3"}:
        pairs.count_of(f"{family}.rope.dimension_count", shape.head_dim)
    if family == "llama":
        pairs.count_of("llama.vocab_size", shape.vocab)
    if family == "phi3":
        pairs.count_of("phi3.rope.scaling.original_context_length", shape.context_tokens)
        pairs.count_of("phi3.attention.sliding_window", 0)
    if family == "gemma2":
        pairs.count_of("gemma2.attention.key_length", shape.head_dim)
        pairs.count_of("gemma2.attention.value_length", shape.head_dim)
        pairs.number("gemma2.attn_logit_softcapping", shape.attention_softcap)
        pairs.number("gemma2.final_logit_softcapping", shape.final_softcap)
        pairs.count_of("gemma2.attention.sliding_window", shape.window_tokens)
    pairs.count_of("general.file_type", Q4_K_M if reference.mix else Q8_0_FILE)
    pairs.count_of("general.quantization_version", 2)
    _add_tokenizer(pairs, reference)
    return pairs


def _add_tokenizer(pairs: Pairs, reference: Reference) -> None:
    tokens = reference.shape.vocab
    pairs.text("tokenizer.ggml.model", reference.tokenizer)
    pairs.text("tokenizer.ggml.pre", reference.pre)
    pairs.array("tokenizer.ggml.tokens", STRING, tokens, _texts(b"t", tokens))
    if reference.tokenizer == "llama":
        pairs.array("tokenizer.ggml.scores", FLOAT32, tokens, bytes(4 * tokens))
    pairs.array("tokenizer.ggml.token_type", INT32, tokens, np.ones(tokens, "<i4").tobytes())
    if reference.merges:
        pairs.array("tokenizer.ggml.merges", STRING, reference.merges, _texts(b"t t", reference.merges))
    if reference.bos is not None:
        pairs.count_of("tokenizer.ggml.bos_token_id", reference.bos)
    pairs.count_of("tokenizer.ggml.eos_token_id", reference.eos)
    pairs.text("tokenizer.chat_template", "{% for message in messages %}{{ message['content'] }}{% endfor %}")


def _texts(prefix: bytes, count: int) -> bytes:
    """So many strings, each with its number: prefix000000, prefix000001, ..."""
    numbers = np.char.zfill(np.arange(count).astype("S6"), 6)
    rows = np.zeros(count, [("size", "<u8"), ("prefix", f"S{len(prefix)}"), ("number", "S6")])
    rows["size"], rows["prefix"], rows["number"] = len(prefix) + 6, prefix, numbers
    return rows.tobytes()
