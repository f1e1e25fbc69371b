"""A fleet of modelled executors that takes and gives text."""

import numpy as np
import pytest

from engine.engine import Engine
from engine.errors import BadRequest
from engine.request import Request, Sampling, Stream


def served(settings, clock, sampling, new=60, listener=None):
    """The completion of one greeting, and the text that came with it."""
    engine, stream = Engine(settings, clock), Stream(listener=listener)
    engine.start()
    text = engine.fleet.homes["llama@1.0.0"].text
    prompt = b"Hello" if text is None else text.tokenizer.encode("Hello")
    request = Request(1, "llama", np.asarray(list(prompt), np.int32), new, 0, sampling=sampling)
    completion = clock.env.run(until=clock.spawn(engine.serve(request, stream)))
    return completion, "".join(stream.text)


def test_an_answer_is_a_letter_a_token(settings, clock):
    settings.fleet.letters = True
    completion, text = served(settings, clock, Sampling())
    assert (len(text), len(completion.tokens), completion.finish_reason) == (60, 60, "length")


def test_an_answer_ends_at_a_stop_string(settings, clock):
    settings.fleet.letters = True
    whole = served(settings, clock, Sampling())[1]
    stop = whole[20:23]
    completion, text = served(settings, clock, Sampling(stop=(stop,)))
    assert text == whole[: whole.index(stop)]
    assert completion.finish_reason == "stop"


def test_where_nobody_listens_an_answer_is_the_same_and_wakes_nobody_for_each_token(settings, clock):
    settings.fleet.letters = True
    told, calls, call_last = [], [], clock.call_last

    def counted(*arguments):
        calls.append(arguments)
        return call_last(*arguments)

    clock.call_last = counted
    heard, text = served(settings, clock, Sampling(), listener=lambda: told.append(1))
    num_heard = len(calls)
    whole, same = served(settings, clock, Sampling())
    assert (same, whole.tokens, whole.finish_reason) == (text, heard.tokens, heard.finish_reason)
    assert len(told) >= len(text) == 60
    assert num_heard >= len(text)
    assert len(calls) - num_heard < 10


def test_without_them_there_is_no_text(settings, clock):
    completion, text = served(settings, clock, Sampling())
    assert (len(completion.tokens), text) == (60, "")


def test_without_them_there_is_nothing_to_find_a_stop_string_with(settings, clock):
    with pytest.raises(BadRequest, match="has no tokenizer"):
        served(settings, clock, Sampling(stop=("a",)))
