"""What pictures and traces of a run share, and what needs no matplotlib: that takes most of a second to import."""

from heapq import heappop, heappush

import numpy as np
import numpy.typing as npt

from sim.metrics import Floats

# what befalls a replica, as the time series names it, and the colour in which it is drawn
MARKS = {"crash": "#D55E00", "unhealthy": "#000000", "recover": "#009E73", "healthy": "#0072B2"}


def pack(begin: Floats, end: Floats) -> npt.NDArray[np.intp]:
    """A slot for each interval, the lowest free one in order of `begin`: no two in one slot overlap."""
    slots = np.zeros(len(begin), dtype=np.intp)
    free: list[int] = []
    busy: list[tuple[float, int]] = []
    for index in np.argsort(begin, kind="stable"):
        while busy and busy[0][0] <= begin[index]:
            heappush(free, heappop(busy)[1])
        slot = heappop(free) if free else len(busy)
        heappush(busy, (float(end[index]), slot))
        slots[index] = slot
    return slots
