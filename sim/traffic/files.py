"""Trace files of several published formats as one kind of workload: told apart by their first row, never by name.

| format | first row | time | what else it knows |
|---|---|---|---|
| azure | header TIMESTAMP,ContextTokens,GeneratedTokens | date | |
| canonical | header timestamp_s,model,tenant,input_tokens,output_tokens | s | models, tenants; session_id: sessions |
| burstgpt | header with Timestamp, Model, Request tokens, Response tokens | s | models, sessions; no answer: failed |
| mooncake | JSON with timestamp and hash_ids | ms, in steps of 3 s | names of blocks of 512 tokens |
| bailian | JSON with chat_id and parent_chat_id | s | names of blocks of 16 tokens, sessions |
"""

import csv
import json
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.clock import NS_PER_S
from engine.settings import above, at_least, require
from sim.streams import stream
from sim.traffic import azure, mooncake
from sim.traffic.lines import lines
from sim.traffic.trace import MAX_TOKENS, BadTrace, Lengths, Times, Trace
from sim.traffic.workload import (
    MAX_REQUESTS,
    YEAR_S,
    check_kind,
    check_popularity,
    check_vocab,
    whole,
    workloads,
)

CANONICAL = ("timestamp_s", "model", "tenant", "input_tokens", "output_tokens")
BURSTGPT = ("Timestamp", "Model", "Request tokens", "Response tokens")
FORMATS = ("auto", "azure", "canonical", "burstgpt", "mooncake", "bailian")
QUANTUM_S = {"mooncake": mooncake.STEP_S, "burstgpt": 1.0}
"""What the published timestamps of a format are rounded to."""
ID_TOKENS = {"mooncake": mooncake.BLOCK_TOKENS, "bailian": 16}
JITTER_S = 5.0
"""How far a session of a copy is moved: so many seconds later at most."""
MAX_SCALE = 1000
JSON_BYTES = 4 << 20
"""The longest line of JSON: a prompt of ten million tokens in blocks of 16 has 600,000 names."""
NONE = -1
MOST_DIGITS = 18


@workloads("trace")
@dataclass(slots=True, kw_only=True)
class TraceWorkload:
    """A trace file, plain or gzip, and what is made of it.

    `from_s` and `until_s` cut by the file's own time, from its first row on; then `requests` are kept. `quantum_s`:
    arrivals that share a step of so many seconds are spread over it (null: the format's own rounding).
    `rate_scale`: below 1 sessions are left out by chance, above 1 copies with sessions and blocks of their own are
    laid over it, each session up to 5 s later. `time_scale` multiplies every time. `models`: names of the file in the
    order of the fleet's models; without, as they appear.
    """

    kind: str = "trace"
    path: str
    format: str = "auto"
    requests: int | None = None
    from_s: float = 0.0
    until_s: float | None = None
    sort: bool = False
    quantum_s: float | None = None
    rate_scale: float = 1.0
    time_scale: float = 1.0
    block_tokens: int | None = None
    wait: bool = False
    models: list[str] = field(default_factory=list)
    model_zipf: float | None = None
    vocab: int = 4096

    def __post_init__(self) -> None:
        check_kind(self.kind, "trace")
        require("workload.path", self.path, self.path != "", "the path of a trace file")
        require("workload.format", self.format, self.format in FORMATS, f"one of {', '.join(FORMATS)}")
        if self.requests is not None:
            whole("workload.requests", self.requests, 1, MAX_REQUESTS)
        at_least("workload.from_s", self.from_s, 0)
        if self.until_s is not None:
            above("workload.until_s", self.until_s, self.from_s)
        if self.quantum_s is not None:
            at_least("workload.quantum_s", self.quantum_s, 0)
        require(
            "workload.rate_scale",
            self.rate_scale,
            0 < self.rate_scale <= MAX_SCALE,
            f"above 0, at most {MAX_SCALE}",
        )
        above("workload.time_scale", self.time_scale, 0)
        if self.block_tokens is not None:
            whole("workload.block_tokens", self.block_tokens, 1, MAX_TOKENS)
        check_popularity(self.model_zipf)
        check_vocab(self.vocab)

    def draw(self, seed: int, model: str) -> Trace:
        return read(self, seed, model)

    def as_it_is(self, seed: int) -> Trace:
        """The trace whose requests ask for the models of the file, under their own names."""
        return read(replace(self, model_zipf=0.0), seed, "model")


