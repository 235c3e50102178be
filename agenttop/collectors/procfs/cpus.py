"""The procfs twin: everything about the CPUs that needs neither BPF nor privileges.

Beside BPF it gives what BPF does not measure; without BPF it stands alone.
"""

from __future__ import annotations

from typing import Final

from agenttop.collectors.procfs.cpu_time import Stat
from agenttop.collectors.procfs.frequency import Freq
from agenttop.collectors.procfs.idle import Idle
from agenttop.collectors.procfs.interrupts import Interrupts
from agenttop.collectors.procfs.ksoftirqd import Ksoftirqd
from agenttop.collectors.procfs.softirqs import Softirqs
from agenttop.collectors.procfs.softnet import SoftnetStat
from agenttop.collectors.procfs.topology import Topology
from agenttop.model.sample import CpuCounters

#: What can be left out because something better measures it.
GROUPS: Final = frozenset({"irq", "softirq", "idle", "freq", "ksoftirqd"})


class ProcfsCpus:
    """Reads all CPUs' counters."""

    def __init__(self, skip: frozenset[str] = frozenset()) -> None:
        """``skip``: names of GROUPS that are not to be read."""
        self._skip = skip
        self._topology = Topology()
        #: The CPUs there are, in order.
        self.cpus = self._topology.present()
        self._stat = Stat()
        self._interrupts = Interrupts()
        self._softirqs = Softirqs()
        self._softnet = SoftnetStat()
        self._ksoftirqd = Ksoftirqd([] if "ksoftirqd" in skip else self.cpus)
        #: States, driver and governor are here also when the counters are skipped.
        self.idle = Idle(self.cpus)
        self.freq = Freq(self.cpus)
        #: CPUs that run and were not there when this was made; as of the last ``read``.
        self.later: frozenset[int] = frozenset()

    def read(self) -> list[CpuCounters]:
        """One entry per CPU, in order; monotonic, also over a CPU's offline time."""
        skip = self._skip
        online = self._topology.online()
        self.later = (online or frozenset()).difference(self.cpus)
        times = self._stat.read()
        irqs, vectors = ({}, {}) if "irq" in skip else self._interrupts.read()
        softirqs = {} if "softirq" in skip else self._softirqs.read()
        idle = {} if "idle" in skip else self.idle.read(online)
        freq = {} if "freq" in skip else self.freq.read(online)
        softnet = self._softnet.read(online)
        ksoftirqd = {} if "ksoftirqd" in skip else self._ksoftirqd.read()
        found = []
        for cpu in self.cpus:
            counters = CpuCounters(cpu, online=online is None or cpu in online)
            if spent := times.get(cpu):
                counters.busy_ns, counters.steal_ns = spent.busy_ns, spent.steal_ns
                counters.irq_ns, counters.softirq_ns = spent.irq_ns, spent.softirq_ns
            counters.irqs = irqs.get(cpu, {})
            counters.vectors = vectors.get(cpu, {})
            counters.softirqs = softirqs.get(cpu, {})
            counters.idle = idle.get(cpu, [])
            counters.ksoftirqd_ns = ksoftirqd.get(cpu)
            counters.softnet = softnet.get(cpu)
            if khz := freq.get(cpu):
                counters.freq_khz = khz.current_khz
                counters.freq_min_khz, counters.freq_max_khz = khz.min_khz, khz.max_khz
            found.append(counters)
        return found

    def irq_names(self) -> dict[str, str]:
        """Interrupt line (as text) -> name.

        As of the last ``read``; where that skips the lines, /proc/interrupts
        is read here, so do not ask at every tick then.
        """
        if "irq" in self._skip:
            self._interrupts.read()
        return self._interrupts.names()
