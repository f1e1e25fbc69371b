"""Tool calls in a model's text: how each family writes them, and a reader that finds them as the text comes.

A call is a JSON object with a name and arguments; families differ in what stands around it. Which way a model was
taught, its chat template says. What only looks like a call is text.
"""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from hashlib import blake2b

from engine.text.chat import ChatTemplate
from engine.text.json_scan import JsonScan

ARGUMENTS = ("arguments", "parameters")
MAX_HELD_CHARACTERS = 2**16
KEYS = frozenset({"name", "id", "type", *ARGUMENTS})


@dataclass(slots=True, frozen=True)
class CallFormat:
    """How a family writes calls.

    `mark` begins them: each one, or where `is_list` a JSON array of them. `end` stands behind each. Where it
    `is_bare` an answer may also begin with a call without any mark, and further calls follow behind a semicolon.
    `is_single`: the template takes one call a turn. `arguments` is the key of the arguments.
    """

    name: str
    mark: str
    end: str = ""
    arguments: str = "arguments"
    is_list: bool = False
    is_bare: bool = False
    is_single: bool = False


HERMES = CallFormat("hermes", "<tool_call>", "</tool_call>")
MISTRAL = CallFormat("mistral", "[TOOL_CALLS]", is_list=True)
FUNCTOOLS = CallFormat("functools", "functools", is_list=True)
LLAMA = CallFormat("llama", "<|python_tag|>", arguments="parameters", is_bare=True, is_single=True)

_TOOLS = re.compile(r"\btools\b")


def format_of(chat: ChatTemplate) -> CallFormat | None:
    """How a model writes calls; None where its template says nothing of tools, or teaches a way that is not read."""
    source = chat.source
    if not _TOOLS.search(source):
        return None
    if MISTRAL.mark in source and "[ARGS]" not in source:
        return MISTRAL
    if HERMES.mark in source and not any(other in source for other in ("<function=", "<arg_key>")):
        return HERMES
    if FUNCTOOLS.mark in source:
        return FUNCTOOLS
    if "<|start_header_id|>" in source and "parameters" in source:
        return LLAMA
    return None


def has_tools(chat: ChatTemplate) -> bool:
    """Whether a model can be given tools: its template tells of them, and its calls can be read."""
    return format_of(chat) is not None


