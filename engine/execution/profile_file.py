"""A profile: what the steps of one model take on one machine, measured and fitted. A versioned file of JSON.

`python -m sim.profile` writes it. Nobody vouches for it: it is read within bounds, and whatever is not as it must be
is refused with the file, the key, the value and what is allowed.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import Any

from engine.errors import BadModel, BadSettings
from engine.execution.terms import TERMS
from engine.formats.files import parse_json, read_at_most, shown
from engine.settings import Architecture, require

FORMAT = "modelyard profile"
VERSION = 1
UNITS = {
    "costs": "ns",
    "spread": "measured / predicted",
    "errors": "predicted / measured - 1",
    "copies": "ns",
}

MAX_FILE_BYTES = 1 << 20
MAX_TEXT = 200
MAX_RATIOS = 1024
MAX_POINTS = 10_000
MAX_ENTRIES = 64
MAX_NS = 1e15  # eleven days
MAX_RATIO = 1e4
MAX_COUNT = 1 << 53

COPIES = (
    "retire",
    "ram",
    "ssd_write",
    "ssd_read",
    "fp16_pack",
    "fp16_unpack",
    "int8_pack",
    "int8_unpack",
)
"""What moving KV takes: out when a sequence ends, within memory, to files and back, made smaller and whole again."""

LOADS = ("made", "cold", "mapped")
"""What having a model takes: weights from a seed; from files the first time, converted; and from the kept file."""

ERRORS = ("points", "mean_abs", "p50_abs", "p90_abs", "max_abs", "mean_signed", "lowest", "highest")
COLUMNS = ("prefill_tokens", "context_tokens", "batch", "median_ns", "predicted_ns", "is_held_out")

Scalar = str | int | float | bool | None


@dataclass(slots=True, kw_only=True)
class Copy:
    """What a copy takes: `latency_ns`, and `ns_per_byte` of a block as the executor makes it."""

    latency_ns: float
    ns_per_byte: float


@dataclass(slots=True, kw_only=True)
class Profile:
    """All that the file says. Ratios are measured by predicted, in rising order, and stand for equal shares of steps.

    `errors` tells how far predictions are from the medians of points: of those that were held out of the fit, and of
    those that were fitted. `points` are the medians themselves, a row for each, in the order of `COLUMNS`.
    """

    model: str
    shape: Architecture
    weights: str  # in which numbers
    weights_bytes: int
    kv_capacity_tokens: int
    kv_value_bytes: float
    kv_bytes_per_token: int
    costs_ns: dict[str, float]
    prefill_ratios: list[float]
    decode_ratios: list[float]
    errors: dict[str, dict[str, float]]
    copies: dict[str, Copy] = field(default_factory=dict)
    load_s: dict[str, float] = field(default_factory=dict)
    machine: dict[str, Scalar] = field(default_factory=dict)
    measured: dict[str, Scalar] = field(default_factory=dict)
    points: list[list[float]] = field(default_factory=list)

    def save(self, path: Path | str) -> None:
        """Write it aside and give it its name when it is whole. Raises BadSettings where that cannot be."""
        path = Path(path)
        aside = path.with_name(f".{path.name}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            aside.write_text(written(self))
            aside.replace(path)
        except OSError as error:
            raise BadSettings(f"{path} cannot be written: {error.strerror or error}") from error


def written(profile: Profile) -> str:
    """The file's text: an entry a line, so that two of them can be compared."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "units": UNITS,
        "machine": profile.machine,
        "measured": profile.measured,
        "model": {"name": profile.model, "weights": profile.weights, "architecture": asdict(profile.shape)},
        "memory": {name: getattr(profile, name) for name in MEMORY},
        "costs_ns": profile.costs_ns,
        "spread": {"prefill": profile.prefill_ratios, "decode": profile.decode_ratios},
        "errors": profile.errors,
        "copies": {name: asdict(copy) for name, copy in profile.copies.items()},
        "load_s": profile.load_s,
        "points": {"columns": list(COLUMNS), "rows": profile.points},
    }
    return "{\n" + ",\n".join(_entry(name, value) for name, value in content.items()) + "\n}\n"


def _entry(name: str, value: Any) -> str:
    if isinstance(value, dict) and value:
        inner = ",\n".join(f"  {json.dumps(key)}: {json.dumps(each)}" for key, each in value.items())
        return f"{json.dumps(name)}: {{\n{inner}\n}}"
    return f"{json.dumps(name)}: {json.dumps(value)}"


MEMORY = ("weights_bytes", "kv_capacity_tokens", "kv_value_bytes", "kv_bytes_per_token")


