"""Measuring: the cells of the grid in rounds, each round in another order, until the time is spent."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from engine.clock import stopwatch_ns, to_ns, utc_now
from engine.errors import BadSettings, NotFound, UnknownName
from engine.execution import Machine, executors
from engine.execution.profile import run_shape
from engine.registry import Registry, discover
from engine.settings import EngineSettings, ModelSettings, above
from sim.profile.copies import load_seconds, measured_copies
from sim.profile.grid import Limits, grid
from sim.profile.machine import fingerprint
from sim.profile.points import Notes, Points, Visit
from sim.profile.rig import Rig
from sim.streams import stream
from sim.world import SimClock

CONTEXT_TOKENS = 4096
REPEATS = 3
GRID_SHARE = 0.85  # of the budget; the rest is for copies
FIRST_ROUND_SHARE = 1 / 4  # of the grid's: cells that the first round does not reach are left out
LEAST_CELLS = 40
WARM_UPS = 3
MOST_KV_BYTES = 2 << 30  # that the grid fills

Told = Callable[[float, int, int], None]
"""Told after each visit: the share of the budget that is spent, visits, and cells that have been reached."""


@dataclass(slots=True, kw_only=True)
class Plan:
    """How a model is measured."""

    budget_s: float = 60.0
    seed: int = 1
    context_tokens: int | None = None
    notes: Path | None = None

    def __post_init__(self) -> None:
        above("budget_s", self.budget_s, 0)


def nobody(_share: float, _visits: int, _cells: int) -> None:
    """Nobody is told."""


def measure(
    settings: EngineSettings,
    model: str,
    *,
    budget_s: float = 60.0,
    seed: int = 1,
    context_tokens: int | None = None,
    notes: Path | None = None,
    told: Told = nobody,
) -> Points:
    """Measure a model's steps, copies and loads on this machine with torch, as `settings` have it run.

    Takes about `budget_s`, and longer where that is too little for the least that a fit needs. The grid ends at
    `context_tokens`. Visits are written to the file `notes` as they come, and those that stand there already count.
    Raises BadSettings and UnknownName before anything is measured, LoadFailed where the model cannot be loaded.
    """
    plan = Plan(budget_s=budget_s, seed=seed, context_tokens=context_tokens, notes=notes)
    settings = with_torch(settings)
    found = model_of(settings, model)
    rig = Rig(settings, found)
    try:
        points = about(settings, found, rig, plan)
        rig.blocks(most_blocks(points))
        same = {name: points.measured[name] for name in SAME} | {
            "machine": points.machine["id"],
            "model": found.key,
        }
        with Notes(notes, same) as kept:
            points.visits = [each for each in kept.found if each.cell < len(points.cells)]
            _Rounds(rig, points, plan, kept, told).run()
        points.copies = measured_copies(rig)
    finally:
        rig.close()
    points.load_s = load_seconds(found, lambda each, folder: loaded(settings, each, folder))
    return points


def most_blocks(points: Points) -> int:
    """How many blocks the longest prefix of the grid has."""
    before = [part.before for cell in points.cells for part in cell.parts]
    longest = max([*before, *(each for cell in points.cells for each in cell.contexts)], default=0)
    return longest // int(points.measured["block_tokens"] or 1) + 1


SAME = ("seed", "weights", "threads", "step_tokens", "max_batch", "context_tokens", "block_tokens", "cells")
"""What has to be the same for points to belong together."""


def with_torch(settings: EngineSettings) -> EngineSettings:
    """The settings with torch as executor, its own options kept where they are its own. Raises BadSettings."""
    executor = settings.executor
    if executor.name != "torch":
        raise BadSettings(
            f"executor is {executor.name!r}, but must be 'torch': only what really computes is measured"
        )
    return settings


def model_of(settings: EngineSettings, name: str) -> ModelSettings:
    """The model of that name, in the fleet or in the models' folder. Raises UnknownName, BadSettings."""
    known = {each.name: each for each in settings.fleet.models}
    if name in known:
        return known[name]
    folder, registry = settings.models.folder, Registry()
    if folder is not None:
        registry.learn(discover(Path(folder)))
    try:
        model = registry.find(name)
    except NotFound as error:
        names = [*known, *(each.name for each in registry.all())]
        raise UnknownName(f"no model is called {name!r}; choose from {', '.join(names)}") from error
    if model.settings is None or model.settings.architecture is None:
        why = model.reason or "its architecture is not one that our decoder runs"
        raise BadSettings(f"model {name!r} cannot be measured: {why}")
    return model.settings


