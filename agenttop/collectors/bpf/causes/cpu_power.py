"""What causes need to know of each CPU's power: its idle states and its frequency at the start."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from agenttop.collectors.bpf import layout
from agenttop.collectors.bpf.read.cpu_rows import CpuRows
from agenttop.collectors.bpf.read.mmap_array import mapped
from agenttop.collectors.procfs.idle import Idle
from agenttop.linux import paths
from agenttop.linux.files import read_number
from agenttop.model.sample import IdleState

_POWER: Final = layout.dtype(layout.POWER_FIELDS)


def _cpus() -> Path:
    return Path(paths.sys(), "devices/system/cpu")


class Power:
    """Names for what the programs of causes number, and what they cannot know by themselves."""

    def __init__(self, maps: Mapping[str, int], rows: CpuRows) -> None:
        #: What the kernel side keeps of each CPU, by row (layout.POWER_FIELDS).
        self.live = mapped(maps["power_cpus"], _POWER, len(rows))
        self._cpus = list(rows.cpus)
        self._kinds: list[list[IdleState]] = []

    def refresh(self) -> None:
        """Look at sysfs; to be called before causes are observed."""
        idle = Idle(self._cpus)
        kinds: list[list[IdleState]] = []
        for row, cpu in enumerate(self._cpus):
            states = idle.of(cpu)
            if states not in kinds:
                kinds.append(states)
            self.live["idle_kind"][row] = kinds.index(states)
            khz = read_number(f"{_cpus()}/cpu{cpu}/cpufreq/scaling_cur_freq")
            # What the tracepoint has told is newer.
            if khz and not self.live["khz"][row]:
                self.live["khz"][row] = khz
        self._kinds = kinds

    def state(self, kind: int, number: int) -> IdleState | None:
        """A state of CPUs of this kind; None where no driver tells of it."""
        states = self._kinds[kind] if kind < len(self._kinds) else []
        return states[number] if number < len(states) else None
