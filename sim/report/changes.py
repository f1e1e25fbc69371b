"""What turns one configuration into another: the lines that a command line would have more."""

import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import yaml

from sim.config import choices

GROUPS = ("executor", "strategy", "eviction", "allocation")
"""Sections that are chosen by name, and whose other settings come along with it."""
ELSEWHERE = ("report.", "size", "sizes")
"""What says where results go or how the rest was written, and changes no figure."""
PLAIN = re.compile(r"[A-Za-z_/][\w./+-]*")
WORDS = frozenset({"null", "true", "false", "nan", "inf", "yes", "no", "on", "off"})


def changes(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Override lines, in the order of the second configuration: with them, the first one is the second."""
    one, other = dict(flat(first)), dict(flat(second))
    lines = []
    for group in GROUPS:
        chosen = other.get(f"{group}.name")
        if chosen != one.get(f"{group}.name") and chosen in choices(group):
            lines.append(f"{group}={chosen}")
            one = {key: value for key, value in one.items() if not key.startswith(f"{group}.")}
            one |= {f"{group}.{key}": value for key, value in flat(of_group(group, str(chosen)))}
    for key, value in other.items():
        if key not in one:
            lines.append(f"+{key}={written(value)}")
        elif one[key] != value:
            lines.append(f"{key}={written(value)}")
    return [*lines, *(f"~{key}" for key in one if key not in other)]


def of_group(group: str, name: str) -> dict[str, Any]:
    """The settings that come with a choice."""
    text = (files("conf") / group / f"{name}.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text) or {})


def flat(config: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    """Every setting under its whole name; lists stay whole, and so does what is empty."""
    found: list[tuple[str, Any]] = []
    for key, value in config.items():
        name = f"{before}{key}"
        if isinstance(value, Mapping) and value:
            found += flat(value, f"{name}.")
        elif not name.startswith(ELSEWHERE):
            found.append((name, value))
    return found


def written(value: Any) -> str:
    """As Hydra reads it."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{written(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    if isinstance(value, str) and not (PLAIN.fullmatch(value) and value.lower() not in WORDS):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return value if isinstance(value, str) else json.dumps(value)
