"""Trace files as a kind of workload: what is made of their rows. `formats.py` reads them."""

from array import array
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engine.clock import NS_PER_S, to_ns
from engine.settings import above, at_least, require
from sim.streams import stream
from sim.traffic import servegen
from sim.traffic.formats import FORMATS, MAX_NAMES, NONE, SERVEGEN, Ids, Table, checked, load
from sim.traffic.kinship import told_sessions
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

ANY_FORMAT = ("auto", *FORMATS, SERVEGEN)
JITTER_S = 5.0
"""How far a session of a copy is moved: so many seconds later at most."""
OFF_STEP = 1e-3  # of a step: those of mooncake are off by a millisecond in a quarter of the published rows
MAX_SCALE = 1000
OTHERS = "*"


@workloads("trace")
@dataclass(slots=True, kw_only=True)
class TraceWorkload:
    """A trace file, plain or gzip, and what is made of it.

    `from_s` and `until_s` cut by the file's own time, from its first row on; then `requests` are kept. `quantum_s`:
    arrivals that share a step of so many seconds are spread over it, in the order of the file (null: the format's own
    rounding, where all times have it).
    `rate_scale`: below 1 sessions are left out by chance, above 1 copies with sessions and blocks of their own are
    laid over it, each session up to 5 s later. `time_scale` multiplies every time. `rename_models` and
    `rename_tenants` give names of the file others, "*" all that are not listed; null leaves their requests out.
    `models`: names in the order of the fleet's models; without, as they appear. Names that are all those of models of
    the fleet mean these, in any order.
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
    rename_models: dict[str, str | None] | None = None
    rename_tenants: dict[str, str | None] | None = None
    models: list[str] = field(default_factory=list)
    model_zipf: float | None = None
    vocab: int = 4096

    def __post_init__(self) -> None:
        check_kind(self.kind, "trace")
        require("workload.path", self.path, self.path != "", "the path of a trace file")
        require("workload.format", self.format, self.format in ANY_FORMAT, f"one of {', '.join(ANY_FORMAT)}")
        if self.requests is not None:
            whole("workload.requests", self.requests, 1, MAX_REQUESTS)
        at_least("workload.from_s", self.from_s, 0)
        if self.until_s is not None:
            above("workload.until_s", self.until_s, self.from_s)
        if self.quantum_s is not None:
            usual = isfinite(self.quantum_s) and 0 <= self.quantum_s <= YEAR_S
            require("workload.quantum_s", self.quantum_s, usual, "a time from 0 to a year")
        require(
            "workload.rate_scale",
            self.rate_scale,
            0 < self.rate_scale <= MAX_SCALE,
            f"above 0, at most {MAX_SCALE}",
        )
        above("workload.time_scale", self.time_scale, 0)
        require("workload.time_scale", self.time_scale, isfinite(self.time_scale), "a finite number")
        if self.block_tokens is not None:
            whole("workload.block_tokens", self.block_tokens, 1, MAX_TOKENS)
        check_popularity(self.model_zipf)
        check_vocab(self.vocab)

    def draw(self, seed: int, model: str) -> Trace:
        return read(self, seed, model)

    def as_it_is(self, seed: int) -> Trace:
        """The trace whose requests ask for the models of the file, under their own names."""
        return read(replace(self, model_zipf=0.0), seed, "model")


def read(settings: TraceWorkload, seed: int, model: str) -> Trace:
    """The trace that the settings make of the file. Raises BadTrace with the file and the line."""
    path = Path(settings.path)
    if path.is_dir() or checked(path, settings.format) == SERVEGEN:
        return _of_clients(settings, seed, model)
    table = load(path, settings.format, sort=settings.sort, block_tokens=settings.block_tokens)
    if not table.arrival_ns:
        seen = f"{table.dropped_rows} without" if table.dropped_rows else "none"
        raise BadTrace(f"{path} must have a row with both prompt and output tokens, but has {seen}")
    model_of, models = _renamed("models", settings.rename_models, table.models, table.model)
    tenant_of, tenants = _renamed("tenants", settings.rename_tenants, table.tenants, table.tenant)
    order, arrival_ns = _cut(settings, table, (model_of >= 0) & (tenant_of >= 0))
    quantum_s = settings.quantum_s if settings.quantum_s is not None else _rounding_s(table)
    if quantum_s:
        within = stream(seed, "trace.spread").random(len(order))
        within = within[np.lexsort((within, arrival_ns))]  # rows of one step stay in the order of the file
        arrival_ns = arrival_ns + (within * (quantum_s * NS_PER_S)).astype(np.int64)
    tells_sessions = bool(table.sessions)
    if not tells_sessions and (settings.wait or settings.rate_scale != 1):
        _relate(settings, table, order)
    place, copy, arrival_ns = _scaled(settings, table, order, arrival_ns, seed)
    by_time = np.argsort(arrival_ns, kind="stable")
    place, arrival_ns = place[by_time], _stretched(settings, arrival_ns[by_time])
    copy = None if copy is None else copy[by_time]
    session = _sessions(table, place, copy) if tells_sessions or settings.wait else None
    after, think_ns = _waits(session, arrival_ns) if settings.wait and session is not None else (None, None)
    ids, end = _blocks(table, place, copy) if table.block_tokens else (None, None)
    listed = _listed(settings, models)
    return Trace(
        arrival_ns=arrival_ns,
        prompt_tokens=np.frombuffer(table.prompt_tokens, np.int32)[place],
        output_tokens=np.frombuffer(table.output_tokens, np.int32)[place],
        prefix=np.full(len(place), -1, np.int32),
        prefixes=[],
        model=model,
        vocab=settings.vocab,
        seed=seed,
        source=f"{table.format}:{path.name}",
        dropped_rows=table.dropped_rows,
        failed_rows=table.failed_rows,
        models=tuple(listed or ()),
        model_of=None if listed is None else _ranks(models, listed)[model_of[place]],
        tenants=tuple(tenants) if any(tenants) else (),
        tenant_of=tenant_of[place] if any(tenants) else None,
        session=session,
        after=after,
        think_ns=think_ns,
        block_ids=ids,
        block_end=end,
        id_tokens=table.block_tokens,
    )


def _of_clients(settings: TraceWorkload, seed: int, model: str) -> Trace:
    """A pool of clients is no trace, but makes one: from the first row on, for half an hour unless told otherwise."""
    for name, usual in (("sort", False), ("wait", False), ("rename_models", None), ("rename_tenants", None)):
        value = getattr(settings, name)
        require(f"workload.{name}", value, value == usual, "as it is without: the file is a pool of clients")
    length_s = servegen.DURATION_S if settings.until_s is None else settings.until_s - settings.from_s
    asked = servegen.ServeGenWorkload(
        path=settings.path,
        from_s=settings.from_s,
        duration_s=length_s,
        rate_scale=settings.rate_scale,
        time_scale=settings.time_scale,
        requests=settings.requests,
        models=settings.models,
        model_zipf=settings.model_zipf,
        vocab=settings.vocab,
    )
    return asked.draw(seed, model)


def _renamed(
    what: str, renamed: dict[str, str | None] | None, names: dict[str, int], column: "array[int]"
) -> tuple[Lengths, list[str]]:
    """The number of each row's name after renaming, -1 for one that is left out; and the names."""
    numbers = np.frombuffer(column, np.int32)
    if not renamed:
        return numbers, list(names)
    for name in renamed:
        known = name == OTHERS or name in names
        require(f"workload.rename_{what}", name, known, f"one of the {what} of the file, or {OTHERS}")
    new: dict[str, int] = {}
    place = np.empty(len(names), np.int32)
    for index, name in enumerate(names):
        called = renamed.get(name, renamed.get(OTHERS, name))
        place[index] = NONE if called is None else new.setdefault(called, len(new))
    return place[numbers], list(new)


