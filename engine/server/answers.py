"""Answers as OpenAI's clients read them: whole, or event by event as tokens come."""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import msgspec

from engine.errors import EngineError, openai_answer
from engine.request import Completion, Logprobs, Stream
from engine.request import Usage as Cost
from engine.server.bodies import Called

if TYPE_CHECKING:
    from engine.text import CallPart, Text

encode = msgspec.json.Encoder().encode

DONE = b"data: [DONE]\n\n"
JSON = b"content-type: application/json\r\n"
EVENTS = b"content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"

_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


def lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Headers as they stand on the wire. Raises ValueError for one with a line's end in it, or the like."""
    told = []
    for name, value in headers:
        if _CONTROL.search(value):
            raise ValueError(f"the header {name.decode()} has a control character in it")
        told.append(b"%b: %b\r\n" % (name, value))
    return b"".join(told)


class Cached(msgspec.Struct):
    """Of the prompt, what needed no prefill."""

    cached_tokens: int


class Usage(msgspec.Struct):
    """What a whole request cost: its prompt once, all of its choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: Cached


class Function(Called):
    """The function that is called, with arguments in JSON."""


class Call(msgspec.Struct):
    """A tool call in a whole answer."""

    id: str
    function: Function
    type: str = "function"


class CallDelta(msgspec.Struct, omit_defaults=True):
    """A piece of a tool call: its name first, then its arguments."""

    index: int
    id: str | None = None
    type: str | None = None
    function: dict[str, str] | None = None


class Turn(msgspec.Struct, omit_defaults=True):
    """The assistant's turn."""

    role: str
    content: str | None
    refusal: None = None
    tool_calls: list[Call] | None = None


class ChatChoice(msgspec.Struct):
    """One of `n` answers."""

    index: int
    message: Turn
    finish_reason: str
    logprobs: dict[str, Any] | None = None


class TextChoice(msgspec.Struct):
    """One of `n` continuations."""

    index: int
    text: str
    finish_reason: str | None
    logprobs: dict[str, Any] | None = None


class Whole(msgspec.Struct):
    """A whole answer, of either kind."""

    id: str
    object: str
    created: int
    model: str
    choices: list[Any]
    usage: Usage
    system_fingerprint: str | None = None


def usage_of_one(cost: Cost) -> Usage:
    """Of a request with one choice."""
    prompt, output = cost.prompt_tokens, cost.output_tokens
    return Usage(prompt, output, prompt + output, Cached(cost.cached_tokens))


def usage_of(completions: Iterable[Completion], num_prompts: int = 1) -> Usage:
    """The sum over the choices of a request; each of its prompts counts once."""
    several = list(completions)
    each = len(several) // num_prompts
    first = several[::each]
    prompt = sum(one.usage.prompt_tokens for one in first)
    output = sum(one.usage.output_tokens for one in several)
    return Usage(prompt, output, prompt + output, Cached(sum(one.usage.cached_tokens for one in first)))


class Writer(Protocol):
    """Writes the events of one streamed answer, and its whole when it is not streamed."""

    def opening(self, index: int) -> bytes:
        """What comes before the first piece of a choice."""

    def piece(self, index: int, text: str, logprobs: dict[str, Any] | None) -> bytes:
        """Some more text of a choice."""

    def pieces(self, index: int, texts: list[str]) -> bytes:
        """The same of several pieces, an event each, where nobody asks for more than text."""

    def calls(self, index: int, part: "CallPart") -> bytes:
        """A piece of a tool call of a choice."""

    def finish(self, index: int, reason: str) -> bytes:
        """The end of a choice."""

    def usage(self, usage: Usage) -> bytes:
        """What all of it cost: the last event but one."""


class Head:
    """What all events of a streamed answer begin with, encoded once: when the first of them is written."""

    __slots__ = ("_start", "created", "end", "id", "model", "object", "tells_usage")

    def __init__(self, answer_id: str, kind: str, created: int, model: str, *, tells_usage: bool) -> None:
        self.id, self.object, self.created, self.model = answer_id, kind, created, model
        self.tells_usage = tells_usage
        self._start = b""
        self.end = b'],"usage":null}\n\n' if tells_usage else b"]}\n\n"

    def by(self, model: str) -> "Head":
        """The same, answered by that model."""
        return (
            self
            if model == self.model
            else Head(self.id, self.object, self.created, model, tells_usage=self.tells_usage)
        )

    def event(self, choice: bytes) -> bytes:
        """One choice's news."""
        return self.begin(choice) + self.end

    def begin(self, choice: bytes) -> bytes:
        """An event up to where the news of a choice so begun go on; `end` is what comes after them."""
        return (self._start or self._begin()) + choice

    def usage(self, usage: Usage) -> bytes:
        return (self._start or self._begin()) + b'],"usage":' + encode(usage) + b"}\n\n"

    def _begin(self) -> bytes:
        head = encode({"id": self.id, "object": self.object, "created": self.created, "model": self.model})
        self._start = b"data: " + head[:-1] + b',"choices":['
        return self._start


