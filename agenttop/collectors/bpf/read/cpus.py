"""Per-CPU counters from the kernel programs, laid over what /proc and /sys tell."""

from __future__ import annotations

import re
from typing import Final

from agenttop.collectors.bpf import layout
from agenttop.collectors.bpf.read.tracer import Record, Tracer
from agenttop.collectors.procfs.cpus import ProcfsCpus
from agenttop.model.sample import Activity, CpuCounters, IdleCounters
from agenttop.model.vocabulary import SOFTIRQS, VECTORS

#: Groups of procfs that the programs measure better.
REPLACED: Final = frozenset({"softirq"})

#: What a wake-up straight from an interrupt handler means, by the line's name. Block requests
#: are known by their own tracepoint; this is for the rest (network drivers that wake without
#: a softirq, timers that are lines, as on Arm).
_SOURCES: Final = (
    (re.compile(r"nvme|blk|ahci|scsi|mmc|virtio\d+-req|xvd|vbd|sata|mpt|megasas", re.I), "block"),
    (re.compile(r"eth|eno|ens|enp|wl|mlx|ixgbe|i40e|ice-|virtio\d+-(in|out)put|ena-", re.I), "net"),
    (re.compile(r"timer|hpet|rtc", re.I), "timer"),
)


def source_of_line(name: str) -> str:
    """The source that an interrupt line's name stands for, or "unknown"."""
    for pattern, source in _SOURCES:
        if pattern.search(name):
            return source
    return "unknown"


class BpfCpus:
    """Reads CPU counters; what has no time in /proc gets it from the programs."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self.procfs = ProcfsCpus(skip=REPLACED)
        if "cpu_idle" not in tracer.missing:
            self.procfs.idle.only_misses()
        self._names: dict[str, str] = {}
        #: Lines that have fired since the programs were loaded, and their count then.
        self._fired: dict[str, int] = {}

    def read(self, raw: Record, full: bool) -> list[CpuCounters]:
        """The CPUs, with what is in the programs' raw records (Tracer.cpus)."""
        counters = self.procfs.read()
        self._irqs(counters)
        timed = "cpu_idle" not in self._tracer.missing
        names = (
            "vector_count",
            "vector_ns",
            "softirq_count",
            "softirq_ns",
            "idle_count",
            "idle_ns",
        )
        latencies = self._tracer.softirq_latency(full)
        columns = [raw[name].tolist() for name in (*names, "freq_khz")]
        for cpu in counters:
            row = self._tracer.cpu_rows.row(cpu.cpu)
            if row is None:
                continue
            vectors, vector_ns, softirqs, softirq_ns, entries, idle_ns, khz = (
                column[row] for column in columns
            )
            cpu.vectors |= _activities(VECTORS, vectors, vector_ns)
            cpu.softirqs = _activities(SOFTIRQS, softirqs, softirq_ns)
            cpu.softirq_latency = latencies[row]
            if timed and cpu.idle:
                cpu.idle = _idle(cpu.idle, entries, idle_ns)
            if cpu.freq_khz is None and khz:
                cpu.freq_khz = khz
        return counters

    def irq_names(self) -> dict[str, str]:
        """Line (as text) -> name; also tells the programs what new lines mean."""
        names = self.procfs.irq_names()
        for line, name in names.items():
            if self._names.get(line) != name and line.isdigit():
                self._tracer.set_irq_source(int(line), source_of_line(name))
        self._names = dict(names)
        return names

    def _irqs(self, counters: list[CpuCounters]) -> None:
        """Give the lines that fire their time; the others were never seen by the programs."""
        totals: dict[str, int] = {}
        for cpu in counters:
            for line, activity in cpu.irqs.items():
                totals[line] = totals.get(line, 0) + activity.count
        times: dict[str, list[tuple[int, int]] | None] = {}
        for line, total in totals.items():
            first = self._fired.setdefault(line, total)
            if line.isdigit() and int(line) < layout.IRQS:
                times[line] = self._tracer.irq(int(line)) if total != first else None
        for cpu in counters:
            row = self._tracer.cpu_rows.row(cpu.cpu)
            if row is None:
                continue
            for line, activity in cpu.irqs.items():
                if line not in times:
                    continue
                spent = times[line]
                if spent is None:
                    activity.time_ns = 0
                else:
                    activity.time_ns = spent[row][1]


def _activities(names: tuple[str, ...], counts: list[int], times: list[int]) -> dict[str, Activity]:
    return {
        name: Activity(count, ns)
        for name, count, ns in zip(names, counts, times, strict=True)
        if count
    }


def _idle(states: list[IdleCounters], counts: list[int], times: list[int]) -> list[IdleCounters]:
    """Time and entries as measured, the governor's misses from sysfs."""
    return [
        IdleCounters(counts[i], times[i], state.above, state.below)
        for i, state in enumerate(states)
        if i < layout.IDLE_STATES
    ]
