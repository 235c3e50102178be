"""/proc/stat: where each CPU's time went, in clock ticks (10 ms); proc(5)."""

from __future__ import annotations

import os
from typing import Final, NamedTuple

from agenttop.linux import paths
from agenttop.linux.files import KeptFile

TICK_NS: Final = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


class CpuTime(NamedTuple):
    """All in ns since boot."""

    #: Everything but idle, iowait and steal.
    busy_ns: int
    steal_ns: int
    #: Sampled at ticks (so nearly always 0 for irq) unless the kernel accounts for
    #: interrupt time (CONFIG_IRQ_TIME_ACCOUNTING).
    irq_ns: int
    softirq_ns: int


class Stat:
    """Time per CPU."""

    def __init__(self) -> None:
        self._file = KeptFile(f"{paths.proc()}/stat")
        self._kept: dict[int, CpuTime] = {}

    def read(self) -> dict[int, CpuTime]:
        """CPU -> time; offline CPUs keep what they had. Empty without the file."""
        for row in (self._file.read_all() or b"").splitlines():
            if not row.startswith(b"cpu"):
                break
            label, *words = row.split()
            try:
                cpu = int(label[3:])
                user, nice, system, _, _, irq, softirq, steal = map(int, words[:8])
            except ValueError:
                # The sum ("cpu"), or a kernel older than the columns.
                continue
            busy = user + nice + system + irq + softirq
            ticks = CpuTime(busy, steal, irq, softirq)
            new = CpuTime(*(n * TICK_NS for n in ticks))
            old = self._kept.get(cpu)
            # Ticks can step back by one when the kernel corrects its sums.
            self._kept[cpu] = new if old is None else CpuTime(*map(max, new, old))
        return dict(self._kept)
