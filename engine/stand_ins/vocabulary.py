"""The tokenizer of the stand-ins: byte-level BPE, trained on the spot on the text below.

Every text can be written in it, and comes back as it was: all 256 bytes are tokens. All stand-ins share the trained
part; behind it come the special tokens of the family, then unused ones until there is a token for every row of the
embeddings, as the converters of real models pad them.
"""

import json
from dataclasses import dataclass
from typing import Any

from engine.stand_ins.designs import StandIn

TRAINED_TOKENS = 576

TEXT = """\
A model that nobody asks for still takes its place in memory. When a request comes in, the router looks at every
replica that could answer it: how many tokens are waiting there, how much of the prompt is already known, and
whether the last probe came back in time. It picks one, and keeps the others as a fallback. The replica reads the
prompt, token by token, and writes what it has read into its cache, so that the next request with the same
beginning does not have to be read again. Then it answers, one token after another, until it has said enough.

How long does that take? The first token needs the whole prompt, the others only the token before them. So a long
prompt makes the first word late, and a long answer makes the last word late. If many requests come at once, they
run together in one batch: each step is a little slower, but there are more answers at the end of the hour. If too
many come, they wait in a queue, and if the queue is full, the engine says so at once and tells when to try again.

What is kept, and what has to go? A block of the cache that was used a moment ago will probably be used again. A
block that nobody has touched for an hour can make room for a new one. The same holds for models: the one that has
been idle for the longest time leaves, and comes back when somebody asks for it. Loading it from disk takes a few
seconds, loading it from far away takes minutes, and the people who asked for it have to wait for that.

The weather in the mountains changes quickly. In the morning the valley lies in fog, at noon the sun is out, and in
the evening there may be thunder. We packed bread, apples, cheese, a map, and two bottles of water, and left the
house at 5:30. After 12 kilometres and 1,250 metres up we sat down at a small lake. "Do you think it will rain?"
she asked. "Not before 4," I said, and I was wrong. It's what I'd expect: they'll laugh, we've seen it, you're
right, he doesn't mind.

def add(left, right):
    return left + right

for number in range(10):
    print(number, add(number, 1))

{"name": "an answer", "size": 128, "parts": [1, 2, 3], "done": true}
"""


@dataclass(slots=True)
class Vocabulary:
    """All tokens of one stand-in, in the order of their ids.

    The first `trained` were learnt, `special` follow, and the others stand only for rows of the embeddings.
    """

    tokens: list[str]
    merges: list[tuple[str, str]]
    trained: int
    special: list[str]

    def id_of(self, token: str) -> int:
        return self.trained + self.special.index(token)


@dataclass(slots=True)
class Training:
    """What the trainer has learnt: tokens in the order of their ids, and merges in the order they were found."""

    tokens: list[str]
    merges: list[tuple[str, str]]


def train() -> Training:
    """Byte-level BPE of TEXT, words cut as GPT-2 does."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers  # noqa: PLC0415 - 60 ms, not for everybody

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=TRAINED_TOKENS, initial_alphabet=alphabet, special_tokens=[], show_progress=False
    )
    backend.train_from_iterator([TEXT], trainer)
    model = json.loads(backend.to_str())["model"]
    ids: dict[str, int] = model["vocab"]
    return Training(sorted(ids, key=ids.__getitem__), [(left, right) for left, right in model["merges"]])


def vocabulary_of(stand_in: StandIn, training: Training) -> Vocabulary:
    """A token for every row of the stand-in's embeddings."""
    known = [*training.tokens, *stand_in.chat.special]
    unused = [f"[PAD{number}]" for number in range(len(known), stand_in.architecture.vocab)]
    return Vocabulary([*known, *unused], training.merges, len(training.tokens), list(stand_in.chat.special))


def tokenizer_json(stand_in: StandIn, vocabulary: Vocabulary) -> dict[str, Any]:
    """The contents of tokenizer.json."""
    added = [
        {
            "id": vocabulary.id_of(token),
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for token in vocabulary.special
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": _begins_with_bos(stand_in, vocabulary) if stand_in.chat.adds_bos else byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(vocabulary.tokens[: vocabulary.trained])},
            "merges": [list(merge) for merge in vocabulary.merges],
        },
    }


def tokenizer_config(stand_in: StandIn, vocabulary: Vocabulary) -> dict[str, Any]:
    """The contents of tokenizer_config.json: which token means what, and the chat template."""
    chat = stand_in.chat
    return {
        "add_bos_token": chat.adds_bos,
        "added_tokens_decoder": {
            str(vocabulary.id_of(token)): {
                "content": token,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for token in vocabulary.special
        },
        "bos_token": chat.bos,
        "chat_template": chat.template,
        "clean_up_tokenization_spaces": False,
        "eos_token": chat.eos[0],
        "model_max_length": stand_in.architecture.context_tokens,
        "pad_token": chat.padding,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": chat.unknown,
    }


def _begins_with_bos(stand_in: StandIn, vocabulary: Vocabulary) -> dict[str, Any]:
    bos = stand_in.chat.bos
    begin: list[dict[str, Any]] = [{"SpecialToken": {"id": bos, "type_id": 0}}]
    return {
        "type": "TemplateProcessing",
        "single": [*begin, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [*begin, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {bos: {"id": bos, "ids": [vocabulary.id_of(bos)], "tokens": [bos]}},
    }
