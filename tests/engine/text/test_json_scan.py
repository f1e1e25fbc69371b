"""JSON as it comes: each beginning of JSON is taken, nothing else is."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.text.json_scan import JsonScan

STEADY = settings(derandomize=True, deadline=None, max_examples=60)

LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
TREES = st.lists(VALUES, max_size=3) | st.dictionaries(st.text(), VALUES, max_size=3)


def taken(text):
    """How many characters were taken, and whether they are all of it."""
    scan = JsonScan()
    for place, character in enumerate(text):
        if not scan.push(character):
            return place, False
    return len(text), scan.is_complete


@STEADY
@given(TREES, st.booleans(), st.sampled_from([None, 1]))
def test_what_is_json_is_taken_and_complete_at_its_end(tree, ascii_only, indent):
    text = json.dumps(tree, ensure_ascii=ascii_only, indent=indent)
    assert taken(text) == (len(text), True)
    assert not taken(text[:-1])[1]
    assert taken(text + " ") == (len(text), False)


@STEADY
@given(TREES, st.data())
def test_what_is_taken_to_its_end_is_json_for_others_too(tree, data):
    text = json.dumps(tree)
    place = data.draw(st.integers(0, len(text) - 1))
    damaged = text[:place] + data.draw(st.sampled_from('{}[],:"\\ 0-.eEtu\n')) + text[place + 1 :]
    try:
        json.loads(damaged)
        is_json = True
    except ValueError:
        is_json = False
    assert (taken(damaged) == (len(damaged), True)) == (is_json and damaged.strip() == damaged)


@pytest.mark.parametrize(
    ("text", "up_to"),
    [
        ("x", 0),
        ('"a"', 0),
        ("1", 0),
        ("{a", 1),
        ('{"a",', 4),
        ('{"a":}', 5),
        ('{"a":1,}', 7),
        ("[1,]", 3),
        ("[,", 1),
        ("[01]", 3),
        ("[1.]", 3),
        ("[nul]", 4),
        ("[True]", 1),
        ("[1}", 2),
        ('{"a":1]', 6),
        ('["\n', 2),
        ('["\\x', 3),
        ('["\\u12g', 6),
        ("{}{", 2),
    ],
)
def test_it_says_where_json_is_broken(text, up_to):
    assert taken(text) == (up_to, False)
