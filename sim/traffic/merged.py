"""Several kinds of traffic at once: each part is generated for itself, and asks for a model of its own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.settings import require
from sim.streams import stream
from sim.traffic.generator import GeneratedWorkload
from sim.traffic.mixes import MAX_MODELS
from sim.traffic.trace import Lengths, Times, Trace
from sim.traffic.workload import MAX_REQUESTS, check_kind, check_popularity, check_vocab, whole, workloads

Ids = npt.NDArray[np.int64]


@workloads("merged")
@dataclass(slots=True, kw_only=True)
class MergedWorkload:
    """Parts by name, each with settings as of the kind `generated`, laid over each other.

    A part asks for the model of the fleet that is called like it, if all parts are called like models of the fleet,
    otherwise for the one at its place; or, where all parts have a `model_zipf`, each is spread over the models for
    itself. `names`: what requests ask for in place of the models of the fleet, in their order: names, aliases,
    versions, ranges, groups. Each part has streams of its own: one more moves no other. Where there are tenants,
    requests of a part without any are of one that is called like the part.
    """

    kind: str = "merged"
    parts: dict[str, GeneratedWorkload] = field(default_factory=dict)
    requests: int | None = None  # the first so many; None is all
    model_zipf: float | None = 0.0  # None: all requests ask for the first model, or for `names`
    names: list[str] = field(default_factory=list)
    vocab: int = 4096

    def __post_init__(self) -> None:
        check_kind(self.kind, "merged")
        require("workload.parts", len(self.parts), 1 <= len(self.parts) <= MAX_MODELS, f"1 to {MAX_MODELS:,}")
        for name, part in self.parts.items():
            fits = (part.model_zipf is not None) == self.is_spread
            allowed = (
                "given like that of the first part" if self.is_spread else "null: a part is of one model"
            )
            require(f"workload.parts.{name}.model_zipf", part.model_zipf, fits, allowed)
        self._check_names()
        if self.requests is not None:
            whole("workload.requests", self.requests, 1, MAX_REQUESTS)
        check_popularity(self.model_zipf)
        check_vocab(self.vocab)

    @property
    def is_spread(self) -> bool:
        """Whether each part is spread over all models, and not of one."""
        return next(iter(self.parts.values())).model_zipf is not None

    def draw(self, seed: int, model: str) -> Trace:
        return merged(self, seed, model)

    def _check_names(self) -> None:
        if not self.names:
            return
        key, null = "workload.model_zipf", self.model_zipf is None
        require(key, self.model_zipf, null, "null, since names say what is asked for")
        needed = max(part.models for part in self.parts.values()) if self.is_spread else len(self.parts)
        allowed = f"at least {needed}: one for each model that a part asks for"
        require("workload.names", len(self.names), len(self.names) >= needed, allowed)


def merged(settings: MergedWorkload, seed: int, model: str) -> Trace:
    """The requests of all parts in order of arrival."""
    parts = [
        replace(part, vocab=settings.vocab).draw(_seed(seed, name), name)
        for name, part in settings.parts.items()
    ]
    starts = np.concatenate(([0], np.cumsum([len(part) for part in parts])[:-1]))
    rows = np.argsort(np.concatenate([part.arrival_ns for part in parts]), kind="stable")[: settings.requests]
    place = np.full(int(starts[-1]) + len(parts[-1]), -1, np.int64)  # of a part's row among all
    place[rows] = np.arange(len(rows))
    columns = _Columns(parts, rows)
    templates = np.cumsum([0, *(len(part.prefixes) for part in parts)])[:-1]
    after = columns.numbers(lambda part: part.after, starts)
    waits = any(part.after is not None for part in parts)
    asks_first = settings.model_zipf is None and not settings.names
    tenants, tenant_of = _tenants(parts, list(settings.parts))
    return Trace(
        arrival_ns=columns.of(lambda part: part.arrival_ns),
        prompt_tokens=columns.of(lambda part: part.prompt_tokens),
        output_tokens=columns.of(lambda part: part.output_tokens),
        prefix=columns.numbers(lambda part: part.prefix, templates),
        prefixes=[template for part in parts for template in part.prefixes],
        model=model,
        vocab=settings.vocab,
        seed=seed,
        source="merged",
        models=_models(settings),
        model_of=None if asks_first else _model_of(settings, parts)[rows],
        tenants=tenants,
        tenant_of=None if tenant_of is None else tenant_of[rows],
        session=_sessions(parts)[rows] if any(part.session is not None for part in parts) else None,
        after=np.where(after < 0, -1, place[after]).astype(np.int32) if waits else None,
        think_ns=columns.of(lambda part: part.think_ns) if waits else None,
        priority_of=columns.of(lambda part: part.priority_of)
        if any(part.priority_of is not None for part in parts)
        else None,
    )


def _models(settings: MergedWorkload) -> tuple[str, ...]:
    """What the numbers of models stand for; () leaves that to the fleet."""
    if settings.names:
        return tuple(settings.names)
    return () if settings.model_zipf is None or settings.is_spread else tuple(settings.parts)


def _model_of(settings: MergedWorkload, parts: Sequence[Trace]) -> Lengths:
    """The number of the model that each request asks for, of all parts one after the other."""
    if not settings.is_spread:
        return np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts])
    chosen = [part.model_of for part in parts if part.model_of is not None]
    assert len(chosen) == len(parts), "a part that is spread knows over what"
    return np.concatenate(chosen)


@dataclass(slots=True)
class _Columns:
    """Columns of all parts, one after the other, in the order of the rows; zeros where a part has none."""

    parts: list[Trace]
    rows: Ids

    def of(self, column: Callable[[Trace], Any]) -> Any:
        found = [column(part) for part in self.parts]
        kind = next(each.dtype for each in found if each is not None)
        whole_ones = (
            np.zeros(len(part), kind) if each is None else each
            for part, each in zip(self.parts, found, strict=True)
        )
        return np.concatenate(list(whole_ones))[self.rows]

    def numbers(self, column: Callable[[Trace], Lengths | None], starts: Ids) -> Lengths:
        """Indices of each part, -1 for none, moved behind those of the parts before it."""
        moved = []
        for part, start in zip(self.parts, starts.tolist(), strict=True):
            each = column(part)
            none = np.full(len(part), -1, np.int32)
            moved.append(none if each is None else np.where(each < 0, -1, each + start).astype(np.int32))
        return np.concatenate(moved)[self.rows]


def _seed(seed: int, name: str) -> int:
    """The seed of a part: another one for each name."""
    return int(stream(seed, f"part.{name}").bit_generator.random_raw()) >> 1


def _sessions(parts: Sequence[Trace]) -> Lengths:
    """Sessions of all parts, each request of a part without any being one for itself."""
    moved, count = [], 0
    for part in parts:
        own = np.arange(len(part), dtype=np.int32) if part.session is None else part.session
        moved.append(own + count)
        count += int(own.max()) + 1
    return np.concatenate(moved).astype(np.int32)


def _tenants(parts: Sequence[Trace], names: Sequence[str]) -> tuple[tuple[str, ...], Lengths | None]:
    """The tenants of all parts by name, and the one of each request; none where no part has any."""
    if not any(part.tenants for part in parts):
        return (), None
    numbers: dict[str, int] = {}
    columns = []
    for part, name in zip(parts, names, strict=True):
        known = part.tenants or (name,)
        moved = np.array([numbers.setdefault(tenant, len(numbers)) for tenant in known], np.int32)
        columns.append(moved[np.zeros(len(part), np.int32) if part.tenant_of is None else part.tenant_of])
    return tuple(numbers), np.concatenate(columns)


def of_model(trace: Trace, model: int) -> Trace:
    """The requests of a trace that ask for one model, of which there are some."""
    assert trace.model_of is not None
    rows = np.flatnonzero(trace.model_of == model)
    place = np.full(len(trace), -1, np.int32)
    place[rows] = np.arange(len(rows), dtype=np.int32)
    blocks = _blocks(trace, rows)
    after = None if trace.after is None else trace.after[rows]
    return replace(
        trace,
        arrival_ns=trace.arrival_ns[rows],
        prompt_tokens=trace.prompt_tokens[rows],
        output_tokens=trace.output_tokens[rows],
        prefix=trace.prefix[rows],
        models=(),
        model_of=None,
        after=None if after is None else np.where(after < 0, -1, place[after]).astype(np.int32),
        block_ids=blocks[0],
        block_end=blocks[1],
        tenant_of=None if trace.tenant_of is None else trace.tenant_of[rows],
        session=None if trace.session is None else trace.session[rows],
        think_ns=None if trace.think_ns is None else trace.think_ns[rows],
        priority_of=None if trace.priority_of is None else trace.priority_of[rows],
    )


def _blocks(trace: Trace, rows: Ids) -> tuple[Lengths | None, Times | None]:
    if trace.block_ids is None or trace.block_end is None:
        return None, None
    length = np.diff(trace.block_end, prepend=0)
    kept = np.zeros(len(trace), bool)
    kept[rows] = True
    return trace.block_ids[np.repeat(kept, length)], np.cumsum(length[rows])
