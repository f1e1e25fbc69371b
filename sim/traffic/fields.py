"""The fields of a trace file's rows, by column or key: each is checked as it is read.

A field that is no good is a BadField, which knows its name, its value and what is allowed. The reader of the file
adds where it stands, so that rows which are fine pay nothing for messages.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from math import nan
from pathlib import Path
from typing import Any

from engine.clock import NS_PER_S
from engine.registry.discovery import printable
from sim.traffic.lines import lines
from sim.traffic.trace import MAX_TOKENS, BadTrace

MAX_S = 4_000_000_000
"""The latest time of a file: seconds since 1970 fit, and so do nanoseconds into an int64."""
MOST_DIGITS = 18
SHOWN = 60
BOM = "\ufeff"


class BadField(ValueError):
    """What is wrong with a row, without where it stands."""


@contextmanager
def at(path: Path, line: int) -> Iterator[None]:
    """Whatever is wrong within is so on that line. Raises BadTrace."""
    try:
        yield
    except BadField as error:
        raise BadTrace(f"{path}, line {line}{error}") from error


def header(path: Path, content: bytes) -> list[str]:
    """The names of the columns. Raises BadTrace."""
    with at(path, 1):
        names = split(content.removeprefix(BOM.encode()))
        if len(set(names)) != len(names):
            raise BadField(f" has a column twice: {printable(','.join(names)[:200])}")
        return names


def table(
    path: Path, needed: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[int, Sequence[str]]]:
    """The lines of a CSV file below its header, with the values of the columns that are needed, then those optional.

    A column that is optional and not there has empty values. Raises BadTrace for a needed one that is missing, and
    for a row with more or fewer fields than the header.
    """
    with closing(lines(path)) as source:
        names = header(path, next(source, b""))
        for name in needed:
            if name not in names:
                raise BadTrace(f"{path}, line 1 has no column {name}, but must have {', '.join(needed)}")
        place = [names.index(name) if name in names else len(names) for name in (*needed, *optional)]
        for line, content in rows(path, source, 2):
            try:
                values = split(content)
                _check_count(values, names, content)
            except BadField as error:
                raise BadTrace(f"{path}, line {line}{error}") from error
            values.append("")
            yield line, [values[index] for index in place]


def _check_count(values: Sequence[str], names: Sequence[str], content: bytes) -> None:
    if len(values) != len(names):
        listed = printable(",".join(names)[:200])
        raise BadField(f" has {len(values)} fields, but must have {len(names)}: {listed}{cut_short(content)}")


def rows(path: Path, source: Iterator[bytes], first: int) -> Iterator[tuple[int, bytes]]:
    """The lines that have something, by number. Blank ones may only be the last. Raises BadTrace."""
    blank = 0
    for line, content in enumerate(source, first):
        if content.isspace():
            blank = blank or line
        elif blank:
            raise BadTrace(f"{path}, line {blank} is blank, but must be a row, since others follow")
        else:
            yield line, content


def split(content: bytes) -> list[str]:
    """The fields of a CSV row. Raises BadField."""
    row = text(content)
    if "\0" in row:
        raise BadField(" has a NUL byte, but must be text")
    if '"' not in row:  # a third of the time that csv takes
        return [value.strip() for value in row.split(",")]
    try:
        return [value.strip() for value in next(csv.reader([row]), [])]
    except csv.Error as error:
        raise BadField(" has a carriage return in the middle, but must end with a line feed") from error


def text(content: bytes) -> str:
    """Bytes of a file as text. Raises BadField."""
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise BadField(f", byte {error.start + 1} must be UTF-8") from error


def json_object(content: bytes) -> dict[str, Any]:
    """A line of JSON. Raises BadField."""
    try:
        values = json.loads(text(content), object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        raise BadField(f", column {error.colno} must be JSON: {error.msg}{cut_short(content)}") from error
    except BadField:
        raise
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits; brackets in brackets
        raise BadField(" must be a flat JSON object of ordinary numbers, each key once") from error
    if not isinstance(values, dict):
        raise BadField(f" is a JSON {type(values).__name__}, but must be an object")
    return values


def cut_short(content: bytes) -> str:
    """A hint for a row that is the last one of a file and has no end."""
    return "" if content.endswith(b"\n") else "; the file ends in this line and may be cut short"


def seconds(name: str, value: object) -> int:
    """A time in seconds as nanoseconds. Raises BadField."""
    number = _number(value)
    if 0 <= number <= MAX_S:  # false for NaN
        return round(number * NS_PER_S)
    raise BadField(f", {name} is {shown(value)}, but must be seconds from 0 to {MAX_S:,}")


def tokens(name: str, value: str) -> int:
    """A number of tokens. Raises BadField."""
    if (
        value.isascii()
        and value.isdigit()
        and len(value) <= MOST_DIGITS
        and (number := int(value)) <= MAX_TOKENS
    ):
        return number
    raise BadField(f", {name} is {shown(value)}, but must be a whole number from 0 to {MAX_TOKENS:,}")


def measure(name: str, value: object, least: float, most: float) -> float:
    """A plain number within bounds. Raises BadField."""
    number = _number(value)
    if least <= number <= most:
        return number
    raise BadField(f", {name} is {shown(value)}, but must be a number from {least:g} to {most:g}")


def _number(value: object) -> float:
    """A number, or its text as others would write it: no underscores, no digits of other scripts; else NaN."""
    try:
        if type(value) is str:
            return float(value) if value.isascii() and "_" not in value else nan
        return float(value) if type(value) in (int, float) else nan  # type: ignore[arg-type]
    except (ValueError, OverflowError):
        return nan


def whole(values: dict[str, Any], key: str, least: int, most: int) -> int:
    """A whole number of a JSON object. Raises BadField."""
    value = values.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise BadField(
            f", key {key} is {shown(value)}, but must be a whole number from {least:,} to {most:,}"
        )
    return value


def shown(value: object) -> str:
    """A value of the file in a message, cut after 60 characters."""
    written = "missing" if value is None else repr(value)
    return written[:SHOWN] + ("..." if len(written) > SHOWN else "")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key stands there twice")
    return values
