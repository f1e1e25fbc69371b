"""Rare facts that explain much, as a table: fallbacks, lost attempts, preemptions, models that come and go, modes."""

from array import array
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from engine.telemetry import (
    AttemptLost,
    Event,
    Evicted,
    FellBack,
    ModeChanged,
    ModelMoved,
    Preempted,
    SoftLimitPassed,
)
from sim.breakdown import MISSING
from sim.runs import FACT_COLUMNS

Taker = Callable[[Any], None]


def whose(model: str | None, tenant: str | None) -> str:
    """Whom a limit is of, as the time series of quotas name it."""
    return " and ".join(filter(None, (model, tenant)))


class Facts:
    """A sink for what seldom happens. It is given nothing else, so it costs nothing where nothing of that happens.

    | kind | subject | value | detail |
    |---|---|---|---|
    | request_fell_back | the name that is tried now | | why the one before could not serve |
    | attempt_lost | the replica | tokens the caller had | |
    | request_preempted | the replica | tokens to be computed anew | |
    | model_state_changed | the model | | its state now |
    | mode_changed | model and tenant, "" for the whole service | | its degradation mode now |
    | soft_limit_passed | model and tenant | the share in per cent | which limit |
    | blocks_evicted | the model | when they were last read, ns | the tier, and how many |

    Evictions are not rare: they are told where they were asked for.
    """

    kinds: frozenset[type[Event]] = frozenset(
        {FellBack, AttemptLost, Preempted, ModelMoved, ModeChanged, SoftLimitPassed}
    )

    def __init__(self, *, evictions: bool = False) -> None:
        self._numbers = {name: array("q") for name in ("at_ns", "request_id", "value")}
        self._words: dict[str, list[str]] = {name: [] for name in ("kind", "subject", "detail")}
        self._takers: dict[type[Event], Taker] = {
            FellBack: self._take_fall_back,
            AttemptLost: self._take_lost,
            Preempted: self._take_preempted,
            ModelMoved: self._take_moved,
            ModeChanged: self._take_mode,
            SoftLimitPassed: self._take_soft_limit,
        }
        if evictions:
            self.kinds |= {Evicted}
            self._takers[Evicted] = self._take_evicted

    def emit(self, event: Event) -> None:
        self._takers[type(event)](event)

    def table(self) -> pd.DataFrame:
        """One row a fact, in the order in which they came."""
        columns: dict[str, Any] = {name: np.array(values) for name, values in self._numbers.items()}
        columns |= {name: pd.Series(words, dtype="str") for name, words in self._words.items()}
        return pd.DataFrame({name: columns[name] for name in FACT_COLUMNS}).astype(FACT_COLUMNS)

    def _take_fall_back(self, event: FellBack) -> None:
        self._note(event, event.request_id, event.after, 0, event.reason)

    def _take_lost(self, event: AttemptLost) -> None:
        self._note(event, event.request_id, event.replica, event.new_tokens, "")

    def _take_preempted(self, event: Preempted) -> None:
        self._note(event, event.request_id, event.replica, event.lost_tokens, "")

    def _take_moved(self, event: ModelMoved) -> None:
        self._note(event, MISSING, event.model, 0, str(event.after))

    def _take_mode(self, event: ModeChanged) -> None:
        self._note(event, MISSING, whose(event.model, event.tenant), 0, event.after)

    def _take_soft_limit(self, event: SoftLimitPassed) -> None:
        share = round(100 * event.share)
        self._note(event, MISSING, whose(event.model, event.tenant), share, event.limit)

    def _take_evicted(self, event: Evicted) -> None:
        self._note(event, MISSING, event.model, event.read_ns, f"{event.tier} {event.blocks}")

    def _note(self, event: Event, request_id: int, subject: str, value: int, detail: str) -> None:
        self._numbers["at_ns"].append(event.at_ns)
        self._numbers["request_id"].append(request_id)
        self._numbers["value"].append(value)
        self._words["kind"].append(event.kind)
        self._words["subject"].append(subject)
        self._words["detail"].append(detail)
