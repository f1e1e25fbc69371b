"""The formats of trace files, told apart by their first row, never by name, and read row by row into columns.

| format | first row | time | what else it knows |
|---|---|---|---|
| azure | header TIMESTAMP,ContextTokens,GeneratedTokens, others beside them | date | |
| canonical | header timestamp_s,model,tenant,input_tokens,output_tokens | s | models, tenants; session_id: sessions |
| burstgpt | header with Timestamp, Model, Request tokens, Response tokens | s | models, sessions; no answer: failed |
| mooncake | JSON with timestamp and hash_ids | ms, in steps of 3 s | names of blocks of 512 tokens, sessions |
| bailian | JSON with chat_id and parent_chat_id | s | names of blocks of 16 tokens, sessions |
| servegen | header model,client_id,window_start_s,... or six fields without one | windows | see pool.py |
"""

from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.clock import NS_PER_S
from engine.registry.discovery import printable
from sim.traffic import azure, mooncake, pool
from sim.traffic.fields import (
    BOM,
    MAX_S,
    MOST_DIGITS,
    BadField,
    json_object,
    rows,
    seconds,
    shown,
    split,
    table,
    tokens,
    whole,
)
from sim.traffic.lines import lines
from sim.traffic.trace import LONGEST_NS, MAX_TOKENS, BadTrace, Lengths

CANONICAL = ("timestamp_s", "model", "tenant", "input_tokens", "output_tokens")
BURSTGPT = ("Timestamp", "Model", "Request tokens", "Response tokens")
SERVEGEN = "servegen"
JSON_BYTES = 4 << 20
"""The longest line of JSON: a prompt of ten million tokens in blocks of 16 has 600,000 names."""
NONE = -1
MAX_NAMES = 2**31
SPARSE = 4  # times as many numbers as there are blocks are too many for an array by number
MAX_PACKED = 2**20  # tenants whose number fits beside that of a session

Ids = npt.NDArray[np.int64]
Row = tuple[int, int, int, str, str, int, Sequence[int]]
"""Arrival in ns, tokens of prompt and output, model, tenant, number of the session, names of blocks."""


