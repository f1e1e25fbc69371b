"""How requests want to be answered: what many of them have in common, looked at once for all of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec

from engine.request import Sampling
from engine.server.bodies import Body, ChatBody, CompletionBody, Usual, check_depth, check_manner, parsed
from engine.server.prompts import sampling_of
from engine.server.settings import LimitsSettings
from engine.server.tools import check_response_format, check_tools

U = TypeVar("U", bound=Usual)
W = TypeVar("W", bound=Body)

MOST_KNOWN = 256
"""Manners that are remembered. Most clients have one or two."""

USUAL_DEPTH = 8
"""No usual body is nested as deep: nothing in it may be of any depth."""

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


@dataclass(slots=True)
class Manner:
    """What a request wants of its answer, checked. Shared: nobody may change it."""

    sampling: Sampling  # but for the seed
    num_choices: int
    is_stream: bool
    tells_usage: bool


class Manners(Generic[U, W]):
    """Reads bodies of one kind.

    One that has no more than the usual fields costs half of what looking for all of them does, and where its
    manner is known, that need not be checked again. `check` looks at what differs from request to request.
    """

    def __init__(
        self,
        usual: type[U],
        whole: type[W],
        check: Callable[[U | W, LimitsSettings], None],
        limits: LimitsSettings,
    ) -> None:
        self._limits = limits
        self._check: Callable[[U | W, LimitsSettings], None] = check
        self._read_usual = msgspec.json.Decoder(usual).decode
        self._whole: msgspec.json.Decoder[W] = msgspec.json.Decoder(whole)
        self._known: dict[tuple[object, ...], Manner] = {}
        self._may_be_too_deep = limits.max_json_depth < USUAL_DEPTH

    def read(self, raw: bytes) -> tuple[U | W, Manner]:
        """A body, and how it wants to be answered. Raises BadRequest."""
        body: U | W
        try:
            body = self._read_usual(raw)
        except UNREADABLE:  # it has more, or is no good
            body = whole = parsed(raw, self._whole, self._limits)
            manner = self._looked_at(whole)
        else:
            asked = (body.temperature, body.top_p, body.n, body.stream, body.stream_options)
            manner = self._known.get(asked) or self._remembered(asked, raw)
            if self._may_be_too_deep:
                check_depth(raw, self._limits.max_json_depth)
        self._check(body, self._limits)
        return body, manner

    def _remembered(self, asked: tuple[object, ...], raw: bytes) -> Manner:
        manner = self._looked_at(parsed(raw, self._whole, self._limits))
        if len(self._known) >= MOST_KNOWN:
            self._known.clear()
        self._known[asked] = manner
        return manner

    def _looked_at(self, body: Body) -> Manner:
        check_manner(body, self._limits)
        logprobs = body.logprobs if isinstance(body, CompletionBody) else None
        if isinstance(body, ChatBody):
            check_response_format(body.response_format)
            check_tools(body.tools, body.tool_choice, self._limits.max_tools)
            logprobs = (body.top_logprobs or 0) if body.logprobs else None
        options = body.stream_options
        return Manner(
            sampling_of(body, logprobs),
            body.num_choices,
            bool(body.stream),
            options is not None and options.include_usage,
        )