def loaded(settings: EngineSettings, model: ModelSettings, folder: Path) -> Any:
    """An executor of that model, made from its files, with what is converted kept in `folder`."""
    options = replace(
        executors.find("torch").Options(**settings.executor.options), converted_folder=str(folder)
    )
    clock = SimClock()
    try:
        return executors.make("torch", Machine(model, settings.hardware, clock, 1, settings.seed), options)
    finally:
        clock.close()


def about(settings: EngineSettings, model: ModelSettings, rig: Rig, plan: Plan) -> Points:
    """What is to be measured, and of what."""
    executor = rig.executor
    options = executors.find("torch").Options(**settings.executor.options)
    room = min(executor.kv_capacity_tokens, MOST_KV_BYTES // executor.kv_bytes_per_token)
    longest = min(plan.context_tokens or CONTEXT_TOKENS, executor.context_tokens, room)
    limits = Limits(
        step_tokens=min(settings.fleet.step_tokens, longest),
        max_batch=settings.fleet.max_batch,
        context_tokens=longest,
        kv_tokens=room,
        block_tokens=settings.cache.block_tokens,
    )
    cells = grid(limits, plan.seed)
    return Points(
        model=model.name,
        shape=run_shape(model),
        weights=options.weights,
        weights_bytes=executors.find("torch").weights_bytes(model, options),
        kv_capacity_tokens=executor.kv_capacity_tokens,
        kv_value_bytes=executor.kv_value_bytes,
        kv_bytes_per_token=executor.kv_bytes_per_token,
        machine=fingerprint(options.device),
        measured={
            "on": utc_now().date().isoformat(),
            "by": f"modelyard {version('modelyard')}",
            "of": "its weights" if model.path is not None else "weights from a seed",
            "seed": plan.seed,
            "weights": options.weights,
            "threads": options.threads,
            "time": "of the thread" if rig.own_time_only else "on the wall",
            "step_tokens": limits.step_tokens,
            "max_batch": limits.max_batch,
            "context_tokens": limits.context_tokens,
            "block_tokens": limits.block_tokens,
            "cells": len(cells),
            "budget_s": plan.budget_s,
        },
        cells=cells,
        counts=[rig.counts(each) for each in cells],
    )


class _Rounds:
    """Visits, until the time is spent."""

    def __init__(self, rig: Rig, points: Points, plan: Plan, notes: Notes, told: Told) -> None:
        self._rig, self._points, self._notes, self._told = rig, points, notes, told
        self._budget_ns = to_ns(plan.budget_s * GRID_SHARE)
        self._chance = stream(plan.seed, "profile.order")
        self._begun_ns = stopwatch_ns()

    def run(self) -> None:
        """Warm up, reach as many cells as there is time for, and come back to them."""
        points = self._points
        order = self._chance.permutation(len(points.cells)).tolist()
        for number in order[:WARM_UPS]:
            self._rig.observe(points.cells[number], 1)
        self._begun_ns = stopwatch_ns()
        reached = {visit.cell for visit in points.visits}
        least = min(LEAST_CELLS, len(order))
        for number in order:
            if self._spent >= FIRST_ROUND_SHARE and len(reached) >= least:
                break
            if number not in reached:
                reached.add(number)
                self._visit(number)
        known = sorted(reached)
        while self._spent < 1:
            for place in self._chance.permutation(len(known)).tolist():
                if self._spent >= 1:
                    break
                self._visit(known[place])

    @property
    def _spent(self) -> float:
        return (stopwatch_ns() - self._begun_ns) / self._budget_ns

    def _visit(self, number: int) -> None:
        seen = self._rig.observe(self._points.cells[number], REPEATS)
        visit = Visit(cell=number, durations_ns=seen.durations_ns, yard_ns=seen.yard_ns)
        self._notes.add(visit)
        self._points.visits.append(visit)
        self._told(
            min(1.0, self._spent), len(self._points.visits), len({each.cell for each in self._points.visits})
        )
