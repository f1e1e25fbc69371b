"""JSON and tools for one model: forced calls are calls, the rest is text, and conversations fit the templates."""

import json
import random

import numpy as np
import pytest

from engine.errors import BadRequest
from engine.execution import Grammars, Spelling
from engine.formats import open_checkpoint
from engine.request import Grammar
from engine.server.tools import (
    Reading,
    calls_of,
    check_response_format,
    check_tools,
    grammar_of,
    offered,
    reading_of,
    turns_of,
    whole,
)
from engine.stand_ins import make_stand_ins
from engine.text import CallPart, ChatTemplate, text_of

LLAMA, QWEN, MISTRAL, PHI = (
    "Llama-3.3-70B-Instruct",
    "Qwen2.5-72B-Instruct",
    "Mistral-7B-Instruct-v0.3",
    "phi-4",
)
KNOWING = [LLAMA, QWEN, MISTRAL]

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Köln", "Rome"]}, "unit": {"$ref": "#/$defs/unit"}},
            "required": ["city", "unit"],
            "additionalProperties": False,
            "$defs": {"unit": {"enum": ["C", "F"]}},
        },
    },
}
PING = {"type": "function", "function": {"name": "ping"}}
TOOLS = [WEATHER, PING]
NAMED = {"type": "function", "function": {"name": "ping"}}
ANSWER = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["yes", "no"]}}}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    make_stand_ins(folder, [*KNOWING, PHI])
    return {name: text_of(open_checkpoint(folder / f"{name}-Q8_0.gguf")) for name in [*KNOWING, PHI]}


def answers(text, grammar, count=12):
    """Answers chosen by chance among all that the grammar allows, as the client's reader gets them."""
    tokenizer = text.tokenizer
    tokens = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
    encode = lambda words: tokenizer.encode(words, special=False)  # noqa: E731
    grammars = Grammars(lambda: Spelling(tokens, sorted(tokenizer.control), tokenizer.eos_ids, encode))
    compiled = grammars.compile(grammar)
    for seed in range(count):
        follower, chance, chosen, stream = compiled.follow(), random.Random(seed), [], text.stream()  # noqa: S311
        pieces = []
        while not chosen or chosen[-1] not in tokenizer.eos_ids:
            mask = np.frombuffer(follower.allowed(chosen), np.uint8)
            chosen.append(chance.choice(np.flatnonzero(np.unpackbits(mask, bitorder="little")).tolist()))
            if chosen[-1] not in tokenizer.eos_ids:
                pieces.append(stream.push(chosen[-1])[0])
        yield [*pieces, stream.flush()]


def read(text, pieces, choice="auto", **options):
    reading = reading_of(text, TOOLS, choice, "r", **options)
    said = [each for piece in pieces for each in reading.push(piece)]
    content, calls = whole(said + reading.finish())
    assert reading.has_calls == bool(calls)
    return content, calls


@pytest.mark.parametrize("name", KNOWING)
@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
def test_a_forced_call_is_a_call_by_its_schema_and_nothing_else(texts, name, choice):
    text = texts[name]
    names = set()
    for pieces in answers(text, grammar_of(text, None, TOOLS, choice)):
        content, calls = read(text, pieces, choice)
        assert content is None
        assert calls
        for call in calls:
            names.add(call.name)
            arguments = json.loads(call.arguments)
            if call.name == "ping":
                assert arguments == {}
            else:
                assert arguments["city"] in ("Köln", "Rome")
                assert arguments["unit"] in ("C", "F")
        if name == LLAMA or choice is NAMED:
            assert len(calls) == 1
    assert names == ({"ping"} if choice is NAMED else {"weather", "ping"})


@pytest.mark.parametrize("name", [QWEN, MISTRAL])
def test_calls_may_be_several_unless_the_client_wants_one(texts, name):
    text = texts[name]
    several = [len(read(text, each)[1]) for each in answers(text, grammar_of(text, None, TOOLS, "required"))]
    single = grammar_of(text, None, TOOLS, "required", is_parallel=False)
    assert max(several) > 1
    assert {len(read(text, each)[1]) for each in answers(text, single)} == {1}


