"""Prompts: what a client wrote, in the tokens of whichever model serves it in the end."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.clock import utc_now
from engine.engine import MAX_NAME
from engine.errors import BadRequest, TooLong
from engine.request import Grammar, Request, Sampling, Tokens
from engine.server.bodies import Body, ChatBody, Message, UsualChat, Words, refused, stops_of
from engine.server.tools import Reading, calls_of, grammar_of, offered, reading_of, turns_of

if TYPE_CHECKING:
    from engine.text import Text

CHARACTERS_A_TOKEN = 4
"""About so many, as long as nobody knows the tokenizer: the model is not in memory."""

Render = Callable[["Text | None"], list[int] | Tokens]


@dataclass(slots=True)
class Prompt:
    """One prompt, shared by all choices that answer it. A `Wording` of requests.

    Its tokens are worked out once for each model that asks for them. `num_characters` says about how long it is;
    `is_open`: the client did not say how long the answer may be, so it is as long as there is room for.
    """

    render: Render
    num_characters: int
    is_open: bool
    most_tokens: int | None = None  # of a prompt, that are allowed
    is_text: bool = True  # and not tokens, which may be any
    grammar: Callable[["Text"], Grammar | None] | None = None  # that an answer has to follow
    reading: Callable[["Text", str], Reading] | None = (
        None  # of an answer with that name, where it may have calls
    )
    text: "Text | None" = field(default=None, init=False)  # of the model that it was worked out for last
    _tokens: Tokens | None = field(default=None, init=False)

    def estimate(self) -> Tokens:
        """As many tokens as it will about have, where no model is there to tell."""
        return np.zeros(max(1, self.num_characters // CHARACTERS_A_TOKEN), dtype=np.int32)

    def tokens(self, text: "Text | None") -> Tokens:
        """In the tokens of that model. Raises BadRequest when it cannot be said in them."""
        if self._tokens is None or text is not self.text:
            found = self.render(text)
            if isinstance(found, list):
                found = np.asarray(found, dtype=np.int32)
            if not len(found):
                raise refused("prompt", "the prompt has no tokens, but must have at least one")
            if self.most_tokens is not None and len(found) > self.most_tokens:
                raise TooLong(
                    f"the prompt has {len(found)} tokens, but at most {self.most_tokens} are allowed"
                )
            self._tokens, self.text = found, text
        return self._tokens

    def __call__(self, request: Request, text: "Text | None", room_tokens: int) -> Request:
        """The request in that model's tokens, its answer no longer than there is room for where that is open."""
        sampling, known = request.sampling, self._tokens
        if request.prompt_tokens is known and text is self.text:  # as it was made for this model
            has_grammar = self.grammar is None or (sampling is not None and sampling.grammar is not None)
            fits = not self.is_open or request.max_tokens <= room_tokens
            if has_grammar and fits:
                return request
        tokens = self.tokens(text)
        most = self.room(request.max_output_tokens, room_tokens - len(tokens))
        if self.grammar is not None and text is not None and sampling is not None:
            sampling = replace(sampling, grammar=self.grammar(text))  # of this model's own way to write calls
        vocab = self.vocab(text)
        return replace(request, prompt_tokens=tokens, max_output_tokens=most, sampling=sampling, vocab=vocab)

    def room(self, most: int, left: int) -> int:
        """How long an answer may be that may have `most` tokens, and for which so many are left."""
        return max(1, min(most, left)) if self.is_open else most

    def vocab(self, text: "Text | None") -> int | None:
        """Below which all of its tokens are, where that is known."""
        return text.tokenizer.vocab_size if self.is_text and text is not None else None


def readable(text: "Text | None") -> "Text":
    """Raises BadRequest for a model that has no tokenizer."""
    if text is None:
        raise BadRequest("the model has no tokenizer: send the prompt as tokens, to /v1/completions")
    return text


def today(form: str) -> str:
    """The date, for templates that tell it to the model."""
    return utc_now().strftime(form)