def read_profile(path: Path | str) -> Profile:
    """The profile in a file. Raises BadSettings for a file that is none, or not of this version."""
    path = Path(path)
    try:
        parsed = parse_json(path, read_at_most(path, MAX_FILE_BYTES), "a profile")
    except BadModel as error:
        raise BadSettings(str(error)) from error
    except OSError as error:
        raise BadSettings(f"{path} cannot be read: {error.strerror or error}") from error
    return _profile(_Part(path, "", parsed))


class _Part:
    """An object of the file, read value by value. Complains with the whole key."""

    def __init__(self, path: Path, key: str, values: Any) -> None:
        self.path, self.key = path, key
        self.require("", values, isinstance(values, dict), "an object")
        self.values: dict[str, Any] = values
        self._unread = list(values)

    def require(self, name: str, value: object, holds: bool, allowed: str) -> None:
        if not holds:
            key = f"{self.key}.{name}".strip(".") or "all of it"
            raise BadSettings(f"{self.path}: {key} is {shown(value)}, but must be {allowed}")

    def take(self, name: str) -> Any:
        if name not in self.values:
            raise BadSettings(f"{self.path}: {f'{self.key}.{name}'.strip('.')} is missing")
        self._unread.remove(name)
        return self.values[name]

    def part(self, name: str) -> "_Part":
        return _Part(self.path, f"{self.key}.{name}".strip("."), self.take(name))

    def text(self, name: str) -> str:
        value = self.take(name)
        good = isinstance(value, str) and 0 < len(value) <= MAX_TEXT and value.isprintable()
        self.require(name, value, good, f"a text of 1 to {MAX_TEXT} printable characters")
        return str(value)

    def number(self, name: str, least: float, most: float) -> float:
        value = self.take(name)
        good = is_number(value) and least <= value <= most
        self.require(name, value, good, f"a number from {least:g} to {most:g}")
        return float(value)

    def whole(self, name: str, least: int, most: int = MAX_COUNT) -> int:
        value = self.take(name)
        good = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
        self.require(name, value, good, f"a whole number from {least} to {most}")
        return int(value)

    def listing(self, name: str, least: int, most: int) -> list[Any]:
        value = self.take(name)
        good = isinstance(value, list) and least <= len(value) <= most
        size = f"{len(value)} entries" if isinstance(value, list) else value
        self.require(name, size, good, f"a list of {least} to {most} entries")
        return list(value)

    def numbers(self, known: tuple[str, ...] | None, least: float, most: float) -> dict[str, float]:
        """All that is left, as numbers by name; only names that are `known`, where those are given."""
        self.require(
            "", f"{len(self._unread)} entries", len(self._unread) <= MAX_ENTRIES, f"{MAX_ENTRIES} at most"
        )
        for name in self._unread:
            self.require("", name, known is None or name in known, f"of {', '.join(known or ())}")
        return {name: self.number(name, least, most) for name in list(self._unread)}

    def scalars(self) -> dict[str, Scalar]:
        """All that is left: texts, numbers, truths."""
        self.require(
            "", f"{len(self._unread)} entries", len(self._unread) <= MAX_ENTRIES, f"{MAX_ENTRIES} at most"
        )
        found: dict[str, Scalar] = {}
        for name in list(self._unread):
            value = self.take(name)
            if isinstance(value, str):
                good = len(value) <= MAX_TEXT and value.isprintable()
            else:
                good = value is None or isinstance(value, bool) or is_number(value)
            self.require(name, value, good, f"a number, or at most {MAX_TEXT} printable characters")
            found[name] = value
        return found

    def end(self) -> None:
        """Nothing else may stand here."""
        if self._unread:
            key = f"{self.key}.{shown(self._unread[0], quoted=False)}".strip(".")
            raise BadSettings(f"{self.path}: version {VERSION} of a profile has no key {key}")


