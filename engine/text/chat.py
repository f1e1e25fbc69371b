"""A model's chat template: messages become the prompt that the model was trained to answer.

Templates are programs in Jinja that come with untrusted files. They run in Jinja's sandbox, without loader, without
clock, on copies of plain data, and within bounds: so many turns of loops, so many characters.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from engine.errors import BadModel, BadRequest
from engine.formats import Checkpoint

if TYPE_CHECKING:
    from engine.text.tokenizer import Tokenizer

MAX_TEMPLATE_BYTES = 2**20
MAX_PROMPT_CHARACTERS = 16 * 2**20
MAX_MESSAGES_CHARACTERS = 4 * 2**20
MAX_TURNS = 100_000  # of all loops, and numbers of all ranges, together: 0.4 s
MAX_INDENT = 64

DEFAULT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)

_BUDGET = "0budget"  # no template can write this name
_PADDING = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs", "translate"})
_WIDTH = re.compile(r"%(\(.*?\))?[-+ #.]*[0-9*]")
_NOT_FOR_CHATS = (
    "batch",
    "center",
    "filesizeformat",
    "format",
    "pprint",
    "random",
    "slice",
    "urlize",
    "wordwrap",
)

Message = Mapping[str, Any]


class _Refused(Exception):
    """The template says itself that these messages are not for it."""


class _TooMuch(Exception):
    """The template does more than any chat needs."""


@dataclass(slots=True)
class _Budget:
    """What one rendering may still do."""

    turns: int = MAX_TURNS

    def turn(self) -> bool:
        """One turn of a loop; always true, so that it may stand in a condition."""
        self._spend(1)
        return True

    def range(self, *bounds: int) -> range:
        numbers = range(*bounds)
        self._spend(len(numbers))
        return numbers

    def _spend(self, turns: int) -> None:
        self.turns -= turns
        if self.turns < 0:
            raise _TooMuch(f"it loops more than {MAX_TURNS} times")

    def join(self, *parts: object) -> str:
        """What ~ does, as long as a prompt at most."""
        texts = [str(part) for part in parts]
        _check_length(sum(map(len, texts)))
        return "".join(texts)


def _check_length(characters: int) -> None:
    if characters > MAX_PROMPT_CHARACTERS:
        raise _TooMuch(f"it makes a text of {characters} characters, above {MAX_PROMPT_CHARACTERS}")


class _Bounded(NodeTransformer):
    """Puts the budget's bookkeeping into a template before it is compiled: each turn of a loop, each ~."""

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802 - Jinja looks the method up by this name
        self.generic_visit(node)
        turn = _budget_call("turn", [], node.lineno)
        if node.test is not None:
            node.test = nodes.And(turn, node.test, lineno=node.lineno)
        else:
            node.body.insert(0, nodes.ExprStmt(turn, lineno=node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Call:  # noqa: N802
        self.generic_visit(node)
        return _budget_call("join", node.nodes, node.lineno)


def _budget_call(method: str, arguments: list[nodes.Expr], line: int) -> nodes.Call:
    budget = nodes.Name(_BUDGET, "load", lineno=line)
    return nodes.Call(
        nodes.Getattr(budget, method, "load", lineno=line), arguments, [], None, None, lineno=line
    )


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, with bounds on operators and without methods that pad a text to any width."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and not (abs(left) <= 2**16 and abs(right) <= 2**8):
            raise _TooMuch(f"it computes {left!r} to the power of {right!r}")
        if operator == "%" and isinstance(left, str) and _WIDTH.search(left):
            raise _TooMuch("it formats with a width")
        if operator == "*":
            _check_product(left, right)
        if operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            _check_length(len(left) + len(right))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, function: Any, /, *arguments: Any, **named: Any) -> Any:
        text = getattr(function, "__self__", None)
        if isinstance(text, str):
            arguments = _checked(text, function.__name__, arguments)
        return super().call(context, function, *arguments, **named)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is not None and ":" in value.__self__:
            raise _TooMuch("it formats with a width")
        return wrapped

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str) and attr in _PADDING:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template: nodes.Template = _Bounded().visit(super()._parse(source, name, filename))
        return template