def chat_prompt(
    body: UsualChat | ChatBody, *, most_tokens: int | None, able: Callable[[], Iterable[str]]
) -> Prompt:
    """The conversation of a chat. `able` names models that take tools, for whoever has asked one that does not."""
    if isinstance(body, UsualChat):
        return _conversation(body, most_tokens)
    extra = body.chat_template_kwargs or {}
    reserved = [name for name in extra if name in RESERVED]
    if reserved:
        allowed = f"without {', '.join(RESERVED)}"
        raise refused(
            "chat_template_kwargs", f"chat_template_kwargs has {reserved[0]}, but must be {allowed}"
        )
    messages = [plain(message) for message in body.messages]
    tools, choice, form = body.tools, body.tool_choice, body.response_format
    is_parallel = body.parallel_tool_calls is not False
    told = offered(tools, choice)

    def render(text: "Text | None") -> list[int] | Tokens:
        text = readable(text)
        if told is not None and text.calls is None:
            calls_of(text, tools, choice, able())
        turns = turns_of(messages, text.chat, text.calls)
        return text.chat.encode(turns, text.tokenizer, tools=told, strftime_now=today, **extra)

    def grammar(text: "Text") -> Grammar | None:
        return grammar_of(text, form, tools, choice, is_parallel=is_parallel)

    def reading(text: "Text", name: str) -> Reading:
        return reading_of(text, tools, choice, name, is_parallel=is_parallel)

    made = Prompt(render, _characters(messages), body.output_tokens is None, most_tokens)
    if told is not None or form is not None:
        made.grammar = grammar
    if told is not None:
        made.reading = reading
    return made


def _conversation(body: UsualChat, most_tokens: int | None) -> Prompt:
    """One without tools, formats and words of its own to the template."""
    messages = [plain(message) for message in body.messages]

    def render(text: "Text | None") -> list[int]:
        text = readable(text)
        turns = turns_of(messages, text.chat, text.calls)
        return text.chat.encode(turns, text.tokenizer, strftime_now=today)

    return Prompt(render, _characters(messages), body.output_tokens is None, most_tokens)


def _characters(messages: list[dict[str, Any]]) -> int:
    return sum([len(message["content"]) for message in messages])


RESERVED = ("messages", "tools", "add_generation_prompt", "strftime_now", "tokenizer")


def plain(message: Message) -> dict[str, Any]:
    """A turn as templates know it: content in one piece, and nothing that was not given."""
    content = message.content
    if isinstance(content, list):
        content = "".join([part.text or "" for part in content])
    role = "system" if message.role == "developer" else message.role
    made: dict[str, Any] = {"role": role, "content": content if content is not None else ""}
    if message.name is not None:
        made["name"] = message.name
    if message.tool_call_id is not None:
        made["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        made["tool_calls"] = [
            {
                "id": call.id,
                "type": call.type,
                "function": {"name": call.function.name, "arguments": call.function.arguments},
            }
            for call in message.tool_calls
        ]
    return made


def text_prompt(words: Words, is_open: bool, most_tokens: int | None) -> Prompt:
    """The prompt of a completion: a text, or tokens as they are."""
    if isinstance(words, str):
        return Prompt(lambda text: readable(text).tokenizer.tokens(words), len(words), is_open, most_tokens)
    return Prompt(lambda _: words, CHARACTERS_A_TOKEN * len(words), is_open, most_tokens, is_text=False)


def sampling_of(body: Body, logprobs: int | None) -> Sampling:
    """How tokens are chosen, but for the seed: OpenAI's defaults. Raises BadRequest."""
    return Sampling(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_k=0 if body.top_k in (None, -1) else body.top_k,  # -1 is vLLM's word for no limit
        top_p=1.0 if body.top_p is None else body.top_p,
        min_p=body.min_p or 0.0,
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=biases_of(body.logit_bias) if body.logit_bias else (),
        stop=stops_of(body),
        stop_tokens=tuple(body.stop_token_ids or ()),
        ignore_eos=bool(body.ignore_eos),
        logprobs=logprobs,
    )


def seeded(sampling: Sampling, seed: int, choice: int) -> Sampling:
    """The same with a client's seed, another one for each choice."""
    return replace(sampling, seed=(seed + choice) % (1 << 63))


def biases_of(given: dict[str, float]) -> tuple[tuple[int, float], ...]:
    """JSON has no numbers for names: tokens come as texts. Raises BadRequest."""
    for name in given:
        if not (name.isascii() and name.isdecimal() and len(name) <= MAX_DIGITS):
            raise refused(
                "logit_bias", f"logit_bias has {name[:64]!r}, but must have tokens, which are numbers"
            )
    biases = {int(name): bias for name, bias in given.items()}
    return tuple(biases.items())


MAX_DIGITS = 10


def name_within(what: str, name: str | None) -> str | None:
    """A session's or tenant's name, if there is one. Raises BadRequest for one that is too long."""
    if name is not None and len(name) > MAX_NAME:
        raise refused(what, f"{what} has {len(name)} characters, but may have {MAX_NAME}")
    return name or None