@pytest.mark.parametrize("name", KNOWING)
def test_an_answer_with_a_format_is_that_or_a_call(texts, name):
    text = texts[name]
    found = [read(text, each) for each in answers(text, grammar_of(text, ANSWER, TOOLS, "auto"), 20)]
    contents = {content for content, calls in found if not calls}
    assert contents
    assert contents <= {'"yes"', '"no"'}
    assert any(calls for _, calls in found)


def test_what_is_free_has_no_grammar(texts):
    text = texts[QWEN]
    for wanted in None, {"type": "text"}:
        assert grammar_of(text, wanted, None, None) is None
        assert grammar_of(text, wanted, TOOLS, "auto") is None
        assert grammar_of(text, wanted, TOOLS, "none") is None


def test_json_without_tools_is_a_grammar_of_its_own(texts):
    text = texts[PHI]
    assert grammar_of(text, {"type": "json_object"}, None, None) == Grammar("json_object")
    schema = json.dumps({"enum": ["yes", "no"]})
    assert grammar_of(text, ANSWER, None, None) == Grammar("json_schema", schema)
    assert grammar_of(text, ANSWER, TOOLS, "none") == Grammar("json_schema", schema)


def test_a_tool_too_deep_is_refused_by_name(texts):
    deep = {"type": "string"}
    for _ in range(80):
        deep = {"type": "array", "items": deep}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": deep}}}}
    with pytest.raises(BadRequest, match="deep") as refusal:
        grammar_of(texts[QWEN], None, [tool], "required")
    assert refusal.value.param == "tools[0].function.parameters"


def test_tools_for_a_model_without_them_are_refused_with_those_that_have_some(texts):
    with pytest.raises(BadRequest, match="models that take tools: a, b") as refusal:
        calls_of(texts[PHI], TOOLS, "auto", ["a", "b"])
    assert refusal.value.param == "tools"
    assert calls_of(texts[PHI], TOOLS, "none") is None
    assert calls_of(texts[PHI], None, None) is None
    assert offered(TOOLS, "none") is None
    assert offered(TOOLS, None) is TOOLS


BAD_TOOLS = {
    "no function": ([{"type": "function"}], None, "tools[0].function"),
    "another type": ([{"type": "web_search"}], None, "tools[0].type"),
    "name": ([{"type": "function", "function": {"name": "a b"}}], None, "tools[0].function.name"),
    "long name": ([{"type": "function", "function": {"name": "a" * 65}}], None, "tools[0].function.name"),
    "no name": ([{"type": "function", "function": {}}], None, "tools[0].function.name"),
    "line end": ([{"type": "function", "function": {"name": "a\n"}}], None, "tools[0].function.name"),
    "twice": ([PING, PING], None, "tools[1].function.name"),
    "schema": (
        [{"type": "function", "function": {"name": "a", "parameters": []}}],
        None,
        "tools[0].function.parameters",
    ),
    "no object": (
        [{"type": "function", "function": {"name": "a", "parameters": {"type": "string"}}}],
        None,
        "tools[0].function.parameters",
    ),
    "many": ([{"type": "function", "function": {"name": f"f{n}"}} for n in range(5)], None, "tools"),
    "choice": (TOOLS, "any", "tool_choice"),
    "unknown name": (TOOLS, {"type": "function", "function": {"name": "pong"}}, "tool_choice"),
    "half a name": (TOOLS, {"type": "function"}, "tool_choice"),
    "list as name": (TOOLS, {"type": "function", "function": {"name": []}}, "tool_choice"),
    "required of none": (None, "required", "tool_choice"),
}


@pytest.mark.parametrize(("tools", "choice", "param"), BAD_TOOLS.values(), ids=BAD_TOOLS.keys())
def test_tools_that_nobody_could_call_are_refused_by_name(tools, choice, param):
    with pytest.raises(BadRequest, match="must be") as refusal:
        check_tools(tools, choice, 4)
    assert refusal.value.param == param


@pytest.mark.parametrize("choice", [None, "none", "auto", "required", NAMED], ids=str)
def test_tools_that_are_fine_pass(choice):
    check_tools(TOOLS, choice, 4)
    if choice in (None, "none", "auto"):
        check_tools(None, choice, 4)


