"""The folder of a comparison: cases are kept as they finish, and its name says `.partial` until it is whole."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from shutil import rmtree
from typing import Any

import pandas as pd

from engine.clock import utc_now
from engine.errors import BadSettings
from sim.fidelity import pictures, report
from sim.fidelity.bench import CaseResult
from sim.fidelity.cases import CASES
from sim.fidelity.settings import FidelitySettings, Protocol
from sim.folder import claim
from sim.machine import processor

PARTIAL = ".partial"
INCIDENTAL = ("folder", "resume", "plots")  # settings that change no figure


class ComparisonFolder:
    """A new folder, or one that was interrupted and goes on."""

    kind, parts = "fidelity", "cases"

    def __init__(self, settings: Protocol) -> None:
        """Raises BadSettings when it cannot be made, or is of other settings."""
        self._resume, self._folder = settings.resume, settings.folder
        mark = fingerprint(settings)
        if settings.resume is None:
            stamp = utc_now().strftime("%Y%m%dT%H%M%SZ")
            self.path = self._made(f"{stamp}_{self.kind}_{mark}", mark)
            return
        self.path = Path(settings.resume)
        try:
            before = (self.path / "settings.sha256").read_text().strip()
        except OSError as error:
            raise BadSettings(
                f"resume is {settings.resume!r}, but must be a folder of a comparison"
            ) from error
        if before != mark:
            raise BadSettings(f"resume is {settings.resume!r}, but that comparison had other settings")

    def _made(self, name: str, mark: str) -> Path:
        """A new folder with what says to which settings it belongs."""
        given = Path(self._folder)
        try:
            given.mkdir(parents=True, exist_ok=True)
            path = claim(given, name)
            (path / self.parts).mkdir()
            (path / "settings.sha256").write_text(mark + "\n")
        except OSError as error:
            raise BadSettings(
                f"folder is {self._folder!r}, but nothing can be written there: {error.strerror}"
            ) from error
        return path

    @property
    def profiles(self) -> Path:
        """Where profiles are that were measured for this comparison."""
        folder = self.path / "profiles"
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def capacities(self) -> dict[str, float]:
        """What systems were found to serve before the comparison was interrupted."""
        path = self.path / "capacities.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def keep_capacities(self, capacities: dict[str, float]) -> None:
        """What systems can serve: who goes on later compares at the same rates."""
        write_json(self.path / "capacities.json", capacities)

    def drop_if_empty(self) -> None:
        """Leave nothing behind of a comparison that got nowhere."""
        if self._resume is None and not any((self.path / self.parts).iterdir()):
            rmtree(self.path)

    def publish(self) -> None:
        """Give it its final name: nothing is missing."""
        final = self.path.with_name(self.path.name.removesuffix(PARTIAL))
        if final != self.path:
            self.path = self.path.rename(final)


class FidelityFolder(ComparisonFolder):
    """Of cases that are compared figure by figure."""

    def __init__(self, settings: FidelitySettings) -> None:
        """Raises BadSettings when it cannot be made, or is of other settings."""
        super().__init__(settings)
        self._settings = settings

    def finished(self) -> list[CaseResult]:
        """The cases that are here already, in the order of the settings."""
        found = []
        for name in self._settings.cases:
            path = self.path / "cases" / f"{name}.json"
            if path.exists():
                case = report.from_json(json.loads(path.read_text(encoding="utf-8")))
                case.points = pd.read_parquet(path.with_suffix(".parquet"))
                case.residuals = pd.read_parquet(residuals_beside(path))
                found.append(case)
        return found

    def keep(self, case: CaseResult) -> None:
        """A case that is finished; its figures last, so that what is there is whole."""
        path = self.path / "cases" / f"{case.name}.json"
        case.points.to_parquet(path.with_suffix(".parquet"), compression="zstd", index=False)
        case.residuals.to_parquet(residuals_beside(path), compression="zstd", index=False)
        write_json(path, report.as_json(case))

    def write(self, results: Sequence[CaseResult]) -> None:
        """The report of what there is."""
        whole = {
            "schema_version": report.SCHEMA_VERSION,
            "machine": machine(),
            "verdict": report.verdict_of(results),
            "median_error": report.median_error(results),
            "settings": asdict(self._settings),
            "capacities": report.capacities(results),
            "published": [
                dict(zip(("system", "error", "source"), row, strict=True)) for row in report.PUBLISHED
            ],
            "cases": [report.as_json(result) for result in results],
        }
        write_json(self.path / "fidelity.json", whole)
        made = pictures.save_all(results, self.path / "plots") if self._settings.plots else []
        settings = self._settings
        (self.path / "report.md").write_text(report.markdown(results, made, settings), encoding="utf-8")
        (self.path / "report.html").write_text(
            report.html(results, made, settings, self.path), encoding="utf-8"
        )


def read_cases(folder: Path) -> list[CaseResult]:
    """The cases of a folder, whole or interrupted, without single requests. Raises BadSettings."""
    try:
        found = [json.loads(path.read_text(encoding="utf-8")) for path in (folder / "cases").glob("*.json")]
        results = [report.from_json(each) for each in found]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadSettings(f"{str(folder)!r} has a case that cannot be read: {error}") from error
    if not results:
        raise BadSettings(f"{str(folder)!r} is no folder of a comparison, or none of its cases is finished")
    return sorted(results, key=lambda result: list(CASES).index(result.name) if result.name in CASES else 99)


def residuals_beside(path: Path) -> Path:
    """Where the turns of a case are, whose figures are in `path`."""
    return path.with_suffix(".turns.parquet")


def machine() -> dict[str, Any]:
    """What the comparison ran on."""
    return {
        "platform": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


def fingerprint(settings: Protocol) -> str:
    """Eight digits that tell settings apart that lead to other figures."""
    values = {name: value for name, value in asdict(settings).items() if name not in INCIDENTAL}
    return sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def write_json(path: Path, value: object) -> None:
    """JSON that is there whole or not at all."""
    aside = path.with_name(path.name + ".new")
    aside.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    aside.replace(path)