def _cut(settings: TraceWorkload, table: Table, listed: npt.NDArray[np.bool_]) -> tuple[Ids, Times]:
    """The rows that are wanted in the order of their arrival, and when they arrive after the first of them."""
    arrival_ns = np.frombuffer(table.arrival_ns, np.int64)
    order = np.argsort(arrival_ns, kind="stable")
    arrival_ns = arrival_ns[order] - min(int(arrival_ns.min()), table.first_ns)
    first = int(np.searchsorted(arrival_ns, to_ns(settings.from_s)))
    last = len(arrival_ns)
    if settings.until_s is not None:
        last = int(np.searchsorted(arrival_ns, to_ns(settings.until_s)))
    if first == len(arrival_ns):
        ends_s = arrival_ns[-1] / NS_PER_S
        raise BadTrace(
            f"{settings.path} must have a row from {settings.from_s:g} s on, but ends at {ends_s:g} s"
        )
    order, arrival_ns = order[first:last], arrival_ns[first:last]
    if not listed.all():
        kept = listed[order]
        order, arrival_ns = order[kept], arrival_ns[kept]
    order, arrival_ns = order[: settings.requests], arrival_ns[: settings.requests]
    if len(order) == 0:
        raise BadTrace(
            f"{settings.path} must have a row that is wanted, but has none from {settings.from_s:g} s on, before "
            f"until_s and of the models and tenants that are not left out"
        )
    return order, arrival_ns - arrival_ns[0]


def _relate(settings: TraceWorkload, table: Table, order: Ids) -> None:
    """Tell the sessions of a file that does not: by its names of blocks, where it has any."""
    if not table.block_tokens:
        allowed = "false, since the file tells neither sessions nor blocks"
        require("workload.wait", settings.wait, not settings.wait, allowed)
        return
    ids, end = _blocks(table, order, None)
    found = told_sessions(ids, end, np.frombuffer(table.prompt_tokens, np.int32)[order], table.block_tokens)
    session = np.frombuffer(table.session, np.int32).copy()
    session[order] = found
    table.session = array("i", session.tobytes())
    table.sessions = dict.fromkeys(range(int(found.max()) + 1), 0)


