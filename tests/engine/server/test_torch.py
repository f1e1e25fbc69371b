"""Real passes behind HTTP: the loop stays free, who has left costs nothing, and each model reads its own words."""

import json
import threading
import time
from types import SimpleNamespace

import openai
import pytest

from engine.formats import open_checkpoint
from engine.registry import Model
from engine.server.settings_file import deployment
from engine.settings import (
    THIS_MACHINE,
    AllowanceSettings,
    EngineSettings,
    ExecutorSettings,
    FleetSettings,
    HealthSettings,
    LoadingSettings,
    QuotaSettings,
    RoutingSettings,
)
from engine.stand_ins import make_stand_ins
from engine.telemetry import Ended

pytestmark = pytest.mark.torch

SAY = [{"role": "user", "content": "How long does that take?"}]
GREEDY = {"temperature": 0, "ignore_eos": True}
LIMIT = 1_000_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with two models on disk, whose words and templates differ."""
    path = tmp_path_factory.mktemp("models")
    make_stand_ins(path, ["Mistral-7B-Instruct-v0.3", "phi-4"], formats=("safetensors",))
    return path


def computing(folder, names=("Mistral-7B-Instruct-v0.3", "phi-4"), **changed):
    """One replica of each, which takes a whole prompt in one step."""
    models = [Model.from_checkpoint(open_checkpoint(folder / name)).settings for name in names]
    return EngineSettings(
        fleet=FleetSettings(
            models=models, replicas={model.name: model.name for model in models}, step_tokens=8192
        ),
        executor=ExecutorSettings(name="torch"),
        hardware=THIS_MACHINE,
        health=HealthSettings(probes=False),
        quotas=QuotaSettings(limits=[AllowanceSettings(tenant="*", hourly_tokens=LIMIT, sliding=True)]),
        **{"routing": RoutingSettings(strategy="round_robin", slow_start_s=0.0), **changed},
    )


class Ends:
    """A sink: how requests have ended."""

    kinds = frozenset({Ended})

    def __init__(self):
        self.told = []

    def emit(self, event):
        self.told.append(event)


@pytest.fixture(scope="module")
def ends():
    return Ends()


@pytest.fixture(scope="module")
def served(serving, folder, ends):
    with serving(computing(folder), sinks=(ends,)) as running:
        yield running


MISTRAL, PHI = "mistral-7b-instruct-v0.3", "phi-4"


def chat(running, model, **options):
    body = {"model": model, "messages": SAY, "max_tokens": 10, **GREEDY, **options}
    return running.http().post("/v1/chat/completions", json=body)


def said(answered):
    assert answered.status_code == 200, answered.text
    return answered.json()["choices"][0]["message"]["content"]


def prompt_tokens(running, model):
    """As many as the model's own template and tokenizer make of it."""
    engine = running.server.engine
    text = engine.fleet.homes[engine.registry.find(model).key].text
    return len(text.chat.encode(SAY, text.tokenizer))


def replica_of(running, model):
    return running.server.engine.replicas[model]


def wait_for(running, holds):
    """Until that is so, in the server's loop."""
    until = time.monotonic() + 60
    while not running.call(holds):
        assert time.monotonic() < until, "it never came"
        time.sleep(0.001)


