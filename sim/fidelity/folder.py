"""The folder of a comparison: cases are kept as they finish, and its name says `.partial` until it is whole."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

import pandas as pd

from engine.clock import utc_now
from engine.errors import BadSettings
from sim.fidelity import pictures, report
from sim.fidelity.bench import CaseResult
from sim.fidelity.settings import FidelitySettings

PARTIAL = ".partial"
INCIDENTAL = ("folder", "resume", "plots")  # settings that change no figure


class FidelityFolder:
    """A new folder, or one that was interrupted and goes on."""

    def __init__(self, settings: FidelitySettings) -> None:
        """Raises BadSettings when it cannot be made, or is of other settings."""
        self._settings = settings
        mark = fingerprint(settings)
        if settings.resume is None:
            stamp = utc_now().strftime("%Y%m%dT%H%M%SZ")
            self.path = Path(settings.folder) / f"{stamp}_fidelity_{mark}{PARTIAL}"
            self._make(mark)
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

    def _make(self, mark: str) -> None:
        try:
            (self.path / "cases").mkdir(parents=True)
            (self.path / "settings.sha256").write_text(mark + "\n")
        except OSError as error:
            raise BadSettings(
                f"folder is {self._settings.folder!r}, but nothing can be written there: {error.strerror}"
            ) from error

    @property
    def profiles(self) -> Path:
        """Where profiles are that were measured for this comparison."""
        folder = self.path / "profiles"
        folder.mkdir(exist_ok=True)
        return folder

    def finished(self) -> list[CaseResult]:
        """The cases that are here already, in the order of the settings."""
        found = []
        for name in self._settings.cases:
            path = self.path / "cases" / f"{name}.json"
            if path.exists():
                case = report.from_json(json.loads(path.read_text(encoding="utf-8")))
                case.points = pd.read_parquet(path.with_suffix(".parquet"))
                found.append(case)
        return found

    def keep(self, case: CaseResult) -> None:
        """A case that is finished; its figures last, so that what is there is whole."""
        path = self.path / "cases" / f"{case.name}.json"
        case.points.to_parquet(path.with_suffix(".parquet"), compression="zstd", index=False)
        write_json(path, report.as_json(case))

    def write(self, results: Sequence[CaseResult]) -> None:
        """The report of what there is."""
        whole = {
            "schema_version": report.SCHEMA_VERSION,
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
        made = pictures.save_all(results, self.path) if self._settings.plots else []
        (self.path / "report.md").write_text(report.markdown(results, made), encoding="utf-8")

    def publish(self) -> None:
        """Give it its final name: nothing is missing."""
        final = self.path.with_name(self.path.name.removesuffix(PARTIAL))
        if final != self.path:
            self.path = self.path.rename(final)


def fingerprint(settings: FidelitySettings) -> str:
    """Eight digits that tell settings apart that lead to other figures."""
    values = {name: value for name, value in asdict(settings).items() if name not in INCIDENTAL}
    return sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def write_json(path: Path, value: object) -> None:
    """JSON that is there whole or not at all."""
    aside = path.with_name(path.name + ".new")
    aside.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    aside.replace(path)
