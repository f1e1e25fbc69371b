"""JSON and tools: what OpenAI's parameters for them mean for one model, and its answer as text and calls."""

import json
import re
from collections.abc import Collection, Iterable, Sequence
from hashlib import blake2b
from typing import Any

from engine.errors import BadRequest
from engine.execution.grammar import json_rule
from engine.request import Grammar
from engine.server.bodies import must, refused
from engine.text import CallFormat, CallPart, CallReader, ChatTemplate, Said, Text
from engine.text.tool_calls import MISTRAL

Tools = Sequence[dict[str, Any]]
Choice = str | dict[str, Any] | None

MAX_CALLS = 32
"""Calls in one forced answer: more than anybody means, and the answer ends."""

FORMATS = ("text", "json_object", "json_schema")
NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
ID_LETTERS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
ID_LENGTH = 9  # of calls of Mistral, whose template refuses all others


def check_response_format(wanted: dict[str, Any] | None) -> None:
    """Raises BadRequest for what is no format of an answer."""
    if wanted is None:
        return
    kind = wanted.get("type")
    must("response_format.type", kind, kind in FORMATS, f"one of {', '.join(FORMATS)}")
    if kind == "json_schema":
        given = wanted.get("json_schema")
        must("response_format.json_schema", given, isinstance(given, dict), "an object with a schema")
        schema = given.get("schema", {}) if isinstance(given, dict) else None
        must("response_format.json_schema.schema", schema, isinstance(schema, dict), "a JSON schema")


def check_tools(tools: Tools | None, tool_choice: Choice, most: int) -> None:
    """Raises BadRequest for tools and choices among them that no model could be given."""
    names: set[str] = set()
    if tools:
        count = len(tools)
        must("tools", f"a list of {count}", count <= most, f"at most {most} tools")
        for number, tool in enumerate(tools):
            _check_tool(f"tools[{number}]", tool, names)
    _check_choice(tool_choice, names)


def _check_tool(place: str, tool: dict[str, Any], names: set[str]) -> None:
    must(f"{place}.type", tool.get("type"), tool.get("type") == "function", '"function"')
    function = tool.get("function")
    if not isinstance(function, dict):
        raise refused(f"{place}.function", f"{place}.function must be an object with a name")
    name = function.get("name")
    is_name = isinstance(name, str) and NAME.fullmatch(name) is not None
    must(f"{place}.function.name", name, is_name, "1 to 64 of a-z, A-Z, 0-9, _ and -")
    must(f"{place}.function.name", name, name not in names, "another one for each tool")
    names.add(str(name))
    schema = function.get("parameters")
    is_schema = schema is None or (isinstance(schema, dict) and schema.get("type", "object") == "object")
    must(f"{place}.function.parameters", schema, is_schema, "the JSON schema of an object")


def _check_choice(choice: Choice, names: Collection[str]) -> None:
    if choice is None or choice == "none":
        return
    if isinstance(choice, dict):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        is_one = choice.get("type") == "function" and isinstance(name, str) and name in names
        must("tool_choice", choice, is_one, 'the name of one of the tools, as {"type": "function", ...}')
        return
    must("tool_choice", choice, choice in ("auto", "required"), "none, auto, required, or the name of a tool")
    must("tool_choice", choice, bool(names) or choice == "auto", "none or auto where there are no tools")


def offered(tools: Tools | None, tool_choice: Choice) -> Tools | None:
    """The tools that the model is told of, if any."""
    return tools if tools and tool_choice != "none" else None


def calls_of(
    text: Text, tools: Tools | None, tool_choice: Choice, able: Iterable[str] = ()
) -> CallFormat | None:
    """How the model will write calls; None where it is offered no tools.

    Raises BadRequest where its template knows of none, and names those that are `able`.
    """
    if offered(tools, tool_choice) is None:
        return None
    if text.calls is None:
        others = ", ".join(able)
        raise refused(
            "tools",
            "tools are given, but the model's chat template has none, or writes calls in a way that is not read here"
            + (f"; models that take tools: {others}" if others else ""),
        )
    return text.calls


