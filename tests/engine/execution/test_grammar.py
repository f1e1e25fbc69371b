"""Grammars: whatever may come next leads to what was asked for, and what callers send is bounded."""

import json
import random

import numpy as np
import pytest

from engine.errors import BadRequest
from engine.execution.grammar import KEPT_GRAMMARS, MAX_SCHEMA_DEPTH, Grammars, Spelling
from engine.request import MAX_GRAMMAR_CHARACTERS, Grammar, Sampling

BYTES = [bytes([byte]) for byte in range(256)]
WORDS = [b'{"', b'":', b'", "', b"true", b"false", b' "a', b"  ", b"\n\n", b"}}", b"Paris", b""]
CONTROL = [b"<|end|>", b"<|turn|>", b"<|stop|>"]
TOKENS = [*BYTES, *WORDS, *CONTROL]
END, TURN, STOP = range(len(TOKENS) - 3, len(TOKENS))

TRIP = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "days": {"type": "integer", "minimum": 1, "maximum": 30},
        "by": {"enum": ["train", "bus"]},
        "legs": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    },
    "required": ["city", "days", "by", "legs"],
    "additionalProperties": False,
}


def spelling():
    return Spelling(TOKENS, [END, TURN, STOP], (END, STOP), lambda text: list(text.encode()))


@pytest.fixture(scope="module")
def grammars():
    return Grammars(spelling)


def by_schema(schema):
    return Grammar("json_schema", json.dumps(schema))


