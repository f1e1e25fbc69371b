"""Text that comes token by token: whole characters only, and nothing that may yet turn out to be a stop string."""

import codecs
from collections.abc import Collection, Sequence

from engine.request import Tokens
from engine.text.tokenizer import Tokenizer

Utf8 = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """Turns one token after the other into text. The pieces together are `Tokenizer.decode` of all tokens.

    `after` are the tokens before the first one, if any: text that continues text keeps the space in front of it,
    text at the beginning or behind a control token loses it where the vocabulary puts one there. Costs the length of
    the token, however many came before. `hidden` are not written; the control tokens, unless somebody says otherwise.
    """

    __slots__ = ("_hidden", "_strip", "_tokenizer", "_utf8")

    def __init__(
        self,
        tokenizer: Tokenizer,
        after: Sequence[int] | Tokens = (),
        *,
        skip_special: bool = True,
        hidden: Collection[int] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        if hidden is None:
            hidden = tokenizer.control if skip_special else ()
        self._hidden = hidden
        self._strip = tokenizer.strips_space and (len(after) == 0 or after[-1] in tokenizer.control)
        self._utf8: codecs.IncrementalDecoder | None = None  # where something but ASCII has come

    def push(self, token: int) -> str:
        """The characters that this token completes, often none or several."""
        return "" if token in self._hidden else self._completed(self._tokenizer.token_bytes(token))

    def push_all(self, tokens: Sequence[int]) -> str:
        """The characters that these tokens complete."""
        hidden, bytes_of = self._hidden, self._tokenizer.token_bytes
        return self._completed(b"".join([bytes_of(token) for token in tokens if token not in hidden]))

    def _completed(self, data: bytes) -> str:
        if self._utf8 is None:
            if data.isascii():
                return self._stripped(data.decode())
            self._utf8 = Utf8("replace")
        return self._stripped(self._utf8.decode(data))

    def flush(self) -> str:
        """The end: bytes that no token completed, as U+FFFD."""
        return "" if self._utf8 is None else self._stripped(self._utf8.decode(b"", final=True))

    def _stripped(self, text: str) -> str:
        if not self._strip or not text:
            return text
        self._strip = False
        return text.removeprefix(" ")


class _Stop:
    """One stop string and how much of it the text so far ends with (Knuth, Morris and Pratt)."""

    __slots__ = ("_shorter", "matched", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.matched = 0
        self._shorter = _borders(text)

    def find_end(self, piece: str) -> int | None:
        """Where in the piece the string is complete for the first time; None: nowhere, `matched` is up to date."""
        if self.matched == 0 and self.text[0] not in piece:  # 50 ns: most pieces have no such character
            return None
        text, shorter, matched = self.text, self._shorter, self.matched
        for place, character in enumerate(piece):
            while matched and text[matched] != character:
                matched = shorter[matched - 1]
            if text[matched] == character:
                matched += 1
            if matched == len(text):
                self.matched = 0
                return place + 1
        self.matched = matched
        return None


def _borders(text: str) -> list[int]:
    """For each beginning of the text: how long its longest proper beginning is that is also its end."""
    borders = [0] * len(text)
    length = 0
    for place in range(1, len(text)):
        while length and text[place] != text[length]:
            length = borders[length - 1]
        if text[place] == text[length]:
            length += 1
        borders[place] = length
    return borders


class StopStrings:
    """Watches a text for stop strings and holds back its end while that may be the beginning of one.

    The string that is complete first ends the text, of two that are complete at the same character the longer; so
    the result never depends on how the text was cut. `matched` is the one that did it. Costs a step a character and
    string, whatever their lengths.
    """

    __slots__ = ("_held", "_stops", "matched")

    def __init__(self, stops: Sequence[str]) -> None:
        assert all(stops), "an empty stop string would stop everything"
        self._stops = [_Stop(text) for text in stops]
        self._held = ""
        self.matched: str | None = None

    def push(self, piece: str) -> tuple[str, bool]:
        """The text that is safe to show now, and whether a stop string ended it."""
        if self.matched is not None:
            return "", True
        best: tuple[int, int] | None = None
        for stop in self._stops:
            end = stop.find_end(piece)
            if end is not None and (best is None or (end, -len(stop.text)) < best):
                best = end, -len(stop.text)
                self.matched = stop.text
        if best is not None:
            text = self._held + piece
            self._held, known = "", len(self._held)
            return text[: known + best[0] + best[1]], True
        return self._release(piece), False

    def flush(self) -> str:
        """The end: what was held back was no stop string."""
        text, self._held = self._held, ""
        return text

    def _release(self, piece: str) -> str:
        text = self._held + piece
        keep = max([stop.matched for stop in self._stops], default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


NOTHING: frozenset[int] = frozenset()


class TextStream:
    """An answer's text as it may be shown, token by token, until a stop string or a stop token ends it.

    Neither the stop string nor the stop token is shown. `stopped_by` is the one that ended it.
    """

    __slots__ = ("_detokenizer", "_stop_tokens", "_stops", "stopped_by")

    def __init__(
        self, detokenizer: Detokenizer, stops: Sequence[str] = (), stop_tokens: Collection[int] = ()
    ) -> None:
        self._detokenizer = detokenizer
        self._stops = StopStrings(stops) if stops else None
        self._stop_tokens = frozenset(stop_tokens) if stop_tokens else NOTHING
        self.stopped_by: str | int | None = None

    def push(self, token: int) -> tuple[str, bool]:
        """The text that is safe to show now, and whether the answer has ended."""
        if self.stopped_by is not None:
            return "", True
        if token in self._stop_tokens:
            text = self.flush()
            if self.stopped_by is None:
                self.stopped_by = token
            return text, True
        return self._watched(self._detokenizer.push(token))

    def push_all(self, tokens: Sequence[int]) -> str:
        """The text of tokens that cannot end the answer: there are no stop strings, and no stop token among them."""
        assert self._stops is None, "a stop string may end the text in the middle"
        return self._detokenizer.push_all(tokens)

    def flush(self) -> str:
        """The end without a stop: everything that was held back."""
        if self.stopped_by is not None:
            return ""
        text, stopped = self._watched(self._detokenizer.flush())
        return text if stopped or self._stops is None else text + self._stops.flush()

    def _watched(self, piece: str) -> tuple[str, bool]:
        if self._stops is None:
            return piece, False
        text, stopped = self._stops.push(piece)
        if stopped:
            self.stopped_by = self._stops.matched
        return text, stopped
