"""What was measured, in the form in which it is kept."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Results:
    """Measurements in the order in which they were made.

    Attributes:
        entries: each `{"name", "unit", "ours", "baseline", "ratio", "runs"}`; `ours` and `baseline` are medians,
            `ratio` is `{"median", "min", "max"}` over the pairs of runs, `runs` holds every run's figure.
    """

    entries: list[dict[str, Any]] = field(default_factory=list)

    def add(self, name: str, unit: str, ours: Sequence[float], baseline: Sequence[float] = ()) -> None:
        """Keep a measurement.

        Args:
            name: what was measured.
            unit: of the figures.
            ours: a figure for each run.
            baseline: likewise, of the run beside it; empty where there is nothing to compare.
        """
        ratios = [mine / theirs for mine, theirs in zip(ours, baseline, strict=False) if theirs]
        self.entries.append(
            {
                "name": name,
                "unit": unit,
                "ours": round(statistics.median(ours), 4),
                "baseline": round(statistics.median(baseline), 4) if baseline else None,
                "ratio": {
                    "median": round(statistics.median(ratios), 3),
                    "min": round(min(ratios), 3),
                    "max": round(max(ratios), 3),
                }
                if ratios
                else None,
                "runs": {
                    "ours": [round(each, 4) for each in ours],
                    "baseline": [round(each, 4) for each in baseline],
                },
            }
        )

    def write(self, path: Path) -> None:
        """Write them as a JSON list."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.entries, indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The measurements of a file by their names."""
    return {entry["name"]: entry for entry in json.loads(path.read_text(encoding="utf-8"))}
