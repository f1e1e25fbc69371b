"""The real `openai` client against the real server and real passes: what people type works as OpenAI has it."""

import asyncio
import os
from itertools import pairwise
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
import torch

from engine.command.fetch import OFFERS
from engine.formats import open_checkpoint
from engine.registry import Model
from engine.request import Request, Sampling
from engine.server.key_file import add_key
from engine.server.settings import LimitsSettings, ServerSettings
from engine.settings import (
    THIS_MACHINE,
    AllowanceSettings,
    EngineSettings,
    ExecutorSettings,
    FleetSettings,
    HealthSettings,
    QuotaSettings,
)
from engine.stand_ins import make_stand_ins

pytestmark = pytest.mark.torch

MISTRAL, PHI = "Mistral-7B-Instruct-v0.3", "phi-4"
SAY = [{"role": "user", "content": "What is kept, and what has to go?"}]
GREEDY = {"temperature": 0, "extra_body": {"ignore_eos": True}}
NEAR = 2e-4  # of a logprob: one token at a time and all of them at once round differently


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    """What a fleet needs to know of two small models on disk."""
    folder = tmp_path_factory.mktemp("models")
    return served_from(make_stand_ins(folder, [MISTRAL, PHI], formats=("safetensors",)))


def served_from(paths):
    return [Model.from_checkpoint(open_checkpoint(path)).settings for path in paths]


def computing(models, **changed):
    """One replica of each, which really computes."""
    return EngineSettings(
        fleet=FleetSettings(models=models, replicas={model.name: model.name for model in models}),
        executor=ExecutorSettings(name="torch"),
        hardware=THIS_MACHINE,
        health=HealthSettings(probes=False),
        **changed,
    )


@pytest.fixture(scope="module")
def served(serving, stand_ins):
    with serving(computing(stand_ins)) as running:
        yield running


@pytest.fixture(scope="module")
def name(stand_ins):
    """Of the model that most tests ask."""
    return stand_ins[0].name


@pytest.fixture
def ask(served, name):
    def create(messages=SAY, **options):
        chosen = {"model": name, "max_tokens": 12, **options}
        return served.openai().chat.completions.create(messages=messages, **chosen)

    return create


def home_of(served, name):
    engine = served.server.engine
    return engine.fleet.homes[engine.registry.find(name).key]


def encoded(served, name, messages):
    """The prompt's tokens, as the model's own template has them."""
    text = home_of(served, name).text
    return list(text.chat.encode(messages, text.tokenizer))


@torch.inference_mode()
def scored(served, name, tokens, first):
    """Log-probabilities of the token at each place from `first` on, by one pass over all of them."""
    decoder = home_of(served, name).executor._model
    shape = decoder.shape
    kv = torch.zeros((shape.layers, 2, shape.kv_heads, len(tokens), shape.head_dim))
    hidden = decoder.prefill(torch.tensor(tokens), kv, 0)
    return decoder.logits(hidden[first - 1 : -1]).log_softmax(-1)


def drawn(served, name, prompt, count, seed):
    """The tokens that the engine itself says to that prompt, past the server."""
    tokens = np.array(prompt, dtype=np.int32)
    sampling = Sampling(temperature=1, seed=seed)
    request = Request(10**9, name, tokens, count, served.server.clock.now_ns(), sampling=sampling)
    return list(served.call(served.server.engine.serve, request).tokens)


def test_whole_and_streamed_answers_are_the_same(ask):
    whole = ask(**GREEDY)
    chunks = list(ask(**GREEDY, stream=True, stream_options={"include_usage": True}))
    assert "".join(each.choices[0].delta.content or "" for each in chunks if each.choices) == (
        whole.choices[0].message.content
    )
    assert whole.choices[0].finish_reason == chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 12


def test_usage_is_what_the_template_and_the_answer_have(served, name, ask):
    answer = ask(max_tokens=7, **GREEDY)
    assert answer.usage.prompt_tokens == len(encoded(served, name, SAY))
    assert answer.usage.completion_tokens == 7
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 7


