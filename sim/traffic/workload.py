"""Workloads: traffic of any kind as settings, checked at the door, and the trace that they become.

A kind of traffic is one module with one settings class, registered here by its name.
"""

from collections.abc import Sequence
from typing import Protocol

from engine.errors import BadSettings
from engine.named import Named
from engine.registry.discovery import printable
from engine.settings import at_least, require
from sim.traffic.trace import Trace

MAX_REQUESTS = 100_000_000
YEAR_S = 366 * 86_400
MOST_LISTED = 10


class Workload(Protocol):
    """Traffic of one kind, as it was set."""

    kind: str
    model_zipf: float | None  # popularity of the fleet's models; None: all requests ask for the first

    def draw(self, seed: int, model: str) -> Trace:
        """All requests of a run, a function of the settings and `seed` (>= 0) alone. Raises BadSettings."""


workloads: Named[Workload] = Named("workload")


def draw(settings: Workload, seed: int, models: Sequence[str]) -> Trace:
    """The trace of one run: every request that will arrive, for one model or many. Raises BadSettings."""
    whole("seed", seed, 0, 2**63)
    trace = settings.draw(seed, models[0])
    if settings.model_zipf is not None:
        if settings.kind == "trace":
            _check_room(trace, models)
        try:
            trace.spread(models, settings.model_zipf)
        except BadSettings as error:
            if not trace.models:
                raise
            raise BadSettings(f"{error}, {listed(models)}; asked for are {listed(trace.models)}") from error
    return trace


def _check_room(trace: Trace, models: Sequence[str]) -> None:
    """Raise BadSettings for the requests of a file that ask for more models than there are."""
    if trace.model_of is None or set(trace.models) <= set(models):
        return
    count = int(trace.model_of.max()) + 1
    if count > len(models):
        raise BadSettings(
            f"the file asks for {count:,} models ({listed(trace.models)}), but the fleet has {len(models):,} "
            f"({listed(models)}): workload.rename_models gives them other names, as in {{*: NAME}}; "
            f"with workload.model_zipf=null all requests ask for the first"
        )


def listed(names: Sequence[str]) -> str:
    """Names for a message; of very many the first."""
    more = f" and {len(names) - MOST_LISTED:,} more" if len(names) > MOST_LISTED else ""
    return printable(", ".join(names[:MOST_LISTED])) + more


def whole(key: str, value: float, least: int, most: int) -> None:
    """Raise BadSettings for `key` unless its value is an integer from `least` to `most`."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    require(key, value, is_whole and least <= value <= most, f"a whole number from {least:,} to {most:,}")


def check_kind(value: str, kind: str) -> None:
    """Raise BadSettings when settings of one kind say that they are of another."""
    require("workload.kind", value, value == kind, f"{kind!r} for these settings")


def check_vocab(value: int) -> None:
    """Raise BadSettings unless prompts can be drawn from a vocabulary of that size."""
    whole("workload.vocab", value, 2, 2**31 - 1)


def check_popularity(value: float | None) -> None:
    """Raise BadSettings unless the popularity of models can follow that law."""
    if value is not None:
        at_least("workload.model_zipf", value, 0)
