"""The run folder: written as `<name>.partial`, made durable, renamed when it is whole."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import pandas as pd
import yaml

from engine.clock import utc_now
from engine.errors import BadSettings
from sim import perfetto
from sim.runs import Run


class RunFolder:
    """A folder of its own for one run. Until `publish` its name says that it is partial."""

    def __init__(self, runs: Path, name: str, *, with_spans: bool = False) -> None:
        """Raises BadSettings when it cannot be made."""
        stamp = utc_now().strftime("%Y%m%dT%H%M%SZ")
        try:
            runs.mkdir(parents=True, exist_ok=True)
            self.path = claim(runs, f"{stamp}_{name}")
            self.events: IO[str] = (self.path / "events.jsonl").open("w", encoding="utf-8")
            self.spans: IO[bytes] | None = (self.path / "spans.jsonl").open("wb") if with_spans else None
        except OSError as error:
            raise BadSettings(
                f"report.folder is {str(runs)!r}, but no run can be written there: {error.strerror}"
            ) from error

    def told(self, exposition: str) -> None:
        """Nothing more is told of the run: what sinks have written is whole, and checks may read it."""
        self.events.flush()
        if self.spans is not None:
            self.spans.flush()
        (self.path / "metrics.prom").write_text(exposition, encoding="utf-8")

    def write(self, run: Run, overrides: Sequence[str], with_plots: bool) -> None:
        """Everything that is said of the run. What a reader needs most is written first."""
        _write_json(self.path / "manifest.json", run.manifest)
        (self.path / "config.yaml").write_text(yaml.safe_dump(run.config, sort_keys=False), encoding="utf-8")
        (self.path / "overrides.yaml").write_text(yaml.safe_dump(list(overrides)), encoding="utf-8")
        _write_table(self.path / "requests.parquet", run.requests)
        _write_table(self.path / "timeseries.parquet", run.timeseries)
        _write_table(self.path / "decisions.parquet", run.decisions)
        _write_table(self.path / "facts.parquet", run.facts)
        _write_json(self.path / "checks.json", [asdict(check) for check in run.checks])
        _write_json(self.path / "findings.json", [asdict(finding) for finding in run.findings])
        _write_json(self.path / "summary.json", run.summary)
        perfetto.write_trace(run, self.path / "trace.json.gz")
        if with_plots:
            from sim import plots, report  # noqa: PLC0415  matplotlib takes most of a second to import

            plots.save_all(run, self.path / "plots")
            report.write_report(run, self.path)

    def close(self) -> None:
        """No more events; what was written stays."""
        self.events.close()
        if self.spans is not None:
            self.spans.close()

    def publish(self) -> Path:
        """Make it durable and give it its final name, which it returns."""
        self.close()
        for path in sorted(self.path.rglob("*")):
            _sync(path)
        _sync(self.path)
        final = self.path.with_name(self.path.name.removesuffix(".partial"))
        self.path.rename(final)
        _sync(final.parent)
        self.path = final
        return final

    def discard(self) -> None:
        """Take the folder away again: nothing has happened that is worth keeping."""
        self.close()
        (self.path / "events.jsonl").unlink()
        (self.path / "spans.jsonl").unlink(missing_ok=True)
        self.path.rmdir()


def claim(runs: Path, name: str) -> Path:
    """Make the first folder of that name, or of that name and a number, that nobody has."""
    number = 1
    while True:
        final = runs / (name if number == 1 else f"{name}-{number}")
        partial = final.with_name(final.name + ".partial")
        if not final.exists():
            try:
                partial.mkdir()
            except FileExistsError:
                pass
            else:
                return partial
        number += 1


def put(path: Path, data: bytes) -> None:
    """Written aside, made durable and renamed: a file that has its name is whole, on a full disk too."""
    aside = path.with_name(f"{path.name}.part")
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _write_table(path: Path, table: pd.DataFrame) -> None:
    table.to_parquet(path, compression="zstd", index=False)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