def _checked(text: str, method: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of a method of a text, once it is known that its result is no longer than a prompt."""
    if method == "replace" and len(arguments) > 1:
        _check_replaced(text, *arguments[:2])
    if method == "join" and arguments:
        parts = [str(part) for part in arguments[0]]
        _check_length(sum(map(len, parts)) + len(text) * len(parts))
        return (parts,)
    return arguments


def _check_replaced(text: str, old: str, new: str) -> None:
    _check_length(len(text) + text.count(old) * len(new))


def _check_product(left: Any, right: Any) -> None:
    for one, other in ((left, right), (right, left)):
        if isinstance(one, str | list | tuple) and isinstance(other, int):
            _check_length(len(one) * max(other, 0))
        if isinstance(one, int):
            _check_length(one.bit_length())


class _Generation(Extension):
    """{% generation %} marks what the model has written, for training. In a prompt it stands for what is inside."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class ChatTemplate:
    """The chat template of one model, compiled once, rendered for each conversation.

    `is_default`: the model has none, and turns are written as "role: content" lines, which no model was trained on.
    """

    def __init__(
        self, source: str | None, *, bos_token: str = "", eos_token: str = "", path: object = "chat template"
    ) -> None:
        """Raises BadModel, naming `path`, for a template that is too long or does not compile."""
        self.is_default = source is None
        self.source = DEFAULT_TEMPLATE if source is None else source
        self._path = path
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._template = self._compiled()

    def _compiled(self) -> jinja2.Template:
        size = len(self.source.encode("utf-8", "surrogatepass"))
        if size > MAX_TEMPLATE_BYTES:
            raise self._bad(f"has {size} bytes, but at most {MAX_TEMPLATE_BYTES} are allowed")
        try:
            return _environment().from_string(self.source)
        except (jinja2.TemplateError, SyntaxError, RecursionError, MemoryError) as error:
            raise self._bad(f"does not compile ({error})") from error

    def _bad(self, why: str) -> BadModel:
        return BadModel(self._path, f"its chat template {why}")

    def _bad_for_this(self, why: str) -> BadModel:
        """The same, for clients: without the folder of this machine that it lies in."""
        return BadModel(PurePath(str(self._path)).name, f"its chat template {why}")

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        strftime_now: Callable[[str], str] | None = None,
        **extra: Any,
    ) -> str:
        """The prompt as text. `strftime_now` tells the date in a given format; without it, templates know none.

        Raises BadRequest when the template refuses the messages or does not fit them, BadModel when it reaches for
        what the sandbox forbids or does more than any chat needs.
        """
        values = _copied({**extra, "messages": messages, "tools": tools}, str)
        return self._rendered(values, add_generation_prompt, strftime_now)

    def encode(
        self,
        messages: Sequence[Message],
        tokenizer: "Tokenizer",
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        strftime_now: Callable[[str], str] | None = None,
        **extra: Any,
    ) -> list[int]:
        """The prompt as tokens. Control tokens come from the template alone, never from a message or a tool.

        The tokens are those of the rendered text, except where a message reads like a control token: there they are
        the tokens of its letters. Raises as `render` does.
        """
        values = _copied({**extra, "messages": messages, "tools": tools}, tokenizer.marker.mark)
        return tokenizer.encode_marked(self._rendered(values, add_generation_prompt, strftime_now))

    def _at_once(self, values: dict[str, Any], add_generation_prompt: bool) -> str | None:
        """The default template without Jinja, a tenth of the time. None for what is more than plain turns."""
        turns = values["messages"]
        if values.keys() != PLAIN or not isinstance(turns, list) or len(turns) > MAX_TURNS:
            return None
        lines = [self._tokens["bos_token"]]
        for turn in turns:
            if not isinstance(turn, dict):
                return None
            role, content = turn.get("role"), turn.get("content")
            if not isinstance(role, str) or not isinstance(content, str):
                return None
            lines.append(f"{role}: {content}\n")
        return "".join([*lines, "assistant:"] if add_generation_prompt else lines)

    def _rendered(
        self, values: dict[str, Any], add_generation_prompt: bool, strftime_now: Callable[[str], str] | None
    ) -> str:
        if self.is_default and (plain := self._at_once(values, add_generation_prompt)) is not None:
            return plain
        budget = _Budget()
        values = {**self._tokens, "range": budget.range, **values, _BUDGET: budget}
        values["add_generation_prompt"] = add_generation_prompt
        if strftime_now is not None:
            values["strftime_now"] = strftime_now
        try:
            return _collected(self._template.generate(values))
        except _Refused as error:
            raise BadRequest(f"the chat template refuses the messages: {error}", "messages") from error
        except jinja2.exceptions.SecurityError as error:
            raise self._bad_for_this(f"reaches for what is forbidden ({error})") from error
        except (_TooMuch, OverflowError, MemoryError, RecursionError) as error:
            raise self._bad_for_this(
                f"does more than any chat needs: {str(error) or type(error).__name__}"
            ) from error
        except (
            jinja2.TemplateError,
            TypeError,
            ValueError,
            LookupError,
            AttributeError,
            ArithmeticError,
        ) as error:
            raise BadRequest(
                f"the messages do not fit the model's chat template: {error}", "messages"
            ) from error