@dataclass(slots=True)
class Table:
    """The rows of a file that can be served, in columns; names as numbers in the order in which they appear."""

    format: str
    arrival_ns: "array[int]" = field(default_factory=lambda: array("q"))
    prompt_tokens: "array[int]" = field(default_factory=lambda: array("i"))
    output_tokens: "array[int]" = field(default_factory=lambda: array("i"))
    model: "array[int]" = field(default_factory=lambda: array("i"))
    tenant: "array[int]" = field(default_factory=lambda: array("i"))
    session: "array[int]" = field(default_factory=lambda: array("i"))
    block_end: "array[int]" = field(default_factory=lambda: array("q"))
    blocks: "array[int]" = field(default_factory=lambda: array("i"))
    models: dict[str, int] = field(default_factory=dict)
    tenants: dict[str, int] = field(default_factory=dict)
    sessions: dict[Any, int] = field(default_factory=dict)
    block_names: dict[int, int] = field(default_factory=dict)
    dropped_rows: int = 0

    def add(
        self,
        arrival_ns: int,
        prompt_tokens: int,
        output_tokens: int,
        model: str = "",
        tenant: str = "",
        session: int = NONE,
        blocks: Sequence[int] = (),
    ) -> None:
        """One more row; one without prompt or output tokens is only counted: nobody can serve it."""
        if not prompt_tokens or not output_tokens:
            self.dropped_rows += 1
            return
        self.arrival_ns.append(arrival_ns)
        self.prompt_tokens.append(prompt_tokens)
        self.output_tokens.append(output_tokens)
        self.model.append(number(self.models, model))
        self.tenant.append(number(self.tenants, tenant))
        self.session.append(session)
        names = self.block_names
        self.blocks.extend([names.setdefault(block, len(names)) for block in blocks])
        self.block_end.append(len(self.blocks))


def number(names: dict[Any, int], name: object) -> int:
    """The number of a name, a new one for a new name."""
    return names.setdefault(name, len(names))


def read(settings: TraceWorkload, seed: int, model: str) -> Trace:
    """The trace that the settings make of the file. Raises BadTrace with the file and the line."""
    path = Path(settings.path)
    table = load(path, settings.format, sort=settings.sort, block_tokens=settings.block_tokens)
    if not table.arrival_ns:
        seen = f"{table.dropped_rows} without" if table.dropped_rows else "none"
        raise BadTrace(f"{path} must have a row with both prompt and output tokens, but has {seen}")
    arrival_ns = np.frombuffer(table.arrival_ns, np.int64)
    order = np.argsort(arrival_ns, kind="stable")
    arrival_ns = arrival_ns[order] - arrival_ns.min()
    rows = _cut(settings, arrival_ns)
    if not len(rows):
        raise BadTrace(
            f"{path} must have a row from {settings.from_s:g} s on, but ends at {arrival_ns[-1] / NS_PER_S:g} s"
        )
    order, arrival_ns = order[rows], arrival_ns[rows] - arrival_ns[rows[0]]
    quantum_s = settings.quantum_s if settings.quantum_s is not None else QUANTUM_S.get(table.format, 0.0)
    if quantum_s:
        arrival_ns = arrival_ns + (
            stream(seed, "trace.spread").random(len(order)) * quantum_s * NS_PER_S
        ).astype(np.int64)
    place, copy, arrival_ns = _scaled(settings, table, order, arrival_ns, seed)
    by_time = np.argsort(arrival_ns, kind="stable")
    return _trace(settings, table, place[by_time], copy[by_time], arrival_ns[by_time], seed, model)


def _cut(settings: TraceWorkload, arrival_ns: Times) -> npt.NDArray[np.int64]:
    first = int(np.searchsorted(arrival_ns, round(settings.from_s * NS_PER_S)))
    last = len(arrival_ns)
    if settings.until_s is not None:
        last = int(np.searchsorted(arrival_ns, round(settings.until_s * NS_PER_S)))
    if settings.requests is not None:
        last = min(last, first + settings.requests)
    return np.arange(first, max(first, last))


