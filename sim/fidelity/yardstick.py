"""The yardstick: a small step that is always the same, taken now and then, tells how fast the machine is.

What a machine does for others makes it slower for some seconds, and no calibration foresees when. So the server takes
a step that has nothing to do with its load, every so often, at its turn among all others. How long these steps took
is the machine's, as the times of requests are the load's: the simulation is told both.
"""

import asyncio
from typing import cast

from engine.clock import NS_PER_S, stopwatch_ns
from engine.execution import Machine, StepResult, executors
from engine.settings import EngineSettings
from sim.fidelity.device import made_options, make_inner
from sim.fidelity.steplog import Reading, Shape
from sim.fidelity.steps import batch_of
from sim.world import SimClock

YARD = Shape(((0, 0, 4, 4),), ())
"""A short prompt: no longer than what a machine does for most of its time, the decode steps of a few."""
WARM_UPS = 20
LEAST_APART = 10
"""From one to the next, at least so many times as long as it takes: a large model would leave nothing to the load."""


class Yardstick:
    """An executor of its own with the fleet's smallest model, which has one prompt to prefill each time.

    On a virtual clock it computes at once, in the thread that asks: nobody else runs meanwhile.
    """

    def __init__(self, settings: EngineSettings, every_ns: int) -> None:
        """It is to be taken each `every_ns`, or less often where it takes long."""
        self._clock = SimClock()
        executor, options = settings.executor, made_options(settings.executor)
        sizes = {
            model.name: executors.find(executor.name).weights_bytes(model, options)
            for model in settings.fleet.models
        }
        model = min(settings.fleet.models, key=lambda each: sizes[each.name])
        self.model = model.name
        machine = Machine(model, settings.hardware, self._clock, 1, settings.seed)
        self._executor = make_inner(executor, machine)
        self.every_ns = max(every_ns, LEAST_APART * min(self.take() for _ in range(WARM_UPS)))

    def take(self) -> int:
        """Its step, once; what it took, in ns."""
        batch = batch_of(YARD)
        step = self._clock.spawn(self._executor.step(batch))
        result = cast("StepResult", self._clock.env.run(until=step))
        self._executor.release(batch.chunks[0].sequence)
        return result.duration_ns

    async def note(
        self, readings: list[Reading], start_ns: int, turns: asyncio.Lock, over: asyncio.Event
    ) -> None:
        """Take it at its times after `start_ns`, by the stopwatch, when its turn has come, until it is `over`."""
        due_ns = start_ns
        while not over.is_set():
            now_ns = stopwatch_ns()
            passed = -((due_ns - now_ns) // self.every_ns)  # what was missed is not made up for
            due_ns += self.every_ns * max(1, passed)
            await asyncio.sleep((due_ns - now_ns) / NS_PER_S)
            async with turns:
                begun_ns, took_ns = stopwatch_ns(), self.take()
                readings.append(Reading(due_ns, begun_ns, stopwatch_ns(), took_ns))
