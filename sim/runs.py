"""A run: what happened, as tables, and the questions that checks and notebooks ask of it."""

import json
from dataclasses import dataclass, field
from functools import cached_property
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import yaml

from engine.clock import NS_PER_S, to_ns
from engine.errors import BadSettings
from engine.execution import executors
from sim import hindsight, metrics
from sim.beside import FOLDER as BESIDE
from sim.beside import open_beside
from sim.breakdown import breakdown, routed_ns
from sim.checks import Check, overall
from sim.copies import are_copies

if TYPE_CHECKING:
    from sim.detectors import Finding

Floats = npt.NDArray[np.float64]

SCHEMA_VERSION = 1
"""Of run folders: what is in their files, and under which names."""

FACT_COLUMNS = {
    "at_ns": "int64",
    "kind": "str",
    "request_id": "int64",
    "subject": "str",
    "value": "int64",
    "detail": "str",
}
"""Of the table of rare facts (`sim/facts.py`): `request_id` is -1 and `value` 0 where a fact has none."""


def no_facts() -> pd.DataFrame:
    """The table of a run of which none are known."""
    return pd.DataFrame(columns=list(FACT_COLUMNS)).astype(FACT_COLUMNS)


@dataclass(slots=True)
class Window:
    """The requests that arrived within a part of a run."""

    requests: pd.DataFrame

    @property
    def count(self) -> int:
        return len(self.requests)

    @property
    def completed(self) -> pd.DataFrame:
        return self.requests[self.requests["outcome"] == "completed"]

    @property
    def not_completed(self) -> int:
        return self.count - len(self.completed)

    @property
    def told(self) -> str:
        """How many there are, and why some of them did not complete: `n=800; 2 rejected: context_too_long`."""
        ends = self.requests.loc[self.requests["outcome"] != "completed", ["outcome", "reason"]]
        reasons = ends["outcome"].astype(str) + (": " + ends["reason"].astype(object)).fillna("")
        return "; ".join(
            [f"n={self.count}", *(f"{num} {why}" for why, num in reasons.value_counts().items())]
        )

    @property
    def second_tries(self) -> int:
        """Requests that more than one replica had in its hands."""
        return int((self.requests["attempts"] > 1).sum())

    @property
    def ttft_s(self) -> Floats:
        """Time to first token of the completed requests."""
        return metrics.ttft_s(self.completed)

    @property
    def e2e_s(self) -> Floats:
        """Time from arrival to the last token of the completed requests."""
        return metrics.e2e_s(self.completed)

    @property
    def hit_ratio(self) -> float | None:
        """The part of the prompt tokens of the completed requests that needed no prefill; None without any."""
        return metrics.token_hit_ratio(self.completed)

    def of_model(self, model: str) -> "Window":
        """Those that this model served, which may be named with its version or without."""
        served = self.requests["model"].str
        return Window(self.requests[(self.requests["model"] == model) | served.startswith(f"{model}@")])

    def served_by(self, replica: str) -> int:
        """How many requests that replica completed."""
        return int((self.completed["replica"] == replica).sum())

    def given_to(self, replica: str, before_s: float | None) -> int:
        """How many requests that replica completed, of those that were given to it before then."""
        if before_s is None:
            return 0
        served = self.completed
        return int(((served["replica"] == replica) & (served["tried_ns"] < to_ns(before_s))).sum())

    def share(self, replica: str, fewest: int = 1) -> float | None:
        """That replica's part of all completed requests; None when there are fewer than `fewest`."""
        count = len(self.completed)
        return self.served_by(replica) / count if count >= max(fewest, 1) else None

    def share_error(self, replicas: list[str], fewest: int = 1) -> float | None:
        """The largest distance of one of `replicas` from an equal share; None as in `share`."""
        shares = [self.share(replica, fewest) for replica in replicas]
        return max((abs(share - 1 / len(replicas)) for share in shares if share is not None), default=None)


