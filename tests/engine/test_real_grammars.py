"""Grammars in a real vocabulary: SmolLM2 answers in JSON."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from engine.engine import Engine
from engine.formats import open_checkpoint
from engine.request import Grammar, Request, Sampling, Stream
from engine.settings import ExecutorSettings, FleetSettings, ModelSettings, QuotaSettings

pytestmark = [pytest.mark.torch, pytest.mark.slow]

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20},
        "country": {"type": "string", "maxLength": 20},
        "is_capital": {"type": "boolean"},
    },
    "required": ["city", "country", "is_capital"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_real_model_fills_in_a_schema(settings, clock, temperature):
    folder = os.environ.get("MODELYARD_REAL_MODELS")
    found = sorted(Path(folder).glob("SmolLM2*.gguf")) if folder else []
    if not found:
        pytest.skip("MODELYARD_REAL_MODELS names no folder with SmolLM2")
    model = ModelSettings(name="m", architecture=open_checkpoint(found[0]).shape, path=str(found[0]))
    settings.fleet = FleetSettings(models=[model], replicas={"a": "m"})
    options = {"kv_capacity_tokens": 2_000, "keep_converted": False}
    settings.executor = ExecutorSettings(name="torch", options=options)
    settings.quotas = QuotaSettings(enabled=False)
    engine = Engine(settings, clock)
    engine.start()
    text = engine.fleet.homes["m@1.0.0"].text
    messages = [{"role": "user", "content": "Describe Paris in JSON."}]
    prompt = np.asarray(text.chat.encode(messages, text.tokenizer), np.int32)
    sampling = Sampling(temperature=temperature, seed=1, grammar=Grammar("json_schema", json.dumps(SCHEMA)))
    stream = Stream()
    request = Request(0, "m", prompt, 120, 0, sampling=sampling)
    done = clock.env.run(until=clock.spawn(engine.serve(request, stream)))
    answer = json.loads("".join(stream.text))
    assert done.finish_reason == "stop"
    assert list(answer) == list(SCHEMA["properties"])
    if temperature == 0:
        assert answer["city"] == "Paris"
