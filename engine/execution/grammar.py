"""Grammars: answers that can only be what was asked for, such as JSON by a schema.

Before a token is chosen, all are ruled out after which the answer could no longer become what the grammar says
(constrained decoding). llguidance does the work, in Rust: a parser that goes along with the answer, and a walk over
all tokens as a tree of bytes. Grammars come from callers: what compiling and each step may take is bounded.
"""

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

from engine.errors import BadRequest
from engine.request import GRAMMAR, Grammar

if TYPE_CHECKING:
    import llguidance

KEPT_GRAMMARS = 32  # of each model; what their parsers remember takes 20 MB each at worst
MAX_SCHEMA_DEPTH = 64
MAX_REASON = 300

SPACING = r"(?: |\n{1,2}[ \t]{0,20})?"
"""White space between the parts of JSON: room for any layout, and none to write blanks for ever."""

LIMITS = {
    "initial_lexer_fuel": 1_000_000,  # 20 ms
    "step_lexer_fuel": 100_000,  # 7 ms
    "step_max_items": 50_000,  # 3 ms
    "max_items_in_row": 2_000,
    "max_lexer_states": 10_000,
    "max_grammar_size": 250_000,
}


@dataclass(slots=True)
class Spelling:
    """What a grammar knows of a tokenizer: the bytes of each token, which are no text, which end an answer."""

    tokens: Sequence[bytes]
    control: Sequence[int]
    eos_ids: Sequence[int]
    encode: Callable[[str], list[int]]


class Follower:
    """One answer on its way through a grammar. Where it stands is a function of the tokens so far.

    `before` are those of earlier attempts, which somebody else has chosen.
    """

    __slots__ = ("_matcher", "_num_seen")

    def __init__(self, matcher: "llguidance.LLMatcher", before: Sequence[int] = ()) -> None:
        self._matcher = matcher
        self._num_seen = 0
        matcher.consume_tokens(list(before))

    def allowed(self, tokens: Sequence[int]) -> bytes:
        """Which token may follow these new ones: a bit each, the lowest first. Never none.

        Costs what the tokens do that it had not seen yet, and one walk over the vocabulary. Raises BadRequest when
        that takes more than any answer needs.
        """
        matcher = self._matcher
        matcher.consume_tokens(list(tokens[self._num_seen :]))
        self._num_seen = len(tokens)
        mask = matcher.compute_bitmask()
        if matcher.is_error():
            raise BadRequest(
                f"the grammar cannot be followed beyond {len(tokens)} tokens: {_reason(matcher.get_error())}",
                GRAMMAR,
            )
        return mask


@dataclass(slots=True, frozen=True)
class Compiled:
    """A grammar in the tokens of one vocabulary, at its beginning."""

    grammar: Grammar
    matcher: "llguidance.LLMatcher"

    def follow(self, before: Sequence[int] = ()) -> Follower:
        return Follower(self.matcher.deep_copy(), before)


class Grammars:
    """The grammars of one vocabulary: compiled when they are asked for, the latest of them kept.

    `find` and `keep` belong to one thread, `compile` may run beside it.
    """

    def __init__(self, spelling: Callable[[], Spelling]) -> None:
        """`spelling` is asked when the first grammar comes: 50 ms for 49 thousand tokens."""
        self._spelling = spelling
        self._tokenizer: llguidance.LLTokenizer | None = None
        self._making = Lock()
        self._kept: OrderedDict[Grammar, Compiled] = OrderedDict()

    def find(self, grammar: Grammar) -> Compiled | None:
        compiled = self._kept.get(grammar)
        if compiled is not None:
            self._kept.move_to_end(grammar)
        return compiled

    def keep(self, compiled: Compiled) -> None:
        self._kept[compiled.grammar] = compiled
        if len(self._kept) > KEPT_GRAMMARS:
            self._kept.popitem(last=False)

    def compile(self, grammar: Grammar) -> Compiled:
        """Raises BadRequest for what is no grammar, for one that no answer fits, and for one that takes too much."""
        import llguidance  # noqa: PLC0415  50 ms, only when somebody asks for a grammar

        source = _source(grammar)
        limits = llguidance.LLParserLimits(**LIMITS, verbose_errors=False)  # type: ignore[arg-type]
        matcher = llguidance.LLMatcher(self._made(), source, log_level=0, limits=limits)
        beginning = matcher.deep_copy()
        beginning.compute_bitmask()  # nothing may be possible: {"$ref": "#"} compiles
        if beginning.is_error():
            raise _bad(grammar.kind, _reason(beginning.get_error()))
        return Compiled(grammar, matcher)

    def _made(self) -> "llguidance.LLTokenizer":
        with self._making:
            if self._tokenizer is None:
                self._tokenizer = _tokenizer(self._spelling())
            return self._tokenizer


def json_rule(schema: Mapping[str, Any]) -> str:
    """JSON by a schema, as one rule of a grammar in Lark's notation. Raises BadRequest for one nested too deeply."""
    return f"%json {json.dumps(_spaced(schema))}"


def _source(grammar: Grammar) -> str:
    """The grammar as llguidance takes it."""
    from llguidance import LLMatcher  # noqa: PLC0415

    _check_characters(grammar)
    if grammar.kind == "regex":
        return LLMatcher.grammar_from_regex(grammar.text)
    if grammar.kind == "lark":
        return LLMatcher.grammar_from_lark(grammar.text)
    schema = {"type": "object"} if grammar.kind == "json_object" else _parsed(grammar.text)
    return LLMatcher.grammar_from_json_schema(json.dumps(_spaced(schema)))


def _check_characters(grammar: Grammar) -> None:
    try:
        grammar.text.encode()
    except UnicodeEncodeError as error:
        broken = ascii(grammar.text[error.start])
        raise _bad(grammar.kind, f"it has {broken}, but half a surrogate pair is no character") from error


def _parsed(text: str) -> dict[str, Any]:
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _bad("json_schema", f"it is no JSON ({error})") from error
    if not isinstance(schema, dict):
        raise _bad("json_schema", f"it is {text[:40]!r}, but must be an object")
    return schema


def _spaced(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema with our own say on white space; nobody else has one."""
    if _is_deeper(schema, MAX_SCHEMA_DEPTH):
        raise _bad("json_schema", f"it is nested more than {MAX_SCHEMA_DEPTH} deep")
    return {**schema, "x-guidance": {"whitespace_pattern": SPACING}}


def _is_deeper(value: Any, depth: int) -> bool:
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, list):
        return False
    return depth == 0 or any(_is_deeper(each, depth - 1) for each in value)


def _tokenizer(spelling: Spelling) -> "llguidance.LLTokenizer":
    import llguidance  # noqa: PLC0415

    wrapper = llguidance.TokenizerWrapper(_AsAsked(spelling))
    return llguidance.LLTokenizer(wrapper, eos_token=list(spelling.eos_ids))


class _AsAsked:
    """A spelling under the names by which llguidance asks for it."""

    bos_token_id = None

    def __init__(self, spelling: Spelling) -> None:
        self.eos_token_id = spelling.eos_ids[0]
        self.tokens = spelling.tokens
        self.special_token_ids = spelling.control
        self._encode = spelling.encode

    def __call__(self, text: str) -> list[int]:
        return self._encode(text)


def _reason(error: str) -> str:
    """The first line of what llguidance says."""
    return error.strip().partition("\n")[0][:MAX_REASON] or "it fits no answer"


def _bad(kind: str, why: str) -> BadRequest:
    return BadRequest(f"the grammar ({kind}) cannot be followed: {why}", GRAMMAR)
