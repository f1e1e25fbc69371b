"""A model's vocabulary at work: text becomes tokens, tokens become bytes, and nobody's text becomes control tokens.

A control token stands for no text: it begins a turn, ends one, ends everything. Text that merely reads like one is
kept apart by a mark, a character that Unicode reserves for such inner use: set inside the text, it makes the look-up
of control tokens miss it, and the tokenizer takes it out again before it cuts the text into words. So plain text is
tokenised exactly as if control tokens did not exist.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from engine.errors import BadRequest
from engine.request import Tokens

if TYPE_CHECKING:
    import tokenizers

MARK = "\ufdd0"  # a noncharacter: no text that is interchanged has it

Spelling = Literal["byte_level", "sentencepiece"]

SPACE = "\u2581"  # how SentencePiece writes a space


def _byte_letters() -> list[str]:
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    spelled = {byte: chr(0x100 + place) for place, byte in enumerate(others)}
    return [spelled.get(byte, chr(byte)) for byte in range(256)]


BYTE_LETTERS = _byte_letters()
"""How byte-level vocabularies spell each byte: what is printable in Latin-1 stands for itself, the other bytes for
the letters from U+0100 on, in order."""

# for str.translate: a letter to its byte; a byte that is spelled otherwise, to no byte
_BYTES_OF_LETTERS = {
    **{byte: 0xFFFF for byte, letter in enumerate(BYTE_LETTERS) if ord(letter) != byte},
    **{ord(letter): byte for byte, letter in enumerate(BYTE_LETTERS)},
}
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Marker:
    """Sets the mark inside everything in a text that reads like a control token, or could once text follows."""

    def __init__(self, controls: Iterable[str]) -> None:
        self._controls = {text for text in controls if len(text) > 1}
        self._beginnings = {text[:end] for text in self._controls for end in range(1, len(text))}
        self._lengths = sorted({len(text) for text in self._controls})
        firsts = sorted({text[0] for text in self._controls})
        self._first = re.compile("|".join(map(re.escape, firsts)) or "(?!)")

    def mark(self, text: str) -> str:
        """The text with a mark after the first character of each such place. Other marks are taken out before."""
        text = text.replace(MARK, "")
        if not self._controls:
            return text
        pieces = []
        done = 0
        for match in self._first.finditer(text):
            if self.begins_control(text, match.start()):
                pieces += [text[done : match.end()], MARK]
                done = match.end()
        if not done:
            return text
        return "".join([*pieces, text[done:]])

    def begins_control(self, text: str, start: int) -> bool:
        """Whether a control token is to be read there, or the text ends before that can be said."""
        for length in self._lengths:
            end = start + length
            if end > len(text):
                return text[start:] in self._beginnings
            if text[start:end] in self._controls:
                return True
        return False


@dataclass(slots=True, kw_only=True)
class Tokenizer:
    """The tokenizer of one model, built from the model's own files.

    `pieces` are the tokens as the file spells them, by id. `control` are the ids that stand for no text, `added`
    (these included) those that are matched whole and spelled as they read. `eos_ids` end an answer. `strips_space`:
    the first token of a text has a space in front that is not part of it; `prefixes_space`: we write that space.
    `note` says what was guessed, if anything was.
    """

    backend: "tokenizers.Tokenizer" = field(repr=False)
    pieces: list[str] = field(repr=False)
    spelling: Spelling
    control: frozenset[int] = field(repr=False)
    added: frozenset[int] = field(repr=False)
    bos_id: int | None
    eos_ids: tuple[int, ...]
    bos_token: str = ""
    eos_token: str = ""
    strips_space: bool = False
    prefixes_space: bool = False
    chat_template: str | None = field(default=None, repr=False)
    note: str | None = None
    marker: Marker = field(init=False, repr=False)
    vocab_size: int = field(init=False)
    _bytes: dict[int, bytes] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.marker = Marker(self.pieces[token] for token in self.control)
        self.vocab_size = len(self.pieces)

    def encode(self, text: str, *, special: bool = True, parse_special: bool = False) -> list[int]:
        """The tokens of a text. `special`: with the BOS and EOS that the model's files ask for.

        `parse_special`: what reads like a control token is one. Only for text that we or the model's owner wrote.
        Raises BadRequest for text with half of a surrogate pair, which no encoding can hold.
        """
        if not parse_special:
            text = self.marker.mark(text)
        return self.encode_marked(text, special=special)

    def tokens(self, text: str) -> Tokens:
        """What `encode` says, as an array."""
        return np.asarray(self.encode(text), dtype=np.int32)

    def encode_marked(self, text: str, *, special: bool = False) -> list[int]:
        """The tokens of a text in which what only reads like a control token has been marked."""
        utf8_of(text)
        if self.prefixes_space and text and not self.marker.begins_control(text, 0):
            text = " " + text
        return self.backend.encode(text, add_special_tokens=special).ids

    def decode(self, tokens: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of tokens; bytes that are not UTF-8 become U+FFFD, ids beyond the vocabulary nothing."""
        hidden: Collection[int] = self.control if skip_special else ()
        data = b"".join([self.token_bytes(token) for token in tokens if token not in hidden])
        text = data.decode("utf-8", "replace")
        return text.removeprefix(" ") if self.strips_space else text

    def token_bytes(self, token: int) -> bytes:
        """What one token adds to a text: not always whole characters."""
        data = self._bytes.get(token)
        if data is None:
            data = self._bytes_of(token)
            if 0 <= token < len(self.pieces):  # no more of them than the vocabulary has
                self._bytes[token] = data
        return data

    def _bytes_of(self, token: int) -> bytes:
        if not 0 <= token < len(self.pieces):
            return b""
        piece = self.pieces[token]
        if token in self.added:
            return piece.encode()
        if self.spelling == "byte_level":
            return _from_letters(piece)
        if byte := _BYTE_PIECE.fullmatch(piece):
            return bytes.fromhex(byte[1])
        return piece.replace(SPACE, " ").encode()

    def token_text(self, token: int) -> str:
        """One token on its own, as it is shown beside its probability."""
        return self.token_bytes(token).decode("utf-8", "replace")


def utf8_of(text: str) -> bytes:
    """The text in UTF-8. Raises BadRequest for half of a surrogate pair."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        broken = ascii(text[error.start])
        raise BadRequest(f"the text has {broken}, but half a surrogate pair is no character") from error


def _from_letters(piece: str) -> bytes:
    try:
        return piece.translate(_BYTES_OF_LETTERS).encode("latin-1")
    except UnicodeEncodeError:  # not written in those letters, so it is what it reads
        return piece.encode()
