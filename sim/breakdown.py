"""Where the time of each request went: parts that sum to its end-to-end time, to the nanosecond.

| part | from | to |
|---|---|---|
| route | arrival | the name or model that was turned to last: what those before it took that could not serve |
| load | | its model is in memory, and held for it |
| admit | | a quota let it in |
| retry | | its last attempt began: what attempts that were lost took |
| transfer | | its cached prefix was where the executor reads it, and it stood in its replica's line |
| queue | | prefill began |
| prefill | | its first token |
| decode | | its end |

The choice itself takes no virtual time, so a request that the first name served has no route. A request that ended
early spent its last part in the phase in which it ended, and nothing in those behind; where it was in a replica's
hands, that is queue until its first token, because when its prefill began is told only of those that were answered.
Where an earlier attempt gave the first token, the caller waited for the last one in the middle of the answer: that
counts in the part in which it happened, and prefill is what is left, which may be nothing. Each mark is raised to the
one before it, so no part is negative.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from engine.telemetry.phases import MARKS, PHASES

MISSING = -1
SLOWEST = 1.0  # percent of all requests: whom the last bucket has
BUCKETS = (0.0, 25.0, 50.0, 75.0, 90.0, 100.0 - SLOWEST, 100.0)
"""Bounds of the percentiles of end-to-end time by which requests are told apart."""

Times = npt.NDArray[np.int64]


def breakdown(requests: pd.DataFrame, routed_ns: Times | None = None) -> pd.DataFrame:
    """The parts of each request in integer nanoseconds, a column `<part>_ns` each; rows as in the requests table.

    `routed_ns`: when the name that was turned to last was turned to; None: each was served by the first, or by none.
    """
    begin_ns, end_ns = column(requests, "arrival_ns"), column(requests, "finished_ns")
    routed = begin_ns if routed_ns is None else np.clip(routed_ns, begin_ns, end_ns)
    marks = np.stack([column(requests, name) for name in MARKS])
    marks[marks < routed] = MISSING  # of a model before
    known = marks != MISSING
    reached = np.maximum.accumulate(known[::-1])[::-1]  # or a later one was: then this took no time
    marks = np.where(known, marks, np.where(reached, routed, end_ns))
    edges = np.vstack((begin_ns, routed, np.clip(marks, routed, end_ns), end_ns))
    parts = np.diff(np.maximum.accumulate(edges), axis=0)
    return pd.DataFrame(
        {f"{name}_ns": part for name, part in zip(PHASES, parts, strict=True)}, index=requests.index
    )


def routed_ns(requests: pd.DataFrame, decisions: pd.DataFrame, facts: pd.DataFrame) -> Times:
    """When the name or model that each request was served by, or ended at, was turned to: most often its arrival."""
    arrival_ns, ids = column(requests, "arrival_ns"), column(requests, "request_id")
    turned = facts.loc[facts["kind"] == "request_fell_back", ["request_id", "at_ns"]]
    turned = pd.concat([turned, _turns_in_groups(requests, decisions)])
    if turned.empty:
        return arrival_ns
    last = turned.groupby("request_id")["at_ns"].max()
    found: Times = last.reindex(ids).fillna(MISSING).to_numpy(dtype=np.int64)
    return np.maximum(arrival_ns, found)


def means_s(parts: pd.DataFrame, by: "pd.Series[Any] | None" = None) -> pd.DataFrame:
    """The mean of each part in seconds: one row for all, or one for each value of `by`, a column of the requests."""
    means = parts / 1e9
    means.columns = pd.Index([f"{name}_s" for name in PHASES])
    if by is None:
        return means.mean().to_frame("all").T
    return means.groupby(by.fillna("none"), sort=True).mean()


def by_slowness(parts: pd.DataFrame) -> pd.DataFrame:
    """The mean of each part in seconds, by how slow requests were: a row a bucket of percentiles, `count` beside.

    The last row is the slowest percent: what did they wait for? Of equals the order of the rows decides.
    """
    whole = parts.sum(axis=1).to_numpy()
    order = np.argsort(whole, kind="stable")
    bounds = np.ceil(np.array(BUCKETS) / 100 * len(order)).astype(int)
    rows, names = [], []
    for (low, high), (begin, end) in zip(pairwise(BUCKETS), pairwise(bounds.tolist()), strict=True):
        if end > begin:
            bucket = parts.iloc[order[begin:end]]
            rows.append(means_s(bucket).iloc[0].to_dict() | {"count": end - begin})
            names.append(f"p{low:g} to p{high:g}" if high < max(BUCKETS) else f"slowest {100 - low:g} %")
    return pd.DataFrame(rows, index=names, columns=[*(f"{name}_s" for name in PHASES), "count"])


def column(requests: pd.DataFrame, name: str) -> Times:
    """A column of whole numbers as an array, -1 where there is none."""
    values: Any = requests[name]
    if hasattr(values.array, "isna"):
        return values.to_numpy(dtype=np.int64, na_value=MISSING)  # type: ignore[no-any-return]
    return values.fillna(MISSING).to_numpy(dtype=np.int64)  # type: ignore[no-any-return]


def _turns_in_groups(requests: pd.DataFrame, decisions: pd.DataFrame) -> pd.DataFrame:
    """When requests to a group, one model of which could not serve, were given to the model that they ended at."""
    again = decisions[decisions["request_id"].duplicated(keep=False)]
    if again.empty:
        return decisions.loc[:, ["request_id", "at_ns"]].iloc[:0]
    if "model" not in again:  # of a run that an earlier version wrote
        model_of = (
            requests.dropna(subset=["replica"]).drop_duplicates("replica").set_index("replica")["model"]
        )
        again = again.assign(model=again["chosen"].map(model_of).fillna(""))
    again = again.sort_values(["request_id", "at_ns"], kind="stable")
    moved = (again["model"] != again["model"].shift()) & (again["request_id"] == again["request_id"].shift())
    return again.loc[moved, ["request_id", "at_ns"]]
