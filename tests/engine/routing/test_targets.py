"""Names, groups and fallbacks: in order, bounded, and free of circles."""

from dataclasses import dataclass, field

import pytest

from engine.errors import BadRequest, BadSettings, NoReplica, NotFound, OverQuota, TooLong
from engine.routing import Targets
from engine.settings import RoutingSettings


@dataclass
class Card:
    name: str
    parameters: int = 0
    tags: tuple[str, ...] = field(default=())

    @property
    def key(self):
        return f"{self.name}@1.0.0"


CARDS = [Card("big", 70, ("code",)), Card("middle", 14, ("code", "chat")), Card("small", 7), Card("odd")]


def find(name):
    for card in CARDS:
        if name in (card.name, card.key):
            return card
    raise NotFound(f"no model is called {name!r}")


def targets(**options):
    tagged = lambda tag: [card for card in CARDS if tag in card.tags]  # noqa: E731
    return Targets(RoutingSettings(**options), find, tagged, ["big", "small", "big"])


def way(walk, error):
    """Every name that is tried when each fails like that."""
    names = [walk.name]
    while walk.fail(error):
        names.append(walk.name)
    return names


NOBODY = NoReplica("nobody")


def test_auto_is_the_fleet_unless_it_is_given():
    assert [card.name for card in targets().members("auto")] == ["big", "small"]
    given = targets(groups={"auto": ["middle"]})
    assert [card.name for card in given.members("auto")] == ["middle"]


def test_a_group_has_models_and_tags_each_model_once():
    known = targets(groups={"some": ["small", "tag:code", "big"]})
    assert [card.name for card in known.members("some")] == ["small", "big", "middle"]
    assert known.is_group("some")
    assert known.is_group("tag:code")
    assert not known.is_group("big")
    with pytest.raises(NotFound, match="no model has the tag 'vision'"):
        known.members("tag:vision")


def test_a_model_knows_its_groups_and_tags():
    known = targets(groups={"some": ["tag:chat"], "others": ["tag:nobody", "small"]})
    assert known.groups_of(CARDS[1]) == ["some", "tag:code", "tag:chat"]
    assert known.groups_of(CARDS[2]) == ["others", "auto"]


def test_the_cheapest_of_a_group_come_first_and_unknown_sizes_last():
    known = targets(groups={"all": ["odd", "big", "small", "middle"]})
    assert [card.name for card in known.cheapest("all")] == ["small", "middle", "big", "odd"]


def test_fallbacks_are_tried_in_order_and_theirs_before_the_next():
    known = targets(fallbacks={"big": ["middle", "auto"], "middle": ["small"]})
    assert way(known.walk("big"), NOBODY) == ["big", "middle", "small", "auto"]
    assert way(known.walk("big@1.0.0"), NOBODY)[1:] == ["middle", "small", "auto"]
    assert way(known.walk("small"), NOBODY) == ["small"]


def test_whoever_is_not_named_has_the_fallbacks_of_everybody():
    known = targets(fallbacks={"*": ["small"], "small": ["odd"], "odd": []})
    assert way(known.walk("big"), NOBODY) == ["big", "small", "odd"]


@pytest.mark.parametrize("most", [0, 1, 2])
def test_no_more_fallbacks_than_allowed(most):
    known = targets(fallbacks={"big": ["middle", "small", "odd"]}, max_fallbacks=most)
    assert way(known.walk("big"), NOBODY) == ["big", "middle", "small", "odd"][: most + 1]


def test_nobody_is_tried_twice():
    known = targets(fallbacks={"big": ["middle", "small"], "middle": ["small"]})
    assert way(known.walk("big"), NOBODY) == ["big", "middle", "small"]
    known = targets(fallbacks={"*": ["small", "odd"]}, max_fallbacks=9)
    assert way(known.walk("big"), NOBODY) == ["big", "small", "odd"]
    assert way(known.walk("odd"), NOBODY) == ["odd", "small"]


def test_a_request_that_is_too_long_has_its_own_fallbacks():
    known = targets(context_fallbacks={"small": ["big"]}, fallbacks={"small": ["middle"]})
    assert way(known.walk("small"), TooLong("long")) == ["small", "big"]
    assert way(known.walk("small"), OverQuota("full", 1.0)) == ["small", "middle"]
    assert way(known.walk("small"), BadRequest("wrong")) == ["small"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"fallbacks": {"a": ["b"], "b": ["c"], "c": ["a"]}},
            "a -> b -> c -> a', but must be free of circles",
        ),
        ({"context_fallbacks": {"a": ["a"]}}, "routing.context_fallbacks is 'a -> a'"),
        ({"groups": {"none": []}}, "routing.groups.none is [], but must be at least one model"),
        ({"groups": {"big": ["small"]}}, "routing.groups.big is called like the model big@1.0.0"),
        ({"groups": {"some": ["gone"]}}, "routing.groups.some names 'gone', but no model is called 'gone'"),
        ({"fallbacks": {"gone": ["big"]}}, "routing.fallbacks names 'gone'"),
        ({"fallbacks": {"big": ["gone"]}}, "routing.fallbacks names 'gone'"),
        ({"max_fallbacks": -1}, "routing.max_fallbacks is -1"),
        ({"weights": {"a": -1.0}}, "routing.weights.a is -1.0"),
        ({"weights": {"a": 0.0}}, "above 0 for at least one replica"),
        ({"decision_log": 1.5}, "routing.decision_log is 1.5"),
        ({"session_timeout_s": 0}, "routing.session_timeout_s is 0"),
        ({"eject_above": 1.0}, "routing.eject_above is 1.0"),
    ],
)
def test_what_makes_no_sense_is_refused_at_the_start(options, message):
    with pytest.raises(BadSettings) as caught:
        targets(**options)
    assert message in str(caught.value)


def test_a_way_that_two_share_is_no_circle():
    assert targets(fallbacks={"big": ["middle", "small"], "middle": ["odd"], "small": ["odd"]})
