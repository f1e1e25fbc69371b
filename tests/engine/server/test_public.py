"""OpenAI's routes over real HTTP, as httpx and the openai client see them."""

import json
from itertools import pairwise

import pytest
from openai import NotFoundError, PermissionDeniedError

from engine.server.gate import NOBODY
from engine.settings import RoutingSettings
from engine.telemetry import Ended
from tests.engine.server.conftest import modelled
from tests.engine.server.raw import new_key, quiet

HELLO = {"model": "llama", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}


def test_a_chat_is_answered_whole(plain):
    answer = plain.openai().chat.completions.create(**HELLO)
    choice = answer.choices[0]
    assert (answer.object, answer.model, choice.finish_reason) == ("chat.completion", "llama", "length")
    assert (choice.message.role, len(choice.message.content)) == ("assistant", 8)
    assert (answer.usage.completion_tokens, answer.usage.total_tokens) == (8, answer.usage.prompt_tokens + 8)


def test_a_streamed_chat_is_the_same_text_a_token_a_chunk(plain):
    client = plain.openai()
    asked = {**HELLO, "seed": 5, "max_tokens": 20}
    whole = client.chat.completions.create(**asked).choices[0].message.content
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert "".join(piece or "" for piece in pieces) == whole
    assert len([piece for piece in pieces if piece]) == 20
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "length"
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], 20)
    assert len({chunk.id for chunk in chunks}) == 1