@pytest.mark.parametrize(
    ("wanted", "param"),
    [
        ({}, "response_format.type"),
        ({"type": "xml"}, "response_format.type"),
        ({"type": "json_schema"}, "response_format.json_schema"),
        ({"type": "json_schema", "json_schema": {"schema": 1}}, "response_format.json_schema.schema"),
    ],
    ids=str,
)
def test_formats_that_are_none_are_refused_by_name(wanted, param):
    with pytest.raises(BadRequest, match="must be") as refusal:
        check_response_format(wanted)
    assert refusal.value.param == param


@pytest.mark.parametrize("wanted", [None, {"type": "text"}, {"type": "json_object"}, ANSWER], ids=str)
def test_formats_that_are_fine_pass(wanted):
    check_response_format(wanted)


def test_without_tools_an_answer_is_its_text():
    reading = Reading()
    assert reading.push("<tool_call>{") == ["<tool_call>{"]
    assert reading.push("") == []
    assert (reading.finish(), reading.has_calls) == ([], False)


def test_an_answer_in_one_piece():
    said = [
        "Well",
        CallPart(0, '{"a"', "id-0", "f"),
        CallPart(0, ": 1}"),
        CallPart(1, "{}", "id-1", "g"),
        " so",
    ]
    content, calls = whole(said)
    assert content == "Well so"
    assert calls == [CallPart(0, '{"a": 1}', "id-0", "f"), CallPart(1, "{}", "id-1", "g")]
    assert whole([]) == ("", [])


CALL = {
    "id": "call_0123456789",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Köln"}'},
}
TALK = [
    {"role": "user", "content": "Is it warm?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_0123456789", "content": "25 C"},
]


@pytest.mark.parametrize("name", KNOWING)
def test_a_conversation_with_calls_is_written_as_the_model_writes_them(texts, name):
    text = texts[name]
    prompt = text.chat.render(turns_of(TALK, text.chat, text.calls), tools=TOOLS)
    assert f'{{"name": "weather", "{text.calls.arguments}": {{"city": "Köln"}}' in prompt
    assert "25 C" in prompt
    begin = prompt.index('{"name": "weather", "' + text.calls.arguments)
    written = prompt[begin : prompt.index(text.tokenizer.eos_token, begin)]
    if name == MISTRAL:
        written = text.calls.mark + " [" + written
    elif name == QWEN:
        written = text.calls.mark + "\n" + written
    assert [call.name for call in read(text, [written])[1]] == ["weather"]


def test_ids_are_as_short_as_mistral_wants_them_and_still_fit_together(texts):
    turns = turns_of(TALK, texts[MISTRAL].chat, texts[MISTRAL].calls)
    short = turns[1]["tool_calls"][0]["id"]
    assert (len(short), short.isalnum(), turns[2]["tool_call_id"]) == (9, True, short)
    kept = [{**TALK[1], "tool_calls": [{**CALL, "id": "abcdefgh9"}]}]
    assert turns_of(kept, texts[MISTRAL].chat, texts[MISTRAL].calls)[0]["tool_calls"][0]["id"] == "abcdefgh9"
    assert turns_of(TALK, texts[QWEN].chat, texts[QWEN].calls)[1]["tool_calls"][0]["id"] == CALL["id"]


def test_a_template_that_adds_arguments_to_its_text_gets_a_text():
    chat = ChatTemplate(
        "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}"
        "{{ '<' + c.function.name + c.function.arguments + '>' }}{% endfor %}{% endfor %}"
    )
    assert chat.render(turns_of(TALK, chat, None)) == 'Is it warm?<weather{"city": "K\\u00f6ln"}>25 C'


def test_talk_without_calls_is_left_alone():
    talk = TALK[:1]
    assert turns_of(talk, ChatTemplate(None), None) == talk


@pytest.mark.parametrize(
    "arguments", ["{", "[1]", "1", '"x"', "[" * 100_000], ids=["open", "list", "number", "text", "deep"]
)
def test_arguments_that_are_no_object_are_refused_by_name(arguments):
    call = {**CALL, "function": {"name": "weather", "arguments": arguments}}
    with pytest.raises(BadRequest) as refusal:
        turns_of([{"role": "assistant", "content": "", "tool_calls": [call]}], ChatTemplate(None), None)
    assert refusal.value.param == "messages[0].tool_calls[0].function.arguments"
