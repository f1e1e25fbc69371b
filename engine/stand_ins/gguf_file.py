"""A stand-in as a GGUF file, with the metadata and the tensors that the converters of real models write.

Layout (version 3, little-endian): the magic, a version, the counts of tensors and of key-value pairs; the pairs;
name, dimensions (innermost first), type and offset of each tensor; then the data, each tensor aligned to 32 bytes.
"""

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.settings import Architecture
from engine.stand_ins.designs import StandIn
from engine.stand_ins.vocabulary import Vocabulary
from engine.stand_ins.weights import Stored

VERSION = 3
ALIGNMENT = 32
QUANTISATION_VERSION = 2
TENSOR_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 8}
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7}
NORMAL, CONTROL, UNUSED = 1, 3, 5

UINT16, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 2, 4, 5, 6, 7, 8, 9


class Pairs:
    """The key-value pairs of a GGUF, as bytes: one method for each type of value that is written."""

    def __init__(self) -> None:
        self.count = 0
        self.data = bytearray()

    def text(self, key: str, value: str) -> None:
        self._add(key, STRING, _string(value))

    def count_of(self, key: str, value: int) -> None:
        self._add(key, UINT32, struct.pack("<I", value))

    def number(self, key: str, value: float) -> None:
        self._add(key, FLOAT32, struct.pack("<f", value))

    def flag(self, key: str, value: bool) -> None:
        self._add(key, BOOL, struct.pack("<?", value))

    def texts(self, key: str, values: Sequence[str]) -> None:
        self.array(key, STRING, len(values), b"".join(_string(each) for each in values))

    def integers(self, key: str, values: Sequence[int]) -> None:
        self.array(key, INT32, len(values), np.asarray(values, np.dtype("<i4")).tobytes())

    def array(self, key: str, kind: int, count: int, elements: bytes) -> None:
        self._add(key, ARRAY, struct.pack("<IQ", kind, count), elements)

    def part(self, number: int, parts: int, tensors: int) -> None:
        """Which part of a split file this is (from 0), of how many, with how many tensors in all of them."""
        self._add("split.no", UINT16, struct.pack("<H", number))
        self._add("split.count", UINT16, struct.pack("<H", parts))
        self._add("split.tensors.count", INT32, struct.pack("<i", tensors))

    def _add(self, key: str, kind: int, *values: bytes) -> None:
        self.count += 1
        self.data += _string(key) + struct.pack("<I", kind) + b"".join(values)


def gguf_files(
    stand_in: StandIn, vocabulary: Vocabulary, weights: Sequence[Stored], parts: int
) -> list[bytes]:
    """The contents of the file, or of each part of a split one. All metadata are in the first."""
    tensors = _in_gguf_order(stand_in, weights)
    if parts == 1:
        return [gguf_bytes(metadata(stand_in, vocabulary, weights), tensors)]
    files = []
    for number in range(parts):
        pairs = Pairs() if number else metadata(stand_in, vocabulary, weights)
        pairs.part(number, parts, len(tensors))
        first, last = (len(tensors) * each // parts for each in (number, number + 1))
        files.append(gguf_bytes(pairs, tensors[first:last]))
    return files


def gguf_bytes(pairs: Pairs, tensors: Sequence[Stored]) -> bytes:
    """A whole file."""
    head = bytearray(struct.pack("<4sIQQ", b"GGUF", VERSION, len(tensors), pairs.count))
    head += pairs.data
    data = bytearray()
    for tensor in tensors:
        head += _string(tensor.name)
        head += struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *reversed(tensor.shape))
        head += struct.pack("<IQ", TENSOR_TYPES[tensor.kind], len(data))
        data += tensor.data.tobytes()
        data += bytes(-len(data) % ALIGNMENT)
    head += bytes(-len(head) % ALIGNMENT)
    return bytes(head + data)


def metadata(stand_in: StandIn, vocabulary: Vocabulary, weights: Sequence[Stored]) -> Pairs:
    """What the file says of itself: general, the architecture's numbers, the tokenizer."""
    shape, pairs = stand_in.architecture, Pairs()
    family = gguf_architecture(shape)
    pairs.text("general.architecture", family)
    pairs.text("general.type", "model")
    pairs.text("general.name", stand_in.name)
    if stand_in.finetune:
        pairs.text("general.finetune", stand_in.finetune)
    pairs.text("general.basename", stand_in.basename)
    pairs.text("general.size_label", f"{round(shape.parameters / 1000)}K")
    pairs.text("general.license", "apache-2.0")
    pairs.texts("general.tags", ["stand-in", "text-generation"])
    _numbers(pairs, family, shape)
    kind = next(each.kind for each in weights if len(each.shape) > 1)
    pairs.count_of("general.file_type", FILE_TYPES[kind])
    pairs.count_of("general.quantization_version", QUANTISATION_VERSION)
    _tokenizer(pairs, stand_in, vocabulary)
    return pairs


