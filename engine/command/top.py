"""`python -m engine top`: the same page live, with what is done a second: differences of the server's counters."""

import argparse
import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from engine.command.keyboard import keys
from engine.command.remote import Door, NoAnswer, add_door, door
from engine.command.status import console, duration, experiments, headline, models, quotas, replicas, tiers
from engine.settings import require

TIMEOUT_S = 5.0
MIN_EVERY_S = 0.1
CHEAP_BYTES = 256 << 10
"""Of metrics, at each look. Of a large fleet they are asked for less often: they are made on the loop that serves."""

COUNTERS = {
    "modelyard:requests_total": "requests",
    "vllm:generation_tokens_total": "tokens",
    "vllm:prefix_cache_queries_total": "asked",
    "vllm:prefix_cache_hits_total": "hit",
}
Counts = dict[str, dict[str, float]]  # model -> counter -> value


def add_top(command: argparse.ArgumentParser) -> None:
    """The command line of `top`."""
    add_door(command)
    command.add_argument("--every", type=float, default=1.0, metavar="SECONDS", help="default: %(default)s")
    command.add_argument("--once", action="store_true", help="print it once, as is done without a terminal")
    command.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> int:
    """Show it until somebody presses q. Raises NoAnswer if it is to be printed once, BadSettings."""
    require("--every", chosen.every, chosen.every >= MIN_EVERY_S, f"at least {MIN_EVERY_S:g}")
    watch = Watch(door(chosen, TIMEOUT_S))
    once = chosen.once or not sys.stdout.isatty()
    with keys() as pressed:
        if once:
            watch.look()
            pressed.pressed(chosen.every)
            watch.look()
            if watch.trouble is not None:
                raise NoAnswer(watch.trouble)
            console().print(watch.page())
            return 0
        watch.look()
        with Live(watch.page(), console=console(), screen=True, auto_refresh=False) as live:
            while pressed.pressed(chosen.every) not in ("q", "Q"):
                watch.look()
                live.update(watch.page(), refresh=True)
    return 0


@dataclass(slots=True)
class Look:
    """What the server says at a moment, by its own clock. A look without counters took none."""

    status: dict[str, Any]
    counts: Counts | None = None

    @property
    def at_s(self) -> float:
        return float(self.status["uptime_s"])


@dataclass(slots=True)
class Rates:
    """What is done a second, of one model or of all. `hit_ratio` None: nothing was looked for."""

    requests_per_s: float = 0.0
    tokens_per_s: float = 0.0
    hit_ratio: float | None = None

    @property
    def cells(self) -> list[str]:
        hit = "" if self.hit_ratio is None else f"{self.hit_ratio:.0%}"
        return [f"{self.requests_per_s:,.1f}", f"{self.tokens_per_s:,.0f}", hit]


@dataclass(slots=True)
class Watch:
    """One server, looked at again and again. It may go away and come back."""

    door: Door
    trouble: str | None = None
    _last: Look | None = None
    _counted: Look | None = None  # the last with counters
    _rates: dict[str, Rates] = field(default_factory=dict)  # by model; "" is all
    _skip: int = 0  # looks without counters that are left

    def look(self) -> None:
        """Look once more. Raises BadSettings for a key that is no good: that does not mend itself."""
        try:
            found = Look(self.door.asked("GET", "/admin/status"))
            if self._skip == 0:
                text = self.door.text("/metrics")
                self._skip = len(text) // CHEAP_BYTES
                found.counts = counts_of(text)
            else:
                self._skip -= 1
        except NoAnswer as error:
            self.trouble, self._skip = str(error), 0
            return
        self.trouble, self._last = None, found
        if found.counts is not None:
            before, self._counted = self._counted, found
            self._rates = {} if before is None else rates_between(before, found)

    def page(self) -> RenderableType:
        """All of it, what changes fastest first."""
        if self._last is None:
            return _trouble(f"{self.trouble}; trying again")
        status = self._last.status
        parts: list[RenderableType] = [headline(status)]
        if self.trouble is not None:
            ago = f"what it said when it had been up for {duration(self._last.at_s)}"
            parts = [_trouble(f"{self.trouble}; trying again. This is {ago}:"), *parts]
        elif self._rates:
            parts.append(_total(self._rates[""]))
        cells = {model: rates.cells for model, rates in self._rates.items()}
        tables = [
            models(status["models"], cells),
            replicas(status["replicas"]),
            tiers(status["tiers"]),
            quotas(status["quotas"], status["modes"]),
            experiments(status["experiments"]),
        ]
        return Group(*parts, *(table for table in tables if table.row_count))


def counts_of(text: str) -> Counts:
    """Counters by model, from Prometheus' text."""
    found: Counts = defaultdict(lambda: defaultdict(float))
    lines = (line for line in text.splitlines(keepends=True) if line.startswith(tuple(COUNTERS)))
    for family in text_string_to_metric_families("".join(lines)):
        for sample in family.samples:
            if sample.name in COUNTERS:
                found[sample.labels["model_name"]][COUNTERS[sample.name]] += sample.value
    return found


def rates_between(before: Look, after: Look) -> dict[str, Rates]:
    """What was done a second from one look to the next; nothing after a restart: counters began anew."""
    passed_s = after.at_s - before.at_s
    if passed_s <= 0 or before.counts is None or after.counts is None:
        return {}
    total: dict[str, float] = defaultdict(float)
    found = {}
    for model, now in after.counts.items():
        then = before.counts.get(model, {})
        grown = {name: max(0.0, value - then.get(name, 0.0)) for name, value in now.items()}
        for name, value in grown.items():
            total[name] += value
        found[model] = _rates(grown, passed_s)
    return {"": _rates(total, passed_s), **found}


def _rates(grown: Mapping[str, float], passed_s: float) -> Rates:
    asked = grown.get("asked", 0.0)
    return Rates(
        grown.get("requests", 0.0) / passed_s,
        grown.get("tokens", 0.0) / passed_s,
        grown.get("hit", 0.0) / asked if asked else None,
    )


def _total(rates: Rates) -> Text:
    hit = "" if rates.hit_ratio is None else f", {rates.hit_ratio:.0%} of prompt tokens from the cache"
    return Text(f"{rates.requests_per_s:,.1f} requests/s, {rates.tokens_per_s:,.0f} tokens/s{hit}", "bold")


def _trouble(words: str) -> Text:
    return Text(words, "bold red")
