"""Things are asked for by name."""

import sys
from dataclasses import dataclass, field
from inspect import Parameter, Signature, signature

import pytest

from engine.errors import BadSettings, UnknownName
from engine.named import Named


@pytest.fixture
def shape():
    shape = Named("shape")

    @shape("square")
    class Square:
        def __init__(self, side=1):
            self.side = side

    @shape("circle")
    class Circle:
        pass

    return shape


def test_a_name_makes_an_instance_with_its_options(shape):
    assert shape.make("square", side=3).side == 3
    assert shape.make("square", 4).side == 4
    assert shape.make("square") is not shape.make("square")


def test_decoration_gives_the_class_back(shape):
    class Line:
        pass

    assert shape("line")(Line) is Line
    assert shape.find("line") is Line


def test_an_unknown_name_is_answered_with_the_choices(shape):
    with pytest.raises(UnknownName, match=r"^no shape is called 'cube'; choose from circle, square$"):
        shape.make("cube")


def test_a_name_has_one_owner(shape):
    with pytest.raises(ValueError, match=r"shape 'square' has two owners: .*Square.* and .*int"):
        shape("square")(int)


@pytest.mark.parametrize(
    "options", [{"corners": 4}, {"side": 1, "colour": "red"}, {"name": "x"}, {"self": 1}]
)
def test_options_that_do_not_fit_are_refused(shape, options):
    with pytest.raises(BadSettings, match=r"shape 'square' does not take these options: .*unexpected"):
        shape.make("square", **options)


@pytest.fixture
def typed():
    typed = Named("shape")

    @typed("square")
    class Square:
        def __init__(
            self, side: float = 1.0, corners: int = 4, names: dict[str, float] | None = None, of=None
        ):
            self.side = side

    @typed("many")
    @dataclass
    class Many:
        sides: dict[str, float] = field(default_factory=dict)
        is_flat: bool = True
        colour: str = "red"

    return typed


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("square", {"side": "abc"}, "shape 'square' has side 'abc', but it must be a number"),
        ("square", {"side": None}, "side None, but it must be a number"),
        ("square", {"side": True}, "side True, but it must be a number"),
        ("square", {"corners": 1.5}, "corners 1.5, but it must be a whole number"),
        ("square", {"corners": False}, "corners False, but it must be a whole number"),
        ("many", {"sides": 3}, "sides 3, but it must be a map from text to numbers"),
        ("many", {"sides": {"a": "b"}}, "but it must be a map from text to numbers"),
        ("many", {"is_flat": 1}, "is_flat 1, but it must be true or false"),
        ("many", {"colour": 7}, "colour 7, but it must be text"),
    ],
)
def test_options_of_another_type_are_named(typed, name, options, sentence):
    with pytest.raises(BadSettings, match=sentence):
        typed.make(name, **options)


def test_options_of_their_type_and_those_of_no_plain_one_are_taken(typed):
    assert typed.make("square", side=3, corners=5, names=7, of="anything").side == 3
    assert typed.make("many", sides={"a": 1, "b": 0.5}, is_flat=False, colour="").sides == {"a": 1, "b": 0.5}


def test_the_types_of_a_compiled_class_are_those_of_its_defaults(monkeypatch):
    table = Named("shape")

    @table("square")
    class Square:
        def __init__(self, side=1.0, corners=4):
            self.side = side

    of_python = signature(Square).parameters.values()
    of_c = Signature([each.replace(kind=Parameter.POSITIONAL_ONLY) for each in of_python])
    monkeypatch.setattr("engine.named.signature", lambda _: of_c)
    assert table.make("square", side=2).side == 2
    with pytest.raises(BadSettings, match="side 'abc', but it must be a number"):
        table.make("square", side="abc")
    with pytest.raises(BadSettings, match=r"corners 1\.5, but it must be a whole number"):
        table.make("square", corners=1.5)


def test_a_type_error_inside_the_class_is_not_taken_for_bad_options():
    shape = Named("shape")

    @shape("broken")
    class Broken:
        def __init__(self):
            raise TypeError("inside")

    with pytest.raises(TypeError, match="inside"):
        shape.make("broken")


HOME = """
from lazy_table import shape

@shape("far")
class Far:
    pass
"""


def test_a_class_with_a_home_is_imported_only_when_asked_for(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    table = type(sys)("lazy_table")
    table.shape = Named("shape", homes={"far": "lazy_home", "lost": "lazy_home"})
    monkeypatch.setitem(sys.modules, "lazy_table", table)
    (tmp_path / "lazy_home.py").write_text(HOME)
    assert table.shape.names() == ["far", "lost"]
    assert "lazy_home" not in sys.modules
    assert type(table.shape.make("far")).__name__ == "Far"
    with pytest.raises(UnknownName, match="no shape is called 'lost'"):
        table.shape.find("lost")
    monkeypatch.delitem(sys.modules, "lazy_home")