def gguf_architecture(shape: Architecture) -> str:
    """The word in the file: Mistral is a Llama there."""
    return "llama" if shape.family == "mistral" else shape.family


def _numbers(pairs: Pairs, family: str, shape: Architecture) -> None:
    """The architecture. What a family's converter leaves out, because it follows or is always so, is left out."""
    pairs.count_of(f"{family}.block_count", shape.layers)
    pairs.count_of(f"{family}.context_length", shape.context_tokens)
    pairs.count_of(f"{family}.embedding_length", shape.hidden)
    pairs.count_of(f"{family}.feed_forward_length", shape.ffn)
    pairs.count_of(f"{family}.attention.head_count", shape.heads)
    pairs.count_of(f"{family}.attention.head_count_kv", shape.kv_heads)
    if family not in {"phi3", "qwen2"}:
        pairs.count_of(f"{family}.attention.key_length", shape.head_dim)
        pairs.count_of(f"{family}.attention.value_length", shape.head_dim)
    pairs.number(f"{family}.attention.layer_norm_rms_epsilon", shape.norm_eps)
    if family != "gemma2":
        pairs.number(f"{family}.rope.freq_base", shape.rope_theta)
    if family in {"llama", "phi3"}:
        pairs.count_of(f"{family}.rope.dimension_count", shape.head_dim)
    if family == "llama":
        pairs.count_of(f"{family}.vocab_size", shape.vocab)
    if family == "phi3":
        pairs.count_of(f"{family}.rope.scaling.original_context_length", shape.context_tokens)
    if family == "phi3" or shape.window_tokens:  # a converted phi-4 says 0
        pairs.count_of(f"{family}.attention.sliding_window", shape.window_tokens)
    if shape.attention_softcap:
        pairs.number(f"{family}.attn_logit_softcapping", shape.attention_softcap)
    if shape.final_softcap:
        pairs.number(f"{family}.final_logit_softcapping", shape.final_softcap)


def _tokenizer(pairs: Pairs, stand_in: StandIn, vocabulary: Vocabulary) -> None:
    chat = stand_in.chat
    unused = len(vocabulary.tokens) - vocabulary.trained - len(vocabulary.special)
    types = [NORMAL] * vocabulary.trained + [CONTROL] * len(vocabulary.special) + [UNUSED] * unused
    pairs.text("tokenizer.ggml.model", "gpt2")
    pairs.text("tokenizer.ggml.pre", "gpt-2")
    pairs.texts("tokenizer.ggml.tokens", vocabulary.tokens)
    pairs.integers("tokenizer.ggml.token_type", types)
    pairs.texts("tokenizer.ggml.merges", [" ".join(merge) for merge in vocabulary.merges])
    pairs.count_of("tokenizer.ggml.bos_token_id", vocabulary.id_of(chat.bos))
    pairs.count_of("tokenizer.ggml.eos_token_id", vocabulary.id_of(chat.eos[0]))
    if chat.unknown is not None:
        pairs.count_of("tokenizer.ggml.unknown_token_id", vocabulary.id_of(chat.unknown))
    pairs.count_of("tokenizer.ggml.padding_token_id", vocabulary.id_of(chat.padding))
    pairs.flag("tokenizer.ggml.add_bos_token", chat.adds_bos)
    pairs.flag("tokenizer.ggml.add_eos_token", value=False)
    pairs.text("tokenizer.chat_template", chat.template)


def _in_gguf_order(stand_in: StandIn, weights: Sequence[Stored]) -> list[Stored]:
    """The tensors as GGUF has them: those of its llama with rotary pairs side by side, and Llama 3's factors."""
    shape = stand_in.architecture
    tensors = list(weights)
    if gguf_architecture(shape) == "llama":
        tensors = [_paired(each, shape) for each in weights]
    if shape.rope_factors:
        factors = np.asarray(shape.rope_factors, np.float32)
        tensors.append(Stored("rope_freqs.weight", factors.shape, "F32", factors))
    return tensors


def _paired(tensor: Stored, shape: Architecture) -> Stored:
    turning = {"attn_q": shape.heads, "attn_k": shape.kv_heads}
    heads = turning.get(tensor.name.split(".")[-2])
    if heads is None:
        return tensor
    return Stored(tensor.name, tensor.shape, tensor.kind, paired_rows(tensor.data, heads))


def paired_rows(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows of each head in the order 0, D/2, 1, D/2 + 1, ...: partners that turn together lie side by side."""
    halves = rows.reshape(heads, 2, -1, rows.shape[-1])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def _string(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data
