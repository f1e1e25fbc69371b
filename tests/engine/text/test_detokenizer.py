"""Text token by token: it adds up to the whole, in whole characters, and stop strings never show."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.text import Detokenizer, StopStrings, TextStream
from engine.text.detokenizer import _Stop

STEADY = settings(derandomize=True, deadline=None, max_examples=100)

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@pytest.fixture(params=["byte_level_tokenizer", "sentencepiece_tokenizer"], scope="module")
def tokenizer(request):
    return request.getfixturevalue(request.param)


@STEADY
@given(data=st.data())
def test_the_pieces_add_up_to_the_decoded_whole(data, tokenizer):
    tokens = data.draw(st.lists(st.integers(0, tokenizer.vocab_size)))
    for skip_special in (True, False):
        stream = Detokenizer(tokenizer, skip_special=skip_special)
        pieces = [stream.push(token) for token in tokens]
        assert "".join(pieces) + stream.flush() == tokenizer.decode(tokens, skip_special=skip_special)
        stream, cut = Detokenizer(tokenizer, skip_special=skip_special), len(tokens) // 3
        whole = stream.push_all(tokens[:cut]) + stream.push_all(tokens[cut:]) + stream.flush()
        assert whole == tokenizer.decode(tokens, skip_special=skip_special)


def test_no_piece_has_half_a_character(tokenizer, text):
    stream = Detokenizer(tokenizer)
    pieces = [stream.push(token) for token in tokenizer.encode(text)]
    assert not any(REPLACEMENT in piece for piece in pieces)
    assert "".join(pieces) == text
    assert stream.flush() == ""


def test_a_character_shows_with_its_last_byte(sentencepiece_tokenizer):
    stream = Detokenizer(sentencepiece_tokenizer)
    pieces = [stream.push(5 + byte) for byte in "世".encode()]
    assert pieces == ["", "", "世"]


def test_bytes_that_stay_incomplete_show_at_the_end(sentencepiece_tokenizer):
    stream = Detokenizer(sentencepiece_tokenizer)
    assert stream.push(5 + 0xE4) == ""
    assert stream.flush() == REPLACEMENT
    assert stream.flush() == ""


def test_the_first_space_is_kept_where_text_goes_on(sentencepiece_tokenizer):
    dog = sentencepiece_tokenizer.encode("the dog", special=False)[-1]
    assert sentencepiece_tokenizer.token_text(dog)[0] == " "
    assert Detokenizer(sentencepiece_tokenizer).push(dog)[0] != " "
    assert Detokenizer(sentencepiece_tokenizer, after=[dog]).push(dog)[0] == " "
    assert Detokenizer(sentencepiece_tokenizer, after=[dog, 4]).push(dog)[0] != " "


def ended_by_hand(text, stops):
    """The shortest beginning of the text that ends with a stop string, without that string; else all of it."""
    for end in range(1, len(text) + 1):
        matching = [stop for stop in stops if text[:end].endswith(stop)]
        if matching:
            longest = max(matching, key=len)
            return text[: end - len(longest)], longest
    return text, None


def watched(stops, pieces):
    watch = StopStrings(stops)
    shown = []
    for piece in pieces:
        text, stopped = watch.push(piece)
        shown.append(text)
        if stopped:
            return shown, watch.matched
    return [*shown, watch.flush()], None


SMALL = st.text("ab", max_size=40)


@STEADY
@given(st.lists(st.text("ab", min_size=1, max_size=5), max_size=4), st.lists(st.text("abc", max_size=6)))
def test_stop_strings_end_the_text_where_a_search_of_the_whole_does(stops, pieces):
    shown, matched = watched(stops, pieces)
    assert ("".join(shown), matched) == ended_by_hand("".join(pieces), stops)


@STEADY
@given(st.lists(st.text("ab", min_size=1, max_size=5), max_size=4), SMALL)
def test_nothing_is_held_back_that_could_not_become_a_stop_string(stops, text):
    watch = StopStrings(stops)
    shown = ""
    for end, character in enumerate(text, 1):
        piece, stopped = watch.push(character)
        shown += piece
        if stopped:
            return
        held = text[len(shown) : end]
        assert held == "" or any(stop.startswith(held) for stop in stops)


@pytest.mark.parametrize(
    ("stops", "pieces", "shown", "matched"),
    [
        (["END"], ["a E", "N", "D b"], ["a ", "", ""], "END"),
        (["END"], ["a E", "N", "x"], ["a ", "", "ENx", ""], None),
        (["\n\n"], ["a\n", "b\n", "\n"], ["a", "\nb", ""], "\n\n"),
        (["b", "a b"], ["x a b"], ["x "], "a b"),
        (["two", "one"], ["three one two"], ["three "], "one"),
        (["aab"], ["aa", "aab"], ["", "aa"], "aab"),
        (["aab"], ["aaa", "b"], ["a", ""], "aab"),
        (["ababc"], ["abab", "abc"], ["", "ab"], "ababc"),
        (["stop"], ["x st"], ["x ", "st"], None),
    ],
)
def test_stop_strings_by_example(stops, pieces, shown, matched):
    assert watched(stops, pieces) == (shown, matched)


def test_nothing_comes_after_a_stop():
    watch = StopStrings(["."])
    assert watch.push("a. b") == ("a", True)
    assert watch.push("c") == ("", True)
    assert watch.flush() == ""


def test_a_long_stop_string_costs_a_step_a_character():
    stop = _Stop("a" * 10_000 + "b")
    assert stop.find_end("a" * 50_000) is None
    assert stop.matched == 10_000


@STEADY
@given(data=st.data())
def test_a_stop_string_that_spans_tokens_ends_the_answer(data, tokenizer):
    text = data.draw(st.sampled_from(["the quick brown fox", "Größe 🎉 und", "a  b\n\n你好 c"]))
    start = data.draw(st.integers(0, len(text) - 1))
    stop = text[start : data.draw(st.integers(start + 1, len(text)))]
    stream = TextStream(Detokenizer(tokenizer), [stop])
    shown = ""
    for token in tokenizer.encode(text):
        piece, stopped = stream.push(token)
        shown += piece
        if stopped:
            break
    assert shown == text[: text.index(stop)]
    assert stream.stopped_by == stop
    assert stream.flush() == ""


def test_a_stop_token_ends_the_answer_and_releases_what_was_held_back(byte_level_tokenizer):
    end = byte_level_tokenizer.eos_ids[-1]
    stream = TextStream(Detokenizer(byte_level_tokenizer), ["dog sled"], [end])
    pieces = [stream.push(token) for token in [*byte_level_tokenizer.encode("the dog s"), end]]
    assert pieces[-1] == ("dog s", True)
    assert stream.stopped_by == end
    assert stream.push(end) == ("", True)


def test_a_stream_without_a_stop_gives_everything(tokenizer, text):
    stream = TextStream(Detokenizer(tokenizer), ["never to be seen"])
    shown = "".join(stream.push(token)[0] for token in tokenizer.encode(text))
    assert shown + stream.flush() == text
    assert stream.stopped_by is None


def test_a_stop_string_in_the_last_bytes_counts(sentencepiece_tokenizer):
    stream = TextStream(Detokenizer(sentencepiece_tokenizer), [REPLACEMENT])
    assert stream.push(5 + 0xE4) == ("", False)
    assert stream.flush() == ""
    assert stream.stopped_by == REPLACEMENT
