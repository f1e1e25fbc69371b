"""Detectors: what went wrong in a run and does not show in its means. Functions of its tables, in n log n.

Each is quiet on a healthy run, and speaks where a policy was made bad on purpose (`tests/sim/detectors`).
"""

from sim.detectors import blocking, herding, inversion, overload, thrashing
from sim.detectors.finding import Finding, worst_first
from sim.history import History, choices
from sim.runs import Run

__all__ = ["Finding", "findings"]


def findings(run: Run) -> list[Finding]:
    """All that the detectors have to say of a run, the worst first."""
    history = History(run)
    return worst_first(
        [
            *herding.detect(history, choices(run, history), run.config),
            *inversion.detect(history),
            *blocking.detect(history),
            *thrashing.detect(run, history),
            *overload.detect(run, history),
        ]
    )
