"""What a run leaves behind in memory: the facts of each request, in columns, so that a million rows stay small."""

from array import array
from collections.abc import Callable, Sequence
from hashlib import sha256
from itertools import chain
from struct import pack
from typing import Any, ClassVar, Final, cast

import numpy as np
import numpy.typing as npt
import pandas as pd

from engine.native import vec
from engine.telemetry import Ended, Event, HealthChanged, Routed
from sim.faults import FaultStruck
from sim.points import Name

WIDTHS = "bhiq"  # types of columns of integers, from one byte to eight
MISSING: Final = -1  # no time and no count of ours is negative; a priority may be, and is never missing
FLUSH_ROWS: Final = 4_096
"""Rows that are kept as they came before they go to their columns together: cheaper than one at a time."""

# Columns and their types: a table without rows has types too.
DECISION_COLUMNS = {
    "at_ns": "int64",
    "request_id": "int64",
    "attempt": "int64",
    "strategy": "str",
    "chosen": "str",
    "candidates": "str",
    "loads": "str",
    "pool": "str",
    "reason": "str",
    "model": "str",
}
SERIES_COLUMNS = {"at_ns": "int64", "subject": "str", "metric": "str", "value": "float64"}


def extended(column: "array[int]", values: npt.NDArray[np.int64]) -> "array[int]":
    """The column with these values behind it: itself, or a wider one where they do not fit."""
    narrow = values.astype(column.typecode)
    if (narrow != values).any():
        return extended(array(WIDTHS[WIDTHS.index(column.typecode) + 1], column), values)
    column.frombytes(narrow.tobytes())
    return column


class Numbers:
    """A column of integers: as few bytes a row as the largest takes."""

    __slots__ = ("data",)

    def __init__(self) -> None:
        self.data = array(WIDTHS[0])

    def append(self, value: int | None) -> None:
        self.extend((value,))

    def extend(self, values: Sequence[int | None]) -> None:
        try:
            found = np.array(values, dtype=np.int64)  # a tenth of what `array` takes for each
        except TypeError:  # None is no number
            found = np.array([MISSING if value is None else value for value in values], dtype=np.int64)
        self.data = extended(self.data, found)

    def values(self) -> npt.NDArray[np.int64]:
        return np.array(self.data, dtype=np.int64)

    def view(self) -> npt.NDArray[np.signedinteger[Any]]:
        """The column itself, not a copy: for as long as nobody keeps it, rows can be added."""
        return np.frombuffer(self.data, dtype=self.data.typecode)

    def series(self) -> "pd.Series[Any]":
        """Nullable integers: what did not happen has no time."""
        values = self.values()
        return pd.Series(pd.arrays.IntegerArray(values, values == MISSING))

    def whole(self) -> "pd.Series[Any]":
        """The same where each row has its number, which may be below 0."""
        return pd.Series(self.values(), dtype="Int64")

    def digest(self, order: npt.NDArray[np.intp]) -> bytes:
        return sha256(self.values()[order].astype("<i8").tobytes()).digest()


class Codes(dict[str | None, int]):
    """Words and their numbers, in the order in which they came. A new one gets the next number, None has none."""

    def __init__(self) -> None:
        self[None] = MISSING

    def __missing__(self, word: str) -> int:
        self[word] = code = len(self) - 1
        return code


class Words:
    """A column of words that repeat: as few bytes a row as tell them apart, and each word once."""

    __slots__ = ("_code_of", "_codes")

    def __init__(self) -> None:
        self._codes = array(WIDTHS[0])
        self._code_of = Codes()

    @property
    def _words(self) -> list[str]:
        """Each word, by its number."""
        return [word for word in self._code_of if word is not None]

    def append(self, word: str | None) -> None:
        self.extend((word,))

    def extend(self, words: Sequence[str | None]) -> None:
        codes = np.fromiter(map(self._code_of.__getitem__, words), dtype=np.int64, count=len(words))
        self._codes = extended(self._codes, codes)

    def counts(self) -> dict[str, int]:
        """How often each word is there."""
        counts = np.bincount(
            np.frombuffer(self._codes, dtype=self._codes.typecode) + 1, minlength=len(self._words) + 1
        )
        return dict(zip(self._words, counts[1:].tolist(), strict=True))

    def values(self) -> "npt.NDArray[Any]":
        """The words, None where there is none."""
        words = np.array([*self._words, None], dtype=object)
        return words[np.array(self._codes, dtype=np.intp)]

    def series(self) -> "pd.Series[Any]":
        return pd.Series(self.values(), dtype="str")

    def digest(self, order: npt.NDArray[np.intp]) -> bytes:
        hasher = sha256()
        for word in self.values()[order]:
            data = b"" if word is None else word.encode()
            hasher.update(b"%d:%s;" % (MISSING if word is None else len(data), data))
        return hasher.digest()