def _scaled(
    settings: TraceWorkload, table: Table, order: npt.NDArray[np.int64], arrival_ns: Times, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Times]:
    """Rows of the table, which copy each is of, and when it arrives: sessions are left out or doubled as a whole."""
    session = np.frombuffer(table.session, np.int32)[order]
    alone = session == NONE
    unit = np.where(alone, len(table.sessions) + np.arange(len(order)), session)
    count = len(table.sessions) + len(order)
    places, copies, times = [], [], []
    for copy in range(int(np.ceil(settings.rate_scale))):
        share = min(1.0, settings.rate_scale - copy)
        kept = (
            np.ones(count, bool) if share == 1 else stream(seed, f"trace.thin.{copy}").random(count) < share
        )
        later_ns = np.zeros(count, np.int64)
        if copy:
            later_ns = (stream(seed, f"trace.jitter.{copy}").random(count) * JITTER_S * NS_PER_S).astype(
                np.int64
            )
        rows = np.flatnonzero(kept[unit])
        places.append(order[rows])
        copies.append(np.full(len(rows), copy))
        times.append(arrival_ns[rows] + later_ns[unit[rows]])
    place = np.concatenate(places)
    if not len(place):
        scale = settings.rate_scale
        raise BadTrace(
            f"workload.rate_scale is {scale:g}, which leaves no request of {len(order)} in {settings.path}"
        )
    return place, np.concatenate(copies), np.concatenate(times)


def _trace(
    settings: TraceWorkload,
    table: Table,
    place: npt.NDArray[np.int64],
    copy: npt.NDArray[np.int64],
    arrival_ns: Times,
    seed: int,
    model: str,
) -> Trace:
    arrival_ns = arrival_ns - arrival_ns[0]
    if settings.time_scale != 1.0:
        span_s = arrival_ns[-1] / NS_PER_S * settings.time_scale
        require(
            "workload.time_scale",
            settings.time_scale,
            span_s <= YEAR_S,
            "small enough that a run ends in a year",
        )
        arrival_ns = np.rint(arrival_ns * settings.time_scale).astype(np.int64)
    session = None
    if table.sessions:
        known = np.frombuffer(table.session, np.int32)[place]
        keys = np.where(known == NONE, NONE - 1 - np.arange(len(place)), known + copy * len(table.sessions))
        session = np.unique(keys, return_inverse=True)[1].astype(np.int32)
    after, think_ns = _waits(session, arrival_ns) if settings.wait and session is not None else (None, None)
    ids, end = _blocks(table, place, copy) if len(table.blocks) else (None, None)
    named = [name for name in table.tenants if name]
    ranks = _ranks(settings, table)
    return Trace(
        arrival_ns=arrival_ns,
        prompt_tokens=np.frombuffer(table.prompt_tokens, np.int32)[place],
        output_tokens=np.frombuffer(table.output_tokens, np.int32)[place],
        prefix=np.full(len(place), -1, np.int32),
        prefixes=[],
        model=model,
        vocab=settings.vocab,
        seed=seed,
        source=f"{table.format}:{Path(settings.path).name}",
        dropped_rows=table.dropped_rows,
        models=() if ranks is None else tuple(settings.models or table.models),
        model_of=None if ranks is None else ranks[np.frombuffer(table.model, np.int32)[place]],
        tenants=tuple(table.tenants) if named else (),
        tenant_of=np.frombuffer(table.tenant, np.int32)[place] if named else None,
        session=session,
        after=after,
        think_ns=think_ns,
        block_ids=ids,
        block_end=end,
        id_tokens=(settings.block_tokens or ID_TOKENS.get(table.format, 0)) if ids is not None else 0,
    )


def _ranks(settings: TraceWorkload, table: Table) -> Lengths | None:
    """The number of the fleet's model for each one of the file; None: it has none, or all ask for the first."""
    if settings.model_zipf is None or list(table.models) == [""]:
        return None
    wanted = settings.models or list(table.models)
    for name in table.models:
        require(
            "workload.models",
            settings.models,
            name in wanted,
            f"a list that has {name!r}, which the file asks for",
        )
    return np.array([wanted.index(name) for name in table.models], np.int32)


def _blocks(table: Table, place: npt.NDArray[np.int64], copy: npt.NDArray[np.int64]) -> tuple[Lengths, Times]:
    """The names of blocks request by request; copies have names of their own."""
    end = np.frombuffer(table.block_end, np.int64)
    start = np.concatenate(([0], end[:-1]))
    length = (end - start)[place]
    new_end = np.cumsum(length)
    index = np.repeat(start[place] - (new_end - length), length) + np.arange(new_end[-1])
    ids = np.frombuffer(table.blocks, np.int32)[index].astype(np.int64)
    ids += np.repeat(copy, length) * len(table.block_names)
    if len(ids) and int(ids.max()) >= 2**31:
        raise BadTrace("workload.rate_scale makes more than 2^31 names of blocks")
    return ids.astype(np.int32), new_end


