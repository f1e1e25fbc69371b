"""What a stream is told of its tokens, and when: at once, or with what comes within two milliseconds."""

import asyncio
import gc
import json
from functools import partial

import pytest

from engine.errors import NoReplica
from engine.request import Completion, Logprobs, Request, Sampling, Usage
from engine.server import generation
from engine.server.answers import ChatWriter, Head, TextWriter
from engine.server.generation import PACE_S, TICK_S, Choice, Generation, Pacer, Wake
from engine.server.prompts import text_prompt
from engine.text.letters import letters


def played(play, tell_at_once=lambda: False):
    async def run():
        async with asyncio.timeout(60):
            return await play(Wake(tell_at_once, Pacer()), asyncio.get_running_loop())

    return asyncio.run(run())


def test_the_first_news_is_told_at_once(monkeypatch):
    monkeypatch.setattr(generation, "PACE_S", 1e6)

    async def play(wake, loop):
        loop.call_soon(wake.set)
        await wake.wait()

    played(play)


@pytest.mark.parametrize("before", [True, False], ids=["while nobody waits", "while somebody waits"])
def test_what_comes_soon_after_is_told_later_and_once(before):
    async def play(wake, loop):
        wake.set()
        await wake.wait()
        begun_s = loop.time()
        for _ in range(3):
            if before:
                wake.set()
            else:
                loop.call_soon(wake.set)
        await wake.wait()
        waited_s = loop.time() - begun_s
        waiting = asyncio.ensure_future(wake.wait())
        await asyncio.sleep(2 * PACE_S)
        is_waiting = not waiting.done()
        waiting.cancel()
        return waited_s, is_waiting

    waited_s, is_waiting = played(play)
    assert waited_s > PACE_S - TICK_S
    assert is_waiting


@pytest.mark.parametrize("before", [True, False], ids=["while nobody waits", "while somebody waits"])
def test_the_end_waits_for_nothing(monkeypatch, before):
    monkeypatch.setattr(generation, "PACE_S", 1e6)

    async def play(wake, loop):
        wake.set()
        await wake.wait()
        loop.call_soon(wake.set)
        if before:
            wake.hurry()
        else:
            loop.call_later(0.001, wake.hurry)
        await wake.wait()

    played(play)


@pytest.mark.parametrize(("streams", "pace_s"), [(1, 0.002), (16, 0.002), (64, 0.008), (1_000, 0.016)])
def test_many_streams_tell_less_often(streams, pace_s):
    async def run():
        pacer = Pacer()
        for _ in range(streams):
            pacer.join()
        many = pacer.pace_s
        for _ in range(streams):
            pacer.leave()
        return many, pacer.pace_s

    assert asyncio.run(run()) == (pace_s, PACE_S)


def test_who_stops_waiting_is_not_told_and_can_wait_again():
    told = []

    async def play(wake, _):
        wake.set()
        await wake.wait()
        wake.set()
        waiting = asyncio.ensure_future(wake.wait())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        await asyncio.sleep(2 * PACE_S)
        before = len(told)
        waiting = asyncio.ensure_future(wake.wait())
        await asyncio.wait([waiting])
        wake.set()
        waiting = asyncio.ensure_future(wake.wait())
        await asyncio.sleep(2 * PACE_S)
        waiting.cancel()
        return before, len(told)

    assert played(play, lambda: told.append(None) is None) == (0, 1)


def test_many_streams_tell_their_news_each_at_its_time_with_one_timer(monkeypatch):
    monkeypatch.setattr(generation, "PACE_S", 0.05)

    async def run():
        loop, pacer, told, timers = asyncio.get_running_loop(), Pacer(), [], []
        later, begun_s = loop.call_later, loop.time()
        monkeypatch.setattr(loop, "call_later", lambda *given: timers.append(given) or later(*given))

        def tell(number):
            told.append((number, loop.time() - begun_s))
            return True

        wakes = [Wake(partial(tell, number), pacer) for number in range(64)]
        waiting = [asyncio.ensure_future(wake.wait()) for wake in wakes]
        await asyncio.sleep(0)
        for wake in wakes[32:]:
            wake.set()
        await asyncio.sleep(0.03)
        for wake in wakes[:32]:
            wake.set()
        await asyncio.sleep(0)
        for wake in wakes:  # whose time comes last are the first to ask
            wake.set()
        at_once = len(told)
        await asyncio.sleep(0.2)
        for each in waiting:
            each.cancel()
        return at_once, told, len(timers)

    at_once, told, num_timers = asyncio.run(run())
    assert at_once == 64
    assert sorted(number for number, _ in told) == sorted(2 * [*range(64)])
    times_s = {number: [at_s for each, at_s in told if each == number] for number in range(64)}
    assert all(second_s - first_s > 0.048 for first_s, second_s in times_s.values())
    assert max(times_s[63]) < max(times_s[0])  # who told first tells first again
    assert num_timers < 120  # one a millisecond, and this test's own