@dataclass(slots=True)
class Table:
    """The rows of a file that can be served, in columns; names as numbers in the order in which they appear.

    36 bytes a row, and 8 for the name of a block. `failed_rows` are those of the dropped ones that had failed.
    """

    format: str
    block_tokens: int = 0
    arrival_ns: "array[int]" = field(default_factory=lambda: array("q"))
    prompt_tokens: "array[int]" = field(default_factory=lambda: array("i"))
    output_tokens: "array[int]" = field(default_factory=lambda: array("i"))
    model: "array[int]" = field(default_factory=lambda: array("i"))
    tenant: "array[int]" = field(default_factory=lambda: array("i"))
    session: "array[int]" = field(default_factory=lambda: array("i"))
    block_end: "array[int]" = field(default_factory=lambda: array("q"))
    blocks: "array[int]" = field(default_factory=lambda: array("q"))
    models: dict[str, int] = field(default_factory=dict)
    tenants: dict[str, int] = field(default_factory=dict)
    sessions: dict[Any, int] = field(default_factory=dict)
    last_ns: dict[int, int] = field(default_factory=dict)  # of each session, where rows are told by delays
    roots: dict[int, int] = field(default_factory=dict)  # of each chat, where rows name their parents
    orphans: dict[int, int] = field(default_factory=dict)  # roots whose parent did not stand before
    unnamed: int = 0
    delayed: int = 0  # rows whose time is told by the row before them in their session
    dropped_rows: int = 0
    failed_rows: int = 0
    first_ns: int = LONGEST_NS  # of the rows that were dropped

    def add(self, row: Row) -> None:
        """One more row; one without prompt or output tokens is only counted: nobody can serve it."""
        arrival_ns, prompt_tokens, output_tokens, model, tenant, session, blocks = row
        if not prompt_tokens or not output_tokens:
            self.dropped_rows += 1
            self.first_ns = min(self.first_ns, arrival_ns)
            return
        self.arrival_ns.append(arrival_ns)
        self.prompt_tokens.append(prompt_tokens)
        self.output_tokens.append(output_tokens)
        self.model.append(self.models.setdefault(model, len(self.models)))
        self.tenant.append(self.tenants.setdefault(tenant, len(self.tenants)))
        self.session.append(session)
        if self.block_tokens:
            self.blocks.extend(blocks)
            if len(blocks) * self.block_tokens < prompt_tokens:  # a rest that is too short for a name
                self.unnamed += 1
                self.blocks.append(-self.unnamed)
            self.block_end.append(len(self.blocks))

    def session_of(self, tenant: str, session: str) -> int:
        """The number of a tenant's session. A name that is a number takes half of the memory of one that is not."""
        key: object = (tenant, session)
        if session.isascii() and session.isdigit() and len(session) <= MOST_DIGITS and session[0] != "0":
            place = self.tenants.setdefault(tenant, len(self.tenants))
            if place < MAX_PACKED:
                key = int(session) * MAX_PACKED + place
        return self.sessions.setdefault(key, len(self.sessions))

    def adopt(self) -> None:
        """Let roots whose parent stood below them be of its session."""
        above: dict[int, int] = {}

        def top(root: int) -> int:
            while root in above:
                root = above[root]
            return root

        for root, parent in self.orphans.items():
            oldest = top(self.roots.get(parent, root))
            if oldest != top(root):
                above[root] = oldest
        number = np.arange(len(self.sessions), dtype=np.int32)
        for root in above:
            number[self.sessions[root]] = self.sessions[top(root)]
        self.session = array("i", number[np.frombuffer(self.session, np.int32)].tobytes())

    def numbered_blocks(self) -> Lengths:
        """The blocks of all rows as small numbers; equal numbers are equal blocks behind equal prefixes."""
        ids = np.frombuffer(self.blocks, np.int64)
        if len(ids) == 0:
            return ids.astype(np.int32)
        least = int(ids.min())
        if int(ids.max()) - least >= min(MAX_NAMES - 1, max(SPARSE * len(ids), 1000)):  # names far apart
            ids = np.unique(ids, return_inverse=True)[1]
        elif least:
            ids = ids - least
        return _chained(ids.astype(np.int32), np.frombuffer(self.block_end, np.int64))


@dataclass(slots=True, frozen=True)
class Format:
    """How a file is read: its rows with their lines, and what a row says. `quantum_s`: what times are rounded to."""

    rows: Callable[[Path], Iterator[tuple[int, Any]]]
    parse: Callable[[Any, Table], Row]
    quantum_s: float = 0.0
    block_tokens: int = 0


def load(path: Path, form: str = "auto", *, sort: bool = False, block_tokens: int | None = None) -> Table:
    """The rows of a file. Raises BadTrace with the line of what is no row, or earlier than the row above it."""
    found = checked(path, form)
    how = FORMATS[found]
    made, latest_ns = Table(found, (block_tokens or how.block_tokens) if how.block_tokens else 0), -1
    parse, add, delayed = how.parse, made.add, 0
    for line, content in how.rows(path):
        try:
            row = parse(content, made)
        except BadField as error:
            raise BadTrace(f"{path}, line {line}{error}") from error
        arrival_ns = row[0]
        if made.delayed > delayed:  # such a row stands where its session does, not where its time would be
            delayed = made.delayed
        elif arrival_ns >= latest_ns:
            latest_ns = arrival_ns
        elif not sort:
            raise BadTrace(
                f"{path}, line {line} is {(latest_ns - arrival_ns) / NS_PER_S:g} s before a row above it, but "
                "time must not go back (workload.sort=true takes rows in any order)"
            )
        add(row)
    if sort and made.orphans:
        made.adopt()
    return made


def checked(path: Path, form: str) -> str:
    """The format of a file, which is the one asked for. Raises BadTrace."""
    found = detect(path)
    if form not in ("auto", found):
        raise BadTrace(f"workload.format is {form!r}, but {path} is of the format {found}")
    return found


