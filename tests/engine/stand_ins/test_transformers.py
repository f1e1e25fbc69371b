"""Transformers as a witness: it loads every stand-in in both formats, and finds one and the same model in them."""

import pytest
import torch

from engine.stand_ins import designs

PROMPT = "The replica reads the prompt, and the lake lies in fog. At noon the sun is out again. "

pytestmark = [pytest.mark.slow, pytest.mark.torch]

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module", params=designs)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def loaded(name, made):
    """What transformers makes of the folder, and what it says about that."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        made / name, output_loading_info=True, dtype=torch.float32
    )


@pytest.fixture(scope="module")
def prompt(name, made):
    tokenizer = transformers.AutoTokenizer.from_pretrained(made / name)
    tokens = tokenizer(PROMPT * 3, return_tensors="pt").input_ids
    assert tokens.shape[1] > 64  # beyond the windows
    return tokens


def test_the_folder_has_what_the_model_needs_and_nothing_else(name, loaded, made_in_parts):
    model, report = loaded
    assert not any(report.values()), report
    assert type(model).__name__.lower().startswith(designs[name].architecture.family)
    assert model.num_parameters() == designs[name].architecture.parameters
    sharded = transformers.AutoModelForCausalLM.from_pretrained(made_in_parts / name, dtype=torch.float32)
    _assert_same_weights(model, sharded)


def test_the_gguf_is_the_same_model(name, loaded, prompt, made):
    """Transformers leaves out Llama 3's rope factors when it reads a GGUF, so it gets the folder's configuration."""
    model, _ = loaded
    from_gguf, report = transformers.AutoModelForCausalLM.from_pretrained(
        made,
        gguf_file=f"{name}-Q8_0.gguf",
        output_loading_info=True,
        dtype=torch.float32,
        **({"config": model.config} if designs[name].rope_scaling else {}),
    )
    assert not any(report.values()), report
    _assert_same_weights(model, from_gguf)
    with torch.no_grad():
        assert torch.equal(model(prompt).logits, from_gguf(prompt).logits)


def test_what_comes_next_depends_on_the_whole_prompt(loaded, prompt):
    model, _ = loaded
    other = prompt.clone()
    other[0, 3] = (prompt[0, 3] + 1) % 500
    with torch.no_grad():
        logits, changed = model(prompt).logits[0], model(other).logits[0]
    assert torch.equal(logits[:3], changed[:3])
    assert (logits[-1] - changed[-1]).abs().max() > 0.5
    assert (logits.argmax(-1) != changed.argmax(-1))[4:].float().mean() > 0.3


def test_scores_are_not_flat_and_do_not_repeat_the_question(loaded, prompt):
    model, _ = loaded
    with torch.no_grad():
        logits = model(prompt).logits[0]
    assert 1 < logits.std() < 4
    answers = logits.argmax(-1)
    assert (answers == prompt[0]).float().mean() < 0.1
    assert len(answers.unique()) > 30


def test_the_tokenizer_and_the_end_of_an_answer_are_the_familys_own(name, loaded, made):
    model, _ = loaded
    tokenizer = transformers.AutoTokenizer.from_pretrained(made / name)
    chat = designs[name].chat
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        chat.bos,
        chat.eos[0],
        chat.padding,
    )
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    assert tokenizer.convert_ids_to_tokens(ends) == list(chat.eos)
    written = tokenizer.apply_chat_template([{"role": "user", "content": "Is it far?"}], tokenize=False)
    assert "Is it far?" in written


def _assert_same_weights(left, right):
    left, right = left.state_dict(), right.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)
