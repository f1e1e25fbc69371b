"""JSON as it comes: whether the characters so far can still become one object or array, and when it is complete."""

import re

_SPACE = " \t\n\r"
_ESCAPES = '"\\/bfnrt'
_HEX = "0123456789abcdefABCDEF"
_WORD = frozenset("+-.0123456789Eabcdefghijklmnopqrstuvwxyz")
_BEGINNINGS = "-0123456789tfn"
_WORDS = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?|true|false|null")
_CLOSING = {"}": "{", "]": "["}
MAX_WORD = 1_000


class JsonScan:
    """Goes along with one object or array. `depth` counts what is open.

    `expects` is what may come next: "root", "first key", "key", "colon", "first value", "value", "next" (a comma or
    the end), what is inside of a string ("string", "escape", "hex"), more of a number or word ("word"), or "nothing".
    """

    __slots__ = ("_hex", "_is_key", "_open", "_word", "expects")

    def __init__(self) -> None:
        self.expects = "root"
        self._open: list[str] = []
        self._is_key = False
        self._word = ""
        self._hex = 0

    @property
    def depth(self) -> int:
        return len(self._open)

    @property
    def is_complete(self) -> bool:
        return self.expects == "nothing"

    def push(self, character: str) -> bool:
        """Take a character; False when no JSON begins like that, and the scan is worth nothing any more."""
        if self.expects in ("string", "escape", "hex"):
            return self._in_string(character)
        if self.expects == "word":
            if character in _WORD:
                self._word += character
                return len(self._word) <= MAX_WORD
            if not _WORDS.fullmatch(self._word):
                return False
            self.expects = "next"
        if character in _SPACE:
            return self.expects != "nothing"
        return self._structure(character)

    def _in_string(self, character: str) -> bool:
        if self.expects == "hex":
            self._hex -= 1
            self.expects = "hex" if self._hex else "string"
            return character in _HEX
        if self.expects == "escape":
            self.expects, self._hex = ("hex", 4) if character == "u" else ("string", 0)
            return character == "u" or character in _ESCAPES
        if character == '"':
            self.expects = "colon" if self._is_key else "next"
        elif character == "\\":
            self.expects = "escape"
        return character >= " "

    def _structure(self, character: str) -> bool:
        expects = self.expects
        if character in _CLOSING:
            return self._close(character)
        if expects == "next":
            self.expects = "key" if self._open[-1] == "{" else "value"
            return character == ","
        if expects == "colon":
            self.expects = "value"
            return character == ":"
        if expects in ("key", "first key"):
            self.expects, self._is_key = "string", True
            return character == '"'
        return self._value(character)

    def _close(self, character: str) -> bool:
        empty = "first key" if character == "}" else "first value"
        if self.expects not in ("next", empty) or self._open[-1] != _CLOSING[character]:
            return False
        self._open.pop()
        self.expects = "next" if self._open else "nothing"
        return True

    def _value(self, character: str) -> bool:
        if character in "{[":
            if self.expects == "nothing":
                return False
            self._open.append(character)
            self.expects = "first key" if character == "{" else "first value"
            return True
        if self.expects in ("root", "nothing"):
            return False
        if character == '"':
            self.expects, self._is_key = "string", False
            return True
        self.expects, self._word = "word", character
        return character in _BEGINNINGS