def _waits(session: Lengths, arrival_ns: Times) -> tuple[Lengths, Times]:
    """Each turn comes after the one before it; what lay between their arrivals is time to think."""
    order = np.argsort(session, kind="stable")
    follows = np.concatenate(([False], session[order][1:] == session[order][:-1]))
    before = np.concatenate(([0], order[:-1]))
    after, think_ns = np.full(len(session), -1, np.int32), np.zeros(len(session), np.int64)
    after[order[follows]] = before[follows]
    think_ns[order[follows]] = arrival_ns[order[follows]] - arrival_ns[before[follows]]
    return after, think_ns


def load(path: Path, form: str = "auto", *, sort: bool = False, block_tokens: int | None = None) -> Table:
    """The rows of a file. Raises BadTrace with the line of what is no row, or earlier than the row above it."""
    found = detect(path)
    if form not in ("auto", found):
        raise BadTrace(f"workload.format is {form!r}, but {path} is of the format {found}")
    table, last_ns = Table(found), -1
    reader = _READERS[found]
    for where, row in reader(path, block_tokens or ID_TOKENS.get(found, 0), table):
        arrival_ns = row[0]
        if arrival_ns < last_ns and not sort:
            raise BadTrace(
                f"{where} is {(last_ns - arrival_ns) / NS_PER_S:g} s before a row above it, but time must not go "
                "back (workload.sort=true takes rows in any order)"
            )
        last_ns = max(last_ns, arrival_ns)
        table.add(*row)
    return table


def detect(path: Path) -> str:
    """The format of a file by its first row. Raises BadTrace for one of no known format."""
    with closing(lines(path, JSON_BYTES)) as source:
        first = next(source, b"").removeprefix(b"\xef\xbb\xbf").strip()
    if first.startswith(b"{"):
        keys = _object(f"{path}, line 1", first + b"\n").keys()
        if {"chat_id", "parent_chat_id"} <= keys:
            return "bailian"
        if {"timestamp", "hash_ids"} <= keys:
            return "mooncake"
        raise BadTrace(
            f"{path}, line 1 has the keys {', '.join(sorted(keys))[:200]}, but must have timestamp and hash_ids "
            "(mooncake) or chat_id and parent_chat_id (bailian)"
        )
    names = [name.strip() for name in first.decode(errors="replace").split(",")]
    if names == azure.HEADER.decode().split(","):
        return "azure"
    if set(BURSTGPT) <= set(names):
        return "burstgpt"
    if "timestamp_s" in names:
        return "canonical"
    raise BadTrace(
        f"{path}, line 1 is {','.join(names)[:200]!r}, but must be a header with {azure.HEADER.decode()} (azure), "
        f"{','.join(CANONICAL)} (canonical) or {','.join(BURSTGPT)} (burstgpt), or a JSON object"
    )


Row = tuple[int, int, int, str, str, int, Sequence[int]]


def _azure(path: Path, _block_tokens: int, _table: Table) -> Iterator[tuple[str, Row]]:
    for line, (arrival_ns, prompt, output) in enumerate(azure.rows(path), 2):
        yield f"{path}, line {line}", (arrival_ns, prompt, output, "", "", NONE, ())


def _canonical(path: Path, _block_tokens: int, table: Table) -> Iterator[tuple[str, Row]]:
    for where, row in _csv(path, CANONICAL):
        session = NONE
        if row.get("session_id"):
            session = number(table.sessions, (row["tenant"], row["session_id"]))
        yield (
            where,
            (
                _seconds(where, row, "timestamp_s"),
                _tokens(where, row, "input_tokens"),
                _tokens(where, row, "output_tokens"),
                row["model"],
                row["tenant"],
                session,
                (),
            ),
        )


def _burstgpt(path: Path, _block_tokens: int, table: Table) -> Iterator[tuple[str, Row]]:
    for where, row in _csv(path, BURSTGPT):
        session = number(table.sessions, row["Session ID"]) if row.get("Session ID") else NONE
        arrival_ns = _seconds(where, row, "Timestamp")
        prompt, output = _tokens(where, row, "Request tokens"), _tokens(where, row, "Response tokens")
        yield where, (arrival_ns, prompt, output, row["Model"], "", session, ())


def _mooncake(path: Path, block_tokens: int, _table: Table) -> Iterator[tuple[str, Row]]:
    for line, row in enumerate(mooncake.rows(path, block_tokens, JSON_BYTES), 1):
        arrival_ns = row.timestamp_ms * mooncake.NS_PER_MS
        yield (
            f"{path}, line {line}",
            (arrival_ns, row.prompt_tokens, row.output_tokens, "", "", NONE, row.blocks),
        )


