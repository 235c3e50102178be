"""Figures and how they are shown."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results.json")


@dataclass
class Figure:
    """One measured value, with the limit that it is held against (None: reported only)."""

    name: str
    unit: str
    values: list[float]
    limit: float | None = None
    at_least: bool = False
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def ok(self) -> bool | None:
        if self.limit is None:
            return None
        return self.median >= self.limit if self.at_least else self.median <= self.limit

    def line(self) -> str:
        low, high = min(self.values), max(self.values)
        text = f"{self.name:<52} {self.median:>9.3f} {self.unit:<6}"
        text += f" [{low:.3f} .. {high:.3f}] n={len(self.values)}"
        if self.limit is not None:
            sign = ">=" if self.at_least else "<="
            text += f"  {'ok  ' if self.ok else 'MISS'} {sign} {self.limit:g}"
        return text + (f"  {self.note}" if self.note else "")


@dataclass
class Report:
    """What one bench found."""

    title: str
    figures: list[Figure] = field(default_factory=list)

    def add(
        self,
        name: str,
        unit: str,
        values: Sequence[float],
        limit: float | None = None,
        at_least: bool = False,
        note: str = "",
    ) -> None:
        figure = Figure(name, unit, [float(v) for v in values], limit, at_least, note)
        self.figures.append(figure)
        print("  " + figure.line(), flush=True)


def save(reports: list[Report]) -> None:
    """Write results.json: the newest run of each bench, with the machine that it ran on."""
    try:
        kept: dict[str, Any] = json.loads(RESULTS.read_text())
    except (OSError, ValueError):
        kept = {}
    machine = {
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
    }
    for report in reports:
        kept[report.title] = {
            "when": time.strftime("%Y-%m-%d %H:%M"),
            "machine": machine,
            "figures": [
                {
                    "name": f.name,
                    "unit": f.unit,
                    "median": round(f.median, 4),
                    "min": round(min(f.values), 4),
                    "max": round(max(f.values), 4),
                    "n": len(f.values),
                    "limit": f.limit,
                    "ok": f.ok,
                    "note": f.note,
                }
                for f in report.figures
            ],
        }
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