def is_number(value: object) -> bool:
    """Whether it is a finite number, and not a truth."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= MAX_COUNT if isinstance(value, int) else isfinite(value)


def _profile(top: _Part) -> Profile:
    kind, version = top.take("format"), top.take("version")
    top.require("format", kind, kind == FORMAT, f"{FORMAT!r}")
    is_known = isinstance(version, int) and not isinstance(version, bool) and version == VERSION
    top.require("version", version, is_known, f"{VERSION}: measure again with python -m sim.profile")
    units = top.take("units")
    top.require("units", units, units == UNITS, shown(UNITS))
    machine, measured = top.part("machine").scalars(), top.part("measured").scalars()
    model = top.part("model")
    name, weights = model.text("name"), model.text("weights")
    shape = _shape(model.part("architecture"))
    model.end()
    memory = top.part("memory")
    weights_bytes, capacity = memory.whole("weights_bytes", 1), memory.whole("kv_capacity_tokens", 1)
    value_bytes = memory.number("kv_value_bytes", 0.01, 64)
    bytes_per_token = memory.whole("kv_bytes_per_token", 1)
    memory.end()
    costs_part = top.part("costs_ns")
    costs = costs_part.numbers(tuple(TERMS), 0, MAX_NS)
    costs_part.require("", costs, any(costs.values()), "with at least one cost above 0")
    spread = top.part("spread")
    prefill_ratios, decode_ratios = _ratios(spread, "prefill"), _ratios(spread, "decode")
    spread.end()
    errors = top.part("errors")
    found = {each: _errors(errors.part(each)) for each in list(errors.values)}
    errors.require("", list(found), {"held_out", "fitted"} <= {*found}, "given for held_out and fitted")
    copies = _copies(top.part("copies"))
    load_s = top.part("load_s").numbers(LOADS, 0, MAX_NS / 1e9)
    points = _points(top.part("points"))
    top.end()
    return Profile(
        model=name,
        shape=shape,
        weights=weights,
        weights_bytes=weights_bytes,
        kv_capacity_tokens=capacity,
        kv_value_bytes=value_bytes,
        kv_bytes_per_token=bytes_per_token,
        costs_ns=costs,
        prefill_ratios=prefill_ratios,
        decode_ratios=decode_ratios,
        errors=found,
        copies=copies,
        load_s=load_s,
        machine=machine,
        measured=measured,
        points=points,
    )


def _ratios(part: _Part, name: str) -> list[float]:
    found = part.listing(name, 1, MAX_RATIOS)
    for each in found:
        part.require(
            name, each, is_number(each) and 0 < each <= MAX_RATIO, f"above 0 and at most {MAX_RATIO:g}"
        )
    rising = all(low <= high for low, high in pairwise(found))
    part.require(name, found, rising, "in rising order")
    return [float(each) for each in found]


def _errors(part: _Part) -> dict[str, float]:
    found = part.numbers(ERRORS, -MAX_RATIO, MAX_COUNT)
    part.require("", list(found), len(found) == len(ERRORS), f"all of {', '.join(ERRORS)}")
    return found


def _copies(part: _Part) -> dict[str, Copy]:
    found = {}
    for name in list(part.values):
        part.require("", name, name in COPIES, f"of {', '.join(COPIES)}")
        one = part.part(name)
        latency_ns, ns_per_byte = one.number("latency_ns", 0, MAX_NS), one.number("ns_per_byte", 0, MAX_NS)
        found[name] = Copy(latency_ns=latency_ns, ns_per_byte=ns_per_byte)
        one.end()
    return found


def _points(part: _Part) -> list[list[float]]:
    columns = part.take("columns")
    part.require("columns", columns, columns == list(COLUMNS), shown(list(COLUMNS)))
    rows = part.listing("rows", 0, MAX_POINTS)
    for row in rows:
        good = (
            isinstance(row, list) and len(row) == len(COLUMNS) and all(map(is_number, row)) and min(row) >= 0
        )
        part.require("rows", row, good, f"{len(COLUMNS)} numbers from 0 each")
    part.end()
    return rows


def _shape(part: _Part) -> Architecture:
    """The architecture. What a key may hold, its class says."""
    known = {each.name: each for each in fields(Architecture)}
    values: dict[str, Any] = {}
    for name in list(part.values):
        part.require("", name, name in known, f"of {', '.join(known)}")
        values[name] = part.take(name)
        kinds = _KINDS[str(known[name].type)]
        part.require(name, values[name], kinds(values[name]), f"of type {known[name].type}")
    try:
        return Architecture(**values)
    except TypeError as error:
        raise BadSettings(f"{part.path}: {part.key} is incomplete: {error}") from error
    except BadSettings as error:
        raise BadSettings(f"{part.path}: {part.key}: {error}") from error


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT


def _is_listing(value: object) -> bool:
    return isinstance(value, list) and len(value) <= MAX_RATIOS and all(map(is_number, value))


_KINDS: dict[str, Callable[[object], bool]] = {
    str(str): lambda value: isinstance(value, str) and len(value) <= MAX_TEXT,
    str(int): _is_whole,
    str(bool): lambda value: isinstance(value, bool),
    str(float): is_number,
    str(float | None): lambda value: value is None or is_number(value),
    str(int | None): lambda value: value is None or _is_whole(value),
    str(list[float]): _is_listing,
}


def require_same(path: Path | str, profiled: Architecture, runs: Architecture, model: str) -> None:
    """Raise BadSettings unless a model runs in the shape that was measured."""
    for each in fields(Architecture):
        measured, given = getattr(profiled, each.name), getattr(runs, each.name)
        allowed = f"{shown(given)} as {model!r} has it: measure that with python -m sim.profile model={model}"
        require(f"{path}: model.architecture.{each.name}", measured, measured == given, allowed)