def grammar_of(
    text: Text,
    response_format: dict[str, Any] | None,
    tools: Tools | None,
    tool_choice: Choice,
    *,
    is_parallel: bool = True,
) -> Grammar | None:
    """What holds the answer to what was asked for; None where it is free.

    A call that is required comes in the model's own format, with arguments by the tool's schema. Where tools may be
    called and the answer has a format too, it is one or the other. Raises BadRequest.
    """
    calls = calls_of(text, tools, tool_choice)
    schema = _schema(response_format)
    if calls is None or tools is None:
        return _json_grammar(response_format)
    is_forced = tool_choice == "required" or isinstance(tool_choice, dict)
    if not is_forced and schema is None:
        return None
    is_single = calls.is_single or not is_parallel or isinstance(tool_choice, dict)
    rules = _call_rules(text, calls, _chosen(tools, tool_choice), is_single=is_single)
    if is_forced or schema is None:
        return Grammar("lark", "\n".join(["start: calls", *rules]))
    answer = _rule("response_format.json_schema.schema", schema)
    return Grammar("lark", "\n".join(["start: calls | answer", *rules, f"answer: {answer}"]))


def _schema(response_format: dict[str, Any] | None) -> dict[str, Any] | None:
    """The schema of an answer in JSON."""
    kind = "text" if response_format is None else response_format["type"]
    if response_format is None or kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    schema: dict[str, Any] = response_format["json_schema"].get("schema", {"type": "object"})
    return schema


def _json_grammar(response_format: dict[str, Any] | None) -> Grammar | None:
    schema = _schema(response_format)
    if schema is None or response_format is None:
        return None
    if response_format["type"] == "json_object":
        return Grammar("json_object")
    return Grammar("json_schema", json.dumps(schema))


def _chosen(tools: Tools, tool_choice: Choice) -> Tools:
    """Those of the tools that may be called."""
    if not isinstance(tool_choice, dict):
        return tools
    return [tool for tool in tools if tool["function"]["name"] == tool_choice["function"]["name"]]


def _call_rules(text: Text, calls: CallFormat, tools: Tools, *, is_single: bool) -> list[str]:
    """Calls of these tools, as rules in Lark's notation. Spaces are where templates have them."""
    mark = json.dumps(calls.mark) if text.call_mark is None else f"<[{text.call_mark}]>"
    most = MAX_CALLS - 1  # beside the first one
    if calls.is_list:
        more = "" if is_single else f'(", " call){{0,{most}}} '
        around = f'calls: {mark} " "? "[" call {more}"]"'
    elif calls.is_bare:
        around = "calls: call"
    else:
        more = "" if is_single else f' ("\\n" marked){{0,{most}}}'
        end = json.dumps("\n" + calls.end)
        around = f'calls: marked{more}\nmarked: {mark} "\\n" call {end}'
    names = [f"call_{number}" for number in range(len(tools))]
    rules = [around, f"call: {' | '.join(names)}"]
    for number, tool in enumerate(tools):
        function = tool["function"]
        begin = f'{{"name": "{function["name"]}", "{calls.arguments}": '
        schema = function.get("parameters") or {
            "type": "object",
            "properties": {},
            "additionalProperties": False,
        }
        rules += [
            f'call_{number}: {json.dumps(begin)} arguments_{number} "}}"',
            f"arguments_{number}: {_rule(f'tools[{number}].function.parameters', {'type': 'object', **schema})}",
        ]
    return rules


def _rule(param: str, schema: dict[str, Any]) -> str:
    try:
        return json_rule(schema)
    except BadRequest as error:
        raise refused(param, f"{param}: {error}") from error


class Reading:
    """An answer as the client gets it: text, and calls where the model was offered tools."""

    def __init__(self, reader: CallReader | None = None) -> None:
        self._reader = reader

    def push(self, piece: str) -> list[Said]:
        """What is known to have been said with this piece of the answer."""
        if self._reader is None:
            return [piece] if piece else []
        return self._reader.push(piece)

    def finish(self) -> list[Said]:
        """What was held back at the end."""
        return [] if self._reader is None else self._reader.finish()

    @property
    def has_calls(self) -> bool:
        """Whether something is called: the answer then ends with "tool_calls", unless it was cut off."""
        return self._reader is not None and self._reader.num_calls > 0


