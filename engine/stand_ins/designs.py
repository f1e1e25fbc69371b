"""Which stand-ins there are: a shape for each model, with every switch of its family, and a seed.

No two have the same shape, and no two the same seed: otherwise a Llama and a Mistral would be one model. Rows that
are quantised have a multiple of 32 numbers. Heads of Qwen 3 and of the Gemmas have their true sizes, 128 and 256:
some readers of GGUF take those for granted, and with them the scale of Gemma's attention scores.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from engine.settings import Architecture


@dataclass(slots=True, frozen=True)
class RopeScaling:
    """Llama 3's way to stretch the context: slow rotations are slowed down by `factor`, fast ones are not."""

    factor: float
    low_factor: float
    high_factor: float
    original_tokens: int


@dataclass(slots=True, frozen=True)
class ChatFormat:
    """How a family writes a conversation: its special tokens, which of them mean what, and its template.

    `special` come behind the trained tokens, in this order.
    """

    special: tuple[str, ...]
    bos: str
    eos: tuple[str, ...]  # the first is the one in the file's metadata; any of them ends an answer
    padding: str
    unknown: str | None
    adds_bos: bool
    template: str


@dataclass(slots=True, frozen=True)
class StandIn:
    """A small model in the place of a large one. Its weights are a function of `name`, `seed` and `architecture`."""

    name: str
    basename: str
    finetune: str
    architecture: Architecture
    chat: ChatFormat
    seed: int
    rope_scaling: RopeScaling | None = None


_LLAMA_CHAT = ChatFormat(
    special=(
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|finetune_right_pad_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
        "<|python_tag|>",
    ),
    bos="<|begin_of_text|>",
    eos=("<|eot_id|>", "<|end_of_text|>"),
    padding="<|finetune_right_pad_id|>",
    unknown=None,
    adds_bos=True,
    template=(
        "{{ bos_token }}{% if tools %}{{ '<|start_header_id|>system<|end_header_id|>\\n\\nRespond in the format "
        '{"name": function name, "parameters": dictionary of argument name and its value}.\\n\\n\' }}'
        "{% for tool in tools %}{{ tool | tojson }}{{ '\\n\\n' }}{% endfor %}{{ '<|eot_id|>' }}{% endif %}"
        "{% for message in messages %}"
        "{% set role = 'ipython' if message['role'] == 'tool' else message['role'] %}"
        "{{ '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' }}"
        "{% if message['tool_calls'] %}"
        "{% if message['tool_calls'] | length != 1 %}{{ raise_exception('one tool call at a time') }}{% endif %}"
        "{% set call = message['tool_calls'][0]['function'] %}"
        "{{ '{\"name\": \"' + call['name'] + '\", \"parameters\": ' }}{{ call['arguments'] | tojson }}{{ '}' }}"
        "{% else %}{{ message['content'] | trim }}{% endif %}{{ '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
    ),
)

_QWEN_CHAT = ChatFormat(
    special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    bos="<|endoftext|>",
    eos=("<|im_end|>", "<|endoftext|>"),
    padding="<|endoftext|>",
    unknown=None,
    adds_bos=False,
    template=(
        "{% if tools %}{{ '<|im_start|>system\\n<tools>' }}"
        "{% for tool in tools %}{{ '\\n' }}{{ tool | tojson }}{% endfor %}"
        "{{ '\\n</tools>\\nCall within <tool_call></tool_call>:\\n"
        '{"name": <name>, "arguments": <object>}<|im_end|>\\n\' }}{% endif %}'
        "{% for message in messages %}"
        "{% if message['role'] == 'tool' %}"
        "{{ '<|im_start|>user\\n<tool_response>\\n' + message['content'] + '\\n</tool_response><|im_end|>\\n' }}"
        "{% else %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] }}"
        "{% for call in message['tool_calls'] or [] %}"
        "{% if message['content'] or not loop.first %}{{ '\\n' }}{% endif %}"
        "{{ '<tool_call>\\n{\"name\": \"' + call['function']['name'] + '\", \"arguments\": ' }}"
        "{{ call['function']['arguments'] | tojson }}{{ '}\\n</tool_call>' }}{% endfor %}"
        "{{ '<|im_end|>\\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
)

_PHI_CHAT = ChatFormat(
    special=("<|dummy_0|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_sep|>"),
    bos="<|endoftext|>",
    eos=("<|im_end|>", "<|endoftext|>"),
    padding="<|dummy_0|>",
    unknown=None,
    adds_bos=False,
    template=(
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '<|im_sep|>' + message['content'] + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
    ),
)

_MISTRAL_CHAT = ChatFormat(
    special=(
        "<unk>",
        "<s>",
        "</s>",
        "[INST]",
        "[/INST]",
        "[TOOL_CALLS]",
        "[AVAILABLE_TOOLS]",
        "[/AVAILABLE_TOOLS]",
        "[TOOL_RESULTS]",
        "[/TOOL_RESULTS]",
    ),
    bos="<s>",
    eos=("</s>",),
    padding="</s>",
    unknown="<unk>",
    adds_bos=True,
    template=(
        "{{ bos_token }}"
        "{% if tools %}{{ '[AVAILABLE_TOOLS] ' }}{{ tools | tojson }}{{ '[/AVAILABLE_TOOLS]' }}{% endif %}"
        "{% for message in messages %}"
        "{% if message['tool_calls'] %}{{ '[TOOL_CALLS] [' }}{% for call in message['tool_calls'] %}"
        "{% if call['id'] | length != 9 %}{{ raise_exception('ids of tool calls have 9 letters') }}{% endif %}"
        "{{ '{\"name\": \"' + call['function']['name'] + '\", \"arguments\": ' }}"
        "{{ call['function']['arguments'] | tojson }}"
        "{{ ', \"id\": \"' + call['id'] + '\"}' }}{% if not loop.last %}{{ ', ' }}{% endif %}{% endfor %}"
        "{{ ']' + eos_token }}"
        "{% elif message['role'] == 'tool' %}"
        "{{ '[TOOL_RESULTS] {\"content\": ' }}{{ message['content'] | tojson }}"
        "{{ ', \"call_id\": \"' + message['tool_call_id'] + '\"}[/TOOL_RESULTS]' }}"
        "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
        "{% else %}{{ '[INST] ' + message['content'] + '[/INST]' }}{% endif %}{% endfor %}"
    ),
)

_GEMMA_CHAT = ChatFormat(
    special=("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"),
    bos="<bos>",
    eos=("<eos>", "<end_of_turn>"),
    padding="<pad>",
    unknown="<unk>",
    adds_bos=True,
    template=(
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for message in messages %}"
        "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
        "{{ '<start_of_turn>' + role + '\\n' + (message['content'] | trim) + '<end_of_turn>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
    ),
)