def test_usage_is_in_a_stream_only_where_it_is_asked_for(plain):
    chunks = list(plain.openai().chat.completions.create(**HELLO, stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_events_end_with_done(plain):
    with plain.http().stream("POST", "/v1/chat/completions", json={**HELLO, "stream": True}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert all(
        json.loads(line.removeprefix("data: "))["object"] == "chat.completion.chunk" for line in lines[:-1]
    )


def test_several_choices_count_the_prompt_once(plain):
    answer = plain.openai().chat.completions.create(**HELLO, n=3)
    one = plain.openai().chat.completions.create(**HELLO)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage.prompt_tokens == one.usage.prompt_tokens
    assert answer.usage.completion_tokens == 24


def test_several_choices_stream_side_by_side(plain):
    chunks = list(plain.openai().chat.completions.create(**HELLO, n=3, stream=True))
    texts = dict.fromkeys(range(3), "")
    ends = []
    for chunk in chunks:
        choice = chunk.choices[0]
        texts[choice.index] += choice.delta.content or ""
        ends += [choice.index] if choice.finish_reason else []
    assert [len(text) for text in texts.values()] == [8, 8, 8]
    assert sorted(ends) == [0, 1, 2]


@pytest.mark.parametrize(
    ("prompt", "choices", "prompt_tokens"),
    [("hello", 1, 5), (["hello", "you"], 2, 8), ([1, 2, 3], 1, 3), ([[1, 2, 3], [4]], 2, 4)],
)
def test_completions_take_texts_and_tokens(plain, prompt, choices, prompt_tokens):
    answer = plain.openai().completions.create(model="llama", prompt=prompt, max_tokens=4)
    assert [choice.index for choice in answer.choices] == list(range(choices))
    assert all(len(choice.text) == 4 for choice in answer.choices)
    assert answer.usage.prompt_tokens == prompt_tokens
    assert answer.usage.completion_tokens == 4 * choices


def test_completions_stream(plain):
    chunks = list(plain.openai().completions.create(model="llama", prompt="hello", max_tokens=4, stream=True))
    assert len("".join(chunk.choices[0].text for chunk in chunks)) == 4
    assert chunks[-1].choices[0].finish_reason == "length"


def test_a_stop_string_ends_an_answer(plain):
    asked = {**HELLO, "max_tokens": 40}
    text = plain.openai().chat.completions.create(**asked).choices[0].message.content
    stop = text[11:14]
    stopped = plain.openai().chat.completions.create(**asked, stop=[stop]).choices[0]
    assert stopped.finish_reason == "stop"
    assert stopped.message.content == text[: text.index(stop)]


def test_an_answer_without_a_length_is_as_long_as_the_default(plain):
    asked = {name: value for name, value in HELLO.items() if name != "max_tokens"}
    answer = plain.openai().chat.completions.create(**asked)
    assert answer.usage.completion_tokens == plain.server.settings.default_max_tokens


def test_an_open_answer_ends_with_the_context(plain):
    prompt = "x" * 4000
    answer = plain.openai().completions.create(model="llama", prompt=prompt)
    assert answer.usage.completion_tokens == 96


def test_max_completion_tokens_goes_before_max_tokens(plain):
    answer = plain.openai().chat.completions.create(**HELLO, max_completion_tokens=3)
    assert answer.usage.completion_tokens == 3


@pytest.mark.parametrize("name", ["auto", "llama", "llama@1.0.0", "llama@^1", "tag:none"])
def test_names_mean_models(plain, name):
    answer = plain.http().post("/v1/chat/completions", json={**HELLO, "model": name})
    if name == "tag:none":
        assert answer.status_code == 404
    else:
        assert answer.json()["model"] == ("llama@1.0.0" if name == "auto" else name)
        assert answer.headers["x-modelyard-model"] == "llama@1.0.0"


def test_models_are_listed_and_told_one_by_one(plain):
    client = plain.openai()
    listed = client.models.list().data
    assert [model.id for model in listed] == ["llama"]
    assert client.models.retrieve("llama").id == "llama"
    assert plain.http().get("/v1/models/nope").status_code == 404


@pytest.mark.parametrize(
    ("path", "asked", "param"),
    [
        ("chat/completions", {"temperature": 5}, "temperature"),
        ("chat/completions", {"top_p": 0}, "top_p"),
        ("chat/completions", {"top_k": -3}, "top_k"),
        ("chat/completions", {"min_p": 2}, "min_p"),
        ("chat/completions", {"presence_penalty": 3}, "presence_penalty"),
        ("chat/completions", {"frequency_penalty": -3}, "frequency_penalty"),
        ("chat/completions", {"repetition_penalty": 0}, "repetition_penalty"),
        ("chat/completions", {"logit_bias": {"5": 101}}, "logit_bias"),
        ("chat/completions", {"logit_bias": {"50000": 1}}, "logit_bias"),
        ("chat/completions", {"max_tokens": 5_000}, "messages"),
        ("chat/completions", {"messages": [{"role": "user", "content": "word " * 5_000}]}, "messages"),
        ("chat/completions", {"messages": [{"role": "user", "content": "word " * 20_000}]}, "messages"),
        ("completions", {"prompt": "word " * 5_000}, "prompt"),
        ("completions", {"prompt": [50_000]}, "prompt"),
        ("completions", {"prompt": "word", "temperature": -1}, "temperature"),
    ],
)
def test_a_refusal_names_the_parameter(plain, path, asked, param):
    """Also where it is the engine that refuses, which knows no names of OpenAI's."""
    body = {**HELLO, **asked} if path.startswith("chat") else {"model": "llama", **asked}
    for stream in (False, True):
        answer = plain.http().post(f"/v1/{path}", json={**body, "stream": stream})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    status, _, told = plain.call(plain.server.public.ask, f"/v1/{path}", json.dumps(body).encode(), NOBODY)
    assert (status, json.loads(told)["error"]["param"]) == (400, param)


def test_groups_are_listed_like_models(serving, tmp_path):
    """Whoever offers a choice of models reads the list: what can be asked for by a name of the settings is in it."""
    groups = {"both": ["mistral", "llama"], "one": ["llama"], "nobody": ["tag:none"]}
    keys = tmp_path / "keys.yaml"
    everything = new_key(keys)
    few = new_key(keys, models=["llama"])
    with serving(
        modelled(models=("llama", "mistral"), routing=RoutingSettings(slow_start_s=0.0, groups=groups)),
        quiet(keys_file=str(keys)),
    ) as running:
        client = running.openai(everything)
        assert [model.id for model in client.models.list().data] == ["llama", "mistral", "both", "one"]
        both = client.models.retrieve("both")
        assert both.members == ["mistral@1.0.0", "llama@1.0.0"]
        assert (both.state, both.max_model_len, both.owned_by) == ("healthy", 4096, "modelyard")
        assert client.models.retrieve("auto").members == ["llama@1.0.0", "mistral@1.0.0"]
        assert client.chat.completions.create(**{**HELLO, "model": "both"}).model in both.members
        with pytest.raises(NotFoundError, match="no model is in group 'nobody'"):
            client.models.retrieve("nobody")
        restricted = running.openai(few)
        assert [model.id for model in restricted.models.list().data] == ["llama", "one"]
        with pytest.raises(PermissionDeniedError):
            restricted.models.retrieve("both")


def test_a_conversation_finds_its_earlier_turns_in_the_cache(plain):
    messages = [{"role": "user", "content": "Tell me of the sea, at some length, and of its tides."}]
    cached = []
    for turn in range(5):
        answer = plain.openai().chat.completions.create(model="llama", messages=messages, max_tokens=40)
        cached.append(answer.usage.prompt_tokens_details.cached_tokens)
        messages += [
            {"role": "assistant", "content": answer.choices[0].message.content},
            {"role": "user", "content": f"And what about question number {turn}?"},
        ]
    assert cached[0] == 0
    assert all(now > before for before, now in pairwise(cached)), cached


def test_a_session_stays_with_its_replica(plain):
    def replica(session):
        headers = {"X-Session-ID": session}
        return (
            plain.http()
            .post("/v1/chat/completions", json=HELLO, headers=headers)
            .headers["x-modelyard-replica"]
        )

    assert len({replica("mine") for _ in range(6)}) == 1
    assert len({replica(f"other {number}") for number in range(6)}) == 3


def test_health_and_readiness(plain):
    http = plain.http()
    assert http.get("/health").json() == {"status": "ok"}
    assert http.get("/ready").json() == {"status": "ready", "replicas": 3, "replicas_available": 3}


def test_metrics_are_scraped(plain):
    plain.openai().chat.completions.create(**HELLO)
    answer = plain.http().get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert "vllm:generation_tokens_total" in answer.text


@pytest.mark.parametrize(
    ("changed", "status", "code", "message"),
    [
        ({"model": "nope"}, 404, "model_not_found", "no model is called 'nope'; known are llama"),
        ({"temperature": 1e308}, 400, "bad_request", "temperature is 1e+308, but must be from 0 to 2"),
        ({"n": 10**9}, 400, "bad_request", "n is 1000000000, but must be from 1 to 16"),
        ({"max_tokens": -1}, 400, "bad_request", "max_tokens is -1, but must be 1 or more"),
        ({"max_tokens": 10**9}, 400, "context_length_exceeded", "do not fit 'llama@1.0.0'"),
        ({"max_tokens": "8"}, 400, "bad_request", 'max_tokens is "8", but must be int or null'),
        ({"messages": []}, 400, "bad_request", "messages has 0 turns, but must have 1 to 4096"),
        ({"messages": "hello"}, 400, "bad_request", 'messages is "hello", but must be array'),
        ({"bla": 1}, 400, "bad_request", "bla is not a field of this request"),
        ({"logit_bias": {"five": 1}}, 400, "bad_request", "logit_bias has 'five', but must have tokens"),
        (
            {"logit_bias": {"5": 101}},
            400,
            "bad_request",
            "logit_bias is {5: 101.0}, but must be from -100 to 100",
        ),
        (
            {"logit_bias": {"50000": 1}},
            400,
            "bad_request",
            "logit_bias has token 50000, which is not in the vocab",
        ),
        ({"presence_penalty": 2.5}, 400, "bad_request", "presence_penalty is 2.5, but must be from -2 to 2"),
        ({"stop": [""]}, 400, "bad_request", "stop is"),
        ({"stream_options": {"include_usage": True}}, 400, "bad_request", "only with stream true"),
    ],
)
def test_what_cannot_be_is_refused_by_name(plain, changed, status, code, message):
    answer = plain.http().post("/v1/chat/completions", json={**HELLO, **changed})
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"] == code
    assert message in error["message"]
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nope", 404), ("GET", "/v1/completions", 405)]
)
def test_what_is_not_there_is_told_in_the_same_shape(plain, method, path, status):
    answer = plain.http().request(method, path)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_request_keeps_the_name_its_client_gave_it(plain):
    http = plain.http()
    named = http.post("/v1/chat/completions", json=HELLO, headers={"x-request-id": "mine-1"})
    assert named.headers["x-request-id"] == "mine-1"
    unnamed = {http.post("/v1/chat/completions", json=HELLO).headers["x-request-id"] for _ in range(2)}
    assert len(unnamed) == 2
    assert (
        http.post("/v1/chat/completions", json={}, headers={"x-request-id": "mine-2"}).headers["x-request-id"]
        == "mine-2"
    )


def test_lines_of_batches_come_after_all_others(plain):
    seen = []
    holder = type(
        "Holder", (), {"id": "", "max_priority": None, "models": None, "may_use": lambda *_: True}
    )()

    class Priorities:
        def emit(self, event):
            if isinstance(event, Ended):
                seen.append(event.priority)

    plain.call(plain.server.engine.telemetry.add, Priorities())
    raw = json.dumps(HELLO).encode()
    status, _, body = plain.call(plain.server.public.ask, "/v1/chat/completions", raw, holder)
    assert (status, json.loads(body)["object"]) == (200, "chat.completion")
    assert seen == [plain.server.settings.jobs.batch_priority] == [-1]


def test_models_that_compute_in_no_time_are_chosen_from_by_their_caches(serving):
    """What a block saves there is nothing, which nothing is divided by."""
    routing = RoutingSettings(strategy="cache_aware", slow_start_s=0.0, groups={"both": ["llama", "mistral"]})
    with serving(modelled(models=("llama", "mistral"), routing=routing)) as found:
        asked = {"messages": [{"role": "user", "content": "words " * 40}], "max_tokens": 2}
        for model in ("both", "llama", "mistral", "both", "both"):
            answer = found.http().post("/v1/chat/completions", json={"model": model, **asked})
            assert answer.status_code == 200
