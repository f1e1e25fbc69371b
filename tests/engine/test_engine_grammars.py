"""Grammars through the whole engine: real passes of stand-ins, whose weights would never write JSON by themselves."""

import json
from pathlib import Path

import numpy as np
import pytest

from engine.engine import Engine
from engine.errors import BadRequest, EngineError
from engine.execution import executors
from engine.fleet import grammars_of
from engine.formats import open_checkpoint
from engine.request import Grammar, Request, Sampling, Stream
from engine.settings import ExecutorSettings, FleetSettings, ModelSettings, QuotaSettings
from engine.stand_ins import make_stand_ins
from engine.text import text_of

pytestmark = pytest.mark.torch

LLAMA, PHI, GEMMA = "Llama-3.3-70B-Instruct", "phi-4", "gemma-2-9b-it"
ORDER = {
    "type": "object",
    "properties": {
        "dish": {"type": "string", "maxLength": 8},
        "plates": {"enum": [1, 2, 3]},
        "hot": {"type": "boolean"},
    },
    "required": ["dish", "plates", "hot"],
    "additionalProperties": False,
}
BY_ORDER = Grammar("json_schema", json.dumps(ORDER))
SAMPLED = Sampling(temperature=1.2, top_p=0.95, seed=5, grammar=BY_ORDER)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    make_stand_ins(folder, [LLAMA, PHI, GEMMA])
    return folder


class World:
    """An engine with two replicas of one model, on virtual time."""

    def __init__(self, settings, clock, path, *, kv_capacity_tokens=20_000, executor="torch"):
        checkpoint = open_checkpoint(path)
        model = ModelSettings(name="m", architecture=checkpoint.shape, path=str(path))
        settings.fleet = FleetSettings(models=[model], replicas={"a": "m", "b": "m"})
        options = {"kv_capacity_tokens": kv_capacity_tokens} if executor == "torch" else {}
        settings.executor = ExecutorSettings(name=executor, options=options)
        settings.quotas = QuotaSettings(enabled=False)
        self.clock, self.events = clock, []
        self.engine = Engine(settings, clock, [self])
        self.emit = self.events.append
        self.engine.start()
        self.text = self.engine.fleet.homes["m@1.0.0"].text
        self.ends = []

    def ask(self, sampling, new=80, prompt="What may I bring you?"):
        """The stream of one request, and the list in which its end will be."""
        number = len(self.ends)
        tokens = np.asarray(self.text.tokenizer.encode(prompt), np.int32)
        request = Request(number, "m", tokens, new, self.clock.now_ns(), sampling=sampling)
        stream, ended = Stream(), []
        self.ends.append(ended)

        async def serve():
            try:
                ended.append(await self.engine.serve(request, stream))
            except EngineError as error:
                ended.append(error)

        self.clock.spawn(serve())
        return stream, ended

    def answer(self, sampling, **how):
        stream, ended = self.ask(sampling, **how)
        self.run()
        return ended[0], "".join(stream.text)

    def run(self):
        """Until everybody who has asked has an answer."""
        while not all(self.ends):
            self.clock.env.step()


@pytest.fixture
def new_world(settings, clock, made):
    def make(name=PHI, **options):
        return World(settings, clock, made / f"{name}-Q8_0.gguf", **options)

    return make


@pytest.mark.parametrize("name", [LLAMA, PHI, GEMMA])
@pytest.mark.parametrize("sampling", [Sampling(grammar=BY_ORDER), SAMPLED], ids=["greedy", "sampled"])
def test_an_answer_is_json_by_its_schema_and_then_over(new_world, name, sampling):
    done, text = new_world(name).answer(sampling, new=200)
    order = json.loads(text)
    assert done.finish_reason == "stop"
    assert list(order) == ["dish", "plates", "hot"]
    assert len(order["dish"]) <= 8
    assert order["plates"] in (1, 2, 3)
    assert isinstance(order["hot"], bool)


def test_an_answer_that_is_cut_off_says_so(new_world):
    done, text = new_world().answer(Sampling(grammar=BY_ORDER), new=5)
    assert (done.finish_reason, len(done.tokens)) == ("length", 5)
    assert text.startswith("{")