def test_the_same_seed_says_the_same_and_another_one_something_else(ask):
    said = [ask(temperature=1, seed=seed).choices[0].message.content for seed in (5, 5, 6)]
    assert said[0] == said[1] != said[2]


def test_each_of_several_choices_is_what_its_own_seed_says(ask):
    several = ask(temperature=1, seed=40, n=3)
    alone = [ask(temperature=1, seed=40 + number).choices[0].message.content for number in range(3)]
    assert [choice.message.content for choice in several.choices] == alone
    assert len(set(alone)) == 3


def test_a_stop_string_is_not_said(ask):
    text = ask(**GREEDY, max_tokens=40).choices[0].message.content
    stop = text[9:13]
    stopped = ask(**GREEDY, max_tokens=40, stop=stop).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == (text[: text.index(stop)], "stop")
    chunks = list(ask(**GREEDY, max_tokens=40, stop=stop, stream=True))
    assert "".join(each.choices[0].delta.content or "" for each in chunks) == stopped.message.content


def test_logprobs_of_a_chat_are_those_of_the_model(served, name, ask):
    told = ask(**GREEDY, logprobs=True, top_logprobs=3).choices[0]
    tokenizer = home_of(served, name).text.tokenizer
    tokens = encoded(served, name, SAY)
    for entry in told.logprobs.content:
        row = scored(served, name, [*tokens, 0], len(tokens))[0]
        best = row.topk(3)
        assert entry.logprob == pytest.approx(best.values[0].item(), abs=NEAR)
        assert [top.logprob for top in entry.top_logprobs] == pytest.approx(best.values.tolist(), abs=NEAR)
        assert [bytes(top.bytes) for top in entry.top_logprobs] == [
            tokenizer.token_bytes(each) for each in best.indices.tolist()
        ]
        assert bytes(entry.bytes) == tokenizer.token_bytes(best.indices[0].item())
        tokens.append(best.indices[0].item())
    assert len(told.logprobs.content) == 12
    said = b"".join(bytes(entry.bytes) for entry in told.logprobs.content)
    assert said.decode("utf-8", "replace") == told.message.content