def _bailian(path: Path, block_tokens: int, table: Table) -> Iterator[tuple[str, Row]]:
    roots: dict[int, int] = {}
    with closing(lines(path, JSON_BYTES)) as source:
        for line, content in enumerate(source, 1):
            where = f"{path}, line {line}"
            values = _object(where, content)
            chat, parent = (
                _whole(where, values, key, -1, mooncake.MAX_NAME) for key in ("chat_id", "parent_chat_id")
            )
            root = roots[chat] = roots.get(parent, chat)  # a parent that the cut has left out: a root
            prompt = _whole(where, values, "input_length", 0, MAX_TOKENS)
            row = mooncake.Row(0, prompt, 0, mooncake.block_names(where, values))
            mooncake.check_count(where, row, block_tokens)
            yield (
                where,
                (
                    _seconds(where, {"timestamp": values.get("timestamp")}, "timestamp"),
                    prompt,
                    _whole(where, values, "output_length", 0, MAX_TOKENS),
                    "",
                    "",
                    number(table.sessions, root),
                    row.blocks,
                ),
            )


_READERS: dict[str, Callable[[Path, int, Table], Iterator[tuple[str, Row]]]] = {
    "azure": _azure,
    "canonical": _canonical,
    "burstgpt": _burstgpt,
    "mooncake": _mooncake,
    "bailian": _bailian,
}


def _csv(path: Path, needed: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Each row by column name. Raises BadTrace for a missing column, and rows of another length."""
    with closing(lines(path)) as source:
        header = [
            name.strip() for name in _text(f"{path}, line 1", next(source)).removeprefix("\ufeff").split(",")
        ]
        for name in needed:
            if name not in header:
                raise BadTrace(f"{path}, line 1 has no column {name}, but must have {', '.join(needed)}")
        if len(set(header)) != len(header):
            raise BadTrace(f"{path}, line 1 has a column twice: {','.join(header)[:200]}")
        for line, content in enumerate(source, 2):
            where = f"{path}, line {line}"
            text = _text(where, content)
            if "\0" in text:
                raise BadTrace(f"{where} has a NUL byte, but must be text")
            values = next(csv.reader([text]), [])
            if len(values) != len(header):
                cut = "" if content.endswith(b"\n") else "; the file ends in this line and may be cut short"
                raise BadTrace(
                    f"{where} has {len(values)} fields, but must have {len(header)}: {','.join(header)[:200]}{cut}"
                )
            yield where, dict(zip(header, map(str.strip, values), strict=True))


def _text(where: str, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise BadTrace(f"{where}, byte {error.start + 1} must be UTF-8") from error


def _object(where: str, content: bytes) -> dict[str, Any]:
    try:
        values = json.loads(_text(where, content), object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        cut = "" if content.endswith(b"\n") else "; the file ends in this line and may be cut short"
        raise BadTrace(f"{where}, column {error.colno} must be JSON: {error.msg}{cut}") from error
    except (ValueError, RecursionError) as error:
        raise BadTrace(f"{where} must be a flat JSON object of ordinary numbers, each key once") from error
    if not isinstance(values, dict):
        raise BadTrace(f"{where} is a JSON {type(values).__name__}, but must be an object")
    return values


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key stands there twice")
    return values


def _seconds(where: str, row: dict[str, Any], column: str) -> int:
    """A time in seconds as nanoseconds."""
    value = row[column]
    try:
        seconds = float("nan") if isinstance(value, bool) or value is None else float(value)
    except (ValueError, TypeError):
        seconds = float("nan")
    if not isfinite(seconds) or not 0 <= seconds <= YEAR_S:
        raise BadTrace(
            f"{where}, column {column} is {shown(value)}, but must be seconds from 0 to {YEAR_S:,}"
        )
    return round(seconds * NS_PER_S)


def _tokens(where: str, row: dict[str, str], column: str) -> int:
    value = row[column]
    if not (value.isascii() and value.isdigit() and len(value) <= MOST_DIGITS and int(value) <= MAX_TOKENS):
        raise BadTrace(
            f"{where}, column {column} is {shown(value)}, but must be a whole number from 0 to {MAX_TOKENS:,}"
        )
    return int(value)


def _whole(where: str, values: dict[str, Any], key: str, least: int, most: int) -> int:
    value = values.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise BadTrace(
            f"{where}, key {key} is {shown(value)}, but must be a whole number from {least:,} to {most:,}"
        )
    return value


def shown(value: object) -> str:
    """A value of the file in a message, cut after 60 characters."""
    text = "missing" if value is None else repr(value)
    return text[:60] + ("..." if len(text) > 60 else "")  # noqa: PLR2004
