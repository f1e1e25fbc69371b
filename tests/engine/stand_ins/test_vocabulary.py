import json

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from engine.formats import open_checkpoint
from engine.stand_ins import designs
from engine.stand_ins.vocabulary import TEXT, TRAINED_TOKENS, tokenizer_json, train, vocabulary_of
from engine.text import tokenizer_of

TALK = [
    {"role": "user", "content": "Is it far?"},
    {"role": "assistant", "content": "Two hours."},
    {"role": "user", "content": "And back?"},
]
NOBODY = "ünïcode \U0001f9ed 漢字\t\r\n<|im_end|> <s> [INST] 007"
CUT = "it'stays 'rest isn'there   they'lla \n\n  x"  # words end elsewhere than merges would have it


@pytest.fixture(scope="module")
def training():
    return train()


@pytest.fixture(scope="module")
def backends(training):
    return {
        name: Tokenizer.from_str(json.dumps(tokenizer_json(each, vocabulary_of(each, training))))
        for name, each in designs.items()
    }


def test_training_twice_gives_the_same_tokens(training):
    again = train()
    assert (again.tokens, again.merges) == (training.tokens, training.merges)
    assert len(training.tokens) == TRAINED_TOKENS
    assert len(training.merges) == TRAINED_TOKENS - 256


def test_training_makes_text_shorter(backends):
    count = len(backends["phi-4"].encode(TEXT).ids)
    assert count < len(TEXT) / 2


@settings(max_examples=50, deadline=None, derandomize=True)
@given(text=st.text())
def test_any_text_comes_back_as_it_was(backends, text):
    backend = backends["Qwen2.5-72B-Instruct"]
    assert backend.decode(backend.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("name", designs)
def test_a_token_stands_for_every_row_of_the_embeddings(name, training):
    vocabulary = vocabulary_of(designs[name], training)
    assert len(vocabulary.tokens) == len(set(vocabulary.tokens)) == designs[name].architecture.vocab
    for token in designs[name].chat.special:
        assert vocabulary.tokens[vocabulary.id_of(token)] == token


@pytest.mark.parametrize("name", designs)
def test_special_tokens_are_one_token_and_bos_comes_by_itself_where_the_family_has_it(
    name, backends, training
):
    stand_in, backend = designs[name], backends[name]
    vocabulary = vocabulary_of(stand_in, training)
    for token in stand_in.chat.special:
        assert backend.encode(token, add_special_tokens=False).ids == [vocabulary.id_of(token)]
    begin = [vocabulary.id_of(stand_in.chat.bos)] if stand_in.chat.adds_bos else []
    assert backend.encode("").ids == begin


@pytest.mark.parametrize("name", designs)
def test_both_formats_hold_the_same_tokenizer(name, made):
    from_gguf = tokenizer_of(open_checkpoint(made / f"{name}-Q8_0.gguf"))
    from_folder = tokenizer_of(open_checkpoint(made / name))
    for text in (NOBODY, CUT, TEXT):
        assert from_gguf.backend.encode(text).ids == from_folder.backend.encode(text).ids
    assert set(from_gguf.eos_ids) == set(from_folder.eos_ids)
    assert from_gguf.chat_template == from_folder.chat_template


@pytest.mark.parametrize("name", designs)
def test_a_conversation_ends_where_the_model_goes_on(name, backends, training):
    stand_in = designs[name]
    written = _conversation(stand_in, TALK)
    for turn in TALK:
        assert written.count(turn["content"]) == 1
    special = {vocabulary_of(stand_in, training).id_of(token) for token in stand_in.chat.special}
    assert special & set(backends[name].encode(written, add_special_tokens=False).ids)
    assert not written.endswith(TALK[-1]["content"])


def test_a_gemma_refuses_system_messages():
    with pytest.raises(jinja2.TemplateError, match="System role not supported"):
        _conversation(designs["gemma-2-9b-it"], [{"role": "system", "content": "Be kind."}, *TALK])


def _conversation(stand_in, messages):
    def refuse(why):
        raise jinja2.TemplateError(why)

    template = jinja2.Environment(autoescape=False).from_string(stand_in.chat.template)  # noqa: S701
    return template.render(
        messages=messages,
        bos_token=stand_in.chat.bos,
        eos_token=stand_in.chat.eos[0],
        add_generation_prompt=True,
        raise_exception=refuse,
    )
