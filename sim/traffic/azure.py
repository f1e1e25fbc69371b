"""Traces in the format of the Azure LLM inference traces (2023): a CSV row a request, with two lengths.

Published at github.com/Azure/AzurePublicDataset; Patel et al., "Splitwise", ISCA 2024.
"""

import csv
import re
from array import array
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path

import numpy as np

from engine.clock import NS_PER_S
from engine.settings import above, require
from sim.traffic.lines import lines
from sim.traffic.trace import MAX_TOKENS, BadTrace, Trace, from_rows
from sim.traffic.workload import MAX_REQUESTS, check_kind, check_popularity, check_vocab, whole, workloads

HEADER = b"TIMESTAMP,ContextTokens,GeneratedTokens"
YEARS = range(1970, 2201)  # nanoseconds of a wider range would not fit into an int64

_COLUMNS = HEADER.split(b",")
_BOM = b"\xef\xbb\xbf"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MINUTE = timedelta(minutes=1)
_TIMESTAMP = rb"(\d{4}-\d\d-\d\d \d\d:\d\d):([0-5]\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)?"
_LENGTH = rb"(\d{1,18})"
_as_timestamp = re.compile(_TIMESTAMP).fullmatch
_as_length = re.compile(_LENGTH).fullmatch
_as_row = re.compile(rb"\s*%b\s*,\s*%b\s*,\s*%b\s*" % (_TIMESTAMP, _LENGTH, _LENGTH)).fullmatch


@workloads("azure")
@dataclass(slots=True, kw_only=True)
class AzureWorkload:
    """A file in the format of the Azure LLM inference traces, plain or gzip."""

    kind: str = "azure"
    path: str
    requests: int | None = 200  # the first so many; None is all
    sort: bool = False  # take rows in any order; otherwise time must not go back
    time_scale: float = 1.0  # multiplies every arrival: above 1 is slower
    vocab: int = 4096
    model_zipf: float | None = None

    def __post_init__(self) -> None:
        check_kind(self.kind, "azure")
        require("workload.path", self.path, self.path != "", "the path of a trace file")
        if self.requests is not None:
            whole("workload.requests", self.requests, 1, MAX_REQUESTS)
        above("workload.time_scale", self.time_scale, 0)
        check_vocab(self.vocab)
        check_popularity(self.model_zipf)

    def draw(self, seed: int, model: str) -> Trace:
        return read(
            Path(self.path),
            requests=self.requests,
            sort=self.sort,
            time_scale=self.time_scale,
            vocab=self.vocab,
            seed=seed,
            model=model,
        )


@dataclass(slots=True)
class Kept:
    """The rows that become requests, 16 bytes each, and the count of those that cannot."""

    arrival_ns: "array[int]" = field(default_factory=lambda: array("q"))
    prompt_tokens: "array[int]" = field(default_factory=lambda: array("i"))
    output_tokens: "array[int]" = field(default_factory=lambda: array("i"))
    dropped_rows: int = 0


def read(
    path: Path,
    *,
    requests: int | None,
    time_scale: float,
    vocab: int,
    seed: int,
    model: str,
    sort: bool = False,
) -> Trace:
    """The trace of the file's first `requests` usable rows (None: all; fewer when the file has fewer).

    The whole file is checked whatever is kept, at about 2 us a row. A row without prompt or output tokens is
    dropped, and counted unless it stands behind the last row kept. Time must not go back, unless rows are to be
    sorted. Raises BadTrace with line and column.
    """
    kept = _keep(path, requests, sort=sort)
    if not kept.arrival_ns:
        seen = f"{kept.dropped_rows} without" if kept.dropped_rows else "none below the header"
        raise BadTrace(f"{path} must have a row with both prompt and output tokens, but has {seen}")
    return from_rows(
        np.frombuffer(kept.arrival_ns, np.int64),
        np.frombuffer(kept.prompt_tokens, np.int32),
        np.frombuffer(kept.output_tokens, np.int32),
        time_scale=time_scale,
        model=model,
        vocab=vocab,
        seed=seed,
        source=f"azure:{path.name}",
        dropped_rows=kept.dropped_rows,
    )


def _keep(path: Path, requests: int | None, *, sort: bool) -> Kept:
    kept, latest_ns = Kept(), 0
    for line, (arrival_ns, prompt_tokens, output_tokens) in enumerate(rows(path), 2):
        if arrival_ns < latest_ns and not sort:
            raise BadTrace(
                f"{path}, line {line} is {(latest_ns - arrival_ns) / NS_PER_S:g} s before a row above it, but time "
                "must not go back (workload.sort=true takes rows in any order)"
            )
        latest_ns = max(latest_ns, arrival_ns)
        if len(kept.arrival_ns) == requests:
            continue  # the rest is checked, not kept
        if prompt_tokens == 0 or output_tokens == 0:
            kept.dropped_rows += 1
            continue
        kept.arrival_ns.append(arrival_ns)
        kept.prompt_tokens.append(prompt_tokens)
        kept.output_tokens.append(output_tokens)
    return kept


