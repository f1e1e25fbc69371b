"""A trace: every request of a run as columns, the one record that each workload and trace format becomes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, log2
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt

from engine.cache import Origin
from engine.clock import NS_PER_S
from engine.errors import BadSettings
from engine.request import Request, Tokens
from engine.settings import require
from sim.streams import stream

MAX_TOKENS = 10_000_000  # of a prompt or an output: beyond any model, so a defect of the file
COUNTER_BITS: Final = 24  # of a position in a prompt: MAX_TOKENS fit
TELLING_BITS = 64  # of tokens that were drawn: fewer may be the same by chance
LONGEST_NS = 2**62  # 146 years: sums of two times still fit into an int64

Times = npt.NDArray[np.int64]
Lengths = npt.NDArray[np.int32]

WEYL, MIX_1, MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # SplitMix64's own
ALL_BITS: Final = (1 << 64) - 1
FEW: Final = 8  # tokens, up to which it takes less to make them one by one

_WEYL, _MIX_1, _MIX_2 = np.uint64(WEYL), np.uint64(MIX_1), np.uint64(MIX_2)
_SHIFT_1, _SHIFT_2, _SHIFT_3, _HALF = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(32)


class BadTrace(BadSettings):
    """The file is not a whole and well-formed trace; the message says where and what is allowed there."""

    reason = "bad_trace"


@dataclass(slots=True, kw_only=True, eq=False)
class Trace:
    """The requests of a run in order of arrival, as columns of equal length: 20 bytes a request.

    `prefix` is the index of a request's template in `prefixes`, -1 for none; a prompt is its template, then
    tokens of its own, `prompt_tokens` together. `dropped_rows` counts the rows of the source that nobody
    can serve. `model_of` is the index in `models` of the one that each request asks for; None: all ask for `model`.
    `tenant_of` likewise; None: all are of `tenant`. With `session`, the tokens of a session's prompts are one
    sequence: each prompt begins with all of the one before it, then has what stands for its answer. With `after`, a
    request comes `think_ns` after the end of that one, -1 for none; `arrival_ns` is when it would come if answers
    took no time. `priority_of`: a larger one goes first; None: all are 0. With `block_ids`, a prompt is made of those
    up to `block_end[i]`, from the end of the request before on: `id_tokens` tokens each, the last one cut. Equal ids
    are equal tokens.
    Tokens are drawn from `seed` when a request is asked for, the same ones in any order.
    """

    arrival_ns: Times
    prompt_tokens: Lengths
    output_tokens: Lengths
    prefix: Lengths
    prefixes: list[Tokens]
    model: str
    tenant: str = "default"
    vocab: int
    seed: int
    source: str
    dropped_rows: int = 0
    failed_rows: int = 0  # of those that were dropped: the request had failed when it was recorded
    models: tuple[str, ...] = ()
    model_of: Lengths | None = None
    tenants: tuple[str, ...] = ()
    tenant_of: Lengths | None = None
    session: Lengths | None = None
    session_names: dict[int, str] = field(
        default_factory=dict
    )  # of those that are not called by their number
    after: Lengths | None = None
    think_ns: Times | None = None
    priority_of: Lengths | None = None
    block_ids: Lengths | None = None
    block_end: Times | None = None
    id_tokens: int = 0
    telling_tokens: int = field(init=False, repr=False)
    """So many tokens that were drawn apart are not the same by chance."""
    _content: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        columns = (self.prompt_tokens, self.output_tokens, self.prefix)
        assert len(self) > 0, "a trace has requests"
        assert all(len(column) == len(self) for column in columns), "columns are equally long"
        assert self.arrival_ns[0] >= 0, "no request arrives before the run"
        assert (np.diff(self.arrival_ns) >= 0).all(), "requests are in order of arrival"
        assert self.prompt_tokens.min() > 0, "every prompt has a token"
        assert self.prefix.max() < len(self.prefixes), "every prefix has a template"
        self.telling_tokens = ceil(TELLING_BITS / log2(self.vocab)) if self.vocab > 1 else MAX_TOKENS + 1
        self._content = stream(self.seed, "content").bit_generator.random_raw()

    def __len__(self) -> int:
        return len(self.arrival_ns)

    @property
    def span_ns(self) -> int:
        """From the first arrival to the last."""
        return int(self.arrival_ns[-1] - self.arrival_ns[0])

    def arrival_s(self, share: float) -> float:
        """When that share (from 0 to below 1) of the requests has arrived."""
        return int(self.arrival_ns[int(share * len(self))]) / NS_PER_S

    def request(self, index: int) -> Request:
        """The request of that index; its tokens are drawn when somebody looks at them. Raises IndexError."""
        if not 0 <= index < len(self.arrival_ns):
            raise IndexError(f"there is no request {index} in a trace of {len(self)}")
        request = Request(  # by place: names cost more than the object
            index,
            self.model if self.model_of is None else self.models[self.model_of.item(index)],
            cast("Tokens", Drawn(self, index, self.prompt_tokens.item(index))),
            self.output_tokens.item(index),
            self.arrival_ns.item(index),
            self.tenant if self.tenant_of is None else self.tenants[self.tenant_of.item(index)],
            None if self.session is None else self._session(self.session.item(index)),
            0 if self.priority_of is None else self.priority_of.item(index),
        )
        request.vocab = self.vocab
        return request

    def _session(self, number: int) -> str:
        return self.session_names.get(number) or str(number)

    @property
    def asked_for(self) -> tuple[str, ...]:
        """The models that requests may ask for."""
        return self.models or (self.model,)

    def spread(self, models: Sequence[str], zipf: float) -> None:
        """Let the requests ask for many models, the i-th (from 1) with weight i^-zipf: independent draws.

        A trace that chose them by their numbers when it was drawn learns their names only; one whose own names are
        all among these keeps them.
        """
        if self.model_of is not None and self.models and set(self.models) <= set(models):
            place = np.array([models.index(name) for name in self.models], np.int32)
            self.model_of, self.models = place[self.model_of], tuple(models)
            return
        if self.model_of is not None:
            most, allowed = int(self.model_of.max()) + 1, f"at most {len(models)}: the models of the fleet"
            require("workload.models", most, most <= len(models), allowed)
            self.models = tuple(models)
            return
        weights = np.arange(1, len(models) + 1, dtype=np.float64) ** -zipf
        upto = np.cumsum(weights) / weights.sum()
        drawn = stream(self.seed, "models").random(len(self))
        self.models = tuple(models)
        self.model_of = np.searchsorted(upto[:-1], drawn, side="right").astype(np.int32)

    def summary(self) -> dict[str, float | int]:
        """Figures of the whole trace. The rate counts gaps, not requests; it is 0 without a span."""
        rate = (len(self) - 1) * NS_PER_S / self.span_ns if self.span_ns else 0.0
        return {
            "requests": len(self),
            "dropped_rows": self.dropped_rows,
            "span_s": self.span_ns / NS_PER_S,
            "requests_per_s": rate,
            **_figures("prompt_tokens", self.prompt_tokens),
            **_figures("output_tokens", self.output_tokens),
        }

    def prompt(self, index: int) -> Tokens:
        """The prompt of the request of that index: about 12 us for 1,000 tokens."""
        if self.block_ids is not None:
            return self._of_blocks(index)
        length, prefix = int(self.prompt_tokens[index]), int(self.prefix[index])
        source = index if self.session is None else int(self.session[index])
        if prefix < 0:
            return tokens(self._content, source, length, self.vocab)
        template = self.prefixes[prefix]
        if len(template) >= length:
            return template[:length].copy()  # a view would let one request change the prompts of others
        own = tokens(self._content, source, length - len(template), self.vocab)
        return np.concatenate((template, own))

    def own_tokens(self, index: int, start: int, end: int) -> Tokens | None:
        """Tokens `start` to `end` (exclusive) of a prompt, where all of them are its own; None where they are not."""
        prefix = self.prefix.item(index)
        before = len(self.prefixes[prefix]) if prefix >= 0 else 0
        if self.block_ids is not None or not before <= start <= end <= self.prompt_tokens.item(index):
            return None
        source = index if self.session is None else self.session.item(index)
        return tokens(self._content, source, end - before, self.vocab, start - before)

    def origins(self, index: int) -> list[Origin]:
        """What the prompt of that request is drawn from, stretch by stretch: equal names, equal tokens."""
        length = int(self.prompt_tokens[index])
        if self.block_ids is not None:
            size, ids = self.id_tokens, self._ids(index).tolist()
            return [(b"i%d" % each, min(end * size, length)) for end, each in enumerate(ids, 1)]
        prefix, own = int(self.prefix[index]), index if self.session is None else int(self.session[index])
        if prefix < 0:
            return [(b"o%d" % own, length)]
        template = len(self.prefixes[prefix])
        if template >= length:
            return [(b"t%d" % prefix, length)]
        return [(b"t%d" % prefix, template), (b"o%d" % own, length)]

    def _of_blocks(self, index: int) -> Tokens:
        ids = self._ids(index)
        return block_tokens(self._content, ids, self.id_tokens, self.vocab)[: self.prompt_tokens[index]]

    def _ids(self, index: int) -> Lengths:
        assert self.block_ids is not None
        assert self.block_end is not None
        first = int(self.block_end[index - 1]) if index else 0
        return self.block_ids[first : int(self.block_end[index])]


def block_tokens(key: int, ids: Lengths, count: int, vocab: int) -> Tokens:
    """The first `count` tokens of each block of these ids, one after the other: those that `tokens` would give."""
    first: npt.NDArray[np.uint64] = ids.astype(np.uint64) << np.uint64(COUNTER_BITS)
    counters = np.add(first[:, None], np.arange(count, dtype=np.uint64), dtype=np.uint64)
    return _mixed(counters.reshape(-1), key, vocab)


class Drawn:
    """A prompt whose length is known, and whose tokens are drawn when somebody looks: for numpy it is an array."""

    __slots__ = ("_index", "_length", "_tokens", "_trace")

    def __init__(self, trace: Trace, index: int, length: int) -> None:
        self._trace = trace
        self._index = index
        self._length = length
        self._tokens: Tokens | None = None

    def __len__(self) -> int:
        return self._length

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        whole = np.asarray(self._all(), dtype=dtype)
        return whole.copy() if copy else whole

    def __getitem__(self, index: Any) -> Any:
        if self._tokens is None and isinstance(index, slice) and index.step is None:
            start, end, _ = index.indices(self._length)
            if (own := self._trace.own_tokens(self._index, start, end)) is not None:
                return own  # a few are looked at where stretches meet: the others need not be drawn
        return self._all()[index]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._all(), name)

    @property
    def telling_tokens(self) -> int:
        """So many tokens of two stretches are not the same by chance."""
        return self._trace.telling_tokens

    def origins(self) -> list[Origin]:
        """What its tokens are the first of, stretch by stretch."""
        return self._trace.origins(self._index)

    def _all(self) -> Tokens:
        if self._tokens is None:
            self._tokens = self._trace.prompt(self._index)
        return self._tokens


def tokens(key: int, index: int, count: int, vocab: int, start: int = 0) -> Tokens:
    """`count` tokens below `vocab`, a function of `key` (64 bits) and `index` alone; int32, one dimension.

    Those before `start` are left out.

    SplitMix64 as a counter hash (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
    OOPSLA 2014): 10 us for 1,000 tokens where a generator seeded anew for each request takes 14, and the same
    tokens under every version of numpy. A longer answer begins with the shorter one.
    """
    first = index << COUNTER_BITS
    if count - start <= FEW:
        return np.array([_token(first + place, key, vocab) for place in range(start, count)], np.int32)
    return _mixed(np.arange(first + start, first + count, dtype=np.uint64), key, vocab)


def _token(counter: int, key: int, vocab: int) -> int:
    """What `_mixed` makes of one counter."""
    bits = (counter * WEYL + key) & ALL_BITS
    bits = ((bits ^ bits >> 30) * MIX_1) & ALL_BITS
    bits = ((bits ^ bits >> 27) * MIX_2) & ALL_BITS
    bits ^= bits >> 31
    return (bits >> 32) * vocab >> 32


def _mixed(bits: npt.NDArray[np.uint64], key: int, vocab: int) -> Tokens:
    """Counters become tokens, in place."""
    bits *= _WEYL
    bits += np.uint64(key)
    bits ^= bits >> _SHIFT_1
    bits *= _MIX_1
    bits ^= bits >> _SHIFT_2
    bits *= _MIX_2
    bits ^= bits >> _SHIFT_3
    bits >>= _HALF
    bits *= np.uint64(vocab)  # multiply and shift: no division, bias below vocab / 2**32
    bits >>= _HALF
    return bits.astype(np.int32)


def from_rows(
    arrival_ns: Times,
    prompt_tokens: Lengths,
    output_tokens: Lengths,
    *,
    time_scale: float,
    model: str,
    vocab: int,
    seed: int,
    source: str,
    dropped_rows: int,
) -> Trace:
    """The trace of a file's rows, in any order and of any epoch: sorted (stable), rebased to 0, stretched.

    `time_scale` multiplies every arrival: 2 is half the rate. Raises BadSettings when it leaves no room.
    """
    order = np.argsort(arrival_ns, kind="stable")
    return Trace(
        arrival_ns=_stretched(arrival_ns[order] - arrival_ns.min(), time_scale),
        prompt_tokens=prompt_tokens[order],
        output_tokens=output_tokens[order],
        prefix=np.full(len(order), -1, np.int32),
        prefixes=[],
        model=model,
        vocab=vocab,
        seed=seed,
        source=source,
        dropped_rows=dropped_rows,
    )


def _stretched(arrival_ns: Times, time_scale: float) -> Times:
    if time_scale == 1.0:
        return arrival_ns  # a float would round spans above 104 days
    span_ns = int(arrival_ns[-1])
    allowed = f"small enough to keep a span of {span_ns / NS_PER_S:g} s below 146 years"
    require("workload.time_scale", time_scale, span_ns * time_scale < LONGEST_NS, allowed)
    stretched: Times = np.rint(arrival_ns * time_scale).astype(np.int64)
    return stretched


def _figures(name: str, column: Lengths) -> dict[str, float]:
    p50, p99 = np.percentile(column, (50, 99))
    return {f"{name}_mean": float(column.mean()), f"{name}_p50": float(p50), f"{name}_p99": float(p99)}
