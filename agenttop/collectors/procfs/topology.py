"""Which CPUs there are and which of them are online (sysfs, cputopology.rst)."""

from __future__ import annotations

import os

from agenttop.linux import paths
from agenttop.linux.files import KeptFile, parse_cpulist, read_text


class Topology:
    """CPUs present and online."""

    def __init__(self) -> None:
        self._base = f"{paths.sys()}/devices/system/cpu"
        self._online = KeptFile(f"{self._base}/online")

    def present(self) -> list[int]:
        """The CPUs that are plugged in; from the cpuN folders where the file is missing."""
        for name in ("present", "possible"):
            try:
                if cpus := parse_cpulist(read_text(f"{self._base}/{name}") or ""):
                    return cpus
            except ValueError:
                continue
        try:
            names = os.listdir(self._base)
        except OSError:
            names = []
        cpus = sorted(int(n[3:]) for n in names if n.startswith("cpu") and n[3:].isdigit())
        return cpus or list(range(os.cpu_count() or 1))

    def online(self) -> frozenset[int] | None:
        """The CPUs that run; None if that cannot be told (then take all for online)."""
        raw = self._online.read()
        try:
            return frozenset(parse_cpulist(raw.decode("ascii"))) if raw else None
        except ValueError:
            return None
