"""Class C: an operation's time beside a plain loop's, by turns in one process.

The ratio is compared with that of another day and maybe another processor, where it differs by tens of per cent
though nothing was changed: hence the wide limit, which a doubled piece of work is beyond all the same.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from sim.gate.child import measured
from sim.gate.environment import python_key
from sim.gate.kinds import Measured, command_of, share, undecided
from sim.gate.operations import OPERATIONS
from sim.gate.rows import FAIL, PASS, Figure, Row
from sim.streams import stream

LIMIT = 0.5
MOST_NOISE = 0.05
SAMPLES = 61
DRAWS = 2_000
COVERAGE = (2.5, 97.5)


class Ratios:
    """C/OPERATION."""

    letter = "C"
    file = "ratios"
    attempts = 3
    failed_verdict = FAIL

    def __init__(self, samples: int = SAMPLES) -> None:
        self._samples = samples

    def names(self) -> list[str]:
        return [f"C/{name}" for name in OPERATIONS]

    def doubles(self) -> list[str]:
        return self.names()

    def key(self) -> str:
        return python_key()

    def missing(self) -> str | None:
        return None

    def base(self, name: str, stored: Figure | None) -> Figure | None:
        return stored

    def measure(self, names: Sequence[str], doubled: Sequence[str]) -> Iterator[Measured]:
        bare = [name.removeprefix("C/") for name in names]
        twice = [name.removeprefix("C/") for name in doubled]
        task = {"task": "ratios", "names": bare, "doubled": twice, "samples": self._samples}
        for told in measured(task, plain=False):
            middle, ends = median_interval(told["ratios"])
            loops, loop_ends = median_interval(told["loops"])
            noise = max(abs(loops - 1), *(abs(end - 1) for end in loop_ends))
            details = {"interval": ends, "noise": noise, "least": told["least"], "each_us": told["each_us"]}
            yield Measured(f"C/{told['name']}", round(middle, 3), details)

    def judge(self, base: Figure, head: Measured) -> Row:
        noise, (low, high) = head.details["noise"], head.details["interval"]
        if noise > MOST_NOISE:
            note = (
                f"the loop beside itself (A/A) differed by {noise:.1%}, more than {MOST_NOISE:.0%}: the machine is "
                "too busy to say"
            )
            return undecided(head.name, note, base, head.value, noise)
        least = min(low, head.details["least"])  # what else the machine does can only add to the least
        fails = least > float(base) * (1 + LIMIT)
        return Row(
            name=head.name,
            verdict=FAIL if fails else PASS,
            base=base,
            head=head.value,
            delta=share(float(base), float(head.value)),
            interval=(low / float(base) - 1, high / float(base) - 1),
            noise=noise,
            limit=f"+{LIMIT:.0%}",
            note="times as long as a turn of the loop; the least of all and the whole interval are beyond the limit"
            if fails
            else "",
            command=command_of(head.name),
        )


def median_interval(values: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """The median, and where those of resampled values lie (bootstrap, 95 %)."""
    found = np.array(values)
    draws = stream(0, "bootstrap").integers(0, len(found), (DRAWS, len(found)))
    low, high = np.percentile(np.median(found[draws], axis=1), COVERAGE)
    return float(np.median(found)), (float(low), float(high))
