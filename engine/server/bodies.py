"""What clients send, as OpenAI's API has it and vLLM extends it: parsed and checked in one step.

A field that nobody knows is refused by name, and so is one whose value asks for something that is not there: nothing
is accepted and ignored but what has no effect here by its nature (`metadata`, `store`, `service_tier`, ...).
"""

import re
from typing import Any, TypeVar

import msgspec
import numpy as np

from engine.errors import BadRequest
from engine.server.settings import LimitsSettings

B = TypeVar("B")

SHOWN = 64  # characters of a value that an error repeats
NUMBERS_OF_ONE = (1, None)


class Part(msgspec.Struct):
    """A piece of a message's content. Only text is understood."""

    type: str
    text: str | None = None


class Called(msgspec.Struct):
    """The function of a tool call that is sent back; `arguments` are JSON in a string, as they were given."""

    name: str
    arguments: str = "{}"


class ToolCall(msgspec.Struct):
    """A tool call of an earlier answer, sent back."""

    id: str
    function: Called
    type: str = "function"


class Message(msgspec.Struct):
    """One turn. What clients send back with an answer's turn beyond this (`refusal`, `annotations`) says nothing."""

    role: str
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """How an answer is streamed."""

    include_usage: bool = False
    include_obfuscation: bool = False  # padding against who measures packets: never sent