def detect(path: Path) -> str:
    """The format of a file by its first row. Raises BadTrace for one of no known format."""
    with closing(lines(path, JSON_BYTES)) as source:
        first = next(source, b"").removeprefix(BOM.encode())
    if not first:
        raise BadTrace(f"{path} is empty, but must have a header or a JSON object in its first line")
    try:
        if first.lstrip().startswith(b"{"):
            return _of_keys(json_object(first))
        return _of_columns(first)
    except BadField as error:
        raise BadTrace(f"{path}, line 1{error}") from error


def _of_keys(values: dict[str, Any]) -> str:
    keys = values.keys()
    if {"chat_id", "parent_chat_id"} <= keys:
        return "bailian"
    if "hash_ids" in keys and ({"timestamp"} <= keys or {"session_id", "delay"} <= keys):
        return "mooncake"
    if {"model", "client_id"} <= keys:
        raise BadField(
            " has the lengths of a pool of clients, but must be a trace: give the file of their rates, and "
            "workload.lengths=FILE beside it"
        )
    raise BadField(
        f" has the keys {printable(', '.join(sorted(keys))[:200])}, but must have timestamp and hash_ids "
        "(mooncake) or chat_id and parent_chat_id (bailian)"
    )


def _of_columns(first: bytes) -> str:
    names = split(first)
    if set(azure.HEADER.decode().split(",")) <= set(names):
        return "azure"
    if set(BURSTGPT) <= set(names):
        return "burstgpt"
    if set(pool.HEADER) <= set(names) or pool.is_row(names):
        return SERVEGEN
    if "timestamp_s" in names:
        return "canonical"
    raise BadField(
        f" is {','.join(names)[:200]!r}, but must be a header with {azure.HEADER.decode()} (azure), "
        f"{','.join(CANONICAL)} (canonical), {','.join(BURSTGPT)} (burstgpt) or {','.join(pool.HEADER)} (servegen), "
        "or a JSON object"
    )


def _azure(path: Path) -> Iterator[tuple[int, Any]]:
    return enumerate(azure.rows(path), 2)


def _azure_row(row: tuple[int, int, int], _table: Table) -> Row:
    return (*row, "", "", NONE, ())


def _canonical(path: Path) -> Iterator[tuple[int, Any]]:
    return table(path, CANONICAL, ("session_id", "turn"))


def _canonical_row(values: Sequence[str], made: Table) -> Row:
    at_s, model, tenant, prompt, output, session, turn = values
    arrival_ns = seconds("column timestamp_s", at_s)
    if turn:
        tokens("column turn", turn)
    return (
        arrival_ns,
        tokens("column input_tokens", prompt),
        tokens("column output_tokens", output),
        model,
        tenant,
        made.session_of(tenant, session) if session else NONE,
        (),
    )


def _burstgpt(path: Path) -> Iterator[tuple[int, Any]]:
    return table(path, BURSTGPT, ("Session ID",))


def _burstgpt_row(values: Sequence[str], made: Table) -> Row:
    at_s, model, prompt, output, session = values
    output_tokens = tokens("column Response tokens", output)
    made.failed_rows += output_tokens == 0
    return (
        seconds("column Timestamp", at_s),
        tokens("column Request tokens", prompt),
        output_tokens,
        model,
        "",
        made.session_of("", session) if session else NONE,
        (),
    )


def _json(path: Path) -> Iterator[tuple[int, Any]]:
    with closing(lines(path, JSON_BYTES)) as source:
        for line, content in rows(path, source, 1):
            yield line, content.removeprefix(BOM.encode()) if line == 1 else content


def _mooncake_row(content: bytes, made: Table) -> Row:
    values = json_object(content)
    if "chat_id" in values:
        raise BadField(" has a chat_id like a row of bailian, but the first row is of mooncake")
    session = _mooncake_session(values, made)
    if session != NONE and "timestamp" not in values and session in made.last_ns:
        arrival_ns = made.last_ns[session] + _milliseconds(values, "delay")
        if arrival_ns > MAX_S * NS_PER_S:
            allowed = f"so short that its row comes by {MAX_S * 1000:,} ms"
            raise BadField(f", key delay is {shown(values['delay'])}, but must be {allowed}")
        made.delayed += 1
    else:
        arrival_ns = _milliseconds(values, "timestamp")
    if session != NONE:
        made.last_ns[session] = arrival_ns
    prompt = whole(values, "input_length", 0, MAX_TOKENS)
    output = whole(values, "output_length", 0, MAX_TOKENS)
    return arrival_ns, prompt, output, "", "", session, _names(values, prompt, made.block_tokens)


