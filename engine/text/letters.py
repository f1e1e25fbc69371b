"""Letters: the vocabulary of models that have none, so that modelled executors can be talked to.

A prompt is its bytes, a token each. An answer, which a formula has made up, is letters and spaces as often as English
has them, a token each: it reads like words, and is as many tokens when it comes back in the next prompt. No token
ends an answer.
"""

from codecs import utf_32_le_encode
from functools import lru_cache

import numpy as np

from engine.request import Tokens
from engine.text.chat import ChatTemplate
from engine.text.text import Text
from engine.text.tokenizer import BYTE_LETTERS, MARK, Tokenizer, utf8_of

BYTES = 256
TOKEN = np.dtype("<i4")

_ENGLISH = "           eeeeeeettttttaaaaaooooiiiinnnnsssshhhrrrddllluuccmmwfgyp"
_SPREAD = 0x9E3779B1  # 2^32 over the golden ratio: neighbouring tokens are different letters (Knuth 6.4)


@lru_cache(maxsize=16)
def letters(vocab: int) -> Text:
    """Text for a model with so many tokens. The first 256 are bytes, all others letters.

    Where there are fewer, all are letters, and a byte of a prompt is the token with its number modulo `vocab`.
    """
    tokenizer = _tokenizer(vocab)
    return Text(tokenizer, ChatTemplate(None))


class LetterTokenizer(Tokenizer):
    """Says what its backend says, a twentieth of the time: each byte is a token."""

    def tokens(self, text: str) -> Tokens:
        if len(self.pieces) < BYTES or not text.isascii():
            return Tokenizer.tokens(self, text)
        return np.frombuffer(bytearray(utf_32_le_encode(text)[0]), TOKEN)  # each letter is its own number

    def encode_marked(self, text: str, *, special: bool = False) -> list[int]:
        data = utf8_of(text.replace(MARK, ""))
        vocab = len(self.pieces)
        return list(data) if vocab >= BYTES else [byte % vocab for byte in data]


def _tokenizer(vocab: int) -> Tokenizer:
    from tokenizers import Tokenizer as Backend  # noqa: PLC0415 - 60 ms, only where somebody asks for text
    from tokenizers import models, normalizers, pre_tokenizers  # noqa: PLC0415

    num_bytes = BYTES if vocab >= BYTES else 0
    ids = {letter: byte if num_bytes else byte % vocab for byte, letter in enumerate(BYTE_LETTERS)}
    backend = Backend(models.BPE(vocab=ids, merges=[]))
    backend.normalizer = normalizers.Replace(MARK, "")
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return LetterTokenizer(
        backend=backend,
        pieces=[*BYTE_LETTERS[:num_bytes], *map(_letter, range(num_bytes, vocab))],
        spelling="byte_level",
        control=frozenset(),
        added=frozenset(),
        bos_id=None,
        eos_ids=(),
    )


def _letter(token: int) -> str:
    """The letter of a token, as byte-level vocabularies spell it."""
    spread = token * _SPREAD & 0xFFFFFFFF
    return BYTE_LETTERS[ord(_ENGLISH[spread * len(_ENGLISH) >> 32])]
