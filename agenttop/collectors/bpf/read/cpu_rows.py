"""Which CPU writes which row of the arrays that have one row for each CPU.

The kernel's per-CPU maps have a place for each CPU that could ever be plugged
in, which on virtual machines is often 255 for two that are there. So the
programs use arrays with a row for each CPU that is present when they are
loaded; where the CPUs' numbers have gaps, a small table leads to the rows. A
CPU that comes later has no row: what is lost on it is counted, and whoever
reads the maps loads the programs again.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from agenttop.collectors.procfs.topology import Topology


class CpuRows:
    """CPUs in the order of their rows."""

    def __init__(self, cpus: Iterable[int]) -> None:
        #: Row -> CPU, ascending.
        self.cpus = tuple(sorted(set(cpus)))
        self._rows = {cpu: row for row, cpu in enumerate(self.cpus)}

    @classmethod
    def present(cls) -> CpuRows:
        """The CPUs that are plugged in now, online or not."""
        return cls(Topology().present())

    def __len__(self) -> int:
        return len(self.cpus)

    @property
    def span(self) -> int:
        """One more than the highest CPU."""
        return self.cpus[-1] + 1

    @property
    def gaps(self) -> bool:
        """Whether a CPU's row is another number than the CPU."""
        return self.span != len(self.cpus)

    def row(self, cpu: int) -> int | None:
        """A CPU's row; None: it came later."""
        return self._rows.get(cpu)

    def table(self) -> list[bytes]:
        """The values of the map cpu_rows, by CPU; a CPU without a row has one that is none's."""
        return [struct.pack("<I", self._rows.get(cpu, len(self.cpus))) for cpu in range(self.span)]
