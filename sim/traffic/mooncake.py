"""Traces in the format of the Mooncake traces: a JSON line a request, with the names of its prompt's blocks.

Published at github.com/kvcache-ai/Mooncake; Qin et al., "Mooncake", FAST 2025.
"""

import json
from array import array
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from engine.settings import at_least
from sim.streams import stream
from sim.traffic.chains import Chains
from sim.traffic.lines import LINE_BYTES, lines
from sim.traffic.trace import MAX_TOKENS, BadTrace
from sim.traffic.workload import YEAR_S, whole

BLOCK_TOKENS = 512
STEP_S = 3.0
"""What the published timestamps are rounded to."""

NS_PER_MS = 1_000_000
MAX_MS = YEAR_S * 1000
MAX_NAME = 2**62

_HEAD = -1  # what stands before a chain's first block


class Row(NamedTuple):
    """A line of the file."""

    timestamp_ms: int
    prompt_tokens: int
    output_tokens: int
    blocks: list[int]


@dataclass(slots=True)
class Kept:
    """The rows that become requests, 24 bytes each and 8 a block, and the count of those that cannot."""

    arrival_ms: "array[int]" = field(default_factory=lambda: array("q"))
    prompt_tokens: "array[int]" = field(default_factory=lambda: array("i"))
    output_tokens: "array[int]" = field(default_factory=lambda: array("i"))
    block_end: "array[int]" = field(default_factory=lambda: array("q"))
    blocks: "array[int]" = field(default_factory=lambda: array("q"))
    dropped_rows: int = 0


def read(
    path: Path,
    *,
    block_tokens: int = BLOCK_TOKENS,
    requests: int | None = None,
    spread_s: float = 0.0,
    seed: int = 1,
) -> Chains:
    """The chains of the file's first `requests` usable rows (None: all).

    Chains have the blocks of the prompts alone: what an answer fills has no name in the file. The last one may be
    partial: it is left behind, but cannot be found. `spread_s`: arrivals that share a step of so many seconds (STEP_S
    in those published) are spread over it; queueing would otherwise measure the rounding. Rows without prompt tokens
    are dropped and counted. The whole file is checked whatever is kept. Raises BadTrace with the line.
    """
    whole("workload.block_tokens", block_tokens, 1, MAX_TOKENS)
    at_least("workload.spread_s", spread_s, 0)
    kept = _keep(path, block_tokens, requests)
    if not kept.arrival_ms:
        raise BadTrace(f"{path} must have a row with prompt tokens, but has {kept.dropped_rows} without")
    arrival_ns = np.frombuffer(kept.arrival_ms, np.int64) * NS_PER_MS
    if spread_s:
        within_ns = stream(seed, "mooncake.spread").random(len(arrival_ns)) * (spread_s * 1e9)
        arrival_ns = arrival_ns + within_ns.astype(np.int64)
    return _sorted(kept, arrival_ns - arrival_ns.min(), block_tokens, f"mooncake:{path.name}")


def rows(path: Path, block_tokens: int = BLOCK_TOKENS, line_bytes: int = LINE_BYTES) -> Iterator[Row]:
    """Every row in the file's order. Raises BadTrace for what is no row, or has blocks that contradict others."""
    before: dict[int, int] = {}
    blank = 0
    with closing(lines(path, line_bytes)) as source:
        for number, line in enumerate(source, 1):
            if line.isspace():
                blank = blank or number
                continue
            where = f"{path}, line {number}"
            if blank:
                raise BadTrace(f"{path}, line {blank} is blank, but must be a row, since others follow")
            row = _row(where, line)
            _check_blocks(where, row, block_tokens, before)
            yield row


def _keep(path: Path, block_tokens: int, requests: int | None) -> Kept:
    kept = Kept()
    for row in rows(path, block_tokens):
        if len(kept.arrival_ms) == requests:
            continue  # the rest is checked, not kept
        if row.prompt_tokens == 0:
            kept.dropped_rows += 1
            continue
        kept.arrival_ms.append(row.timestamp_ms)
        kept.prompt_tokens.append(row.prompt_tokens)
        kept.output_tokens.append(row.output_tokens)
        kept.blocks.extend(row.blocks)
        kept.block_end.append(len(kept.blocks))
    return kept


