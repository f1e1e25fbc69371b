"""Runs that are the same on every seed: however often they are played, they are one observation.

A trace is replayed as it stands. Where nothing else is drawn either, another seed plays the same run again: its
figures say nothing of other traffic, and a mean over copies has no interval and no p-value.
"""

from collections.abc import Sequence
from typing import TypeVar

import pandas as pd

SAME = "nothing in these runs is drawn, every seed plays the same one: one observation, without an interval"

T = TypeVar("T")


def without_copies(items: Sequence[T], digests: Sequence[str]) -> Sequence[T]:
    """What stands for runs with those digests: the first alone where all are one and the same run."""
    return items[:1] if digests and digests[0] and len(set(digests)) == 1 else items


def rows_without_copies(runs: pd.DataFrame) -> pd.DataFrame:
    """The same of a table with a row a run and the column `digest`."""
    return runs.iloc[: len(without_copies(range(len(runs)), runs["digest"].tolist()))]


def are_copies(digests: Sequence[str]) -> bool:
    """Whether several runs are one and the same."""
    return len(without_copies(digests, digests)) < len(digests)
