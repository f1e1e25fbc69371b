"""Tool calls are found however the text is cut, and what only looks like one is text."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.text.chat import ChatTemplate
from engine.text.tool_calls import (
    FUNCTOOLS,
    HERMES,
    LLAMA,
    MAX_HELD_CHARACTERS,
    MISTRAL,
    CallPart,
    CallReader,
    call_id,
    format_of,
    has_tools,
)

STEADY = settings(derandomize=True, deadline=None, max_examples=80)
TOOLS = ("weather", "add")
PARIS = '{"city": "Paris", "days": [1, {"k": null}]}'


def merged(said):
    """All that was said, text in one piece, and calls as (name, arguments)."""
    found = []
    for each in said:
        if isinstance(each, str) and found and isinstance(found[-1], str):
            found[-1] += each
        elif isinstance(each, str):
            found.append(each)
        elif each.name is not None:
            found.append((each.name, each.arguments))
        else:
            name, arguments = found[each.index - sum(isinstance(e, tuple) for e in found)]
            found[-1] = (name, arguments + each.arguments)
    return found


def read(calls, pieces, **options):
    reader = CallReader(calls, TOOLS, "r-1", **options)
    said = [each for piece in pieces for each in reader.push(piece)]
    return merged(said + reader.finish())


def call(name, arguments=PARIS, key="arguments"):
    return f'{{"name": "{name}", "{key}": {arguments}}}'


W = ("weather", PARIS)
SUM = ("add", "{}")
CASES = {
    "one": (HERMES, f"<tool_call>\n{call('weather')}\n</tool_call>", [W]),
    "two": (
        HERMES,
        f"<tool_call>\n{call('weather')}\n</tool_call>\n<tool_call>\n{call('add', '{}')}\n</tool_call>\n",
        [W, SUM],
    ),
    "text before": (HERMES, f"Let me see.\n<tool_call>{call('weather')}</tool_call>", ["Let me see.", W]),
    "text behind": (HERMES, f"<tool_call>{call('weather')}</tool_call> Done.", [W, " Done."]),
    "no end": (HERMES, f"<tool_call>{call('weather')}", [W]),
    "other end": (HERMES, f"<tool_call>{call('weather')}</tool>", [W, "</tool>"]),
    "arguments first": (HERMES, f'<tool_call>{{"arguments": {PARIS}, "name": "weather"}}</tool_call>', [W]),
    "more members": (
        HERMES,
        f'<tool_call>{{"id": "7", "name": "weather", "arguments": {PARIS}}}</tool_call>',
        [W],
    ),
    "no arguments": (HERMES, '<tool_call>{"name": "add"}</tool_call>', [SUM]),
    "parameters": (HERMES, f"<tool_call>{call('weather', key='parameters')}</tool_call>", [W]),
    "escapes": (
        HERMES,
        '<tool_call>{"name": "w\\u0065ather", "arguments": {"a": "\\"}"}}</tool_call>',
        [("weather", '{"a": "\\"}"}')],
    ),
    "marks in arguments": (
        HERMES,
        '<tool_call>{"name": "add", "arguments": {"a": "</tool_call>"}}</tool_call>',
        [("add", '{"a": "</tool_call>"}')],
    ),
    "cut off early": (HERMES, '<tool_call>\n{"name": "wea', ['<tool_call>\n{"name": "wea']),
    "cut off late": (HERMES, '<tool_call>{"name": "add", "arguments": {"a": [1', [("add", '{"a": [1')]),
    "broken early": (HERMES, "<tool_call>{'name': 1}</tool_call>", ["<tool_call>{'name': 1}</tool_call>"]),
    "broken late": (HERMES, '<tool_call>{"name": "add", "arguments": {"a": x}}', [("add", '{"a": '), "x}}"]),
    "text as arguments": (
        HERMES,
        '<tool_call>{"name": "add", "arguments": "{}"}',
        ['<tool_call>{"name": "add", "arguments": "{}"}'],
    ),
    "two arguments": (
        HERMES,
        '<tool_call>{"arguments": {}, "parameters": {}, "name": "add"}',
        ['<tool_call>{"arguments": {}, "parameters": {}, "name": "add"}'],
    ),
    "unknown tool": (
        HERMES,
        f"<tool_call>{call('sub')}</tool_call>",
        [f"<tool_call>{call('sub')}</tool_call>"],
    ),
    "only the mark": (HERMES, "<tool_call> is how it begins", ["<tool_call> is how it begins"]),
    "mark in mark": (HERMES, f"<tool_<tool_call>{call('add', '{}')}", ["<tool_", SUM]),
    "marks twice": (HERMES, f"<tool_call><tool_call>{call('add', '{}')}", ["<tool_call>", SUM]),
    "nearly": (HERMES, "a < b, <tool", ["a < b, <tool"]),
    "plain": (HERMES, "  Hello\n\nthere ", ["  Hello\n\nthere "]),
    "bare": (LLAMA, call("weather", key="parameters"), [W]),
    "bare behind blanks": (LLAMA, f"\n {call('weather', key='parameters')}", [W]),
    "with tag": (LLAMA, f"<|python_tag|>{call('weather', key='parameters')}", [W]),
    "semicolon": (LLAMA, f"{call('weather', key='parameters')}; {call('add', '{}', 'parameters')}", [W, SUM]),
    "bare, then text": (LLAMA, f"{call('weather', key='parameters')} \n Done.", [W, " \n Done."]),
    "typed": (LLAMA, f'{{"type": "function", "name": "weather", "parameters": {PARIS}}}', [W]),
    "other JSON": (LLAMA, '{"answer": 42}', ['{"answer": 42}']),
    "JSON in text": (LLAMA, f"It is {call('add', '{}')}", [f"It is {call('add', '{}')}"]),
    "no object": (LLAMA, "{x}", ["{x}"]),
    "a list": (LLAMA, "[1, 2]", ["[1, 2]"]),
    "code": (LLAMA, "<|python_tag|>print(1)", ["<|python_tag|>print(1)"]),
    "list of one": (MISTRAL, f"[TOOL_CALLS] [{call('weather')}]", [W]),
    "list of two": (MISTRAL, f"[TOOL_CALLS][{call('weather')}, {call('add', '{}')}]", [W, SUM]),
    "broken list": (MISTRAL, f"[TOOL_CALLS][{call('weather')}, 7]", [W, ", 7]"]),
    "not closed": (MISTRAL, f"[TOOL_CALLS][{call('weather')}", [W]),
    "empty list": (MISTRAL, "[TOOL_CALLS] []", ["[TOOL_CALLS] []"]),
    "nested list": (MISTRAL, "[TOOL_CALLS] [[", ["[TOOL_CALLS] [["]),
    "no list": (MISTRAL, f"[TOOL_CALLS] {call('add')}", [f"[TOOL_CALLS] {call('add')}"]),
    "functools": (FUNCTOOLS, f"functools[{call('weather')}]", [W]),
}


@pytest.mark.parametrize(("calls", "text", "expected"), CASES.values(), ids=CASES.keys())
def test_calls_are_found_and_all_else_is_text(calls, text, expected):
    assert read(calls, [text]) == expected
    assert read(calls, text) == expected  # character by character
    for cut in range(1, len(text)):
        assert read(calls, [text[:cut], text[cut:]]) == expected


PARTS = [
    "<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "functools", "[", "]", "{", "}", ",", ";", ":",
    '"name"', '"arguments"', '"parameters"', '"id"', '"weather"', '"add"', '"', "\\", " ", "\n", "1", "text", "<tool",
    call("weather"), call("add", "{}", "parameters"),
]  # fmt: skip


@STEADY
@given(
    st.sampled_from([HERMES, LLAMA, MISTRAL, FUNCTOOLS]),
    st.lists(st.sampled_from(PARTS), max_size=14),
    st.data(),
)
def test_nothing_is_lost_and_cuts_change_nothing(calls, parts, data):
    text = "".join(parts)
    whole = read(calls, [text])
    assert read(calls, text) == whole
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=4)))
    assert read(calls, [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]) == whole
    if not any(isinstance(each, tuple) for each in whole):
        assert "".join(whole) == text
    for each in whole:
        if isinstance(each, tuple):
            assert each[0] in TOOLS
            assert each[1] in text or each[1] == "{}"


def test_arguments_come_as_they_are_written():
    reader = CallReader(HERMES, TOOLS, "r-1")
    assert reader.push("Well <tool_") == ["Well"]
    assert reader.push('call>\n{"name": "weather", "arg') == []
    assert reader.push('uments": {"city"') == [CallPart(0, '{"city"', call_id("r-1", 0), "weather")]
    assert reader.push(': "Par') == [CallPart(0, ': "Par')]
    assert reader.push('is"}') == [CallPart(0, 'is"}')]
    assert reader.push("}\n</tool_call>\n") == []
    assert reader.finish() == []
    assert reader.num_calls == 1


def test_other_json_is_text_as_soon_as_that_is_known():
    reader = CallReader(LLAMA, TOOLS, "r-1")
    assert reader.push(' {"answer"') == [' {"answer"']
    assert reader.push(": [1") == [": [1"]


def test_calls_beyond_the_most_are_left_out():
    text = f"<tool_call>{call('weather')}</tool_call><tool_call>{call('add')}</tool_call>"
    assert read(HERMES, text, most=1) == [W]


def test_no_more_is_held_back_than_a_call_may_be_long():
    reader = CallReader(HERMES, TOOLS, "r-1")
    begin = '<tool_call>{"arguments": {"a": "'
    said = reader.push(begin + "x" * MAX_HELD_CHARACTERS)
    assert said == [begin + "x" * MAX_HELD_CHARACTERS]


def test_ids_are_told_by_request_and_place():
    assert call_id("a", 0) == call_id("a", 0)
    assert len({call_id("a", 0), call_id("a", 1), call_id("b", 0)}) == 3
    assert call_id("a", 0).startswith("call_")


TEMPLATES = {
    '{% if tools %}<tool_call>{"name": <n>, "arguments": <a>}</tool_call>{% endif %}': HERMES,
    "{% if tools is not none %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS]": MISTRAL,
    '<|start_header_id|>{% for t in tools %}"parameters"{% endfor %}': LLAMA,
    "{{ tools }} functools[": FUNCTOOLS,
    "{% if tools %}<tool_call><function=x>{% endif %}": None,
    "{% if tools %}[TOOL_CALLS]f[ARGS]{}{% endif %}": None,
    "{% if tools %}anything{% endif %}": None,
    "<tool_call> without any": None,
    None: None,
}


@pytest.mark.parametrize(("source", "expected"), TEMPLATES.items(), ids=range(len(TEMPLATES)))
def test_templates_say_how_calls_are_written(source, expected):
    chat = ChatTemplate(source)
    assert format_of(chat) == expected
    assert has_tools(chat) == (expected is not None)


def test_what_others_write_as_json_is_read():
    arguments = {"a": [1.5, None, "ü\n"], "b": {}}
    text = json.dumps({"name": "add", "arguments": arguments}, indent=2)
    [(name, found)] = read(HERMES, f"<tool_call>{text}</tool_call>")
    assert (name, json.loads(found)) == ("add", arguments)