def rope_factors(scaling: RopeScaling, theta: float, head_dim: int) -> list[float]:
    """What divides the frequency of each pair of numbers of a head, as Llama 3 does it.

    Rotations that turn more than `high_factor` times in the original context stay as they are, those that turn less
    than `low_factor` times are slowed down wholly, and those between partly. Exact in float32.
    """
    frequencies = theta ** -(np.arange(0, head_dim, 2) / head_dim)
    turns = scaling.original_tokens * frequencies / (2 * np.pi)
    share = (turns - scaling.low_factor) / (scaling.high_factor - scaling.low_factor)
    fast = np.clip(share, 0, 1)
    factors = 1 / ((1 - fast) / scaling.factor + fast)
    return [float(factor) for factor in factors.astype(np.float32)]


_LLAMA_SCALING = RopeScaling(factor=8.0, low_factor=1.0, high_factor=4.0, original_tokens=2048)

_ALL = (
    StandIn(
        "Llama-3.3-70B-Instruct",
        "Llama-3.3",
        "Instruct",
        Architecture(
            family="llama", layers=4, hidden=128, heads=4, kv_heads=2, head_dim=32, ffn=352, vocab=640,
            context_tokens=16_384, rope_theta=500_000.0, tied_embeddings=False,
            rope_factors=rope_factors(_LLAMA_SCALING, 500_000.0, 32),
        ),
        _LLAMA_CHAT,
        seed=3301,
        rope_scaling=_LLAMA_SCALING,
    ),
    StandIn(
        "Qwen2.5-72B-Instruct",
        "Qwen2.5",
        "Instruct",
        Architecture(
            family="qwen2", layers=3, hidden=160, heads=5, kv_heads=1, head_dim=32, ffn=320, vocab=672,
            context_tokens=8_192, rope_theta=1_000_000.0, norm_eps=1e-6, tied_embeddings=False, qkv_bias=True,
        ),
        _QWEN_CHAT,
        seed=2572,
    ),
    StandIn(
        "phi-4",
        "phi",
        "",
        Architecture(
            family="phi3", layers=3, hidden=192, heads=4, kv_heads=2, head_dim=48, ffn=384, vocab=704,
            context_tokens=4_096, rope_theta=250_000.0, tied_embeddings=False,
        ),
        _PHI_CHAT,
        seed=4014,
    ),
    StandIn(
        "Mistral-7B-Instruct-v0.3",
        "Mistral",
        "Instruct",
        Architecture(
            family="mistral", layers=2, hidden=96, heads=6, kv_heads=2, head_dim=16, ffn=224, vocab=608,
            context_tokens=8_192, rope_theta=1_000_000.0, tied_embeddings=False,
        ),
        _MISTRAL_CHAT,
        seed=703,
    ),
    StandIn(
        "gemma-2-9b-it",
        "gemma-2",
        "it",
        Architecture(
            family="gemma2", layers=4, hidden=64, heads=2, kv_heads=1, head_dim=256, ffn=256, vocab=736,
            context_tokens=8_192, norm_eps=1e-6, post_norms=True, activation="gelu_tanh", embedding_scale=8.0,
            attention_softcap=50.0, final_softcap=30.0, window_tokens=64, global_every=2,
        ),
        _GEMMA_CHAT,
        seed=209,
    ),
    StandIn(
        "Qwen3-0.6B",
        "Qwen3",
        "",
        Architecture(
            family="qwen3", layers=3, hidden=64, heads=2, kv_heads=1, head_dim=128, ffn=288, vocab=656,
            context_tokens=8_192, rope_theta=1_000_000.0, norm_eps=1e-6, qk_norm=True,
        ),
        _QWEN_CHAT,
        seed=306,
    ),
    StandIn(
        "gemma-3-1b-it",
        "gemma-3",
        "it",
        Architecture(
            family="gemma3", layers=7, hidden=64, heads=2, kv_heads=1, head_dim=256, ffn=192, vocab=688,
            context_tokens=8_192, rope_theta=1_000_000.0, rope_local_theta=10_000.0, norm_eps=1e-6, qk_norm=True,
            post_norms=True, activation="gelu_tanh", embedding_scale=8.0, window_tokens=32, global_every=6,
        ),
        _GEMMA_CHAT,
        seed=301,
    ),
)  # fmt: skip

designs: Mapping[str, StandIn] = MappingProxyType({each.name: each for each in _ALL})
"""Every stand-in, by the name of the model in whose place it is."""

REFERENCE = tuple(each.name for each in _ALL[:5])
"""The five models of the reference workload."""