Frame = tuple[bytes, bytes, bytes]
"""What stands before, between and after the pieces of a choice that are events one after the other."""


class PieceWriter:
    """What chats and completions share: a piece of text is an event, and only what stands around it differs."""

    __slots__ = ("_frames", "_head")

    BEFORE: ClassVar[bytes]
    AFTER: ClassVar[bytes]

    def __init__(self, head: Head) -> None:
        self._head = head
        self._frames: dict[int, Frame] = {}  # by choice

    def piece(self, index: int, text: str, logprobs: dict[str, Any] | None) -> bytes:
        begun, _, _ = self._frame(index)
        told = b"null" if logprobs is None else encode(logprobs)
        parts = begun, encode(text), self.AFTER, told, self._head.end
        return b'%b%b%b,"logprobs":%b,"finish_reason":null}%b' % parts

    def pieces(self, index: int, texts: list[str]) -> bytes:
        begun, between, end = self._frame(index)
        return begun + between.join(map(encode, texts)) + end

    def _frame(self, index: int) -> Frame:
        frame = self._frames.get(index)
        if frame is None:
            begun = self._head.begin(self.BEFORE % index)
            end = self.AFTER + b',"logprobs":null,"finish_reason":null}' + self._head.end
            frame = self._frames[index] = begun, end + begun, end
        return frame

    def usage(self, usage: Usage) -> bytes:
        return self._head.usage(usage)


class ChatWriter(PieceWriter):
    """Chunks of a chat."""

    __slots__ = ()

    BEFORE, AFTER = b'{"index":%d,"delta":{"content":', b"}"

    def opening(self, index: int) -> bytes:
        delta = b'{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}'
        return self._head.event(delta % index)

    def calls(self, index: int, part: "CallPart") -> bytes:
        """The name of a function first, then its arguments as they come."""
        function = {"arguments": part.arguments}
        if part.name is not None:
            function = {"name": part.name, **function}
        kind = "function" if part.name is not None else None
        delta = b'{"index":%d,"delta":{"tool_calls":[%b]},"logprobs":null,"finish_reason":null}'
        return self._head.event(delta % (index, encode(CallDelta(part.index, part.id, kind, function))))

    def finish(self, index: int, reason: str) -> bytes:
        delta = b'{"index":%d,"delta":{},"logprobs":null,"finish_reason":%b}'
        return self._head.event(delta % (index, encode(reason)))


class TextWriter(PieceWriter):
    """Chunks of a completion."""

    __slots__ = ()

    BEFORE, AFTER = b'{"index":%d,"text":', b""

    def opening(self, index: int) -> bytes:  # a text has none
        return b""

    def calls(self, index: int, part: "CallPart") -> bytes:
        raise NotImplementedError("a text has no calls: its request cannot offer tools")

    def finish(self, index: int, reason: str) -> bytes:
        choice = b'{"index":%d,"text":"","logprobs":null,"finish_reason":%b}'
        return self._head.event(choice % (index, encode(reason)))


def failure_event(error: EngineError) -> bytes:
    """What went wrong after the first token, when the status has been sent long ago."""
    return b"data: " + encode(openai_answer(error).body) + b"\n\n"


def chat_logprobs(text: "Text", stream: Stream, begin: int, end: int) -> dict[str, Any]:
    """What a chat is told of its tokens `begin` to `end` (exclusive)."""
    return {"content": [_told(text, *pair) for pair in _pairs(stream, begin, end)], "refusal": None}


def _told(text: "Text", token: int, logprobs: Logprobs) -> dict[str, Any]:
    top = [_entry(text, other, chance) for other, chance in logprobs.top]
    return {**_entry(text, token, logprobs.chosen), "top_logprobs": top}


def _entry(text: "Text", token: int, logprob: float) -> dict[str, Any]:
    data = text.tokenizer.token_bytes(token)
    return {"token": data.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(data)}


def text_logprobs(text: "Text", stream: Stream, begin: int, end: int, offsets: list[int]) -> dict[str, Any]:
    """What a completion is told of them; `offsets`: characters of the answer before each of them."""
    pairs = _pairs(stream, begin, end)
    name = text.tokenizer.token_text
    return {
        "tokens": [name(token) for token, _ in pairs],
        "token_logprobs": [logprobs.chosen for _, logprobs in pairs],
        "top_logprobs": [_by_text(text, each.top) for _, each in pairs],
        "text_offset": offsets,
    }


def _by_text(text: "Text", top: Iterable[tuple[int, float]]) -> dict[str, float]:
    """Of tokens that read alike, as pieces of characters do, the likelier one."""
    found: dict[str, float] = {}
    for token, chance in top:
        found.setdefault(text.tokenizer.token_text(token), chance)
    return found


def _pairs(stream: Stream, begin: int, end: int) -> list[tuple[int, Logprobs]]:
    return list(zip(stream.tokens[begin:end], stream.logprobs[begin:end], strict=True))