def allowed(mask):
    return np.flatnonzero(np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")).tolist()


def walk(compiled, seed, most=2_000):
    """Tokens chosen by chance among those that are allowed, up to the one that ends the answer."""
    follower, chance, tokens = compiled.follow(), random.Random(seed), []  # noqa: S311
    while len(tokens) < most and (not tokens or tokens[-1] not in (END, STOP)):
        tokens.append(chance.choice(allowed(follower.allowed(tokens))))
    return tokens


def text_of(tokens):
    return b"".join(TOKENS[token] for token in tokens if token not in (END, STOP)).decode()


@pytest.mark.parametrize("seed", range(20))
def test_any_way_through_a_schema_is_json_by_it(grammars, seed):
    tokens = walk(grammars.compile(by_schema(TRIP)), seed)
    trip = json.loads(text_of(tokens))
    assert tokens[-1] in (END, STOP)
    assert list(trip) == ["city", "days", "by", "legs"]
    assert len(trip["city"]) <= 12
    assert 1 <= trip["days"] <= 30
    assert trip["by"] in ("train", "bus")
    assert 1 <= len(trip["legs"]) <= 3
    assert set(trip["legs"]) <= {True, False}


@pytest.mark.parametrize(
    ("grammar", "fits"),
    [
        (Grammar("regex", "[0-9]{3}-[a-c]+x"), lambda text: text[3] == "-" and text[-1] == "x"),
        (
            Grammar("lark", 'start: "yes" | "no" /[.!]{1,2}/'),
            lambda text: text in {"yes", "no.", "no!", "no..", "no!!", "no.!", "no!."},
        ),
        (Grammar("json_schema", '{"enum": ["a", 1, null]}'), lambda text: json.loads(text) in ("a", 1, None)),
        (by_schema({"$ref": "#/$defs/x", "$defs": {"x": {"const": {"k": 2}}}}), lambda text: "2" in text),
        (by_schema({"anyOf": [{"const": True}, {"const": False}]}), lambda text: text in ("true", "false")),
    ],
    ids=["regex", "lark", "enum", "ref", "any"],
)
def test_any_way_through_a_grammar_fits_it(grammars, grammar, fits):
    compiled = grammars.compile(grammar)
    for seed in range(10):
        assert fits(text_of(walk(compiled, seed)))


@pytest.mark.parametrize("text", ["{}", '{"a": [1, {"b": "x<|turn|>"}]}', '{\n  "a": null\n}'])
def test_any_json_object_may_be_said_and_then_only_the_end(grammars, text):
    follower, tokens = grammars.compile(Grammar("json_object")).follow(), []
    for byte in text.encode():
        assert byte in allowed(follower.allowed(tokens))
        assert END not in allowed(follower.allowed(tokens))
        tokens.append(byte)
    assert allowed(follower.allowed(tokens)) == [END, STOP]


def test_control_tokens_are_no_text(grammars):
    follower = grammars.compile(Grammar("json_object")).follow()
    inside = allowed(follower.allowed(list(b'{"a": "<')))
    assert ord("|") in inside
    assert not {END, TURN, STOP, TOKENS.index(b"")} & set(inside)


def test_an_object_begins_at_once_and_holds_no_endless_blanks(grammars):
    follower = grammars.compile(Grammar("json_object")).follow()
    assert {TOKENS[token][:1] for token in allowed(follower.allowed([]))} == {b"{"}
    tokens = list(b"{\n\n" + b" " * 20)
    assert ord(" ") not in allowed(follower.allowed(tokens))
    assert ord('"') in allowed(follower.allowed(tokens))


def test_it_stands_where_the_tokens_lead_however_they_came(grammars):
    compiled = grammars.compile(by_schema(TRIP))
    tokens, step_by_step = walk(compiled, 3)[:-1], compiled.follow()
    for place in range(len(tokens)):
        mask = step_by_step.allowed(tokens[:place])
        assert step_by_step.allowed(tokens[:place]) == mask
        assert compiled.follow().allowed(tokens[:place]) == mask
        half = place // 2
        assert compiled.follow(tokens[:half]).allowed(tokens[half:place]) == mask


def test_answers_do_not_disturb_each_other(grammars):
    compiled = grammars.compile(by_schema(TRIP))
    one, other = compiled.follow(), compiled.follow()
    first = one.allowed([])
    one.allowed(list(b'{"city": "P'))
    assert other.allowed([]) == first


def nested(depth):
    schema = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


HOSTILE = {
    "no JSON": (Grammar("json_schema", "{"), "it is no JSON"),
    "no object": (Grammar("json_schema", "[1]"), r"it is '\[1\]', but must be an object"),
    "NaN": (Grammar("json_schema", '{"const": NaN}'), "cannot be followed"),
    "deep": (by_schema(nested(MAX_SCHEMA_DEPTH)), f"more than {MAX_SCHEMA_DEPTH} deep"),
    "deeper": (Grammar("json_schema", '{"a":' * 5_000 + "1" + "}" * 5_000), "cannot be followed"),
    "unknown type": (by_schema({"type": "foo"}), "foo"),
    "not": (by_schema({"not": {"type": "string"}}), "not"),
    "unique": (by_schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
    "impossible": (by_schema({"type": "object", "properties": {"a": False}, "required": ["a"]}), "'a'"),
    "endless": (by_schema({"$ref": "#"}), "cannot be followed"),
    "from afar": (by_schema({"$ref": "http://localhost:1/x.json"}), "localhost"),
    "no such part": (by_schema({"$ref": "#/$defs/x"}), "cannot be followed"),
    "format": (by_schema({"type": "string", "format": "nonesuch"}), "nonesuch"),
    "product": (
        by_schema(
            {
                "allOf": [
                    {"anyOf": [{"properties": {f"p{i}": {"maxLength": j}}} for j in range(4)]}
                    for i in range(12)
                ]
            }
        ),
        "too large",
    ),
    "multiples": (
        by_schema({"type": "integer", "multipleOf": 999_983, "minimum": 5, "maximum": 10**15}),
        "fuel",
    ),
    "bad regex": (Grammar("regex", "(a"), "cannot be followed"),
    "bad rules": (Grammar("lark", "start: nobody"), "nobody"),
    "half a pair": (Grammar("regex", "\ud800"), "half a surrogate pair"),
    "half a pair in JSON": (Grammar("json_schema", '{"const": "\\ud800"}'), "cannot be followed"),
}


@pytest.mark.parametrize(("grammar", "why"), HOSTILE.values(), ids=HOSTILE.keys())
def test_what_cannot_be_followed_is_refused_with_the_reason(grammars, grammar, why):
    with pytest.raises(BadRequest, match=why) as refusal:
        grammars.compile(grammar)
    assert str(refusal.value).startswith(f"the grammar ({grammar.kind}) cannot be followed: ")
    assert len(str(refusal.value)) < 500


BEYOND = {
    "states": Grammar("regex", "(.*a.{300}){100}"),
    "choices": by_schema({"type": "object", "properties": {f"p{number}": {} for number in range(2_000)}}),
}


@pytest.mark.parametrize("grammar", BEYOND.values(), ids=BEYOND.keys())
def test_what_grows_beyond_all_bounds_on_the_way_is_refused_there(grammars, grammar):
    with pytest.raises(BadRequest, match="cannot be followed"):
        walk(grammars.compile(grammar), 0)


HUGE = {
    "length": by_schema({"type": "string", "maxLength": 10**9}),
    "items": by_schema({"type": "array", "items": {"type": "integer"}, "minItems": 10**6}),
    "repeats": by_schema({"type": "string", "pattern": "^((((a{1,100}){1,100}){1,100}){1,100})$"}),
    "references": by_schema(
        {
            "$defs": {
                **{f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(25)},
                "d25": {"type": "object"},
            },
            "$ref": "#/$defs/d0",
        }
    ),
}


@pytest.mark.parametrize("grammar", HUGE.values(), ids=HUGE.keys())
def test_what_is_huge_only_on_paper_is_followed(grammars, grammar):
    assert len(walk(grammars.compile(grammar), 0, most=20)) > 1


def test_callers_have_no_say_on_how_we_compile(grammars):
    schema = {"type": "object", "x-guidance": {"whitespace_pattern": "[xyz]{1,9}", "lenient": True}}
    follower = grammars.compile(by_schema(schema)).follow()
    assert ord("x") not in allowed(follower.allowed([ord("{")]))
    with pytest.raises(BadRequest, match="uniqueItems"):
        grammars.compile(by_schema({"x-guidance": {"lenient": True}, "uniqueItems": True}))


def test_the_latest_are_kept():
    grammars = Grammars(spelling)
    asked = [Grammar("regex", f"a{{{number}}}") for number in range(1, KEPT_GRAMMARS + 2)]
    for grammar in asked[:-1]:
        grammars.keep(grammars.compile(grammar))
    first = grammars.find(asked[0])
    assert first.grammar == asked[0]
    grammars.keep(grammars.compile(asked[-1]))
    assert grammars.find(asked[0]) is first
    assert grammars.find(asked[1]) is None
    assert grammars.find(asked[-1]).grammar == asked[-1]


def test_a_vocabulary_is_spelled_once_and_only_when_somebody_asks():
    asked = []
    grammars = Grammars(lambda: asked.append(1) or spelling())
    assert grammars.find(Grammar("json_object")) is None
    assert asked == []
    grammars.compile(Grammar("json_object"))
    grammars.compile(Grammar("regex", "a"))
    assert asked == [1]


def test_a_grammar_is_one_of_those_we_know_and_not_too_long():
    with pytest.raises(BadRequest, match=r"grammar\.kind is 'gbnf', but must be one of json_object"):
        Grammar("gbnf", "root ::= x")
    with pytest.raises(BadRequest, match=f"but may have {MAX_GRAMMAR_CHARACTERS}"):
        Grammar("regex", "a" * (MAX_GRAMMAR_CHARACTERS + 1))


def test_an_answer_by_a_grammar_ends():
    with pytest.raises(BadRequest, match="ignore_eos is True, but must be False with a grammar"):
        Sampling(grammar=Grammar("json_object"), ignore_eos=True)
