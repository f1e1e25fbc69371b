"""JSON answers and tool calls through the real client: small torch stand-ins with templates of the real models."""

import json

import pytest

from engine.server.settings import LogSettings, ServerSettings
from engine.server.settings_file import deployment
from engine.stand_ins import make_stand_ins

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "enum": ["Oslo", "Bergen"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 9},
            },
            "required": ["place", "days"],
            "additionalProperties": False,
        },
    },
}
ASKED = {"messages": [{"role": "user", "content": "How is the weather?"}], "max_tokens": 200, "seed": 3}
FORMAT = {
    "type": "json_schema",
    "json_schema": {
        "name": "city",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "enum": ["Oslo", "Bergen"]},
                "coast": {"type": "boolean"},
            },
            "required": ["city", "coast"],
            "additionalProperties": False,
        },
    },
}

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def models(serving, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    paths = make_stand_ins(folder, ["Qwen2.5-72B-Instruct", "gemma-2-9b-it"])
    lines = "\n".join(f"    - {path}" for path in paths)
    file = folder / "settings.yaml"
    file.write_text(f"fleet:\n  models:\n{lines}\n")
    with serving(
        deployment(file).engine, ServerSettings(port=0, admin_port=0, log=LogSettings(level="off"))
    ) as found:
        yield found


QWEN = "qwen2.5-72b-instruct"
GEMMA = "gemma-2-9b-it"


def test_a_required_call_is_one_that_the_schema_allows(models):
    answer = models.openai().chat.completions.create(
        model=QWEN, **ASKED, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False
    )
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    call = choice.message.tool_calls[0]
    assert (call.type, call.function.name) == ("function", "get_weather")
    arguments = json.loads(call.function.arguments)
    assert arguments["place"] in ("Oslo", "Bergen")
    assert 1 <= arguments["days"] <= 9


def test_a_streamed_call_is_the_same_call(models):
    client = models.openai()
    asked = {**ASKED, "model": QWEN, "tools": [WEATHER], "parallel_tool_calls": False}
    asked["tool_choice"] = {"type": "function", "function": {"name": "get_weather"}}
    whole = client.chat.completions.create(**asked).choices[0].message.tool_calls[0]
    name, arguments, end = [], [], None
    for chunk in client.chat.completions.create(**asked, stream=True):
        choice = chunk.choices[0]
        for delta in choice.delta.tool_calls or []:
            assert delta.index == 0
            name += [delta.function.name] if delta.function.name else []
            arguments.append(delta.function.arguments)
        end = choice.finish_reason or end
    assert name == ["get_weather"]
    assert "".join(arguments) == whole.function.arguments
    assert end == "tool_calls"


def test_a_call_and_its_result_go_back_to_the_model(models):
    client = models.openai()
    first = client.chat.completions.create(
        model=QWEN, **ASKED, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False
    ).choices[0]
    call = first.message.tool_calls[0]
    talk = [
        *ASKED["messages"],
        first.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "Rain."},
    ]
    second = client.chat.completions.create(model=QWEN, messages=talk, tools=[WEATHER], max_tokens=8)
    assert second.usage.completion_tokens == 8
    assert second.usage.prompt_tokens_details.cached_tokens > 0


@pytest.mark.parametrize("is_stream", [False, True])
def test_json_by_a_schema(models, is_stream):
    answer = models.openai().chat.completions.create(
        model=QWEN, **ASKED, response_format=FORMAT, stream=is_stream
    )
    if is_stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in answer)
    else:
        text = answer.choices[0].message.content
        assert answer.choices[0].finish_reason == "stop"
    found = json.loads(text)
    assert found["city"] in ("Oslo", "Bergen")
    assert isinstance(found["coast"], bool)


def test_tools_are_refused_where_the_template_has_none(models):
    body = {"model": GEMMA, **ASKED, "tools": [WEATHER]}
    answer = models.http().post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == "tools"
    assert f"{QWEN}@" in error["message"]
    allowed = models.http().post(
        "/v1/chat/completions", json={**body, "tool_choice": "none", "max_tokens": 4}
    )
    assert allowed.status_code == 200, allowed.text


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "not a name"}}]}, "tools[0].function.name"),
        ({"tools": [WEATHER], "tool_choice": "sometimes"}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": 5}}},
            "response_format.json_schema.schema",
        ),
    ],
)
def test_what_cannot_be_asked_for_is_refused_by_name(models, changed, param):
    answer = models.http().post("/v1/chat/completions", json={"model": QWEN, **ASKED, **changed})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


FOLLOWED_BY_NOBODY = {"type": "object", "properties": {"a": {"$ref": "#/$defs/none"}}}
TOOL_OF_NOBODY = {"type": "function", "function": {"name": "f", "parameters": FOLLOWED_BY_NOBODY}}
FORMAT_OF_NOBODY = {"type": "json_schema", "json_schema": {"name": "f", "schema": FOLLOWED_BY_NOBODY}}


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"response_format": FORMAT_OF_NOBODY}, "response_format"),
        ({"tools": [TOOL_OF_NOBODY], "tool_choice": "required"}, "tools"),
        (
            {"tools": [TOOL_OF_NOBODY], "tool_choice": "required", "response_format": {"type": "text"}},
            "tools",
        ),
    ],
)
def test_what_no_answer_can_follow_is_refused_by_the_field_that_asks_for_it(
    models, changed, param, is_stream
):
    body = {"model": QWEN, **ASKED, **changed, "stream": is_stream}
    answer = models.http().post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert "cannot be followed" in answer.json()["error"]["message"]
    assert answer.json()["error"]["param"] == param
