"""What a caller asks for and what the caller gets: the values that travel down the path of a request."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.errors import BadRequest

Tokens = npt.NDArray[np.int32]

MAX_LOGPROBS = 20
MAX_STOPS = 16
MAX_TEMPERATURE = 2
MAX_PENALTY = 2
MAX_BIAS = 100
MAX_BIASES = 1024
MAX_GRAMMAR_CHARACTERS = 2**18

GRAMMAR = "grammar"
"""The parameter that is to blame where no answer can follow one. A door may call it otherwise."""

GRAMMARS = ("json_object", "json_schema", "regex", "lark")


@dataclass(slots=True, frozen=True)
class Grammar:
    """What an answer may be: any JSON object, JSON by a schema, what an expression matches, or what rules derive.

    `text` is the JSON schema, the regular expression, or the rules in Lark's notation as llguidance has it.
    """

    kind: str
    text: str = ""

    def __post_init__(self) -> None:
        """Raises BadRequest."""
        _must("grammar.kind", self.kind, self.kind in GRAMMARS, f"one of {', '.join(GRAMMARS)}")
        length = len(self.text)
        if length > MAX_GRAMMAR_CHARACTERS:
            most = MAX_GRAMMAR_CHARACTERS
            raise BadRequest(f"grammar has {length} characters, but may have {most}", GRAMMAR)


@dataclass(slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen, and when to stop before the last one. The defaults are greedy.

    A `temperature` of 0 is greedy whatever the rest says. `top_k` 0, `top_p` 1 and `min_p` 0 cut nothing;
    `repetition_penalty` divides (or multiplies, where negative) the scores of what stood before, prompt and
    answer; `presence_penalty` is taken from those of what stands in the answer, `frequency_penalty` as often
    as it stands there, and `logit_bias` is added to those of its tokens. `seed` None: one made from the
    engine's seed and the request's id. Generation ends with a token of `stop_tokens`, with one of the strings
    of `stop` in its text, or with the model's own end of text unless `ignore_eos`. `logprobs` asks for so
    many most likely tokens at each position, 0 for that of the chosen one alone, None for none. A `grammar`
    rules out every token after which the answer could no longer become what it says, and lets it end only
    when it is that.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()  # token and bias, each token once
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_tokens: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        """Raises BadRequest with the name, the value and what is allowed."""
        allowed = f"from 0 to {MAX_TEMPERATURE}"
        _must("temperature", self.temperature, 0 <= self.temperature <= MAX_TEMPERATURE, allowed)
        _must("top_k", self.top_k, self.top_k >= 0, "0 (no limit) or more")
        _must("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1")
        _must("min_p", self.min_p, 0 <= self.min_p <= 1, "from 0 to 1")
        penalty = self.repetition_penalty
        _must("repetition_penalty", penalty, isfinite(penalty) and penalty > 0, "a number above 0")
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            _must(name, value, -MAX_PENALTY <= value <= MAX_PENALTY, f"from -{MAX_PENALTY} to {MAX_PENALTY}")
        if self.logit_bias:
            _check_bias(self.logit_bias)
        _must("seed", self.seed, self.seed is None or 0 <= self.seed < 2**63, "from 0 to 2^63 - 1")
        _must(
            "stop",
            self.stop,
            len(self.stop) <= MAX_STOPS and all(self.stop),
            f"up to {MAX_STOPS} texts, none empty",
        )
        allowed = f"from 0 to {MAX_LOGPROBS}, or none"
        _must("logprobs", self.logprobs, self.logprobs is None or 0 <= self.logprobs <= MAX_LOGPROBS, allowed)
        ends = self.grammar is None or not self.ignore_eos
        _must(
            "ignore_eos",
            self.ignore_eos,
            ends,
            "False with a grammar: it says itself when the answer is over",
        )


def _check_bias(biases: tuple[tuple[int, float], ...]) -> None:
    """Raises BadRequest."""
    if len(biases) > MAX_BIASES:
        raise BadRequest(f"logit_bias has {len(biases)} tokens, but may have {MAX_BIASES}", "logit_bias")
    for token, bias in biases:
        _must("logit_bias", {token: bias}, token >= 0, "for tokens from 0 on")
        _must("logit_bias", {token: bias}, -MAX_BIAS <= bias <= MAX_BIAS, f"from -{MAX_BIAS} to {MAX_BIAS}")


def _must(name: str, value: object, holds: bool, allowed: str) -> None:
    if not holds:
        raise BadRequest(f"{name} is {value!r}, but must be {allowed}", name)


@dataclass(slots=True)
class Logprobs:
    """How likely the chosen token was, and the most likely ones, best first: natural logarithms, by token.

    Of the model's own distribution: before temperature, cuts and penalties.
    """

    chosen: float
    top: list[tuple[int, float]]


@dataclass(slots=True, init=False)
class Request:
    """One generation, as it arrives at the router.

    `prompt_tokens` is a one-dimensional int32 array, at least one token long. `deadline_ns` and `arrival_ns`
    are times of the engine's clock. A larger `priority` goes first.
    """

    id: int
    model: str
    prompt_tokens: Tokens
    max_output_tokens: int
    arrival_ns: int
    tenant: str
    session: str | None
    priority: int
    deadline_ns: int | None
    sampling: Sampling | None  # None: greedy, and exactly `max_output_tokens` tokens
    prefix_keys: Sequence[bytes]  # of its full blocks, where somebody routes by them
    vocab: int | None  # all prompt tokens are known to be from 0 to below it
    wording: "Wording | None"  # where the prompt is text: says it in the tokens of whoever serves it
    num_prompt_tokens: int = field(init=False)
    max_tokens: int = field(init=False)  # that it can ever occupy, prompt and output

    def __init__(
        self,
        id: int,  # noqa: A002  as everybody who asks for it calls it
        model: str,
        prompt_tokens: Tokens,
        max_output_tokens: int,
        arrival_ns: int,
        tenant: str = "default",
        session: str | None = None,
        priority: int = 0,
        deadline_ns: int | None = None,
        sampling: Sampling | None = None,
        prefix_keys: Sequence[bytes] = (),
        vocab: int | None = None,
        wording: "Wording | None" = None,
    ) -> None:
        self.id = id
        self.model = model
        self.prompt_tokens = prompt_tokens
        self.max_output_tokens = max_output_tokens
        self.arrival_ns = arrival_ns
        self.tenant = tenant
        self.session = session
        self.priority = priority
        self.deadline_ns = deadline_ns
        self.sampling = sampling
        self.prefix_keys = prefix_keys
        self.vocab = vocab
        self.wording = wording
        self.num_prompt_tokens = num = len(prompt_tokens)
        self.max_tokens = num + max_output_tokens


Wording = Callable[[Request, Any, int], Request]
"""A request as one model reads it: its prompt in the tokens of that model's text (None: it has none), no longer with
its answer than so many tokens where the caller left the length open. Raises BadRequest."""

Promise = Callable[[int, int], list[int]]
"""Tokens of an attempt that nobody has looked at: from the first wanted (counted from 0), so many."""


@dataclass(slots=True, init=False)
class Stream:
    """The tokens of one answer, as they come. A retry carries on after the last of them.

    The caller may hand in a stream of its own and watch it; the engine only appends. `listener` is called after each
    change, on the engine's side: it must be quick. `replica` is who was asked for it last. `text` has pieces of whole
    characters where the request has a `sampling` and its model a tokenizer; what may yet turn out to be a stop string
    is held back, and where nobody listens, it may come only with the end. Tokens that were promised are worked out
    when somebody looks at them.
    """

    logprobs: list[Logprobs]
    text: list[str]
    first_token_ns: int | None
    last_token_ns: int | None
    listener: Callable[[], None] | None
    replica: str | None
    num_tokens: int  # so far; cheaper than to look at them
    _tokens: list[int]
    _paid: int  # tokens of the present attempt that are in `_tokens`
    _promise: Promise | None

    def __init__(self, listener: Callable[[], None] | None = None, text: list[str] | None = None) -> None:
        self.logprobs = []
        self.text = [] if text is None else text
        self.listener = listener
        self.first_token_ns = self.last_token_ns = self.replica = self._promise = None
        self._tokens = []
        self.num_tokens = self._paid = 0

    @property
    def tokens(self) -> list[int]:
        """All tokens so far; to look at, not to change."""
        owed = self.num_tokens - len(self._tokens)
        if owed:
            assert self._promise is not None
            self._tokens += self._promise(self._paid, owed)
            self._paid += owed
        return self._tokens

    def promise(self, count: int, now_ns: int, promise: Promise) -> None:
        """Take `count` tokens more, the last of them at `now_ns`; `promise` knows all of its attempt."""
        if promise is not self._promise:
            if self._promise is not None:
                self._tokens = self.tokens
            self._promise, self._paid = promise, 0
        if self.first_token_ns is None:
            self.first_token_ns = now_ns
        self.last_token_ns = now_ns
        self.num_tokens += count
        if self.listener is not None:
            self.listener()

    def expect(self, count: int, now_ns: int) -> None:
        """The same from an attempt that has promised before, where nobody listens."""
        self.last_token_ns = now_ns
        self.num_tokens += count

    def push(self, token: int, now_ns: int, logprobs: Logprobs | None = None) -> None:
        if self.first_token_ns is None:
            self.first_token_ns = now_ns
        self.last_token_ns = now_ns
        self.tokens.append(token)
        self.num_tokens += 1
        if logprobs is not None:
            self.logprobs.append(logprobs)
        if self.listener is not None:
            self.listener()

    def write(self, piece: str) -> None:
        """Add text that belongs to the tokens so far."""
        if piece:
            self.text.append(piece)
            if self.listener is not None:
                self.listener()


@dataclass(slots=True, init=False)
class Usage:
    """What an answer cost, in tokens; `cached_tokens` of the prompt were not prefilled anew."""

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int

    def __init__(
        self,
        prompt_tokens: int,
        output_tokens: int,
        cached_tokens: int,
    ) -> None:
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.cached_tokens = cached_tokens


@dataclass(slots=True, init=False)
class Completion:
    """A request that was served: by whom, at which attempt (1 is the first), with which tokens.

    `finish_reason` is "length" when all tokens that were asked for have been generated, "stop" when it ended before.
    """

    request_id: int
    model: str
    replica: str
    attempts: int
    stream: Stream
    usage: Usage
    finished_ns: int
    finish_reason: str

    def __init__(
        self,
        request_id: int,
        model: str,
        replica: str,
        attempts: int,
        stream: Stream,
        usage: Usage,
        finished_ns: int,
        finish_reason: str = "length",
    ) -> None:
        self.request_id = request_id
        self.model = model
        self.replica = replica
        self.attempts = attempts
        self.stream = stream
        self.usage = usage
        self.finished_ns = finished_ns
        self.finish_reason = finish_reason

    @property
    def tokens(self) -> list[int]:
        return self.stream.tokens
