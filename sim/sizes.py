"""Sizes of a scenario: `sizes: {small: [...], full: [...]}` are override lines; `size=full` puts them under yours.

A line of yours wins over a line of the size that sets the same thing, or a part of it.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from engine.errors import BadSettings, UnknownName


def lines_of(key: str, value: Any) -> list[str]:
    """Override lines from a configuration. Raises BadSettings for what is no list of them."""
    if not isinstance(value, list) or not all(isinstance(line, str) and "=" in line for line in value):
        raise BadSettings(f"{key} is {value!r}, but must be a list of lines SETTING=VALUE")
    return list(value)


def sized(parts: dict[str, Any], overrides: Sequence[str]) -> list[str] | None:
    """The lines that make a configuration of the size that was chosen; None where none was. Raises BadSettings."""
    size, sizes = parts.get("size"), parts.get("sizes") or {}
    if size is None:
        return None
    if not isinstance(sizes, dict) or size not in sizes:
        known = f"choose from {', '.join(sizes)}" if sizes else "this scenario has none"
        raise UnknownName(f"no size is called {size!r}; {known}")
    stronger = [
        line for line in overrides if key_of(line) != "scenario"
    ]  # whose size this is: it covers nothing of it
    return merged(overrides, lines_of(f"sizes.{size}", sizes[size]), stronger=stronger)


def merged(last: Iterable[str], first: Iterable[str], *, stronger: Iterable[str]) -> list[str]:
    """`first` and then `last`, less those lines of the first that set what a stronger line sets, or a part of it."""
    keys = {key_of(line) for line in stronger}
    kept = [line for line in first if not any(_covers(key, key_of(line)) for key in sorted(keys))]
    return [*kept, *last]


def key_of(line: str) -> str:
    """What an override line sets."""
    return line.partition("=")[0].lstrip("+~").partition("@")[0].replace("/", ".")


def _covers(key: str, other: str) -> bool:
    return other == key or other.startswith(f"{key}.")
