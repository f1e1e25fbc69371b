"""Our decoder against transformers: tiny random models of every family answer the same, token for token."""

import warnings
from copy import deepcopy
from dataclasses import dataclass, field, fields
from importlib.util import find_spec

import pytest
import torch

from engine.execution.decoder import Decoder, Rows
from engine.execution.weights import Layer, Weights
from engine.settings import Architecture

if find_spec("transformers") is None:
    pytest.skip("transformers, the oracle, is not installed", allow_module_level=True)

pytestmark = pytest.mark.torch

PROMPT_TOKENS, NEW_TOKENS, VOCAB = 30, 40, 199


@dataclass
class Case:
    """A tiny model: the config as transformers has it, and the switches by which we say the same."""

    name: str
    config: dict
    switches: dict = field(default_factory=dict)


def sizes(layers, hidden, heads, kv_heads, ffn, head_dim=None):
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": ffn,
        **({"head_dim": head_dim} if head_dim else {}),
    }


LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 700.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 24,
}
HALF_ROPE = {"rope_type": "default", "rope_theta": 90.0, "partial_rotary_factor": 0.5}
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "default", "rope_theta": 3000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 40.0},
}
GEMMA = {"post_norms": True, "activation": "gelu_tanh"}

CASES = {
    "llama": Case("Llama", sizes(3, 48, 6, 2, 80) | {"rope_parameters": {"rope_theta": 300.0}}),
    "llama 3": Case("Llama", sizes(2, 64, 4, 2, 96, 24) | {"rope_parameters": LLAMA3_ROPE}),
    "mistral": Case("Mistral", sizes(2, 56, 7, 1, 72, 8) | {"sliding_window": 11}, {"window_tokens": 11}),
    "qwen 2": Case("Qwen2", sizes(3, 40, 4, 4, 88), {"qkv_bias": True}),
    "qwen 3": Case("Qwen3", sizes(2, 48, 4, 2, 64, 20), {"qk_norm": True}),
    "phi 3": Case("Phi3", sizes(2, 64, 4, 4, 104)),
    "phi 3, half of a head turns": Case(
        "Phi3", sizes(3, 32, 4, 2, 56) | {"rope_parameters": HALF_ROPE}, {"rotary_dim": 4}
    ),
    "gemma 2": Case(
        "Gemma2",
        sizes(4, 40, 4, 2, 60, 16)
        | {"sliding_window": 9, "query_pre_attn_scalar": 30}
        | {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 1.5},
        GEMMA
        | {"embedding_scale": 40**0.5, "attention_scale": 30**-0.5, "window_tokens": 9, "global_every": 2}
        | {"attention_softcap": 3.0, "final_softcap": 1.5},
    ),
    "gemma 3": Case(
        "Gemma3Text",
        sizes(5, 72, 3, 1, 70, 16)
        | {"sliding_window": 8, "query_pre_attn_scalar": 20, "rope_parameters": GEMMA3_ROPE}
        | {"layer_types": [*["sliding_attention"] * 2, "full_attention", *["sliding_attention"] * 2]},
        GEMMA
        | {"embedding_scale": 72**0.5, "attention_scale": 20**-0.5, "window_tokens": 8, "global_every": 3}
        | {"qk_norm": True, "rope_theta": 3000.0, "rope_local_theta": 40.0},
    ),
}


