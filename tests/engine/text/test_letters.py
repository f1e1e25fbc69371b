"""Letters: any text goes in and comes back, made-up tokens read like words, small vocabularies are never left."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.text.letters import letters
from engine.text.tokenizer import MARK

VOCAB = 128_256


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.text().filter(lambda text: "\ufdd0" not in text))
def test_a_text_is_its_bytes_and_comes_back(text):
    tokenizer = letters(VOCAB).tokenizer
    tokens = tokenizer.encode(text)
    assert tokens == list(text.encode())
    assert tokenizer.decode(tokens) == text


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.text(), st.sampled_from([100, 256, 1000]))
def test_tokens_are_those_of_the_backend(text, vocab):
    tokenizer = letters(vocab).tokenizer
    assert tokenizer.encode_marked(text) == tokenizer.backend.encode(text).ids
    marked = text[:1] + MARK + text[1:]
    assert tokenizer.encode_marked(marked) == tokenizer.backend.encode(marked).ids


def test_tokens_above_the_bytes_are_words_of_letters():
    tokenizer = letters(VOCAB).tokenizer
    text = tokenizer.decode(range(256, VOCAB))
    assert len(text) == VOCAB - 256
    assert set(text) <= set("abcdefghijklmnopqrstuvwxyz ")
    assert 0.15 < text.count(" ") / len(text) < 0.2
    assert 3 < len(text) / len(text.split()) < 7


def test_an_answer_is_as_many_tokens_when_it_comes_back():
    tokenizer = letters(VOCAB).tokenizer
    answer = range(70_000, 70_100)
    assert len(tokenizer.encode(tokenizer.decode(answer))) == len(answer)


def test_neighbouring_tokens_are_different_letters():
    text = letters(VOCAB).tokenizer.decode(range(1_000, 1_100))
    same = sum(one == other for one, other in pairwise(text))
    assert same < 10


@pytest.mark.parametrize("vocab", [1, 2, 64, 255, 256, 257])
def test_tokens_stay_within_a_small_vocabulary(vocab):
    tokenizer = letters(vocab).tokenizer
    tokens = tokenizer.encode("Grüße, 你好 and hello")
    assert len(tokens) == len("Grüße, 你好 and hello".encode())
    assert max(tokens) < vocab == tokenizer.vocab_size
    assert len(tokenizer.decode(range(vocab))) >= 1


def test_below_256_every_token_is_a_letter():
    text = letters(255).tokenizer.decode(range(255))
    assert len(text) == 255
    assert set(text) <= set("abcdefghijklmnopqrstuvwxyz ")


def test_turns_are_written_by_the_default_template_and_nothing_ends_an_answer():
    text = letters(VOCAB)
    prompt = text.chat.encode([{"role": "user", "content": "Hi"}], text.tokenizer)
    assert bytes(prompt) == b"user: Hi\nassistant:"
    assert text.tokenizer.eos_ids == ()


def test_one_is_made_for_each_vocabulary():
    assert letters(300) is letters(300)
    assert letters(300) is not letters(301)
