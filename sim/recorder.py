"""What a run leaves behind in memory: the facts of each request, in columns, so that a million rows stay small."""

from array import array
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from engine.telemetry import Ended, Event, HealthChanged, Routed
from sim.faults import FaultStruck

MISSING = -1  # no time and no count of ours is negative
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
}
SERIES_COLUMNS = {"at_ns": "int64", "subject": "str", "metric": "str", "value": "float64"}


class Numbers:
    """A column of integers, eight bytes a row."""

    __slots__ = ("data",)

    def __init__(self) -> None:
        self.data = array("q")

    def append(self, value: int | None) -> None:
        self.data.append(MISSING if value is None else value)

    def values(self) -> npt.NDArray[np.int64]:
        return np.array(self.data, dtype=np.int64)

    def series(self) -> "pd.Series[Any]":
        """Nullable integers: what did not happen has no time."""
        values = self.values()
        return pd.Series(pd.arrays.IntegerArray(values, values == MISSING))

    def digest(self, order: npt.NDArray[np.intp]) -> bytes:
        return sha256(self.values()[order].astype("<i8").tobytes()).digest()


class Words:
    """A column of words that repeat: four bytes a row, and each word once."""

    __slots__ = ("_codes", "_words")

    def __init__(self) -> None:
        self._codes = array("i")
        self._words: dict[str, int] = {}

    def append(self, word: str | None) -> None:
        self._codes.append(MISSING if word is None else self._words.setdefault(word, len(self._words)))

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


# The requests table: name, source field of the event, kind of column; in this order everywhere.
COLUMNS: tuple[tuple[str, str, type[Numbers | Words]], ...] = (
    ("request_id", "request_id", Numbers),
    ("tenant", "tenant", Words),
    ("session", "session", Words),
    ("model_requested", "model_requested", Words),
    ("model", "model", Words),
    ("replica", "replica", Words),
    ("arm", "arm", Words),
    ("attempts", "attempts", Numbers),
    ("arrival_ns", "arrival_ns", Numbers),
    ("admitted_ns", "admitted_ns", Numbers),
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


class Recorder:
    """A sink that keeps the requests table, the decisions and the time series of a run."""

    def __init__(self) -> None:
        self.columns: dict[str, Numbers | Words] = {name: kind() for name, _, kind in COLUMNS}
        self._writers = [(source, self.columns[name].append) for name, source, _ in COLUMNS]
        self._decisions: list[tuple[int, int, int, str, str, str, str, str, str]] = []
        self._series: list[tuple[int, str, str, float]] = []

    def __len__(self) -> int:
        """How many requests have ended."""
        return len(self.columns["request_id"].values())

    def emit(self, event: Event) -> None:
        if isinstance(event, Ended):
            for source, append in self._writers:
                append(getattr(event, source))
        elif isinstance(event, Routed):
            names, loads = ",".join(event.candidates), ",".join(map(str, event.loads))
            decision = (
                event.at_ns,
                event.request_id,
                event.attempt,
                event.strategy,
                event.chosen,
                names,
                loads,
                event.pool,
                event.reason,
            )
            self._decisions.append(decision)
        elif isinstance(event, HealthChanged):
            self.sample(event.at_ns, event.replica, event.after, 1.0)
        elif isinstance(event, FaultStruck):
            self.sample(event.at_ns, event.replica, event.fault, 1.0)
            self.sample(event.at_ns, event.replica, "requests_in_hand", event.requests_in_hand)

    def sample(self, at_ns: int, subject: str, metric: str, value: float) -> None:
        """A point of the time series: of a replica, of the cache, of the quota."""
        self._series.append((at_ns, subject, str(metric), float(value)))

    def requests(self) -> pd.DataFrame:
        """One row a request that has ended, in the order of the ends."""
        return pd.DataFrame({name: column.series() for name, column in self.columns.items()})

    def decisions(self) -> pd.DataFrame:
        """One row a choice of the router."""
        return pd.DataFrame(self._decisions, columns=list(DECISION_COLUMNS)).astype(DECISION_COLUMNS)

    def timeseries(self) -> pd.DataFrame:
        """Samples and marks (crash, recover, unhealthy, healthy), tidy: one value a row."""
        return pd.DataFrame(self._series, columns=list(SERIES_COLUMNS)).astype(SERIES_COLUMNS)

    def digest(self) -> str:
        """SHA-256 over the requests table sorted by request_id: integers and words only, no wall-clock figure."""
        order = np.argsort(self.columns["request_id"].values(), kind="stable")
        hasher = sha256()
        for name, column in self.columns.items():
            hasher.update(name.encode() + b"\0" + column.digest(order))
        return hasher.hexdigest()