class Decisions:
    """The choices of the router, in columns; 40 bytes a choice among five."""

    __slots__ = ("_loads", "_names", "_numbers", "_waiting", "_words")

    def __init__(self) -> None:
        self._waiting: list[tuple[Any, ...]] = []
        self._numbers = {name: Numbers() for name in ("at_ns", "request_id", "attempt")}
        self._words = {
            name: Words() for name in ("strategy", "chosen", "candidates", "pool", "reason", "model")
        }
        self._names: dict[tuple[str, ...], str] = {}  # pools rarely change
        self._loads = Numbers()

    def take(self, event: Routed) -> None:
        self._waiting.append(
            (
                event.at_ns,
                event.request_id,
                event.attempt,
                event.strategy,
                event.chosen,
                event.candidates,
                event.pool,
                event.reason,
                event.model,
                event.loads,
            )
        )
        if len(self._waiting) >= FLUSH_ROWS:
            self._flush()

    def _flush(self) -> None:
        """Put what is waiting into the columns."""
        if not self._waiting:
            return
        *columns, loads = zip(*self._waiting, strict=True)
        self._waiting = []
        of = dict(zip((*self._numbers, *self._words), columns, strict=True))
        names = self._names
        for names_of in dict.fromkeys(of["candidates"]):
            names.setdefault(names_of, ",".join(names_of))
        of["candidates"] = tuple([names[names_of] for names_of in of["candidates"]])
        for name, numbers in self._numbers.items():
            numbers.extend(of[name])
        for name, words in self._words.items():
            words.extend(of[name])
        self._loads.extend(list(chain.from_iterable(loads)))

    def table(self) -> pd.DataFrame:
        self._flush()
        columns: dict[str, Any] = {name: numbers.values() for name, numbers in self._numbers.items()}
        columns |= {name: words.series() for name, words in self._words.items()}
        loads, begin, texts = self._loads.data, 0, []
        sizes = {names: len(candidates) for candidates, names in self._names.items()}
        for names in self._words["candidates"].values():
            end = begin + sizes[names]
            texts.append(",".join(map(str, loads[begin:end])))
            begin = end
        columns["loads"] = pd.Series(texts, dtype="str")
        return pd.DataFrame({name: columns[name] for name in DECISION_COLUMNS}).astype(DECISION_COLUMNS)


class Series:
    """Points in time: 8 bytes a point, and 16 for those of one look, whose names are kept once."""

    __slots__ = ("_at_ns", "_known", "_latest", "_names", "_number", "_values", "_which")

    def __init__(self) -> None:
        self._at_ns = array("q")  # of each look
        self._which = array("q")  # of the names, those of each look
        self._values = array("d")  # of all looks, one after the other
        self._names: list[Sequence[Name]] = []
        self._known: dict[Sequence[Name], int] = {}
        self._latest: Sequence[Name] = ()
        self._number = 0  # of the latest names

    def take(self, at_ns: int, names: Sequence[Name], values: vec[float]) -> None:
        """A point of each of these series. Names are compared only when they are not the same object again."""
        if names is not self._latest:
            self._latest, self._number = names, self._known.setdefault(names, len(self._names))
            if self._number == len(self._names):
                self._names.append(names)
        self._at_ns.append(at_ns)
        self._which.append(self._number)
        if IS_PLAIN:
            self._values.frombytes(pack(f"{len(values)}d", *values))  # a fifth of what `extend` takes
        else:
            self._values.frombytes(memoryview(values).cast("B"))

    def table(self) -> pd.DataFrame:
        which = np.array(self._which, dtype=np.intp)
        lengths = np.array([len(names) for names in self._names], dtype=np.intp)
        columns = {
            "at_ns": np.repeat(np.array(self._at_ns, dtype=np.int64), lengths[which]),
            "subject": self._words(which, 0),
            "metric": self._words(which, 1),
            "value": np.array(self._values),
        }
        return pd.DataFrame(columns).astype(SERIES_COLUMNS)

    def _words(self, which: npt.NDArray[np.intp], part: int) -> "pd.Series[Any]":
        """A part of the name of each point."""
        words = [np.array([name[part] for name in names], dtype=object) for names in self._names]
        found = [words[number] for number in which.tolist()]
        return pd.Series(np.concatenate(found) if found else np.array([], dtype=object), dtype="str")