def _sorted(kept: Kept, arrival_ns: Any, block_tokens: int, source: str) -> Chains:
    order = np.argsort(arrival_ns, kind="stable")
    end = np.frombuffer(kept.block_end, np.int64)
    length = np.diff(end, prepend=0)[order]
    new_end = np.cumsum(length)
    place = np.repeat((end - np.diff(end, prepend=0))[order] - (new_end - length), length) + np.arange(
        new_end[-1]
    )
    names = np.frombuffer(kept.blocks, np.int64)[place]
    none = np.zeros(len(order), np.int32)
    breaks = (
        np.diff(names, prepend=_HEAD) != 1
    )  # a run ends where names do not count on, and with its request
    breaks[np.concatenate(([0], new_end[:-1]))] = True
    run_start = np.flatnonzero(breaks)
    return Chains(
        arrival_ns=arrival_ns[order],
        model=none,
        tenant=none,
        session=np.arange(len(order), dtype=np.int32),
        turn=none,
        prompt_tokens=np.frombuffer(kept.prompt_tokens, np.int32)[order],
        output_tokens=np.frombuffer(kept.output_tokens, np.int32)[order],
        run_end=np.searchsorted(run_start, new_end),
        run_first=names[run_start],
        run_blocks=np.diff(run_start, append=len(names)).astype(np.int32),
        block_tokens=block_tokens,
        models=("model",),
        source=source,
        dropped_rows=kept.dropped_rows,
    )


def _row(where: str, line: bytes) -> Row:
    try:
        values = json.loads(line.decode())  # from bytes it would guess at UTF-16
    except UnicodeDecodeError as error:
        raise BadTrace(f"{where}, byte {error.start + 1} must be UTF-8") from error
    except json.JSONDecodeError as error:
        cut = "" if line.endswith(b"\n") else "; the file ends in this line and may be cut short"
        raise BadTrace(f"{where}, column {error.colno} must be JSON: {error.msg}{cut}") from error
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits; brackets in brackets
        raise BadTrace(f"{where} must be a flat JSON object of ordinary numbers") from error
    if not isinstance(values, dict):
        raise BadTrace(f"{where} is a JSON {type(values).__name__}, but must be an object")
    return Row(
        _number(where, values, "timestamp", MAX_MS),
        _number(where, values, "input_length", MAX_TOKENS),
        _number(where, values, "output_length", MAX_TOKENS),
        block_names(where, values),
    )


def _number(where: str, values: dict[str, Any], key: str, most: int) -> int:
    value = values.get(key)
    if not _is_whole(value, most):
        raise BadTrace(
            f"{where}, key {key} is {_shown(value)}, but must be a whole number from 0 to {most:,}"
        )
    return int(value)  # type: ignore[arg-type]


def block_names(where: str, values: dict[str, Any]) -> list[int]:
    """The names of a row's blocks. Raises BadTrace."""
    blocks = values.get("hash_ids")
    if not isinstance(blocks, list):
        raise BadTrace(f"{where}, key hash_ids is {_shown(blocks)}, but must be a list of whole numbers")
    for block in blocks:
        if not _is_whole(block, MAX_NAME):
            raise BadTrace(
                f"{where}, key hash_ids has {_shown(block)}, but must have whole numbers from 0 to 2^62"
            )
    return blocks


def check_count(where: str, row: Row, block_tokens: int) -> None:
    """Raise BadTrace unless a row has a name for each block of its prompt."""
    expected = -(-row.prompt_tokens // block_tokens)
    if len(row.blocks) != expected:
        raise BadTrace(
            f"{where}, key hash_ids has {len(row.blocks)} blocks, but must have {expected}: one for each "
            f"{block_tokens} tokens of input_length {row.prompt_tokens}"
        )


def _check_blocks(where: str, row: Row, block_tokens: int, before: dict[int, int]) -> None:
    check_count(where, row, block_tokens)
    last = _HEAD
    for block in row.blocks:
        if before.setdefault(block, last) != last:
            raise BadTrace(
                f"{where}, key hash_ids has block {block} behind {_named(last)}, but an earlier row has it behind "
                f"{_named(before[block])}, and it must stand for its whole prefix"
            )
        last = block


def _is_whole(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _named(block: int) -> str:
    return "nothing" if block == _HEAD else f"block {block}"


def _shown(value: object) -> str:
    """A value of the file in a message, cut after 60 characters."""
    text = "missing" if value is None else repr(value)
    return text[:60] + ("..." if len(text) > 60 else "")  # noqa: PLR2004