def test_a_stop_string_ends_an_answer_within_its_grammar(new_world):
    world = new_world()
    _, text = world.answer(SAMPLED)
    done, shorter = world.answer(
        Sampling(temperature=1.2, top_p=0.95, seed=5, grammar=BY_ORDER, stop=('"plates',))
    )
    assert (shorter, done.finish_reason) == (text[: text.index('"plates')], "stop")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_a_lost_replica_is_followed_by_one_that_carries_on_within_the_grammar(new_world, share):
    world = new_world()
    whole, _ = world.answer(SAMPLED)
    stream, ended = world.ask(SAMPLED)
    while stream.num_tokens < max(1, share * len(whole.tokens)):
        world.clock.env.step()
    name = next(each.name for each in world.engine.replicas.values() if each.num_in_hand)
    world.engine.replicas[name].crash()
    world.run()
    assert ended[0].attempts == 2
    assert ended[0].tokens == whole.tokens


def test_neither_a_preemption_nor_neighbours_change_an_answer(new_world):
    world = new_world(kv_capacity_tokens=150)
    alone, text = world.answer(SAMPLED)
    others = [world.ask(Sampling(ignore_eos=True), prompt=f"{number} more guests") for number in range(6)]
    mine = [world.ask(SAMPLED) for _ in range(4)]
    world.run()
    preempted = {event.request_id for event in world.events if event.kind == "request_preempted"}
    assert preempted & set(range(7, 11))
    assert all(ended[0].tokens == alone.tokens for _, ended in mine)
    assert {"".join(stream.text) for stream, _ in mine} == {text}
    assert all(ended[0].finish_reason == "length" for _, ended in others)


def test_a_grammar_that_is_no_good_is_refused_before_anything_is_generated(new_world):
    world = new_world()
    error, text = world.answer(Sampling(grammar=Grammar("json_schema", '{"type": "foo"}')))
    assert isinstance(error, BadRequest)
    assert "foo" in str(error)
    assert text == ""
    assert not [event for event in world.events if event.kind == "request_admitted"]


def test_a_grammar_that_grows_beyond_all_bounds_ends_its_answer_and_harms_no_replica(new_world):
    world = new_world()
    wild = Grammar(
        "json_schema", json.dumps({"type": "object", "properties": {f"p{n}": {} for n in range(2_000)}})
    )
    for _ in range(3):
        error, _ = world.answer(Sampling(grammar=wild))
        assert isinstance(error, BadRequest)
    assert not [event for event in world.events if event.kind == "health_changed"]
    assert world.answer(SAMPLED)[0].finish_reason == "stop"


def test_it_is_compiled_once(new_world):
    world = new_world()
    home = world.engine.fleet.homes["m@1.0.0"]
    assert home.grammars.find(BY_ORDER) is None
    world.answer(SAMPLED)
    compiled = home.grammars.find(BY_ORDER)
    world.answer(SAMPLED)
    assert home.grammars.find(BY_ORDER) is compiled


def test_an_executor_that_makes_tokens_up_follows_none(settings, clock):
    settings.fleet.letters = True
    engine = Engine(settings, clock)
    engine.start()
    request = Request(0, "llama", np.zeros(4, np.int32), 4, 0, sampling=Sampling(grammar=BY_ORDER))
    why = "grammar is 'json_schema', but 'llama@1.0.0' cannot follow any: its executor makes tokens up by a formula"
    with pytest.raises(BadRequest, match=why):
        clock.env.run(until=clock.spawn(engine.serve(request)))


def test_a_model_without_a_tokenizer_follows_none(settings, clock):
    settings.executor = ExecutorSettings(name="torch", options={"kv_capacity_tokens": 600})
    engine = Engine(settings, clock)
    engine.start()
    request = Request(0, "llama", np.zeros(4, np.int32), 4, 0, sampling=Sampling(grammar=BY_ORDER))
    with pytest.raises(BadRequest, match="cannot follow any: it has no tokenizer"):
        clock.env.run(until=clock.spawn(engine.serve(request)))


def test_a_model_that_ends_no_answer_follows_none(made):
    text = text_of(open_checkpoint(Path(made) / f"{PHI}-Q8_0.gguf"))
    torch = executors.find("torch")
    assert grammars_of(torch, text) is not None
    text.tokenizer.eos_ids = ()
    assert grammars_of(torch, text) is None
    assert grammars_of(executors.find("roofline"), text) is None