def oracle(case, seed):
    """The model of transformers in eval mode, weights large enough that the choice of a token is no accident."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers  # noqa: PLC0415 - takes seconds, and warns

        config = getattr(transformers, f"{case.name}Config")(
            vocab_size=VOCAB, pad_token_id=0, bos_token_id=1, eos_token_id=None, **case.config
        )
        config._attn_implementation = "eager"
        with torch.random.fork_rng(devices=[]):
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    random = torch.Generator().manual_seed(seed)
    for name, tensor in model.named_parameters():  # a tied head is not among them
        if "norm" in name:
            tensor.normal_(0.0 if "Gemma" in case.name else 1.0, 0.2, generator=random)
        elif (
            tensor.dim() == 1 or "embed" in name
        ):  # Gemma scales them up, and its tied head would say them again
            tensor.normal_(0.0, 0.05 if "Gemma" in case.name else 0.4, generator=random)
        else:
            tensor.normal_(0.0, 1.6 * tensor.shape[1] ** -0.5, generator=random)
    return model.eval()


def weights_of(model, case):
    """The state of a model of transformers, put together as our decoder wants it."""
    state = model.state_dict()
    unit = 1.0 if "Gemma" in case.name else 0.0

    def layer(number):
        def get(*names, kind="weight"):
            found = [state.get(f"model.layers.{number}.{name}.{kind}") for name in names]
            return torch.cat(found) if all(each is not None for each in found) else None

        def norm(name):
            weight = get(name)
            return None if weight is None else weight + unit

        heads = [f"self_attn.{each}_proj" for each in "qkv"]
        gated = ["mlp.gate_proj", "mlp.up_proj"]
        fused = case.name == "Phi3"
        post = "post_attention_layernorm"
        return Layer(
            attention_norm=norm("input_layernorm"),
            qkv=get("self_attn.qkv_proj") if fused else get(*heads),
            attention_out=get("self_attn.o_proj"),
            ffn_norm=norm("pre_feedforward_layernorm" if unit else post),
            gate_up=get("mlp.gate_up_proj") if fused else get(*gated),
            down=get("mlp.down_proj"),
            qkv_bias=get(*heads, kind="bias"),
            q_norm=norm("self_attn.q_norm"),
            k_norm=norm("self_attn.k_norm"),
            attention_post_norm=norm(post) if unit else None,
            ffn_post_norm=norm("post_feedforward_layernorm"),
        )

    embedding = state["model.embed_tokens.weight"]
    head = embedding if model.config.tie_word_embeddings else state["lm_head.weight"]
    layers = [layer(number) for number in range(model.config.num_hidden_layers)]
    return Weights(embedding, layers, state["model.norm.weight"] + unit, head)


def shape_of(model, case):
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    switches = {"rope_theta": rope.get("rope_theta"), **case.switches}
    if rope.get("rope_type") == "llama3":
        plain = rope["rope_theta"] ** -(torch.arange(0, head_dim, 2) / head_dim)
        switches["rope_factors"] = (plain / model.model.rotary_emb.inv_freq).tolist()
    return Architecture(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=head_dim,
        ffn=config.intermediate_size,
        vocab=VOCAB,
        context_tokens=256,
        norm_eps=config.rms_norm_eps,
        tied_embeddings=config.tie_word_embeddings,
        **switches,
    )


@dataclass
class Pair:
    """Both models, and what transformers says: its logits of the prompt, and 40 tokens after it."""

    theirs: torch.nn.Module
    ours: Decoder
    prompt: torch.Tensor
    logits: torch.Tensor
    answer: list


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Passes this small only wait for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=CASES)
def pair(request):
    case, seed = CASES[request.param], 11 + list(CASES).index(request.param)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = oracle(case, seed)
        ours = Decoder(shape_of(theirs, case), weights_of(theirs, case))
        prompt = torch.randint(3, VOCAB, (PROMPT_TOKENS,), generator=torch.Generator().manual_seed(seed))
        everything = theirs.generate(
            prompt[None],
            attention_mask=torch.ones(1, PROMPT_TOKENS, dtype=torch.long),
            do_sample=False,
            min_new_tokens=NEW_TOKENS,
            max_new_tokens=NEW_TOKENS,
        )
        yield Pair(
            theirs, ours, prompt, theirs(prompt[None]).logits[0], everything[0, PROMPT_TOKENS:].tolist()
        )


def empty_kv(shape, length, dtype=torch.float32):
    return torch.zeros(shape.layers, 2, shape.kv_heads, length, shape.head_dim, dtype=dtype)


def prefilled(model, tokens, chunk, length=PROMPT_TOKENS + NEW_TOKENS):
    """Logits and KV of `tokens`, prefilled in chunks."""
    kv = empty_kv(model.shape, length, model.dtype)
    starts = range(0, len(tokens), chunk)
    hidden = [model.prefill(tokens[start : start + chunk], kv, start) for start in starts]
    return model.logits(torch.cat(hidden)), kv


def decoded(model, kv, lengths, tokens, steps):
    """The logits (steps, B, vocab) and the greedy tokens after `tokens`, of rows that decode together."""
    logits, chosen = [], [tokens]
    for _ in range(steps):
        rows = Rows.of(kv, lengths, model.shape.window_tokens)
        logits.append(model.logits(model.decode(chosen[-1], [rows])))
        chosen.append(logits[-1].argmax(-1))
        lengths = [length + 1 for length in lengths]
    return torch.stack(logits), torch.stack(chosen)


@torch.inference_mode()
def test_logits_of_a_prompt_are_those_of_transformers(pair):
    logits, _ = prefilled(pair.ours, pair.prompt, PROMPT_TOKENS)
    assert logits.dtype == torch.float32
    assert pair.logits.std() > 0.25
    assert (logits - pair.logits).abs().max() < 1e-5 * pair.logits.abs().max()


@torch.inference_mode()
def test_greedy_tokens_are_those_of_generate(pair):
    logits, kv = prefilled(pair.ours, pair.prompt, PROMPT_TOKENS)
    _, chosen = decoded(pair.ours, kv[None], [PROMPT_TOKENS], logits[-1:].argmax(-1), NEW_TOKENS - 1)
    assert chosen[:, 0].tolist() == pair.answer
    assert len(set(pair.answer)) > 5  # no model that found its one word


@torch.inference_mode()
def test_a_prompt_in_chunks_of_7_is_the_prompt_in_one_go(pair):
    whole, kv = prefilled(pair.ours, pair.prompt, PROMPT_TOKENS)
    parts, kv_of_parts = prefilled(pair.ours, pair.prompt, 7)
    assert (whole - parts).abs().max() < 1e-5 * whole.abs().max()
    assert (kv - kv_of_parts).abs().max() < 1e-5 * kv.abs().max()


@torch.inference_mode()
def test_sequences_of_unequal_lengths_decode_together_as_each_alone(pair):
    lengths = [5, 29, 13]
    tokens = pair.prompt[torch.tensor(lengths)]
    kvs = [prefilled(pair.ours, pair.prompt[:length], length)[1] for length in lengths]
    together, chosen = decoded(pair.ours, torch.stack(kvs), lengths, tokens, 12)
    for row, length in enumerate(lengths):
        alone, chosen_alone = decoded(pair.ours, kvs[row][None], [length], tokens[row : row + 1], 12)
        assert (together[:, row] - alone[:, 0]).abs().max() < 1e-5 * alone.abs().max()
        assert chosen[:, row].tolist() == chosen_alone[:, 0].tolist()


def weights_in(weights, dtype):
    embedding = weights.embedding.to(dtype)
    head = embedding if weights.head is weights.embedding else weights.head.to(dtype)
    names = [each.name for each in fields(Layer) if getattr(weights.layers[0], each.name) is not None]
    layers = [Layer(**{name: getattr(layer, name).to(dtype) for name in names}) for layer in weights.layers]
    return Weights(embedding, layers, weights.norm.to(dtype), head)


def theirs_in(model, dtype):
    """A copy in another dtype, but for what a loaded model keeps in float32: the rotary frequencies."""
    model = deepcopy(model)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_as_near_to_float32_as_that_of_transformers(pair, dtype):
    model = theirs_in(pair.theirs, dtype)
    theirs = model(pair.prompt[None]).logits[0].float()
    ours = Decoder(pair.ours.shape, weights_in(pair.ours.weights, dtype))
    assert torch.equal(ours._embedded(pair.prompt), model.model.embed_tokens(pair.prompt))
    logits, kv = prefilled(ours, pair.prompt, PROMPT_TOKENS)
    assert (logits.dtype, kv.dtype) == (torch.float32, dtype)
    error, theirs_error = (torch.norm(each - pair.logits) for each in (logits, theirs))
    assert 0 < error < 1.3 * theirs_error
