"""Tiny models of each family as `transformers` makes them: what our decoder is compared with."""

import warnings
from functools import cache

import torch

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3")

COMMON = {
    "vocab_size": 160,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
SHAPES = {
    "llama": (
        "LlamaConfig",
        {
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "intermediate_size": 160,
            "head_dim": 16,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 5000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "mistral": (
        "MistralConfig",
        {
            "hidden_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "intermediate_size": 96,
            "head_dim": 8,
            "sliding_window": 12,
        },
    ),
    "qwen2": (
        "Qwen2Config",
        {
            "hidden_size": 56,
            "num_hidden_layers": 2,
            "num_attention_heads": 7,
            "num_key_value_heads": 1,
            "intermediate_size": 128,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3": (
        "Qwen3Config",
        {
            "hidden_size": 40,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 112,
            "head_dim": 16,
            "tie_word_embeddings": False,
        },
    ),
    "phi3": (
        "Phi3Config",
        {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "intermediate_size": 144,
            "sliding_window": None,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        },
    ),
    "gemma2": (
        "Gemma2Config",
        {
            "hidden_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 104,
            "head_dim": 20,
            "sliding_window": 10,
            "query_pre_attn_scalar": 30,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {
            "hidden_size": 72,
            "num_hidden_layers": 7,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "intermediate_size": 120,
            "head_dim": 24,
            "sliding_window": 9,
            "query_pre_attn_scalar": 20,
        },
    ),
}


@cache
def model_of(family):
    """The tiny model of a family: float32, eager attention, weights that make no choice obvious."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers  # noqa: PLC0415  the oracle is an extra

        name, options = SHAPES[family]
        config = getattr(transformers, name)(**COMMON, **options)
        config._attn_implementation = "eager"
        torch.manual_seed(FAMILIES.index(family) + 1)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for key, tensor in model.state_dict().items():
        if "norm" in key:
            tensor.normal_(0.0 if "gemma" in family else 1.0, 0.2)
        elif "embed" in key:
            tensor.normal_(0.0, 0.5)
        else:
            tensor.normal_(0.0, 1.5 * tensor.shape[-1] ** -0.5)
    return model.eval()


@torch.inference_mode()
def greedy(model, prompt, count):
    """What `generate` answers, without its prompt."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            min_new_tokens=count,
            max_new_tokens=count,
            eos_token_id=-1,
        )
    return out[0, len(prompt) :].tolist()