def test_the_loop_is_free_during_a_long_prefill(served):
    """One step of some seconds; meanwhile others are answered again and again, each in a small part of it."""
    replica = replica_of(served, MISTRAL)
    steps, busy_ns = replica.num_steps, replica.busy_ns
    body = {"model": MISTRAL, "prompt": list(range(3, 553)) * 10, "max_tokens": 1, **GREEDY}
    asked = threading.Thread(target=lambda: served.http().post("/v1/completions", json=body))
    http, took_s = served.http(), []
    asked.start()
    wait_for(served, lambda: replica.num_running or replica.num_steps > steps)
    while replica.num_steps == steps and asked.is_alive():
        begun = time.perf_counter()
        assert http.get("/health").status_code == 200
        took_s.append(time.perf_counter() - begun)
    asked.join(60)
    step_s = (replica.busy_ns - busy_ns) / 1e9
    assert replica.num_steps == steps + 1
    assert len(took_s) > 20
    assert sorted(took_s)[len(took_s) // 2] < step_s / 20


def test_a_client_that_leaves_ends_its_generation_within_a_step(served, ends):
    engine, replica = served.server.engine, replica_of(served, MISTRAL)
    body = {
        "model": MISTRAL,
        "messages": SAY,
        "max_tokens": 4_000,
        "stream": True,
        "user": "leaver",
        **GREEDY,
    }
    begun = replica.num_steps
    with served.http() as http, http.stream("POST", "/v1/chat/completions", json=body) as answered:
        lines = (line for line in answered.iter_lines() if line)
        for _ in range(4):
            assert json.loads(next(lines).removeprefix("data: "))["choices"]
    wait_for(served, lambda: ends.told and ends.told[-1].tenant == "leaver")
    steps_when_seen = replica.num_steps
    wait_for(served, lambda: not replica.num_running)
    assert replica.num_steps - steps_when_seen <= 1
    assert replica.num_steps - begun < 2_000
    end = ends.told[-1]
    assert (end.outcome, end.reason) == ("cancelled", "cancelled")
    assert 3 <= end.output_tokens < 2_000
    check_that_nothing_is_held(served, engine, replica)
    used = engine.quotas.ledger(f"{MISTRAL}@1.0.0", "leaver").books[1].spent_tokens
    assert used == end.prompt_tokens + end.output_tokens


def check_that_nothing_is_held(served, engine, replica):
    """What a request that is over had is free again: its place, its KV, its blocks."""
    assert served.call(lambda: engine.quotas.in_service) == 0
    assert not served.call(lambda: dict(engine.cache.pins))
    assert engine.fleet.homes[replica.model].executor.held_bytes == 0
    assert engine.router.tokens_in_flight(replica.name) == 0
    served.call(engine.cache.check_integrity)
    served.call(engine.quotas.check_integrity)


def test_two_models_answer_side_by_side_as_alone(served):
    alone = {model: said(chat(served, model, max_tokens=40)) for model in (MISTRAL, PHI)}
    together = {}

    def ask(number, model):
        together[number] = (model, said(chat(served, model, max_tokens=40)))

    asked = [threading.Thread(target=ask, args=(number, (MISTRAL, PHI)[number % 2])) for number in range(6)]
    for thread in asked:
        thread.start()
    for thread in asked:
        thread.join(60)
    assert sorted(together) == list(range(6))
    assert all(text == alone[model] for model, text in together.values())
    assert alone[MISTRAL] != alone[PHI]


def test_auto_counts_the_prompt_in_the_words_of_whoever_served(served):
    """Their templates differ: what is counted, and what is said, is that of the model that the header names."""
    alone = {f"{model}@1.0.0": said(chat(served, model)) for model in (MISTRAL, PHI)}
    counts = {f"{model}@1.0.0": prompt_tokens(served, model) for model in (MISTRAL, PHI)}
    assert len(set(counts.values())) == 2
    seen = []
    for _ in range(4):
        answered = chat(served, "auto")
        model = answered.headers["x-modelyard-model"]
        seen.append(model)
        assert said(answered) == alone[model]
        assert answered.json()["usage"]["prompt_tokens"] == counts[model]
    assert set(seen) == set(counts)


def test_a_fallback_reads_the_prompt_in_its_own_words(serving, folder):
    routing = RoutingSettings(slow_start_s=0.0, fallbacks={MISTRAL: [PHI]})
    with serving(computing(folder, routing=routing)) as running:
        engine, alone = running.server.engine, said(chat(running, PHI))
        first = chat(running, MISTRAL)
        assert first.headers["x-modelyard-model"] == f"{MISTRAL}@1.0.0"
        assert first.json()["usage"]["prompt_tokens"] == prompt_tokens(running, MISTRAL)
        running.call(lambda: engine.router.drain(MISTRAL, engine.clock.now_ns()))
        answered = chat(running, MISTRAL, logprobs=True)
        assert answered.headers["x-modelyard-model"] == f"{PHI}@1.0.0"
        assert said(answered) == alone
        assert answered.json()["usage"]["prompt_tokens"] == prompt_tokens(running, PHI)
        direct = chat(running, PHI, logprobs=True)
        assert spoken(answered) == spoken(direct)


def spoken(answered):
    """The tokens of an answer, as its model spells them."""
    return [token["bytes"] for token in answered.json()["choices"][0]["logprobs"]["content"]]


def test_a_model_of_the_folder_is_loaded_when_it_is_asked_for(serving, folder):
    settings = computing(folder, names=(), models=LoadingSettings(folder=str(folder)))
    with serving(settings) as running:
        engine = running.server.engine
        assert not engine.fleet.homes
        assert running.http().get("/ready").status_code == 200
        answered = chat(running, PHI)
        assert len(said(answered)) > 0
        assert list(engine.fleet.homes) == [f"{PHI}@1.0.0"]
        assert answered.json()["usage"]["prompt_tokens"] == prompt_tokens(running, PHI)
        states = {each["id"]: each["state"] for each in running.admin().get("/admin/models").json()["models"]}
        assert states == {f"{PHI}@1.0.0": "healthy", f"{MISTRAL}@1.0.0": "unloaded"}
        check_that_both_are_loaded_together(running)


def check_that_both_are_loaded_together(running):
    """Clients who come for one that is being loaded wait for the same load."""
    answers = []
    asked = [threading.Thread(target=lambda: answers.append(chat(running, MISTRAL))) for _ in range(4)]
    for thread in asked:
        thread.start()
    for thread in asked:
        thread.join(60)
    assert len({said(answered) for answered in answers}) == 1
    assert len(answers) == 4
    assert running.server.engine.fleet.num_loads == 2


def test_a_model_that_cannot_be_loaded_is_told_without_a_path_of_this_machine(serving, tmp_path):
    (path,) = make_stand_ins(tmp_path, ["phi-4"])
    with serving(computing(tmp_path, names=(), models=LoadingSettings(folder=str(tmp_path)))) as running:
        path.write_bytes(path.read_bytes()[:-1000])  # after it was found
        for _ in range(2):  # the second is told when to come again
            answered = running.http().post("/v1/completions", json={"model": PHI, "prompt": "x"})
            assert answered.status_code == 503
            message = answered.json()["error"]["message"]
            assert path.name in message
            assert str(tmp_path) not in message
        told = running.admin().post(f"/admin/models/{PHI}/load").json()["error"]["message"]
        assert str(path) in told  # operators know where it lies


@pytest.mark.parametrize("names", [["phi-4"], []], ids=["in memory", "loaded when asked for"])
def test_a_chat_that_comes_to_nothing_is_blamed_on_its_messages(serving, tmp_path, names):
    (path,) = make_stand_ins(tmp_path, ["phi-4"], formats=("safetensors",))
    file = path / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": ""}))
    with serving(computing(tmp_path, names, models=LoadingSettings(folder=str(tmp_path)))) as running:
        body = {"model": PHI, "messages": SAY}
        error = running.http().post("/v1/chat/completions", json=body).json()["error"]
    assert (error["message"], error["param"]) == (
        "the prompt has no tokens, but must have at least one",
        "messages",
    )


def test_a_long_prompt_is_worked_out_beside_the_loop(serving, tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    (path,) = make_stand_ins(folder, ["Qwen2.5-72B-Instruct"])
    file = folder / "settings.yaml"
    file.write_text(f"fleet: {{models: ['{path}']}}\n")
    with serving(deployment(file).engine) as running:
        text = next(iter(running.server.engine.fleet.homes.values())).text
        threads = []
        tokens = text.tokenizer.tokens

        def noted(*arguments, **options):
            threads.append(threading.current_thread().name)
            return tokens(*arguments, **options)

        text.tokenizer = SimpleNamespace(tokens=noted, vocab_size=text.tokenizer.vocab_size)
        long = {"model": "auto", "prompt": "a word " * 20_000, "max_tokens": 1}
        answer = running.http().post("/v1/completions", json=long)
    assert answer.status_code == 400
    assert "do not fit" in answer.json()["error"]["message"]
    assert len(threads) == 1
    assert threads[0].startswith("asyncio")


WILD = {"type": "object", "properties": {f"p{number}": {} for number in range(2_000)}}
LATE = {"type": "object", "properties": {"a": {"const": "yes"}, "b": WILD}, "required": ["a", "b"]}


@pytest.mark.parametrize("schema", [WILD, LATE], ids=["at once", "in the middle"])
@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "streamed"])
def test_a_schema_that_takes_too_much_is_blamed_on_response_format_whenever_that_shows(
    served, schema, is_stream
):
    wanted = {"type": "json_schema", "json_schema": {"name": "wild", "schema": schema}}
    asked = {"model": PHI, "messages": SAY, "max_tokens": 400, "stream": is_stream}
    with pytest.raises(openai.APIError, match="cannot be followed") as told:
        list(served.openai().chat.completions.create(**asked, response_format=wanted))
    assert (told.value.param, told.value.code) == ("response_format", "bad_request")


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "streamed"])
def test_a_stop_string_that_a_character_completes_which_never_comes_whole_is_a_stop(served, is_stream):
    """The answer is the first byte of three, over and over: only its end says what the last one reads as."""
    text = served.server.engine.fleet.homes[served.server.engine.registry.find(PHI).key].text
    part = next(n for n in range(1_000) if text.tokenizer.token_bytes(n) == b"\xe2")
    answer = served.openai().completions.create(
        model=PHI,
        prompt="a",
        max_tokens=3,
        temperature=0,
        logit_bias={str(part): 100},
        stop="\ufffd\ufffd\ufffd",
        stream=is_stream,
    )
    chunks = list(answer) if is_stream else [answer]
    assert "".join(each.choices[0].text for each in chunks) == ""
    assert chunks[-1].choices[0].finish_reason == "stop"
