"""Where the time of each request went: parts that sum to its end-to-end time, to the nanosecond.

| part | from | to |
|---|---|---|
| load | arrival | its model is in memory, and held for it |
| admit | | a quota let it in |
| retry | | its last attempt began: what attempts that were lost took |
| transfer | | its cached prefix was where the executor reads it, and it stood in its replica's line |
| queue | | prefill began |
| prefill | | its first token |
| decode | | its end |

Routing takes no virtual time and has no part. A request that ended early spent its last part in the phase in which it
ended, and nothing in those behind. Where an earlier attempt gave the first token, the caller waited for the last one
in the middle of the answer: that counts in the part in which it happened, and prefill is what is left, which may be
nothing. Each mark is raised to the one before it, so no part is negative.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

PHASES = ("load", "admit", "retry", "transfer", "queue", "prefill", "decode")
MARKS = ("loaded_ns", "admitted_ns", "tried_ns", "queued_ns", "started_ns", "first_token_ns")
"""What ends each part but the last."""

MISSING = -1


def breakdown(requests: pd.DataFrame) -> pd.DataFrame:
    """The parts of each request in integer nanoseconds, a column `<part>_ns` each; rows as in the requests table."""
    begin_ns, end_ns = _column(requests, "arrival_ns"), _column(requests, "finished_ns")
    marks = (
        np.stack([_column(requests, name) for name in MARKS]) if len(requests) else np.empty((6, 0), np.int64)
    )
    reached = np.maximum.accumulate((marks != MISSING)[::-1])[
        ::-1
    ]  # or a later one was: then this took no time
    marks = np.where(marks == MISSING, np.where(reached, begin_ns, end_ns), marks)
    edges = np.vstack((begin_ns, np.clip(marks, begin_ns, end_ns), end_ns))
    parts = np.diff(np.maximum.accumulate(edges), axis=0)
    return pd.DataFrame(
        {f"{name}_ns": part for name, part in zip(PHASES, parts, strict=True)}, index=requests.index
    )


def means_s(requests: pd.DataFrame, by: str | None = None) -> pd.DataFrame:
    """The mean of each part in seconds: one row for all, or one for each value of a column such as `replica`."""
    parts = breakdown(requests) / 1e9
    parts.columns = pd.Index([f"{name}_s" for name in PHASES])
    if by is None:
        return parts.mean().to_frame("all").T
    return parts.groupby(requests[by].fillna("none"), sort=True).mean()


def _column(requests: pd.DataFrame, name: str) -> npt.NDArray[np.int64]:
    column: Any = requests[name]
    values: npt.NDArray[np.int64] = column.fillna(MISSING).to_numpy(dtype=np.int64)
    return values