@dataclass
class Run:
    """One run, played or loaded from its folder."""

    path: Path
    config: dict[str, Any]
    manifest: dict[str, Any]
    requests: pd.DataFrame
    timeseries: pd.DataFrame
    decisions: pd.DataFrame
    checks: list[Check] = field(default_factory=list)
    facts: pd.DataFrame = field(default_factory=no_facts)
    played_beside: "dict[str, list[Run]] | None" = None

    @property
    def name(self) -> str:
        """The scenario's name."""
        return str(self.manifest["scenario"])

    @property
    def replicas(self) -> list[str]:
        """The names of the fleet's replicas, in its order."""
        return list(self.manifest["replicas"])

    @property
    def capacity_bytes(self) -> int:
        """What the cache can hold, in all tiers together."""
        return sum(int(tier["capacity_bytes"]) for tier in self.manifest["cache"]["tiers"].values())

    @property
    def is_modelled(self) -> bool:
        """Whether its times are computed; measured ones differ from run to run."""
        return executors.find(str(self.manifest["executor"])).is_modelled

    @property
    def measured(self) -> dict[str, float]:
        """What the real clock said of this run, and the digest does not know: by name, with the unit in it."""
        return dict(self.manifest.get("measured", {}))

    @property
    def beside(self) -> "dict[str, list[Run]]":
        """The runs that were played beside this one (`sim.beside`), by name, a run for each seed; none is fine.

        Where no seed changes anything, there is one of each name.
        """
        if self.played_beside is None:
            self.played_beside = open_beside(self.path, self, open_run)
        every = self.played_beside.values()
        if all(are_copies([run.manifest["digest"] for run in runs]) for runs in every):
            return {name: runs[:1] for name, runs in self.played_beside.items()}
        return self.played_beside

    @property
    def verdict(self) -> str:
        """pass, fail or inconclusive: what the checks say together."""
        return overall(self.checks)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Figures of the whole run, with units in their names; definitions in `sim.metrics` and `sim.hindsight`."""
        return metrics.summary(self) | hindsight.figures(self.regret)

    @cached_property
    def parts(self) -> pd.DataFrame:
        """Where the time of each request went, in integer nanoseconds; the parts are those of `sim.breakdown`."""
        return breakdown(self.requests, routed_ns(self.requests, self.decisions, self.facts))

    @cached_property
    def regret(self) -> pd.DataFrame:
        """What each routing choice cost against the best replica in hindsight, by the estimate of `sim.hindsight`."""
        return hindsight.regret(self)

    @cached_property
    def series(self) -> "dict[tuple[str, str], npt.NDArray[np.intp]]":
        """The rows of each time series, by subject and metric."""
        found: dict[Any, Any] = self.timeseries.groupby(["subject", "metric"], sort=False).indices
        return {(str(subject), str(metric)): rows for (subject, metric), rows in found.items()}

    @cached_property
    def findings(self) -> "list[Finding]":
        """What the detectors have to say of the run, the worst first."""
        from sim.detectors import findings  # noqa: PLC0415  they look at runs

        return findings(self)

    @cached_property
    def whole(self) -> Window:
        """All requests."""
        return Window(self.requests)

    def between(self, begin_s: float | None, end_s: float | None) -> Window:
        """The requests that arrived from `begin_s` on and before `end_s`; none when one of them never came."""
        if begin_s is None or end_s is None:
            return Window(self.requests.iloc[:0])
        arrival_ns = self.requests["arrival_ns"]
        return Window(self.requests[(arrival_ns >= to_ns(begin_s)) & (arrival_ns < to_ns(end_s))])

    def after(self, begin_s: float | None) -> Window:
        """The requests that arrived from `begin_s` on."""
        last_ns = self.requests["arrival_ns"].max() if len(self.requests) else 0
        return self.between(begin_s, int(last_ns) / NS_PER_S + 1)

    def mark_s(self, metric: str, subject: str, after_s: float | None = 0.0) -> float | None:
        """When that mark (crash, recover, unhealthy, healthy) was first set from `after_s` on; None if never."""
        if after_s is None:
            return None
        marks = self._points(metric, subject)
        times_ns = marks.loc[marks["at_ns"] >= to_ns(after_s), "at_ns"]
        return int(times_ns.iloc[0]) / NS_PER_S if len(times_ns) else None

    def at_mark(self, metric: str, mark: str, subject: str) -> int | None:
        """The value of a count that was taken when that mark was first set; None if it never was."""
        marks, points = self._points(mark, subject), self._points(metric, subject)
        if marks.empty:
            return None
        taken = points.loc[points["at_ns"] == marks["at_ns"].iloc[0], "value"]
        return int(taken.iloc[0])

    def delay_s(self, metric: str, subject: str, begin_s: float | None) -> float | None:
        """How long after `begin_s` that mark was set; None if it never was."""
        marked_s = self.mark_s(metric, subject, begin_s)
        return None if begin_s is None or marked_s is None else marked_s - begin_s

    def served_again_s(self, replica: str, begin_s: float | None) -> float | None:
        """How long after `begin_s` the first request arrived that this replica completed; None if none did."""
        served = self.after(begin_s).completed
        arrivals_ns = served.loc[served["replica"] == replica, "arrival_ns"]
        return None if begin_s is None or arrivals_ns.empty else int(arrivals_ns.min()) / NS_PER_S - begin_s

    def _points(self, metric: str, subject: str) -> pd.DataFrame:
        return self.timeseries.iloc[self.series.get((subject, metric), [])]


def open_run(path: Path | str) -> Run:
    """The run in that folder; an interrupted one (`.partial`) too.

    Raises BadSettings when there is none, when it was not written to its end, or when a later version wrote it.
    """
    folder = Path(path)
    reading = "manifest.json"
    try:
        manifest = json.loads((folder / reading).read_text())
        _check_schema(folder, manifest)
        reading = "checks.json"
        checks = [Check(**check) for check in json.loads((folder / reading).read_text())]
        reading = "config.yaml"
        config = yaml.safe_load((folder / reading).read_text())
        tables = {}
        for name in ("requests", "timeseries", "decisions", "facts"):
            reading = f"{name}.parquet"
            if name != "facts" or (folder / reading).is_file():  # a folder of before facts were kept
                tables[name] = pd.read_parquet(folder / reading)
    except FileNotFoundError as error:
        what = "half-written" if reading != "manifest.json" else "not a run folder"
        raise BadSettings(f"{folder} is {what}: it has no {reading}") from error
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise BadSettings(f"{folder} is half-written or damaged: {reading} cannot be read") from error
    requests, timeseries, decisions = (tables[name] for name in ("requests", "timeseries", "decisions"))
    rare = tables.get("facts", no_facts())
    return Run(folder, config, manifest, requests, timeseries, decisions, checks, rare)


def _check_schema(folder: Path, manifest: Any) -> None:
    """Raises BadSettings for what is not a manifest, or one that a later version wrote."""
    if not isinstance(manifest, dict) or "scenario" not in manifest:
        raise BadSettings(f"{folder} is not a run folder: its manifest.json is of something else")
    version = manifest.get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise BadSettings(
            f"{folder} has schema version {version}, but this version of Modelyard reads {SCHEMA_VERSION}"
        )


def load(pattern: str | Path, table: str = "summary") -> pd.DataFrame:
    """Many runs as one DataFrame, with scenario, overrides and seed as columns.

    `pattern` is a glob over run folders, such as `runs/**`; folders that are not finished are left out. `table`
    is `summary` (one row a run) or `requests`, `timeseries`, `decisions`, `checks`, `facts` (their rows, one run
    after the other). Raises BadSettings for another table, or when no run matches.
    """
    if table not in TABLES:
        raise BadSettings(f"table is {table!r}, but must be one of {', '.join(TABLES)}")
    runs = [open_run(folder) for folder in matching(pattern)]
    if not runs:
        raise BadSettings(f"no finished run matches {str(pattern)!r}")
    return pd.concat([_labelled(run, table) for run in runs], ignore_index=True)


TABLES = ("summary", "requests", "timeseries", "decisions", "checks", "facts")


def matching(pattern: str | Path) -> list[Path]:
    """The folders of finished runs that match a glob, in order of their names.

    Runs beside another one are found only by a pattern that says so.
    """
    found = sorted(Path(name) for name in glob(str(pattern), recursive=True))  # noqa: PTH207  absolute patterns too
    if BESIDE not in Path(pattern).parts:
        found = [path for path in found if BESIDE not in path.parts]
    return [path for path in found if path.suffix != ".partial" and (path / "manifest.json").is_file()]


def _labelled(run: Run, table: str) -> pd.DataFrame:
    if table == "summary":
        rows = pd.DataFrame([run.summary])
    elif table == "checks":
        rows = pd.DataFrame(run.checks)
    else:
        rows = getattr(run, table).copy()
    labels = {
        "scenario": run.name,
        "seed": run.manifest["seed"],
        "overrides": " ".join(run.manifest["overrides"]),
    }
    labels["path"] = str(run.path)
    for position, (name, value) in enumerate(labels.items()):
        rows.insert(position, name, value)
    return rows
