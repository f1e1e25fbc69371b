"""JSON lines: each event a line, in order, and nothing of a prompt in any of them."""

import io
import json
import re

import numpy as np
import pytest

from engine.clock import to_ns
from engine.engine import Engine
from engine.registry.health import Health
from engine.request import Request
from engine.telemetry import Ended, HealthChanged, JsonLines, Routed

CANARY = 31_337


def written(*events):
    file = io.StringIO()
    log = JsonLines(file)
    for event in events:
        log.emit(event)
    return file.getvalue()


def test_an_event_is_one_line_with_its_name_first():
    line = written(
        Routed(5, 7, 1, "round_robin", "a", ("a", "b"), (0, 12), "llama", "strategy", "llama@1.0.0")
    )
    assert line == (
        '{"event":"request_routed","at_ns":5,"request_id":7,"attempt":1,"strategy":"round_robin",'
        '"chosen":"a","candidates":["a","b"],"loads":[0,12],"pool":"llama","reason":"strategy",'
        '"model":"llama@1.0.0"}\n'
    )


def test_a_name_with_a_line_break_stays_on_its_line():
    end = Ended(1, 1, "two\nlines \N{SNOWMAN}", 'quo"te', "llama", 0, 3, "completed")
    text = written(end, end)
    assert text.count("\n") == 2
    assert json.loads(text.splitlines()[0])["tenant"] == "two\nlines \N{SNOWMAN}"


def test_a_state_is_written_as_its_word():
    line = written(HealthChanged(1, "a", Health.HEALTHY, Health.UNHEALTHY, "replica lost"))
    assert json.loads(line)["after"] == "unhealthy"


def test_what_json_does_not_know_is_not_written():
    end = Ended(1, 1, "t", None, "llama", float("nan"), 3, "completed")
    with pytest.raises(ValueError, match="not JSON compliant"):
        written(end)


def test_the_log_of_a_run_parses_and_knows_no_token(settings, clock):
    file = io.StringIO()
    engine = Engine(settings, clock, [JsonLines(file)])
    engine.start()
    prompt = np.full(40, CANARY, dtype=np.int32)
    served = clock.spawn(engine.serve(Request(1, "llama", prompt, 3, 0, tenant="t")))
    completion = clock.env.run(until=served)
    engine.replicas["b"].crash()
    clock.env.run(until=to_ns(3.5))
    events = [json.loads(line) for line in file.getvalue().splitlines()]
    assert [each["event"] for each in events] == [
        "request_arrived",
        "request_routed",
        "request_admitted",
        "prefix_found",
        "request_ended",
        "health_changed",
    ]
    assert [each["at_ns"] for each in events] == sorted(each["at_ns"] for each in events)
    assert len(completion.tokens) == 3
    numbers = set(map(int, re.findall(r"\d+", file.getvalue())))
    assert numbers.isdisjoint({CANARY, *completion.tokens})