def _mooncake_session(values: dict[str, Any], made: Table) -> int:
    session = values.get("session_id")
    if session is None:
        return NONE
    if not isinstance(session, (str, int)) or isinstance(session, bool):
        raise BadField(f", key session_id is {shown(session)}, but must be a name")
    return made.sessions.setdefault(session, len(made.sessions))


def _milliseconds(values: dict[str, Any], key: str) -> int:
    value = values.get(key)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= MAX_S * 1000:
        raise BadField(f", key {key} is {shown(value)}, but must be milliseconds from 0 to {MAX_S * 1000:,}")
    return round(value * mooncake.NS_PER_MS)


def _bailian_row(content: bytes, made: Table) -> Row:
    values = json_object(content)
    chat = whole(values, "chat_id", 0, mooncake.MAX_NAME)
    parent = whole(values, "parent_chat_id", NONE, mooncake.MAX_NAME)
    root = made.roots[chat] = made.roots.get(parent, chat)  # a parent that the cut has left out: a root
    if root == chat and parent != NONE:
        made.orphans[chat] = parent
    prompt = whole(values, "input_length", 0, MAX_TOKENS)
    return (
        seconds("key timestamp", values.get("timestamp")),
        prompt,
        whole(values, "output_length", 0, MAX_TOKENS),
        "",
        "",
        made.sessions.setdefault(root, len(made.sessions)),
        _names(values, prompt, made.block_tokens),
    )


def _names(values: dict[str, Any], prompt_tokens: int, block_tokens: int) -> list[int]:
    """The names of a prompt's blocks: one for each, or for each but the last where that is not full."""
    blocks = values.get("hash_ids")
    if not isinstance(blocks, list):
        raise BadField(f", key hash_ids is {shown(blocks)}, but must be a list of whole numbers")
    for block in blocks:
        if type(block) is not int or not 0 <= block <= mooncake.MAX_NAME:
            raise BadField(f", key hash_ids has {shown(block)}, but must have whole numbers from 0 to 2^62")
    full, rest = divmod(prompt_tokens, block_tokens)
    if not full <= len(blocks) <= full + (rest > 0):
        raise BadField(
            f", key hash_ids has {len(blocks)} blocks, but must have {full + (rest > 0)}: one for each "
            f"{block_tokens} tokens of input_length {prompt_tokens} (workload.block_tokens: what a name stands for)"
        )
    return blocks


def _chained(ids: Lengths, end: Ids) -> Lengths:
    """Numbers that stand for a block and all before it: the same ones, where they do already."""
    start = np.concatenate(([0], end[:-1]))
    before = np.empty_like(ids)
    before[1:] = ids[:-1]
    before[start[start < end]] = NONE
    behind = np.empty(int(ids.max()) + 1, np.int32)
    behind[ids] = before  # the last one that a block stands behind
    if (behind[ids] == before).all():
        return ids
    del before, behind
    numbered, count, name = np.empty_like(ids), 0, np.full(len(end), NONE)
    span = int(ids.max()) + 1
    alive = np.flatnonzero(start < end)
    depth = 0
    while len(alive):
        places = start[alive] + depth
        _, found = np.unique(name[alive] * span + ids[places], return_inverse=True)
        name[alive] = found + count
        numbered[places] = name[alive]
        count += int(found.max()) + 1
        depth += 1
        alive = alive[start[alive] + depth < end[alive]]
    return numbered


FORMATS: dict[str, Format] = {
    "azure": Format(_azure, _azure_row),
    "canonical": Format(_canonical, _canonical_row),
    "burstgpt": Format(_burstgpt, _burstgpt_row, quantum_s=1.0),
    "mooncake": Format(_json, _mooncake_row, mooncake.STEP_S, mooncake.BLOCK_TOKENS),
    "bailian": Format(_json, _bailian_row, block_tokens=16),
}