def test_logprobs_come_with_the_tokens_of_a_stream(ask):
    whole = ask(**GREEDY, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    chunks = list(ask(**GREEDY, logprobs=True, top_logprobs=2, stream=True))
    streamed = [
        entry for each in chunks if each.choices[0].logprobs for entry in each.choices[0].logprobs.content
    ]
    assert [entry.token for entry in streamed] == [entry.token for entry in whole]
    assert [entry.logprob for entry in streamed] == pytest.approx(
        [entry.logprob for entry in whole], abs=NEAR
    )


def test_logprobs_of_a_completion_are_those_of_the_model(served, name):
    prompt = home_of(served, name).text.tokenizer.encode("A block of the cache")
    answer = served.openai().completions.create(
        model=name, prompt=prompt, max_tokens=10, logprobs=2, temperature=1, seed=3
    )
    told, tokenizer = answer.choices[0].logprobs, home_of(served, name).text.tokenizer
    chosen = drawn(served, name, prompt, 10, seed=3)
    assert told.tokens == [tokenizer.token_text(token) for token in chosen]
    rows = scored(served, name, [*prompt, *chosen], len(prompt))
    assert told.token_logprobs == pytest.approx(
        [row[token].item() for row, token in zip(rows, chosen, strict=True)], abs=NEAR
    )
    for row, top in zip(rows, told.top_logprobs, strict=True):
        best = row.topk(2)
        texts = map(tokenizer.token_text, best.indices.tolist())
        assert top == pytest.approx(dict(zip(texts, best.values.tolist(), strict=True)), abs=NEAR)
    assert told.text_offset == [len("".join(told.tokens[:place])) for place in range(len(told.tokens))]
    assert answer.usage.prompt_tokens == len(prompt)


def test_five_turns_find_what_was_said_in_the_cache(served, name):
    check_five_turns(served.openai(), name, served, max_tokens=24)


def check_five_turns(client, name, served, **options):
    """From the second turn on, all of the turn before is found but a part of a block."""
    messages = [{"role": "user", "content": "Tell me of the mountains, the weather there, and the lake."}]
    before, block = 0, served.server.engine.settings.cache.block_tokens
    cached = []
    for turn in range(5):
        answer = client.chat.completions.create(
            model=name, messages=messages, user="talker", temperature=0, **options
        )
        usage = answer.usage
        cached.append(usage.prompt_tokens_details.cached_tokens)
        assert usage.prompt_tokens == len(encoded(served, name, messages))
        assert cached[-1] % block == 0
        assert cached[-1] >= before // block * block - block
        before = usage.prompt_tokens
        messages += [
            {"role": "assistant", "content": answer.choices[0].message.content},
            {
                "role": "user",
                "content": f"And the {['second', 'third', 'fourth', 'fifth', 'sixth'][turn]} day?",
            },
        ]
    assert cached[0] == 0
    assert all(0 <= early < late for early, late in pairwise(cached)), cached


def test_fifty_streams_at_once(served, name):
    async def stream(client, number):
        messages = [{"role": "user", "content": f"What is number {number}?"}]
        options = {"temperature": 0, "max_tokens": 6, "extra_body": {"ignore_eos": True}}
        chunks = await client.chat.completions.create(
            model=name,
            messages=messages,
            stream=True,
            stream_options={"include_usage": True},
            **options,
        )
        text, usage = "", None
        async for chunk in chunks:
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
            usage = chunk.usage or usage
        return text, usage.completion_tokens

    async def all_of_them():
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
            found = await asyncio.gather(*[stream(client, number) for number in range(50)])
            again = await stream(client, 7)
            models = [model.id async for model in client.models.list()]
        return found, again, models

    found, again, models = asyncio.run(all_of_them())
    assert [tokens for _, tokens in found] == [6] * 50
    assert found[7] == again
    assert name in models


@pytest.mark.parametrize(
    ("options", "kind", "code"),
    [
        ({"model": "nobody"}, openai.NotFoundError, "model_not_found"),
        ({"temperature": 9}, openai.BadRequestError, "bad_request"),
        ({"max_tokens": 100_000}, openai.BadRequestError, "context_length_exceeded"),
        ({"messages": []}, openai.BadRequestError, "bad_request"),
    ],
)
def test_errors_are_the_clients_own_classes(ask, options, kind, code):
    with pytest.raises(kind) as told:
        ask(**options)
    assert told.value.code == code
    assert told.value.type == "invalid_request_error"
    assert told.value.request_id.startswith("req-")


def test_a_stream_that_cannot_begin_is_an_error_and_no_stream(ask):
    with pytest.raises(openai.NotFoundError):
        ask(model="nobody", stream=True)


def test_an_overlong_prompt_is_told_with_its_length(ask):
    with pytest.raises(openai.BadRequestError, match="tokens do not fit"):
        ask([{"role": "user", "content": "again " * 9_000}])


@pytest.fixture
def guarded(serving, stand_ins, tmp_path):
    """A server with keys: one of a tenant who may ask for one model, and one with a budget."""
    file = tmp_path / "keys"
    keys = [
        add_key(file, tenant, created="2026-01-01", models=models)[0]
        for tenant, models in (("one", [stand_ins[0].name]), ("two", None))
    ]
    limits = [
        AllowanceSettings(tenant="two", hourly_tokens=4_000, hourly_requests=100, sliding=True),
        AllowanceSettings(tenant="one", requests_per_s=2.0, burst_requests=1),
    ]
    settings = computing(stand_ins, quotas=QuotaSettings(limits=limits, max_wait_s=0.0))
    server = ServerSettings(port=0, admin_port=0, keys_file=str(file), limits=LimitsSettings())
    with serving(settings, server) as running:
        yield running, keys


def test_keys_limits_and_retries(guarded, stand_ins):
    """One server for what needs keys: who may not come in, what is left, and who comes again at the right time."""
    running, (one, two) = guarded
    asked = {"model": stand_ins[0].name, "messages": SAY, "max_tokens": 4}
    with pytest.raises(openai.AuthenticationError) as told:
        running.openai("my-wrong").chat.completions.create(**asked)
    assert told.value.code == "invalid_api_key"
    with pytest.raises(openai.PermissionDeniedError):
        running.openai(one).chat.completions.create(**{**asked, "model": stand_ins[1].name})
    check_that_limits_fall(running.openai(two), asked)
    check_one_retry(running, one, asked)


def check_that_limits_fall(client, asked):
    """What is left of a budget stands on each success, and falls by what was used."""
    left = []
    for _ in range(3):
        raw = client.chat.completions.with_raw_response.create(**asked)
        used = raw.parse().usage.total_tokens
        left.append((int(raw.headers["x-ratelimit-remaining-tokens"]), used))
        assert raw.headers["x-ratelimit-limit-tokens"] == "4000"
        assert raw.headers["x-ratelimit-limit-requests"] == "100"
    for (before, _), (after, used) in pairwise(left):
        assert before - after == used
    with pytest.raises(openai.RateLimitError) as told:
        client.chat.completions.create(**{**asked, "max_tokens": 3_980})
    assert int(told.value.response.headers["x-ratelimit-remaining-tokens"]) == left[-1][0]


def check_one_retry(running, key, asked):
    """The client comes again when it was told to, once, and is served."""
    answers = []
    http = httpx.Client(event_hooks={"response": [answers.append]}, timeout=60)
    with running.openai(key, max_retries=3, http_client=http) as client:
        client.chat.completions.create(**asked)
        client.chat.completions.create(**asked)
    assert [answer.status_code for answer in answers] == [200, 429, 200]
    refused = answers[1].headers
    assert 0 < int(refused["retry-after-ms"]) <= 500
    assert refused["retry-after"] == "1"
    with pytest.raises(openai.RateLimitError) as told:
        running.openai(key).chat.completions.create(**asked)
    assert told.value.code == "rate_limit_exceeded"


def test_nobody_left_to_serve_is_an_internal_error_for_the_client(serving, stand_ins):
    with serving(computing(stand_ins[:1])) as running:
        asked = {"model": stand_ins[0].name, "messages": SAY, "max_tokens": 4}
        assert running.openai().chat.completions.create(**asked).usage.completion_tokens > 0
        engine = running.server.engine
        running.call(engine.router.drain, stand_ins[0].name, engine.clock.now_ns())
        with pytest.raises(openai.InternalServerError) as told:
            running.openai().chat.completions.create(**asked)
        assert (told.value.status_code, told.value.code) == (503, "no_replica")
        assert told.value.response.headers["retry-after"] == "1"
        running.call(lambda: engine.router.drain(stand_ins[0].name, engine.clock.now_ns(), drained=False))
        assert running.openai().chat.completions.create(**asked).usage.completion_tokens > 0


@pytest.fixture(scope="module")
def smollm2(serving):
    folder = os.environ.get("MODELYARD_REAL_MODELS")
    if not folder or not Path(folder, OFFERS["smollm2"].file).exists():
        pytest.skip("MODELYARD_REAL_MODELS names no folder with SmolLM2")
    models = served_from([Path(folder, OFFERS["smollm2"].file)])
    with serving(computing(models)) as running:
        yield running, models[0].name


@pytest.mark.slow
def test_smollm2_knows_the_capital_of_france(smollm2):
    running, name = smollm2
    asked = {"model": name, "temperature": 0, "max_tokens": 16}
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    client = running.openai(timeout=120)
    whole = client.chat.completions.create(messages=messages, **asked)
    assert "Paris" in whole.choices[0].message.content
    chunks = list(client.chat.completions.create(messages=messages, stream=True, **asked))
    assert "".join(each.choices[0].delta.content or "" for each in chunks) == whole.choices[0].message.content
    assert whole.choices[0].finish_reason == chunks[-1].choices[0].finish_reason


@pytest.mark.slow
def test_five_turns_with_smollm2_find_what_was_said_in_the_cache(smollm2):
    running, name = smollm2
    check_five_turns(running.openai(timeout=120), name, running, max_tokens=12)