def _rounding_s(table: Table) -> float:
    """What the times are rounded to: that of the format, where all of them are, as good as exactly."""
    usual_s = FORMATS[table.format].quantum_s
    step_ns, off_ns = round(usual_s * NS_PER_S), round(usual_s * NS_PER_S * OFF_STEP)
    arrival_ns = np.frombuffer(table.arrival_ns, np.int64)
    if usual_s and ((arrival_ns - arrival_ns[0] + off_ns) % step_ns > 2 * off_ns).any():
        return 0.0
    return usual_s


def _scaled(
    settings: TraceWorkload, table: Table, order: Ids, arrival_ns: Times, seed: int
) -> tuple[Ids, Ids | None, Times]:
    """Rows of the table, which copy each is of, and when it arrives: sessions are left out or doubled as a whole."""
    scale = settings.rate_scale
    if scale == 1:
        return order, None, arrival_ns
    session = np.frombuffer(table.session, np.int32)[order]
    unit = np.where(session == NONE, len(table.sessions) + np.arange(len(order)), session)
    count = len(table.sessions) + len(order)
    places, copies, times = [], [], []
    for copy in range(int(np.ceil(scale))):
        share = min(1.0, scale - copy)
        kept = np.ones(count, bool)
        if share < 1:
            kept = stream(seed, f"trace.thin.{copy}").random(count) < share
        later_ns = np.zeros(count, np.int64)
        if copy:
            later_ns = (stream(seed, f"trace.jitter.{copy}").random(count) * (JITTER_S * NS_PER_S)).astype(
                np.int64
            )
        rows = np.flatnonzero(kept[unit])
        places.append(order[rows])
        copies.append(np.full(len(rows), copy))
        times.append(arrival_ns[rows] + later_ns[unit[rows]])
    place = np.concatenate(places)
    if len(place) == 0:
        raise BadTrace(
            f"workload.rate_scale is {scale:g}, which leaves no request of {len(order)} in {settings.path}"
        )
    return place, np.concatenate(copies), np.concatenate(times)


def _stretched(settings: TraceWorkload, arrival_ns: Times) -> Times:
    """Times from the first one on, in the scale that was asked for."""
    arrival_ns = arrival_ns - arrival_ns[0]
    scale = settings.time_scale
    fits = arrival_ns[-1] / NS_PER_S * scale <= YEAR_S
    require("workload.time_scale", scale, fits, "small enough that a run ends in a year")
    return arrival_ns if scale == 1 else np.rint(arrival_ns * scale).astype(np.int64)


def _sessions(table: Table, place: Ids, copy: Ids | None) -> Lengths | None:
    """The session of each request; those without one have one for themselves. None where the file has none."""
    if not table.sessions:
        return None
    known = np.frombuffer(table.session, np.int32)[place].astype(np.int64)
    if copy is not None:
        known[known != NONE] += (copy * len(table.sessions))[known != NONE]
    keys = np.where(known == NONE, NONE - 1 - np.arange(len(place)), known)
    return np.unique(keys, return_inverse=True)[1].astype(np.int32)


def _listed(settings: TraceWorkload, models: list[str]) -> list[str] | None:
    """The models in the order of the fleet's; None: the file has none, or all ask for the first."""
    if settings.model_zipf is None or models == [""]:
        return None
    for name in models if settings.models else ():
        allowed = f"a list that has {name!r}, which the file asks for"
        require("workload.models", settings.models, name in settings.models, allowed)
    return settings.models or models


def _ranks(models: list[str], listed: list[str]) -> Lengths:
    return np.array([listed.index(name) for name in models], np.int32)


def _blocks(table: Table, place: Ids, copy: Ids | None) -> tuple[Lengths, Times]:
    """The names of blocks request by request; copies have names of their own."""
    end = np.frombuffer(table.block_end, np.int64)
    numbered = table.numbered_blocks()
    if copy is None and len(place) == len(end) and (np.diff(place) == 1).all():
        return numbered, end.copy()
    start = np.concatenate(([0], end[:-1]))
    length = (end - start)[place]
    new_end = np.cumsum(length)
    index = np.repeat(start[place] - (new_end - length), length)
    index += np.arange(new_end[-1])
    ids = numbered[index]
    if copy is None:
        return ids, new_end
    names = int(numbered.max()) + 1
    if names * (int(copy.max()) + 1) > MAX_NAMES:
        raise BadTrace(f"workload.rate_scale makes more than {MAX_NAMES:,} names of blocks")
    return (ids + np.repeat(copy.astype(np.int32) * np.int32(names), length)).astype(np.int32), new_end


def _waits(session: Lengths, arrival_ns: Times) -> tuple[Lengths, Times]:
    """Each turn comes after the one before it; what lay between their arrivals is time to think."""
    order = np.argsort(session, kind="stable")
    follows = np.concatenate(([False], session[order][1:] == session[order][:-1]))
    before = np.concatenate(([0], order[:-1]))
    after, think_ns = np.full(len(session), -1, np.int32), np.zeros(len(session), np.int64)
    after[order[follows]] = before[follows]
    think_ns[order[follows]] = arrival_ns[order[follows]] - arrival_ns[before[follows]]
    return after, think_ns
