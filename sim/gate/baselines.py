"""What the figures were when somebody last said, with a reason, that they may be so.

A file for each class, in the repository; in it the figures by what they hold for (numpy, Python, machine), the
reasons of the latest renewals, and the commits and dates at which they were measured.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.clock import utc_now
from engine.errors import BadSettings
from sim.gate.environment import commit
from sim.gate.rows import Figure
from sim.machine import processor

HOME = Path(__file__).parent / "baselines"
VERSION = 1
MOST_RENEWALS = 20


@dataclass(frozen=True, slots=True)
class Baselines:
    """The baselines of one class in a folder."""

    folder: Path
    name: str

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name}.json"

    def figures(self, key: str) -> dict[str, Figure] | None:
        """The figures by row, for that key; None where nobody has measured any. Raises BadSettings."""
        entry = self._read().get(key)
        return None if entry is None else dict(entry["figures"])

    def keys(self) -> list[str]:
        """What there are baselines for."""
        return sorted(self._read())

    def renew(self, key: str, figures: Mapping[str, Figure], known: set[str], reason: str) -> None:
        """Replace these figures, drop those that are not `known` any more, note the reason. Raises BadSettings."""
        entries = self._read()
        before = entries.get(key, {"figures": {}, "renewals": []})
        kept = {name: value for name, value in before["figures"].items() if name in known}
        note = {
            "reason": reason,
            "date": utc_now().strftime("%Y-%m-%d"),
            **commit(),
            "processor": processor(),
            "rows": len(figures),
        }
        entries[key] = {
            "figures": dict(sorted({**kept, **figures}.items())),
            "renewals": [note, *before["renewals"]][:MOST_RENEWALS],
        }
        text = json.dumps({"version": VERSION, "baselines": dict(sorted(entries.items()))}, indent=2)
        aside = self.path.with_suffix(".json.partial")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            aside.write_text(text + "\n", encoding="utf-8")
            aside.replace(self.path)
        except OSError as error:
            raise BadSettings(
                f"baselines is {str(self.folder)!r}, but nothing can be written there: {error.strerror}"
            ) from error

    def _read(self) -> dict[str, Any]:
        try:
            whole = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise BadSettings(f"{self.path} cannot be read as baselines: {error}") from error
        entries = whole.get("baselines") if isinstance(whole, dict) else None
        if not isinstance(entries, dict) or whole.get("version") != VERSION:
            raise BadSettings(f"{self.path} is no file of baselines of version {VERSION}")
        for key, entry in entries.items():
            parts = [entry.get(part) if isinstance(entry, dict) else None for part in ("figures", "renewals")]
            if not isinstance(parts[0], dict) or not isinstance(parts[1], list):
                raise BadSettings(f"{self.path} has no figures and renewals for {key!r}")
        return entries