# The requests table: name, source field of the event, kind of column; in this order everywhere.
COLUMNS: tuple[tuple[str, str, type[Numbers | Words]], ...] = (
    ("request_id", "request_id", Numbers),
    ("tenant", "tenant", Words),
    ("session", "session", Words),
    ("model_requested", "model_requested", Words),
    ("model", "model", Words),
    ("replica", "replica", Words),
    ("arm", "arm", Words),
    ("priority", "priority", Numbers),
    ("attempts", "attempts", Numbers),
    ("arrival_ns", "arrival_ns", Numbers),
    ("loaded_ns", "loaded_ns", Numbers),
    ("admitted_ns", "admitted_ns", Numbers),
    ("tried_ns", "tried_ns", Numbers),
    ("queued_ns", "queued_ns", Numbers),
    ("started_ns", "started_ns", Numbers),
    ("first_token_ns", "first_token_ns", Numbers),
    ("finished_ns", "at_ns", Numbers),
    ("prompt_tokens", "prompt_tokens", Numbers),
    ("output_tokens", "output_tokens", Numbers),
    ("cached_tokens_gpu", "cached_tokens_gpu", Numbers),
    ("cached_tokens_ram", "cached_tokens_ram", Numbers),
    ("cached_tokens_ssd", "cached_tokens_ssd", Numbers),
    ("cached_tokens_network", "cached_tokens_network", Numbers),
    ("cached_tokens_cloud", "cached_tokens_cloud", Numbers),
    ("outcome", "outcome", Words),
    ("reason", "reason", Words),
)


def row_of(ended: Ended) -> tuple[Any, ...]:
    """The sources of all columns, in order. Written out: a sixth of what asking for them by name takes."""
    return (
        ended.request_id,
        ended.tenant,
        ended.session,
        ended.model_requested,
        ended.model,
        ended.replica,
        ended.arm,
        ended.priority,
        ended.attempts,
        ended.arrival_ns,
        ended.loaded_ns,
        ended.admitted_ns,
        ended.tried_ns,
        ended.queued_ns,
        ended.started_ns,
        ended.first_token_ns,
        ended.at_ns,
        ended.prompt_tokens,
        ended.output_tokens,
        ended.cached_tokens_gpu,
        ended.cached_tokens_ram,
        ended.cached_tokens_ssd,
        ended.cached_tokens_network,
        ended.cached_tokens_cloud,
        ended.outcome,
        ended.reason,
    )


class Recorder:
    """A sink that keeps the requests table, the decisions and the time series of a run."""

    kinds: ClassVar[frozenset[type[Event]]] = frozenset({Ended, Routed, HealthChanged, FaultStruck})

    def __init__(self) -> None:
        self._columns: dict[str, Numbers | Words] = {name: kind() for name, _, kind in COLUMNS}
        self._rows: list[tuple[Any, ...]] = []  # that are not in the columns yet
        self._decisions = Decisions()
        self._series = Series()
        self.takers: dict[type[Event], Callable[[Any], None]] = {
            Ended: self._take_end,
            Routed: self._decisions.take,
            HealthChanged: self._take_health,
            FaultStruck: self._take_fault,
        }

    def __len__(self) -> int:
        """How many requests have ended."""
        return len(self.columns["request_id"].values())

    @property
    def columns(self) -> dict[str, Numbers | Words]:
        """The requests table by column."""
        if self._rows:
            rows, self._rows = self._rows, []
            for column, values in zip(self._columns.values(), zip(*rows, strict=True), strict=True):
                column.extend(values)
        return self._columns

    def emit(self, event: Event) -> None:
        take = self.takers.get(type(event))
        if take is not None:
            take(event)

    def _take_end(self, event: Ended) -> None:
        self._rows.append(row_of(event))
        if len(self._rows) >= FLUSH_ROWS:
            self.columns  # noqa: B018  they take what is waiting

    def _take_health(self, event: HealthChanged) -> None:
        self.sample(event.at_ns, event.replica, event.after, 1.0)

    def _take_fault(self, event: FaultStruck) -> None:
        self.sample(event.at_ns, event.replica, event.fault, 1.0)
        self.sample(event.at_ns, event.replica, "requests_in_hand", event.requests_in_hand)

    def sample(self, at_ns: int, subject: str, metric: str, value: float) -> None:
        """A point of the time series: of a replica, of the cache, of the quota."""
        self._series.take(at_ns, ((subject, str(metric)),), vec[float]([value]))

    def sample_all(self, at_ns: int, names: tuple[Name, ...], values: vec[float]) -> None:
        """A point of each of these series. Cheap where `names` is the same object as the last time."""
        self._series.take(at_ns, names, values)

    def requests(self) -> pd.DataFrame:
        """One row a request that has ended, in the order of the ends."""
        priority = cast("Numbers", self.columns["priority"]).whole()
        known = {name: column.series() for name, column in self.columns.items()}
        return pd.DataFrame({**known, "priority": priority})

    def decisions(self) -> pd.DataFrame:
        """One row a choice of the router."""
        return self._decisions.table()

    def timeseries(self) -> pd.DataFrame:
        """Samples and marks (crash, recover, unhealthy, healthy), tidy: one value a row."""
        return self._series.table()

    def digest(self) -> str:
        """SHA-256 over the requests table sorted by request_id: integers and words only, no wall-clock figure."""
        order = np.argsort(self.columns["request_id"].values(), kind="stable")
        hasher = sha256()
        for name, column in self.columns.items():
            hasher.update(name.encode() + b"\0" + column.digest(order))
        return hasher.hexdigest()


IS_PLAIN = hasattr(Series.take, "__code__")
"""Whether this file runs as it is written."""