def rows(path: Path) -> Iterator[tuple[int, int, int]]:
    """Every row in the file's order: ns since 1970, prompt tokens, output tokens. Raises BadTrace."""
    minute_ns = lru_cache(maxsize=64)(_minute_ns)  # neighbours share their minute
    blank = 0
    with closing(lines(path)) as source:
        names = _header(path, next(source, b""))
        places = [names.index(name) for name in _COLUMNS]
        for number, line in enumerate(source, 2):
            if line.isspace():
                blank = blank or number
                continue
            if blank:
                raise BadTrace(f"{path}, line {blank} is blank, but must be a row, since others follow")
            if names != _COLUMNS or b'"' in line:
                line = _three(path, number, line, names, places)  # noqa: PLW2901
            try:
                row = _values(line, minute_ns)
            except ValueError as error:
                raise BadTrace(f"{path}, line {number}{_complaint(line)}") from error
            yield row


def _values(line: bytes, minute_ns: Callable[[bytes, bytes | None], int]) -> tuple[int, int, int]:
    """A row's arrival since 1970 in ns and its two lengths. Raises ValueError; `_complaint` knows why."""
    row = _as_row(line)
    if row is None:
        raise ValueError
    minute, second, fraction, zone, prompt, output = row.groups()
    in_minute_ns = int(second + fraction.ljust(9, b"0")) if fraction else int(second) * NS_PER_S
    prompt_tokens, output_tokens = int(prompt), int(output)
    if prompt_tokens > MAX_TOKENS or output_tokens > MAX_TOKENS:
        raise ValueError
    return minute_ns(minute, zone) + in_minute_ns, prompt_tokens, output_tokens


def _minute_ns(minute: bytes, zone: bytes | None) -> int:
    """From 1970 to the minute, in UTC unless it has a zone. Raises ValueError for a date that is none."""
    when = datetime.fromisoformat((minute + (zone or b"Z")).decode())
    if when.year not in YEARS:
        raise ValueError
    return (when - _EPOCH) // _MINUTE * 60 * NS_PER_S


def _header(path: Path, line: bytes) -> list[bytes]:
    """The columns: these three, and others beside them, as the number of images of multimodal traces."""
    if not line:
        raise BadTrace(f"{path} is empty, but must begin with the header {_shown(HEADER)}")
    seen = line.removeprefix(_BOM).strip()
    names = _fields(seen)
    if not set(_COLUMNS) <= set(names):
        raise BadTrace(f"{path}, line 1: the header is {_shown(seen)}, but must be {_shown(HEADER)}")
    if len(set(names)) < len(names):
        raise BadTrace(f"{path}, line 1: the header is {_shown(seen)}, but must have each column once")
    return names


def _three(path: Path, number: int, line: bytes, names: list[bytes], places: list[int]) -> bytes:
    """The three columns of a row that has others, has them in another order or between quotes."""
    values = _fields(line)
    if len(values) != len(names):
        cut = "" if line.endswith(b"\n") else "; the file ends in this line and may be cut short"
        raise BadTrace(
            f"{path}, line {number} has {len(values)} fields, but must have {len(names)}: "
            f"{b','.join(names).decode(errors='replace')[:200]}{cut}"
        )
    return b",".join([values[place] for place in places]) + b"\n"


def _fields(line: bytes) -> list[bytes]:
    """The fields of a row, of which those between quotes may have commas."""
    values = line.split(b",")
    if b'"' in line:
        text = line.decode("latin-1")  # a character for each byte: what is no UTF-8 is told with the column
        with suppress(csv.Error):  # a carriage return in the middle
            values = [value.encode("latin-1") for value in next(csv.reader([text]))]
    return [value.strip() for value in values]


def _complaint(line: bytes) -> str:
    """What is wrong with a row that `_values` refused: the rest of a sentence that begins with its line."""
    try:
        line.decode()
    except UnicodeDecodeError as error:
        return f", byte {error.start + 1} is 0x{line[error.start]:02x}, but must be UTF-8"
    if b"\0" in line:
        return f", byte {line.index(0) + 1} is NUL, but must be text"
    fields = [value.strip() for value in line.split(b",")]
    if len(fields) != len(_COLUMNS):
        cut = "" if line.endswith(b"\n") else "; the file ends in this line and may be cut short"
        return f" has the fields {_shown(line.strip())}, but must have three: {HEADER.decode()}{cut}"
    timestamp, prompt, output = fields
    if not _is_date(timestamp):
        allowed = "YYYY-MM-DD HH:MM:SS, up to 9 digits of a second, years 1970 to 2200"
        return f", column TIMESTAMP is {_shown(timestamp)}, but must be {allowed}"
    column, value = ("GeneratedTokens", output) if _is_length(prompt) else ("ContextTokens", prompt)
    return f", column {column} is {_shown(value)}, but must be a whole number from 0 to {MAX_TOKENS:,}"


def _is_date(value: bytes) -> bool:
    parts = _as_timestamp(value)
    if parts is None:
        return False
    try:
        _minute_ns(parts[1], parts[4])
    except ValueError:
        return False
    return True


def _is_length(value: bytes) -> bool:
    return _as_length(value) is not None and int(value) <= MAX_TOKENS


def _shown(value: bytes) -> str:
    """Bytes of the file in a message: quoted, oddities escaped, cut after 60."""
    return repr(value[:60])[1:] + ("..." if len(value) > 60 else "")  # noqa: PLR2004