@dataclass(slots=True)
class CallPart:
    """A piece of a tool call. `id` and `name` come with its first one; all `arguments` together are a JSON object."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


Said = str | CallPart
"""What an answer says, in order: text, and pieces of calls."""


def call_id(request_id: str, index: int) -> str:
    """The id of a call: another one for each, the same one in each run."""
    return "call_" + blake2b(f"{request_id}/{index}".encode(), digest_size=12).hexdigest()


class _Call:
    """One call that is being read: the members of its object, as far as they are there."""

    __slots__ = ("_end", "_key", "_members", "_raw", "_scan", "_start", "_told", "is_told")

    def __init__(self) -> None:
        self.is_told = False  # its name has been given out
        self._scan = JsonScan()
        self._raw: list[str] = []
        self._members: dict[str, str] = {}  # that are complete, as they were written
        self._key = ""
        self._start = 0  # of the key or the value that is being read
        self._told: int | None = None  # up to where the arguments have been given out, once they have begun
        self._end: int | None = None  # of the arguments

    @property
    def is_complete(self) -> bool:
        return self._scan.is_complete

    @property
    def has_begun(self) -> bool:
        """Whether it is known what is called, and the arguments have begun or there are none."""
        return "name" in self._members and (self._told is not None or self.is_complete)

    @property
    def tool(self) -> str:
        return str(json.loads(self._members["name"]))

    def push(self, character: str) -> bool:
        """Take a character of the object; False when this is no call, and the character not part of it."""
        scan, depth, before = self._scan, self._scan.depth, self._scan.expects
        if not scan.push(character) or not (depth or character == "{"):
            return False
        if depth == 1 and not character.isspace() and not self._begin(before, character):
            return False
        self._raw.append(character)
        return scan.depth != 1 or self._note(before, depth)

    def _begin(self, before: str, character: str) -> bool:
        """Note where keys and values begin."""
        if before in ("first key", "key", "value"):
            self._start = len(self._raw)
        if before != "value":
            return True
        if self._key not in ARGUMENTS:
            return character == '"'
        if character == "{":
            self._told = self._start
        return character == "{"

    def _note(self, before: str, depth: int) -> bool:
        """Note a key or a member that is complete."""
        if before == "string" and self._scan.expects == "colon":
            self._key = str(json.loads(self._last))
            is_second = self._key in ARGUMENTS and self._told is not None
            return self._key in KEYS and self._key not in self._members and not is_second
        if self._scan.expects == "next" and (depth == 2 or before == "string"):  # noqa: PLR2004  it was one deeper
            self._members[self._key] = self._last
            if self._key in ARGUMENTS:
                self._end = len(self._raw)
        return True

    @property
    def _last(self) -> str:
        return "".join(self._raw[self._start :])

    def news(self) -> str:
        """What has come of the arguments since the last time, as it is written."""
        if self._told is None:
            return ""
        end = len(self._raw) if self._end is None else self._end
        begin, self._told = self._told, end
        return "".join(self._raw[begin:end])


class CallReader:
    """Finds the calls in an answer that comes piece by piece.

    Text that may yet be the beginning of a call is held back, a call's arguments are given out as they come. A call
    names one of the `tools`, or it is text. Where its JSON is broken before its arguments it is text; behind that the
    call stays as it is, and the rest is text. Calls beyond `most` are left out.
    """

    def __init__(
        self, calls: CallFormat, tools: Collection[str], request_id: str, *, most: int | None = None
    ) -> None:
        self.num_calls = 0  # that have begun
        self._format = calls
        self._tools = tools
        self._request_id = request_id
        self._most = most
        self._state = self._at_start if calls.is_bare else self._in_text
        self._held = ""  # what may belong to a call, and is text if it does not
        self._call = _Call()
        self._is_in_list = False

    def push(self, piece: str) -> list[Said]:
        """What is known to have been said now."""
        said: list[Said] = []
        while piece:
            piece = self._state(piece, said)
        return said

    def finish(self) -> list[Said]:
        """The end: what was held back is text, but for blanks behind a call."""
        held, self._held = self._held, ""
        if self._state == self._behind and held.isspace():
            return []
        return [held] if held else []

    # Each state takes a piece, adds what was said, and returns what it leaves to the next state.

    def _at_start(self, piece: str, said: list[Said]) -> str:
        self._held += piece
        begun = self._held.lstrip()
        if begun:
            self._state = self._opening if begun[0] == "{" else self._in_text
            self._held = self._held[: -len(begun)]
        return begun

    def _in_text(self, piece: str, said: list[Said]) -> str:
        text, mark = self._held + piece, self._format.mark
        self._held = ""
        place = text.find(mark)
        if place >= 0:
            shown = text[:place].rstrip()
            self._held, self._state = text[len(shown) : place + len(mark)], self._opening
            _say(said, shown)
            return text[place + len(mark) :]
        shown = text[: len(text) - _overlap(text, mark)].rstrip()
        self._held = text[len(shown) :]
        _say(said, shown)
        return ""

    def _opening(self, piece: str, said: list[Said]) -> str:
        """Behind a mark or a separator, before the object of a call."""
        for place, character in enumerate(piece):
            if character == "{" and self._is_in_list == self._format.is_list:
                self._held += piece[:place]
                self._call, self._state = _Call(), self._in_object
                return piece[place:]
            if character == "[" and self._format.is_list and not self._is_in_list:
                self._is_in_list = True
            elif not character.isspace():
                self._held += piece[:place]
                return self._give_up(piece[place:], said)
        self._held += piece
        return ""

    def _in_object(self, piece: str, said: list[Said]) -> str:
        call = self._call
        for place, character in enumerate(piece):
            if not call.push(character):
                self._tell(said)
                if not call.is_told:
                    self._held += piece[:place]
                return self._give_up(piece[place:], said)
            if call.is_complete:
                self._tell(said)
                if not call.is_told:
                    self._held += piece[: place + 1]
                    return self._give_up(piece[place + 1 :], said)
                self._state = self._in_list if self._format.is_list else self._behind_object
                return piece[place + 1 :]
        self._tell(said)
        if not call.is_told:
            self._held += piece
            if len(self._held) > MAX_HELD_CHARACTERS:
                return self._give_up("", said)
        return ""

    def _behind_object(self, piece: str, said: list[Said]) -> str:
        """Whatever ends a call, if anything does."""
        text, end = self._held + piece, self._format.end
        rest, self._held = text.lstrip(), ""
        if end and rest.startswith(end):
            self._state = self._behind
            return rest[len(end) :]
        if end and end.startswith(rest):
            self._held = text
            return ""
        self._state = self._behind
        return text

    def _in_list(self, piece: str, said: list[Said]) -> str:
        rest = piece.lstrip()
        if rest[:1] == ",":
            self._held, self._state = piece[: len(piece) - len(rest) + 1], self._opening
        elif rest:
            self._state, self._is_in_list = self._behind, False
        return rest[1:] if rest[:1] in (",", "]") else rest

    def _behind(self, piece: str, said: list[Said]) -> str:
        """Behind a call: another one, or text."""
        text, mark = self._held + piece, self._format.mark
        rest, self._held = text.lstrip(), ""
        if rest and self._format.is_bare and rest[0] in ";{":
            used = len(text) - len(rest) + (rest[0] == ";")
            self._held, self._state = text[:used], self._opening
            return text[used:]
        if mark.startswith(rest):  # or it is blank
            self._held = text
            if rest != mark:
                return ""
            text = ""
        elif rest.startswith(mark):
            self._held = text[: len(text) - len(rest) + len(mark)]
            text = rest[len(mark) :]
        else:
            self._state = self._in_text
            return text
        self._state = self._opening
        return text

    def _give_up(self, rest: str, said: list[Said]) -> str:
        """It was no call."""
        _say(said, self._held)
        self._held, self._is_in_list, self._state = "", False, self._in_text
        return rest

    def _tell(self, said: list[Said]) -> None:
        """Give out what is known of the call by now, if it is one."""
        call = self._call
        if not call.is_told:
            if not call.has_begun or call.tool not in self._tools:
                return
            call.is_told, self._held = True, ""
            self.num_calls += 1
            arguments = call.news()
            if call.is_complete and not arguments:
                arguments = "{}"
            index = self.num_calls - 1
            self._say_call(CallPart(index, arguments, call_id(self._request_id, index), call.tool), said)
        elif arguments := call.news():
            self._say_call(CallPart(self.num_calls - 1, arguments), said)

    def _say_call(self, part: CallPart, said: list[Said]) -> None:
        if self._most is None or part.index < self._most:
            said.append(part)


def _say(said: list[Said], text: str) -> None:
    if not text:
        return
    if said and isinstance(said[-1], str):
        said[-1] += text
    else:
        said.append(text)


def _overlap(text: str, mark: str) -> int:
    """How much of the text's end is a beginning of the mark."""
    for length in range(min(len(text), len(mark) - 1), 0, -1):
        if text.endswith(mark[:length]):
            return length
    return 0
