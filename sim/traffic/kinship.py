"""Kinship: which prompts continue others, and what they have in common, told by the names of their blocks."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from sim.traffic.trace import Lengths, Times, Trace

Ids = npt.NDArray[np.int64]

MANY = 2
"""Behind the end of a prompt that is continued stand few different blocks; behind a shared template, many."""


@dataclass(slots=True, kw_only=True)
class Kinship:
    """The session of each request, and the template of each session: its number (-1: none) and how long it is."""

    session: Lengths
    template: Lengths
    template_tokens: Ids


@dataclass(slots=True, kw_only=True)
class _Blocks:
    """The full blocks of all prompts, one after the other: names, whose they are, where each prompt's begin."""

    ids: Ids
    row: Ids
    start: Ids
    full: Ids


def kinship(trace: Trace) -> Kinship:
    """Who continues whom in a trace that names its blocks.

    A request continues the latest one before it whose full blocks all stand at the head of its own, unless many go on
    differently from there: that is a template, of which the longest that another session shares is a session's own.
    Where the trace has sessions, these are taken.
    """
    assert trace.block_ids is not None
    assert trace.block_end is not None
    blocks = _full_blocks(
        trace.block_ids, trace.block_end, trace.prompt_tokens, trace.id_tokens, trace.model_of
    )
    session = _told(blocks) if trace.session is None else trace.session.astype(np.int64)
    depth, last = _shared(blocks, session)
    _, first = np.unique(session, return_index=True)  # the request that began each session
    names, template = np.unique(last[first], return_inverse=True)
    template_tokens = np.zeros(len(names), np.int64)
    template_tokens[template] = depth[first] * trace.id_tokens
    if names[0] < 0:  # none
        template, template_tokens = template - 1, template_tokens[1:]
    return Kinship(
        session=session.astype(np.int32),
        template=template[np.unique(session, return_inverse=True)[1]].astype(np.int32),
        template_tokens=template_tokens,
    )


def told_sessions(ids: Lengths, end: Times, prompt_tokens: Lengths, id_tokens: int) -> Ids:
    """The session of each request, told by names of blocks that stand one request after the other."""
    return _told(_full_blocks(ids, end, prompt_tokens, id_tokens))


def related(trace: Trace) -> Trace:
    """The trace with sessions and templates in the place of its names of blocks; itself, where it has none."""
    if trace.block_ids is None:
        return trace
    found = kinship(trace)
    longest = np.zeros(int(found.template_tokens.max(initial=0)), np.int32)
    return replace(
        trace,
        session=found.session,
        prefix=found.template,
        prefixes=[longest[:length] for length in found.template_tokens.tolist()],
        block_ids=None,
        block_end=None,
        id_tokens=0,
    )


def _full_blocks(
    ids: Lengths, end: Times, prompt_tokens: Lengths, id_tokens: int, model_of: Lengths | None = None
) -> _Blocks:
    begin = np.concatenate(([0], end[:-1]))
    full = np.minimum(prompt_tokens.astype(np.int64) // id_tokens, end - begin)
    start = np.concatenate(([0], np.cumsum(full)[:-1]))
    place = np.repeat(begin - start, full) + np.arange(int(full.sum()))
    row = np.repeat(np.arange(len(full)), full)
    names = ids[place].astype(np.int64)
    if model_of is not None:  # blocks of two models are never the same
        names = names * (int(model_of.max()) + 1) + model_of[row]
    names = np.unique(names, return_inverse=True)[1]
    return _Blocks(ids=names, row=row, start=start, full=full)


def _told(blocks: _Blocks) -> Ids:
    """The session of each request, by whom it continues."""
    return np.unique(_roots(_continued(blocks, len(blocks.full))), return_inverse=True)[1]


def _continued(blocks: _Blocks, count: int) -> Ids:
    """For each request the one that it continues, or -1."""
    parent = np.full(count, -1)
    ids, with_any = blocks.ids, np.flatnonzero(blocks.full)
    if len(ids) == 0:
        return parent
    tail = ids[blocks.start[with_any] + blocks.full[with_any] - 1]
    first_end = np.full(int(ids.max()) + 1, count)  # the first request that ends with a block
    np.minimum.at(first_end, tail, with_any)
    goes_on = (first_end[ids] < blocks.row) & (_children(blocks)[ids] <= MANY)
    depth = np.where(goes_on, np.arange(len(ids)), -1)
    deepest = np.maximum.reduceat(depth, blocks.start[with_any])
    later = with_any[deepest >= 0]
    keys = np.sort(tail * count + with_any)  # who ends with a block, in order
    wanted = ids[deepest[deepest >= 0]] * count + later
    parent[later] = keys[np.searchsorted(keys, wanted) - 1] % count
    return parent


def _children(blocks: _Blocks) -> Ids:
    """How many different blocks stand behind each block."""
    ids, size = blocks.ids, int(blocks.ids.max()) + 1
    inner = blocks.row[1:] == blocks.row[:-1]
    pairs = np.unique(ids[:-1][inner] * size + ids[1:][inner])
    return np.bincount(pairs // size, minlength=size)


def _roots(parent: Ids) -> Ids:
    """The request that everything began with."""
    root = np.where(parent < 0, np.arange(len(parent)), parent)
    while True:
        further = root[root]
        if (further == root).all():
            return root
        root = further


def _shared(blocks: _Blocks, session: Ids) -> tuple[Ids, Ids]:
    """How many leading blocks of each request another session has, too; and the last of these, or -1."""
    count = len(blocks.full)
    depth, last = np.zeros(count, np.int64), np.full(count, -1)
    if len(blocks.ids) == 0:
        return depth, last
    sessions = int(session.max()) + 1
    pairs = np.unique(blocks.ids * sessions + session[blocks.row])
    common = np.bincount(pairs // sessions, minlength=int(blocks.ids.max()) + 1)[blocks.ids] > 1
    with_any = np.flatnonzero(blocks.full)
    depth[with_any] = np.add.reduceat(common.astype(np.int64), blocks.start[with_any])
    begun = np.flatnonzero(depth)
    last[begun] = blocks.ids[blocks.start[begun] + depth[begun] - 1]
    return depth, last
