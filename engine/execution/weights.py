"""The weights of a decoder, as its forward pass wants them: projections that run together are one matrix."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(slots=True)
class Layer:
    """One block. Matrices are (out, in); norms are what is multiplied with (Gemma's 1 + w is already added up).

    `qkv` has the rows of all query heads, then key heads, then value heads, rotary pairs half a head apart (the
    layout of Hugging Face); `gate_up` the rows of the gate, then of up. What a family does not have is None.
    """

    attention_norm: Tensor
    qkv: Tensor
    attention_out: Tensor
    ffn_norm: Tensor
    gate_up: Tensor
    down: Tensor
    qkv_bias: Tensor | None = None
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None
    attention_post_norm: Tensor | None = None
    ffn_post_norm: Tensor | None = None


@dataclass(slots=True)
class Weights:
    """All weights of a model. `head` is `embedding` itself where they are tied."""

    embedding: Tensor
    layers: list[Layer]
    norm: Tensor
    head: Tensor
