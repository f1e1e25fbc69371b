"""What turns one configuration into another: the lines that a command line would have more."""

import json
import re
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any

import yaml

from sim.config import choices

GROUPS = ("executor", "strategy", "eviction", "allocation")
"""Sections that are chosen by name, and whose other settings come along with it."""
ELSEWHERE = ("report", "size", "sizes")
"""What says where results go or how the rest was written, and changes no figure."""
PLAIN = re.compile(r"[A-Za-z_/][\w./+-]*")
WORDS = frozenset({"null", "true", "false", "nan", "inf", "yes", "no", "on", "off"})


def changes(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Override lines, in the order of the second configuration: with them, the first one is the second."""
    one, lines = dict(first), []
    for group in GROUPS:
        chosen = second.get(group, {}).get("name")
        if chosen != one.get(group, {}).get("name") and chosen in choices(group):
            lines.append(f"{group}={chosen}")
            one[group] = of_group(group, str(chosen))
    return [*lines, *_changes(one, second, "")]


def _changes(first: Mapping[str, Any], second: Mapping[str, Any], before: str) -> Iterator[str]:
    """Below a section whose name is `before`, with a dot."""
    for key, value in second.items():
        name = f"{before}{key}"
        if name in ELSEWHERE:
            continue
        if key not in first:
            yield f"+{name}={written(value)}"
        elif isinstance(value, Mapping) and isinstance(first[key], Mapping):
            yield from _changes(first[key], value, f"{name}.")
        elif value != first[key]:
            yield f"{name}={written(value)}"
    yield from (f"~{before}{key}" for key in first if key not in second)


def of_group(group: str, name: str) -> dict[str, Any]:
    """The settings that come with a choice."""
    text = (files("conf") / group / f"{name}.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text) or {})


def written(value: Any) -> str:
    """As Hydra reads it."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{written(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    if isinstance(value, str) and not (PLAIN.fullmatch(value) and value.lower() not in WORDS):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return value if isinstance(value, str) else json.dumps(value)
