"""What the metadata of a model file amount to: a family, and its `Architecture` if our decoder runs it.

GGUF files (`families_of_gguf`) and config.json (`families_of_config`) say the same things in other words; here is
what both share. A family that our decoder runs, with a feature that it does not, has no shape but a reason; a number
that cannot be is a fault of the file.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from engine.errors import BadModel, BadSettings
from engine.formats.files import shown
from engine.formats.gguf import GgufArray
from engine.settings import FAMILIES, Architecture

MAX_COUNT = 2**24
MAX_LAYERS = 1_000
MAX_CONTEXT = 2**31
MAX_NUMBER = 1e300  # no number in a model is near it; integers of JSON know no end

WORD = re.compile(r"[\w.+-]{1,64}", re.ASCII)

GEMMAS = ("gemma2", "gemma3")
GEMMA_GLOBAL_EVERY = {"gemma2": 2, "gemma3": 6}
GEMMA3_LOCAL_THETA, GEMMA3_THETA = 10_000.0, 1_000_000.0
THETA = 10_000.0


@dataclass(slots=True)
class Reading:
    """What the metadata amount to. `shape` is None for what our decoder does not run; `why_not` says why.

    `context_tokens` is 0 where nothing is said.
    """

    architecture: str
    family: str
    shape: Architecture | None
    why_not: str | None
    context_tokens: int


class NotRunError(Exception):
    """Our decoder does not run this, in a sentence."""


class Keys:
    """Metadata of one file by key, with a prefix, each value held against what it may be."""

    def __init__(self, path: Path, values: Mapping[str, Any], prefix: str = "") -> None:
        self.path = path
        self.values = values
        self.prefix = prefix

    def get(self, name: str) -> Any:
        return self.values.get(f"{self.prefix}{name}")

    def count(self, name: str, default: int | None = None, least: int = 1, most: int = MAX_COUNT) -> int:
        value = self.get(name)
        if isinstance(value, GgufArray | list):
            raise NotRunError(f"{self.prefix}{name} differs from layer to layer")
        if value is None:
            value = default
        if type(value) is not int or not least <= value <= most:
            self.refuse(name, value, f"a whole number from {least} to {most:,}")
        return value

    def number(self, name: str, default: float | None = None, least: float = 0.0) -> float:
        value = self.get(name)
        if value is None:
            value = default
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < MAX_NUMBER:
            self.refuse(name, value, f"a number from {least:g} on")
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.refuse(name, value, "true or false")
        return value

    def below(self, name: str) -> "Keys | None":
        """The object under that key, unless it is empty."""
        value = self.get(name)
        if value is not None and not isinstance(value, dict):
            self.refuse(name, value, "an object")
        return Keys(self.path, value) if value else None

    def word(self, name: str) -> str:
        """What something is called: a word that can be shown as it is."""
        value = self.get(name)
        if not isinstance(value, str) or not WORD.fullmatch(value):
            self.refuse(name, value, "a word of letters, digits, dots and dashes")
        return value

    def refuse(self, name: str, value: Any, allowed: str) -> NoReturn:
        if value is None:
            raise BadModel(self.path, f"has no {self.prefix}{name}")
        raise BadModel(self.path, f"{self.prefix}{name} is {shown(value)}, but must be {allowed}")


def reading(
    name: str, family: str, keys: Keys, context_key: str, shape_of: Callable[[], Architecture]
) -> Reading:
    shape, why_not = None, None
    try:
        if family in FAMILIES:
            shape = shape_of()
        else:
            why_not = f"the architecture {shown(name)} is none that our decoder runs ({', '.join(FAMILIES)})"
    except NotRunError as reason:
        why_not = str(reason)
    except BadSettings as error:
        raise BadModel(keys.path, str(error)) from error
    if shape is not None:
        return Reading(name, family, shape, None, shape.context_tokens)
    context = keys.get(context_key)
    known = type(context) is int and 0 < context <= MAX_CONTEXT
    return Reading(name, family, None, why_not, context if known else 0)


def layer_pattern(windowed: list[bool], layers: int) -> int | None:
    """After how many layers comes one that sees everything: 0 if none does; None if all do."""
    if len(windowed) < layers:
        raise NotRunError(f"it says of {len(windowed)} layers whether they have a window, but has {layers}")
    windowed = windowed[:layers]
    if not any(windowed):
        return None
    every = windowed.index(False) + 1 if False in windowed else 0
    if any(each != (every == 0 or (layer + 1) % every > 0) for layer, each in enumerate(windowed)):
        raise NotRunError("its layers with and without a window alternate in a way that our decoder does not")
    return every


def share(hidden: int, heads: int) -> int | None:
    """What each head gets of `hidden` where the files do not say; None when it cannot be shared out evenly."""
    return hidden // heads if hidden % heads == 0 else None