PLAIN = {"messages", "tools"}


def chat_template_of(checkpoint: Checkpoint, tokenizer: "Tokenizer") -> ChatTemplate:
    """The template of a model, or the default one when its files have none."""
    return ChatTemplate(
        tokenizer.chat_template,
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        path=checkpoint.path,
    )


def _collected(pieces: Iterable[str]) -> str:
    collected, characters = [], 0
    for piece in pieces:
        collected.append(piece)
        characters += len(piece)
        _check_length(characters)
    return "".join(collected)


def _environment() -> _Sandbox:
    """What templates may use: the filters and tests of Jinja but a few, and what transformers gives them."""
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation])
    for name in _NOT_FOR_CHATS:
        del environment.filters[name]
    del environment.globals["lipsum"]
    environment.filters["tojson"] = _tojson
    environment.filters["indent"] = _indent
    environment.filters["join"] = _join
    environment.filters["replace"] = _replace
    environment.globals["raise_exception"] = _raise_exception
    return environment


def _raise_exception(message: object) -> NoReturn:
    raise _Refused(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    _check_indent(indent)
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    _check_indent(width)
    indented: str = jinja2.filters.do_indent(text, width, first, blank)
    return indented


@jinja2.pass_environment
def _join(
    environment: jinja2.Environment, value: Iterable[Any], d: str = "", attribute: str | None = None
) -> str:
    parts = value if attribute is None else map(jinja2.filters.make_attrgetter(environment, attribute), value)
    return str(d).join(_checked(str(d), "join", (parts,))[0])


def _replace(text: Any, old: str, new: str, count: int | None = None) -> str:
    _check_replaced(str(text), old, new)
    return str(text).replace(old, new, -1 if count is None else count)


def _check_indent(indent: int | str | None) -> None:
    width = len(indent) if isinstance(indent, str) else indent or 0
    if width > MAX_INDENT:
        raise _TooMuch(f"it indents by {width}, above {MAX_INDENT}")


def _copied(values: dict[str, Any], text: Callable[[str], str]) -> dict[str, Any]:
    """Plain copies of what the caller gave, each text passed through `text`, all of them no longer than allowed."""
    characters = 0

    def counted(piece: str) -> str:
        nonlocal characters
        characters += len(piece)
        if characters > MAX_MESSAGES_CHARACTERS:
            raise BadRequest(
                f"the messages are longer than {MAX_MESSAGES_CHARACTERS} characters, the most allowed"
            )
        return text(piece)

    try:
        return {name: _plain(value, counted) for name, value in values.items()}
    except RecursionError as error:
        raise BadRequest("the messages are nested too deeply, or hold themselves") from error


def _plain(value: Any, text: Callable[[str], str]) -> Any:
    """A copy made of nothing but JSON's own types, each text in it passed through `text`.

    Objects with methods stay outside: a template could call them.
    """
    if isinstance(value, str):
        return text(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {text(str(key)): _plain(item, text) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_plain(item, text) for item in value]
    raise BadRequest(f"messages hold a {type(value).__name__}, but must be plain JSON")
