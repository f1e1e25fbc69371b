"""Tokenizers from the files of Hugging Face: as tokenizer.json says, refused where it says nothing usable."""

import json
import os

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from engine.errors import BadModel
from engine.text import Detokenizer, tokenizer_of
from engine.text.folder import MAX_TOKENIZER_BYTES

CONFIG = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": "{{ messages }}"}


def test_tokens_and_text_are_those_of_tokenizer_json(folder_of, trained, text):
    tokenizer = tokenizer_of(folder_of())
    tokens = tokenizer.encode(text)
    assert tokens == trained.encode(text).ids
    assert tokenizer.decode(tokens) == text


def test_text_that_reads_like_a_control_token_stays_text(folder_of):
    tokenizer = tokenizer_of(folder_of())
    tokens = tokenizer.encode("a<|im_end|>")
    assert not tokenizer.control.intersection(tokens)
    assert tokenizer.decode(tokens) == "a<|im_end|>"
    assert tokenizer.encode("a<|im_end|>", parse_special=True)[-1] == 3


def test_control_tokens_that_the_file_finds_in_normalised_text_are_not_found_in_anybodys(folder_of):
    backend = Tokenizer(models.BPE({piece: token for token, piece in enumerate([*"<s>ab\u2581", "<s>"])}, []))
    backend.normalizer = normalizers.Replace(" ", "\u2581")
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse()])
    backend.add_special_tokens([AddedToken("<s>", normalized=True, special=True)])
    tokenizer = tokenizer_of(folder_of(backend))
    assert tokenizer.encode("a <s>", parse_special=True) == [3, 5, 6]
    assert tokenizer.encode("a <s>") == [3, 5, 0, 1, 2]


def test_the_small_files_say_how_texts_begin_and_end(folder_of):
    checkpoint = folder_of(
        tokenizer_config=CONFIG, generation_config={"eos_token_id": [2, 99_999]}, metadata={"eos_token_id": 1}
    )
    tokenizer = tokenizer_of(checkpoint)
    assert (tokenizer.bos_id, tokenizer.bos_token, tokenizer.eos_token) == (0, "<s>", "</s>")
    assert tokenizer.eos_ids == (2, 1, 3)
    assert tokenizer.chat_template == "{{ messages }}"


def test_a_chat_template_in_a_file_of_its_own_goes_first(folder_of):
    checkpoint = folder_of(tokenizer_config=CONFIG)
    (checkpoint.path / "chat_template.jinja").write_text("own", encoding="utf-8")
    assert tokenizer_of(checkpoint).chat_template == "own"


def test_of_several_chat_templates_the_default_is_taken(folder_of):
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    assert tokenizer_of(folder_of(tokenizer_config={"chat_template": named})).chat_template == "d"


def test_bos_is_added_as_the_post_processor_says(folder_of, trained):
    backend = Tokenizer.from_str(trained.to_str())
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = tokenizer_of(folder_of(backend))
    assert tokenizer.encode("dog")[0] == 0
    assert tokenizer.encode("dog", special=False)[0] != 0


@pytest.mark.parametrize(
    ("decoder", "strips"),
    [
        (decoders.Metaspace(), True),
        (decoders.Metaspace(prepend_scheme="never"), False),
        (
            decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]),
            True,
        ),
        (
            decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]),
            False,
        ),
    ],
)
def test_the_first_space_goes_as_the_decoder_says(folder_of, decoder, strips):
    backend = Tokenizer(models.BPE({"\u2581": 0, "a": 1, "\u2581a": 2}, [("\u2581", "a")]))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always" if strips else "never")
    backend.decoder = decoder
    tokenizer = tokenizer_of(folder_of(backend))
    for text in ("a a", "a", " a a"):
        tokens = tokenizer.encode(text)
        assert tokenizer.decode(tokens) == backend.decode(tokens)
        stream = Detokenizer(tokenizer)
        assert "".join(map(stream.push, tokens)) == backend.decode(tokens)


def test_a_folder_without_tokenizer_json_is_refused(folder_of):
    checkpoint = folder_of()
    (checkpoint.path / "tokenizer.json").unlink()
    with pytest.raises(BadModel, match=r"tokenizer\.json: no such file"):
        tokenizer_of(checkpoint)


@pytest.mark.parametrize("contents", ["", "{}", '{"model": 1}', "[" * 100_000, '{"model": {"type": "BPE"}}'])
def test_a_tokenizer_json_that_is_none_is_refused(folder_of, contents):
    checkpoint = folder_of()
    (checkpoint.path / "tokenizer.json").write_text(contents, encoding="utf-8")
    with pytest.raises(BadModel, match=r"tokenizer\.json: "):
        tokenizer_of(checkpoint)


def test_a_file_that_is_too_large_is_not_read(folder_of):
    checkpoint = folder_of()
    os.truncate(checkpoint.path / "tokenizer.json", MAX_TOKENIZER_BYTES + 1)
    with pytest.raises(BadModel, match="has 67108865 bytes, but at most 67108864 are read"):
        tokenizer_of(checkpoint)


@pytest.mark.parametrize("contents", [b"\xff", b"[]", b"{", b"[" * 100_000])
def test_a_small_file_that_is_no_json_object_is_refused(folder_of, contents):
    checkpoint = folder_of()
    (checkpoint.path / "tokenizer_config.json").write_bytes(contents)
    with pytest.raises(BadModel, match=r"tokenizer_config\.json: is"):
        tokenizer_of(checkpoint)


def test_a_decoder_of_another_kind_is_refused(folder_of, trained):
    backend = Tokenizer.from_str(trained.to_str())
    backend.decoder = decoders.WordPiece()
    with pytest.raises(BadModel, match="decoder 'WordPiece' is not one that we have"):
        tokenizer_of(folder_of(backend))


def test_an_id_far_outside_the_vocabulary_is_refused(folder_of):
    checkpoint = folder_of()
    path = checkpoint.path / "tokenizer.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    state["model"]["vocab"]["far"] = 2**31
    path.write_text(json.dumps(state), encoding="utf-8")
    with pytest.raises(BadModel, match="its highest token is 2147483648, but must be from 0 to"):
        tokenizer_of(checkpoint)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_tokens_and_text_are_those_of_transformers(folder_of, texts):
    transformers = pytest.importorskip("transformers")
    checkpoint = folder_of(
        tokenizer_config={**CONFIG, "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    )
    oracle = transformers.AutoTokenizer.from_pretrained(checkpoint.path)
    tokenizer = tokenizer_of(checkpoint)
    for each in [*texts, *(f"<s><|im_start|>{text}<|im_end|>" for text in texts)]:
        tokens = oracle.encode(each)
        assert tokenizer.encode(each, parse_special=True) == tokens
        assert tokenizer.decode(tokens) == oracle.decode(tokens, skip_special_tokens=True)