def reading_of(
    text: Text, tools: Tools | None, tool_choice: Choice, request_id: str, *, is_parallel: bool = True
) -> Reading:
    """What reads one answer. Raises BadRequest as `calls_of` does."""
    calls = calls_of(text, tools, tool_choice)
    if calls is None or tools is None:
        return Reading()
    names = [tool["function"]["name"] for tool in tools]
    return Reading(CallReader(calls, names, request_id, most=None if is_parallel else 1))


def whole(said: Iterable[Said]) -> tuple[str | None, list[CallPart]]:
    """An answer that is told in one piece: its text (None: there is none) and its calls."""
    texts, calls = [], dict[int, CallPart]()
    for each in said:
        if isinstance(each, str):
            texts.append(each)
        elif each.name is not None:
            calls[each.index] = CallPart(each.index, each.arguments, each.id, each.name)
        else:
            calls[each.index].arguments += each.arguments
    content = "".join(texts)
    return (content if content or not calls else None), list(calls.values())


def turns_of(
    messages: Sequence[dict[str, Any]], chat: ChatTemplate, calls: CallFormat | None
) -> list[dict[str, Any]]:
    """A conversation as the model's template takes it.

    Arguments come from clients as JSON in a string; most templates want the object, some the string. Mistral's takes
    ids of nine letters alone. Raises BadRequest for arguments that are no object.
    """
    if not any(message.get("tool_calls") or message.get("tool_call_id") for message in messages):
        return list(messages)
    turns = [_turn(message, number, calls) for number, message in enumerate(messages)]
    return [_in_words(turn) for turn in turns] if _wants_words(chat) else turns


def _turn(message: dict[str, Any], number: int, calls: CallFormat | None) -> dict[str, Any]:
    turn = dict(message)
    short = calls is MISTRAL
    if short and turn.get("tool_call_id"):
        turn["tool_call_id"] = _short_id(turn["tool_call_id"])
    if turn.get("tool_calls"):
        turn["tool_calls"] = [
            {
                **call,
                "id": _short_id(call["id"]) if short else call["id"],
                "function": {
                    **call["function"],
                    "arguments": _object(
                        call["function"]["arguments"], f"messages[{number}].tool_calls[{place}]"
                    ),
                },
            }
            for place, call in enumerate(turn["tool_calls"])
        ]
    return turn


def _object(arguments: Any, place: str) -> dict[str, Any]:
    """Arguments as an object."""
    param = f"{place}.function.arguments"
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise refused(param, f"{param} is no JSON ({error})") from error
    must(param, arguments, isinstance(arguments, dict), "a JSON object in a string")
    found: dict[str, Any] = arguments
    return found


def _short_id(call_id: str) -> str:
    """The same nine letters for the same id."""
    if len(call_id) == ID_LENGTH and call_id.isalnum():
        return call_id
    digest = blake2b(call_id.encode("utf-8", "surrogatepass"), digest_size=ID_LENGTH).digest()
    return "".join([ID_LETTERS[byte % len(ID_LETTERS)] for byte in digest])


def _in_words(turn: dict[str, Any]) -> dict[str, Any]:
    if not turn.get("tool_calls"):
        return turn
    called = [
        {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
        for call in turn["tool_calls"]
    ]
    return {**turn, "tool_calls": called}


def _wants_words(chat: ChatTemplate) -> bool:
    """Whether a template sets arguments into its text as they are, and so fails on an object."""
    return _renders(chat, "{}") and not _renders(chat, {})


def _renders(chat: ChatTemplate, arguments: Any) -> bool:
    call: dict[str, Any] = {
        "id": "a" * ID_LENGTH,
        "type": "function",
        "function": {"name": "f", "arguments": arguments},
    }
    talk: list[dict[str, Any]] = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    try:
        chat.render(talk, add_generation_prompt=False)
    except BadRequest:
        return False
    return True