class Usual(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What most bodies have and no more, of both kinds of generation. None is as if a field was not there."""

    model: str
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    seed: int | None = None
    user: str | None = None

    @property
    def output_tokens(self) -> int | None:
        """How long the answer may be, where the client says so."""
        return self.max_tokens


class Body(Usual, kw_only=True, forbid_unknown_fields=True):
    """All that both kinds of generation have."""

    stop: str | list[str] | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    # beyond OpenAI, as vLLM has them
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[int] | None = None
    # without effect here
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @property
    def num_choices(self) -> int:
        return 1 if self.n is None else self.n


class UsualChat(Usual, kw_only=True, forbid_unknown_fields=True):
    """`/v1/chat/completions`, as most ask for it."""

    messages: list[Message]
    max_completion_tokens: int | None = None

    @property
    def output_tokens(self) -> int | None:
        return _chat_tokens(self)


class ChatBody(Body, kw_only=True, forbid_unknown_fields=True):
    """`/v1/chat/completions`."""

    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    modalities: list[str] | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def output_tokens(self) -> int | None:
        return _chat_tokens(self)


def _chat_tokens(body: UsualChat | ChatBody) -> int | None:
    return body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens


class UsualCompletion(Usual, kw_only=True, forbid_unknown_fields=True):
    """`/v1/completions`, as most ask for it: `prompt` is a text."""

    prompt: str


class CompletionBody(Body, kw_only=True, forbid_unknown_fields=True):
    """`/v1/completions`. `prompt`: a text, several, tokens, or several of these."""

    prompt: str | list[Any]
    logprobs: int | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None


AnyBody = UsualChat | ChatBody | UsualCompletion | CompletionBody
"""A body of whatever kind."""


def parsed(raw: bytes, decoder: "msgspec.json.Decoder[B]", limits: LimitsSettings) -> B:
    """A body as what the decoder is for. Raises BadRequest naming the field, its value and what it must be."""
    check_depth(raw, limits.max_json_depth)
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise _explained(raw, str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from None
    except RecursionError:
        raise BadRequest("the body is nested too deeply") from None


def check_depth(raw: bytes, most: int) -> None:
    """Raise BadRequest for JSON that is nested deeper. Costs two counts where there are few brackets."""
    if raw.count(b"[") + raw.count(b"{") > most and depth_of(raw) > most:
        raise BadRequest(f"the body is nested more than {most} deep, the most that is allowed")


def depth_of(raw: bytes) -> int:
    """How deep JSON is nested. Takes as long a byte whatever stands in it: nobody can make the loop wait long."""
    unescaped = raw.replace(b"\\\\", b"").replace(b'\\"', b"")  # the quotes that are left begin and end texts
    characters = np.frombuffer(unescaped, dtype=np.uint8)
    is_text = np.cumsum(characters == ord('"'), dtype=np.uint8) & 1  # parity survives where a sum wraps
    opens = (characters == ord("[")) | (characters == ord("{"))
    closes = (characters == ord("]")) | (characters == ord("}"))
    steps = (opens.astype(np.int8) - closes.astype(np.int8)) * (1 - is_text.astype(np.int8))
    return int(np.cumsum(steps, dtype=np.int32).max(initial=0))


_PLACE = re.compile(r"^(.*?)(?: - at `\$\.?(.*)`)?$", re.DOTALL)
_STEP = re.compile(r"([^.\[\]]+)|\[(\d+|\.\.\.)\]")


def _explained(raw: bytes, text: str) -> BadRequest:
    """The complaint of msgspec in a sentence of ours: field, value, what is allowed."""
    match = _PLACE.match(text)
    assert match is not None, "it matches everything"
    what, place = match[1], match[2] or ""
    if unknown := re.search(r"contains unknown field `(.*)`", what, re.DOTALL):
        sent = unknown[1] if len(unknown[1]) <= SHOWN else f"{unknown[1][:SHOWN]}..."
        name = f"{place}.{sent}" if place else sent
        return refused(name, f"{name} is not a field of this request, or not one that is supported")
    if missing := re.search(r"missing required field `(.*)`", what):
        name = f"{place}.{missing[1]}" if place else missing[1]
        return refused(name, f"{name} is missing")
    if not place:
        return BadRequest(f"the body is no good: {what}")
    field = place.partition("[...]")[0]  # nobody says which of its entries
    try:
        value = _value_at(msgspec.json.decode(raw), place)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # further on there is something worse
        return refused(field, f"{place} is no good: {what}")
    wanted = what.removeprefix("Expected ").partition(", got ")[0].replace("`", "").replace(" | ", " or ")
    return refused(field, f"{place} is {shown(value)}, but must be {wanted}")


def _value_at(value: Any, place: str) -> Any:
    for name, number in _STEP.findall(place):
        try:
            value = value[name] if name else value[int(number)]
        except (LookupError, TypeError, ValueError):  # "[...]": somewhere in there
            break
    return value


def shown(value: Any) -> str:
    """A value as it was sent, cut where it is long."""
    text = msgspec.json.encode(value).decode("utf-8", "replace")
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."


def refused(param: str, message: str) -> BadRequest:
    """That one parameter is no good."""
    return BadRequest(message, param)


def must(param: str, value: Any, holds: bool, allowed: str) -> None:
    """Raise BadRequest for `param` unless its value `holds`."""
    if not holds:
        raise refused(param, f"{param} is {shown(value)}, but must be {allowed}")


def check_manner(body: Body, limits: LimitsSettings) -> None:
    """Raise BadRequest for what no model here does for anybody, and for more of that than is allowed."""
    if body.n is not None:
        must("n", body.n, 1 <= body.n <= limits.max_choices, f"from 1 to {limits.max_choices}")
    if body.stop is not None:
        _check_stop(body, limits)
    if body.stream_options is not None and not body.stream:
        raise refused("stream_options", "stream_options is given, but only with stream true has it a meaning")
    if isinstance(body, ChatBody):
        _check_chat(body, limits)
    elif isinstance(body, CompletionBody):
        _check_completion(body, limits)


def check_turns(body: UsualChat | ChatBody, limits: LimitsSettings) -> None:
    """Raise BadRequest for what is no good about this one chat: its turns, its length, its user."""
    if body.user is not None:
        _check_user(body.user, limits)
    _check_messages(body.messages, limits)
    if body.max_completion_tokens is not None:
        _check_length("max_completion_tokens", body.max_completion_tokens, limits)
    elif body.max_tokens is not None:
        _check_length("max_tokens", body.max_tokens, limits)


def check_prompt(body: UsualCompletion | CompletionBody, limits: LimitsSettings) -> None:
    """The same of a completion: its prompts, its length, its user."""
    if body.user is not None:
        _check_user(body.user, limits)
    if isinstance(body, CompletionBody):
        _check_number(body, limits)
    if body.max_tokens is not None:
        _check_length("max_tokens", body.max_tokens, limits)


def _check_user(user: str, limits: LimitsSettings) -> None:
    most = limits.max_id_chars
    must("user", user, len(user) <= most, f"at most {most} characters long")


def _check_stop(body: Body, limits: LimitsSettings) -> None:
    stop = stops_of(body)
    must(
        "stop",
        body.stop,
        len(stop) <= limits.max_stop and all(stop),
        f"up to {limits.max_stop} texts, none empty",
    )


def stops_of(body: Body) -> tuple[str, ...]:
    """Its stop strings."""
    stop = body.stop
    if stop is None:
        return ()
    return (stop,) if isinstance(stop, str) else tuple(stop)


def _check_length(name: str, tokens: int, limits: LimitsSettings) -> None:
    most = limits.max_output_tokens
    if tokens < 1 or (most is not None and tokens > most):
        must(name, tokens, False, "1 or more" if most is None else f"from 1 to {most}")


def _check_messages(messages: list[Message], limits: LimitsSettings) -> None:
    count = len(messages)
    if not 1 <= count <= limits.max_messages:
        raise refused("messages", f"messages has {count} turns, but must have 1 to {limits.max_messages}")
    for place, message in enumerate(messages):
        if message.role not in ROLES or not isinstance(message.content, str):
            _check_message(f"messages[{place}]", message)


def _check_chat(body: ChatBody, limits: LimitsSettings) -> None:
    top, most = body.top_logprobs, limits.max_top_logprobs
    if top is not None:
        must("top_logprobs", top, 0 <= top <= most, f"from 0 to {most}")
        must("top_logprobs", top, bool(body.logprobs), "left out, or logprobs true")
    if body.modalities not in (None, ["text"]):
        must("modalities", body.modalities, False, '["text"]: nothing else is generated')


ROLES = ("system", "developer", "user", "assistant", "tool")


def _check_message(place: str, message: Message) -> None:
    must(f"{place}.role", message.role, message.role in ROLES, f"one of {', '.join(ROLES)}")
    if isinstance(message.content, list):
        for number, part in enumerate(message.content):
            is_text = part.type == "text" and part.text is not None
            must(
                f"{place}.content[{number}].type",
                part.type,
                is_text,
                '"text", with a text: nothing else is read',
            )
    elif message.content is None:
        may = message.role == "assistant" and bool(message.tool_calls)
        must(f"{place}.content", None, may, "a text: only an assistant's turn with tool_calls has none")


def _check_completion(body: CompletionBody, limits: LimitsSettings) -> None:
    if body.echo:
        must("echo", body.echo, False, "false: it is not supported")
    if body.suffix:
        must("suffix", body.suffix, False, "left out: it is not supported")
    if body.best_of not in (None, body.num_choices):
        must("best_of", body.best_of, False, "equal to n: it is not supported")
    wanted, most = body.logprobs, limits.max_top_logprobs
    if wanted is not None:
        must("logprobs", wanted, 0 <= wanted <= most, f"from 0 to {most}")


def _check_number(body: CompletionBody, limits: LimitsSettings) -> None:
    count = len(prompts_of(body)) * body.num_choices
    if count > limits.max_choices:
        raise refused(
            "prompt", f"prompt asks for {count} answers, but at most {limits.max_choices} are allowed"
        )


Words = str | list[int]
"""A prompt: a text, or tokens."""


def prompts_of(body: UsualCompletion | CompletionBody) -> list[Words]:
    """One by one. Raises BadRequest for a list that is neither of texts nor of tokens."""
    prompt = body.prompt
    if isinstance(prompt, str):
        return [prompt]
    if prompt and all(type(each) is int for each in prompt):
        return [_tokens(prompt)]
    if prompt and all(isinstance(each, str) for each in prompt):
        return list(prompt)
    if prompt and all(
        isinstance(each, list) and each and all(type(one) is int for one in each) for each in prompt
    ):
        return [_tokens(each) for each in prompt]
    raise refused(
        "prompt",
        f"prompt is {shown(prompt)}, but must be a text, texts, tokens or lists of tokens, not empty",
    )


MAX_TOKEN = (1 << 31) - 1


def _tokens(tokens: list[int]) -> list[int]:
    low, high = min(tokens), max(tokens)
    wrong = low if low < 0 else high
    must("prompt", wrong, low >= 0 and high <= MAX_TOKEN, "made of tokens, which are numbers from 0 on")
    return tokens
