"""Small models' vocabularies, trained on the spot and written as the files that real models come in."""

# ruff: noqa: RUF001 - texts of many scripts

import json

import gguf
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from engine.formats import Checkpoint
from engine.formats.gguf import read_gguf
from engine.text import tokenizer_of

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind.",
    "def area(radius):\n    return 3.14159 * radius ** 2  # 12 345\n",
    "Größe, Straße und Übermut: „schön“ \u2026 ½ cup  of   sugar\n\n\nend",
    "你好，世界。今天天气怎么样？ 🎉 emoji 👩\u200d👧 and e\u0301",
    "we'll see: I'M sure they've been there, THEY'RE late; user: said assistant",
] * 4

CONTROL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
THINK = "<think>"
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


TEXTS = [
    "",
    " ",
    "Hello, world!",
    "  leading and trailing  ",
    "Grüße aus München: „schön“ \u2013 ÄÖÜ ß",
    "你好，世界。今天天气怎么样？",
    "👩\u200d👩\u200d👧 🎉🇩🇪",
    "def f(x):\n    return x ** 2\n\n\tif True:\n\t\tpass\n",
    "1234567890 3.14159 12 345 2024-01-02",
    "a   b    c\n\n\n\nd \t e\r\nf\n",
    "I'm we'll THEY'RE don't",
    "cafe\u0301 \u00a0nbsp\u200bzero \x00\x7f",
    "مرحبا हिन्दी 한국어",
    "a" + " " * 50 + "b",
]


@pytest.fixture
def texts():
    return TEXTS


@pytest.fixture(params=TEXTS)
def text(request):
    return request.param


@pytest.fixture(scope="session")
def trained():
    """A byte-level BPE: four control tokens first, then 600 more."""
    tokenizer = Tokenizer(models.BPE())
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=604, special_tokens=CONTROL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.add_tokens([THINK])
    return tokenizer


@pytest.fixture(scope="session")
def byte_level_arrays(trained):
    """What a GGUF says about that tokenizer."""
    state = json.loads(trained.to_str())
    vocabulary = trained.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.get)
    types = [3 if token in CONTROL else 4 if token == THINK else 1 for token in tokens]
    return {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tokens,
        "token_type": types,
        "merges": [" ".join(pair) for pair in state["model"]["merges"]],
        "bos_token_id": 0,
        "eos_token_id": 1,
        "chat_template": TEMPLATE,
    }


@pytest.fixture(scope="session")
def sentencepiece_arrays():
    """Pieces of words with scores, every byte, and letters: as SentencePiece trains them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("\u2581", prepend_scheme="always")
    tokenizer.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=400, show_progress=False))
    vocabulary = tokenizer.get_vocab()
    trained = sorted(vocabulary, key=vocabulary.get)
    letters = [
        piece for piece in trained if len(piece) == 1 and piece < "\u3000"
    ]  # others fall back to bytes
    words = [piece for piece in trained if len(piece) > 1 and set(piece) <= set(letters)]
    byte_pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    special = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    return {
        "model": "llama",
        "tokens": special + byte_pieces + words + letters,
        "scores": [0.0] * 261
        + [-float(rank) for rank in range(len(words))]
        + [-float(len(words) + rank) for rank in range(len(letters))],
        "token_type": [2, 3, 3, 3, 3] + [6] * 256 + [1] * (len(words) + len(letters)),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }


@pytest.fixture
def gguf_of(tmp_path):
    """Writes a GGUF with these tokenizer keys and opens it."""

    def write(arrays, *, architecture="llama", **changes):
        path = tmp_path / "model.gguf"
        writer = gguf.GGUFWriter(path, architecture)
        for key, value in {**arrays, **changes}.items():
            _add(writer, _key(key), value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        return checkpoint_of(path, "gguf", architecture, read_gguf(path).metadata)

    return write


def _add(writer, key, value):
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif value is not None:
        writer.add_array(key, value)


def checkpoint_of(path, kind, architecture, metadata):
    return Checkpoint(
        format=kind,
        path=path,
        files=(path,),
        name="tiny",
        version="1.0.0",
        architecture=architecture,
        family=architecture,
        shape=None,
        parameters=0,
        quantisation="F32",
        size_bytes=0,
        context_tokens=128,
        licence=None,
        tensors={},
        metadata=metadata,
    )


@pytest.fixture
def folder_of(tmp_path, trained):
    """Writes a Hugging Face folder with that tokenizer and opens it."""

    def write(tokenizer=trained, *, metadata=None, **files):
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        for name, contents in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(contents), encoding="utf-8")
        return checkpoint_of(tmp_path, "safetensors", "llama", metadata or {})

    return write


@pytest.fixture(scope="session")
def byte_level_tokenizer(byte_level_arrays):
    return tokenizer_of(checkpoint_of("model.gguf", "gguf", "llama", _keys(byte_level_arrays)))


@pytest.fixture(scope="session")
def sentencepiece_tokenizer(sentencepiece_arrays):
    return tokenizer_of(checkpoint_of("model.gguf", "gguf", "llama", _keys(sentencepiece_arrays)))


def _keys(arrays):
    return {_key(name): value for name, value in arrays.items()}


def _key(name):
    return "tokenizer.chat_template" if name == "chat_template" else f"tokenizer.ggml.{name}"