def test_what_is_told_at_once_wakes_nobody():
    told = []

    async def play(wake, _):
        waiting = asyncio.ensure_future(wake.wait())
        for _ in range(3):
            await asyncio.sleep(2 * PACE_S)
            wake.set()
            wake.set()  # the same token's text
        await asyncio.sleep(0)
        is_waiting = not waiting.done()
        wake.hurry()
        await waiting
        return is_waiting

    assert played(play, lambda: told.append(len(told)) is None)
    assert told == [0, 1, 2]


def test_a_defect_in_telling_is_raised_where_somebody_waits():
    async def play(wake, loop):
        loop.call_soon(wake.set)
        with pytest.raises(ZeroDivisionError):
            await wake.wait()

    played(play, lambda: 1 / 0)


def answering(of_chat):
    """A choice, and what takes a token more of it and gives the logprobs that are told then; None: it is over."""
    text, writer = (
        letters(512),
        (ChatWriter if of_chat else TextWriter)(Head("a", "b", 0, "c", tells_usage=False)),
    )
    prompt = text_prompt("x", is_open=False, most_tokens=None)
    tokens = prompt.tokens(text)
    choice = Choice(0, prompt, Request(0, "c", tokens, 9, 0, sampling=Sampling(logprobs=1)))
    read = text.stream(after=tokens[-1:].tolist())

    def push(token):
        if token is None:
            choice.stream.write(read.flush())
            usage = Usage(1, choice.stream.num_tokens, 0)
            choice.completion = Completion(0, "c", "r", 1, choice.stream, usage, 0)
        else:
            choice.stream.push(token, 0, Logprobs(-0.5, [(token, -0.5), (0xFF, -9.0)]))
            choice.stream.write(read.push(token)[0])
        events = [json.loads(line[6:]) for line in choice.news(writer).decode().splitlines() if line]
        return [each["choices"][0]["logprobs"] for each in events if each["choices"][0]["logprobs"]]

    return choice, push


SAID = "a\u00e9\U0001f642b".encode()
NO_TEXT = 99_999


def test_tokens_without_text_at_the_end_of_a_stream_are_told_too():
    choice, push = answering(of_chat=True)
    told = [each for token in (*SAID, NO_TEXT, NO_TEXT, None) for each in push(token)]
    assert [one["bytes"] for each in told for one in each["content"]] == [*([byte] for byte in SAID), [], []]
    assert push(None) == []
    assert choice.text.encode() == SAID


@pytest.mark.parametrize("at_once", [True, False], ids=["whole", "token by token"])
def test_the_place_of_a_piece_of_a_character_is_that_of_the_character(at_once):
    choice, push = answering(of_chat=False)
    told = [each for token in (*SAID, None) for each in push(token)]
    if at_once:
        whole, _ = answering(of_chat=False)
        whole.stream = choice.stream
        told = [whole.logprobs(of_chat=False)]
    assert [place for each in told for place in each["text_offset"]] == [0, 1, 1, 2, 2, 2, 2, 3]
    halves = [top for each in told for top in each["top_logprobs"]][1]
    assert halves == {"\ufffd": -0.5}, "of what reads alike the likelier one"


class Left:
    """Where nobody is any more, as is seen when there is something to tell."""

    is_gone = True

    def when_gone(self, tell):
        pass


class Refusing:
    """An engine that has nobody for a request."""

    async def serve(self, request, stream):
        raise NoReplica("nobody serves it")


@pytest.mark.parametrize("count", [1, 2])
def test_a_refusal_of_who_has_left_is_nobodys_alarm(count):
    async def run():
        alarms = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: alarms.append(context))
        choices = [answering(of_chat=True)[0] for _ in range(count)]
        asked = Generation(choices, 1, "a", 0, is_chat=True, is_stream=True)
        await asked.stream(Refusing(), Left(), Pacer(), Head("a", "b", 0, "c", tells_usage=False))
        del asked, choices
        gc.collect()
        await asyncio.sleep(0)
        return alarms

    assert asyncio.run(run()) == []
