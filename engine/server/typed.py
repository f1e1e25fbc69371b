"""Plain values as checked dataclasses: names and types, told with the full name of what is wrong."""

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from engine.errors import BadSettings, UnknownName

T = TypeVar("T")

COMPLAINT = re.compile(r"(?P<what>.*) - at `(?P<key>key` in `)?\$(?P<path>[^`]*)`", re.DOTALL)
EXPECTED = re.compile(r"Expected `(?P<expected>[^`]*)`, got `(?P<got>[^`]*)`")
SHOWN = 80


def typed(cls: type[T], values: Any, key: str) -> T:
    """`values` as an instance of the dataclass `cls`, which is called `key`. Raises BadSettings, UnknownName."""
    check_names(cls, values, key)
    try:
        return msgspec.convert(values, cls)
    except msgspec.ValidationError as error:
        raise BadSettings(_sentence(str(error), values, key)) from error


def check_names(hint: Any, values: Any, key: str) -> None:
    """Raise UnknownName for a name that no setting has, however deep, and BadSettings for what must be a group."""
    if is_dataclass(hint):
        if not isinstance(values, dict):
            known = ", ".join(field.name for field in fields(hint))
            raise BadSettings(f"{key} is {_shown(values)}, but must be a group of settings: {known}")
        hints = get_type_hints(hint)
        known_names = [field.name for field in fields(hint) if field.init]
        for name, value in values.items():
            if name not in known_names:
                raise unknown(f"{key}.{name}", [f"{key}.{each}" for each in known_names])
            check_names(hints[name], value, f"{key}.{name}")
        return
    for inner, value, inner_key in _parts(hint, values, key):
        check_names(inner, value, inner_key)


def unknown(name: str, known: list[str]) -> UnknownName:
    """That there is no such setting, what may have been meant, and which there are."""
    near = get_close_matches(name, known, 1)
    meant = f"; did you mean {near[0]!r}?" if near else "; there are"
    others = ", ".join(each.rpartition(".")[2] for each in known)
    return UnknownName(f"{name} is no setting{meant} {'There are ' if near else ''}{others}")


def _parts(hint: Any, values: Any, key: str) -> Iterator[tuple[Any, Any, str]]:
    """What is inside a list, a map or an optional value, and has a type."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        if values is not None:
            yield from ((each, values, key) for each in inner if each is not NoneType)
    elif origin is list and isinstance(values, list):
        yield from ((inner[0], value, f"{key}[{at}]") for at, value in enumerate(values))
    elif origin is dict and isinstance(values, dict):
        yield from ((inner[1], value, f"{key}.{name}") for name, value in values.items())


def _sentence(complaint: str, values: Any, key: str) -> str:
    """The complaint of msgspec, with the full name and the value before it."""
    match = COMPLAINT.fullmatch(complaint)
    what, path = (match["what"], match["path"]) if match else (complaint, "")
    full = f"{key}{path}".replace("[...]", ".*")
    if match and match["key"]:
        return f"{full}: each name must be text: put quotes around it"
    expected = EXPECTED.fullmatch(what)
    if expected is None:
        return f"{full}: {what}"
    allowed = expected["expected"].replace(" | ", " or ")
    found = _at(values, path)
    told = f"of type {expected['got']}" if found is None else _shown(found)
    return f"{full} is {told}, but must be of type {allowed}"


def _at(values: Any, path: str) -> Any:
    """What stands there; None where nobody can tell."""
    for name, index in re.findall(r"\.([^.\[\]]+)|\[(\d+)\]", path):
        try:
            values = values[int(index)] if index else values[name]
        except (KeyError, IndexError, TypeError):
            return None
    return None if "[...]" in path else values


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
