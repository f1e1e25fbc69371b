"""Bodies read the short way say what they say the long way, and are refused alike."""

import json

import pytest

from engine.errors import BadRequest
from engine.server.bodies import (
    ChatBody,
    CompletionBody,
    UsualChat,
    UsualCompletion,
    check_prompt,
    check_turns,
)
from engine.server.manners import MOST_KNOWN, Manners
from engine.server.settings import LimitsSettings

TEXT = {"model": "llama", "prompt": "Hello"}
CHAT = {"model": "llama", "messages": [{"role": "user", "content": "Hello"}]}


def texts(**limits):
    return Manners(UsualCompletion, CompletionBody, check_prompt, LimitsSettings(**limits))


def chats(**limits):
    return Manners(UsualChat, ChatBody, check_turns, LimitsSettings(**limits))


def read(manners, body, **more):
    return manners.read(json.dumps({**body, **more}).encode())


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"temperature": 0, "top_p": 0.5, "max_tokens": 7, "seed": 3, "user": "ann"},
        {"n": 3, "stream": True, "stream_options": {"include_usage": True}},
    ],
    ids=["nothing", "sampling", "stream"],
)
@pytest.mark.parametrize(("make", "body"), [(texts, TEXT), (chats, CHAT)], ids=["text", "chat"])
def test_the_short_way_reads_what_the_long_way_reads(make, body, asked):
    manners = make()
    short, manner = read(manners, body, **asked)
    long, same = read(manners, body, **asked, store=False)  # which is not usual
    assert isinstance(short, UsualCompletion | UsualChat)
    assert isinstance(long, CompletionBody | ChatBody)
    assert manner == same
    assert (short.seed, short.user, short.output_tokens) == (long.seed, long.user, long.output_tokens)


def test_a_manner_that_was_seen_before_is_the_same_one():
    manners = texts()
    first = read(manners, TEXT, temperature=0.5)[1]
    assert read(manners, {**TEXT, "prompt": "Other words"}, temperature=0.5, max_tokens=3)[1] is first
    assert read(manners, TEXT, temperature=0.25)[1].sampling.temperature == 0.25


def test_only_so_many_manners_are_remembered():
    manners = texts()
    for number in range(3 * MOST_KNOWN):
        assert read(manners, TEXT, top_p=1 / (1 + number))[1].sampling.top_p == 1 / (1 + number)
    assert len(manners._known) <= MOST_KNOWN


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"n": 0}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"user": "a" * 10_000}, "user"),
        ({"temperature": "hot"}, "temperature"),
        ({"nonsense": 1}, "nonsense"),
    ],
    ids=["temperature", "n", "length", "options", "user", "type", "unknown"],
)
@pytest.mark.parametrize(("make", "body"), [(texts, TEXT), (chats, CHAT)], ids=["text", "chat"])
def test_what_is_no_good_is_refused_each_time(make, body, asked, param):
    manners = make()
    read(manners, body)
    for _ in range(2):
        with pytest.raises(BadRequest) as refusal:
            read(manners, body, **asked)
        assert param in (refusal.value.param, str(refusal.value).partition(" ")[0])


def test_depth_is_bounded_however_a_body_is_read():
    deep = {"metadata": {"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": 1}}}}}}}}}
    assert read(texts(max_json_depth=16), TEXT, **deep)[0].metadata == deep["metadata"]
    with pytest.raises(BadRequest, match="nested"):
        read(texts(max_json_depth=8), TEXT, **deep)
    manners = chats(max_json_depth=4)
    read(manners, CHAT)
    turn = {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "look"}}]}
    with pytest.raises(BadRequest, match="nested"):
        read(manners, {**CHAT, "messages": [turn]})
