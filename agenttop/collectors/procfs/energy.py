"""Energy of the CPU packages by RAPL, from /sys/class/powercap.

Documentation/power/powercap/powercap.rst. Package zones only (``intel-rapl:N``
named ``package-N``, AMD's too): what lies below them is in them, and psys and
the MMIO twins would count twice. Since 2020 energy_uj is for root alone.
"""

from __future__ import annotations

import os
import re

from agenttop.linux import paths
from agenttop.linux.files import KeptFile, read_number, read_text
from agenttop.linux.process import printable

_ZONE = re.compile(r"intel-rapl:\d+")


class Energy:
    """Monotonic counters of each package."""

    def __init__(self) -> None:
        base = f"{paths.sys()}/class/powercap"
        self._files: dict[str, KeptFile] = {}
        self._range: dict[str, int] = {}
        self._last: dict[str, int] = {}
        self._sum: dict[str, int] = {}
        #: Why there is nothing to read, or None.
        self.missing: str | None = "no RAPL package in /sys/class/powercap"
        try:
            zones = sorted(filter(_ZONE.fullmatch, os.listdir(base)))
        except OSError:
            return
        for zone in zones:
            name = printable(read_text(f"{base}/{zone}/name") or "", 32)
            if not name.startswith("package"):
                continue
            file = KeptFile(f"{base}/{zone}/energy_uj")
            if file.number() is None:
                self.missing = "the energy counters in /sys/class/powercap are for root only"
                continue
            self._files[name] = file
            self._range[name] = read_number(f"{base}/{zone}/max_energy_range_uj") or 0
        if self._files:
            self.missing = None

    def read(self) -> dict[str, int]:
        """Package -> microjoules since the first read; counters that wrap go on."""
        for name, file in self._files.items():
            now = file.number()
            if now is None:
                continue
            last = self._last.get(name, now)
            gained = now - last
            if gained < 0:
                # It wrapped at its range; without one it began anew.
                gained += self._range[name] + 1 if self._range[name] else -gained
            self._last[name] = now
            self._sum[name] = self._sum.get(name, 0) + max(gained, 0)
        return dict(self._sum)
