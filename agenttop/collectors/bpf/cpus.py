"""Per-CPU counters from the kernel programs, laid over what /proc and /sys tell."""

from __future__ import annotations

import re
from typing import Final

from agenttop.collectors.bpf import layout
from agenttop.collectors.bpf.tracer import Record, Tracer
from agenttop.collectors.procfs import ProcfsCpus
from agenttop.model import Activity, CpuCounters, IdleCounters
from agenttop.words import SOFTIRQS, VECTORS

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
        self._names: dict[str, str] = {}
        #: Softirqs as of the last read.
        self._softirqs: dict[int, dict[str, Activity]] = {}
        #: Lines that have fired since the programs were loaded, and their count then.
        self._fired: dict[str, int] = {}

    def read(self, full: bool) -> tuple[list[CpuCounters], Record]:
        """The CPUs, and the raw records (their context and losses)."""
        counters = self.procfs.read()
        raw = self._tracer.cpus()
        self._irqs(counters)
        missing = self._tracer.missing
        for cpu in counters:
            if cpu.cpu >= len(raw):
                continue
            record = raw[cpu.cpu]
            cpu.vectors |= _activities(VECTORS, record["vector_count"], record["vector_ns"])
            cpu.softirqs = _activities(SOFTIRQS, record["softirq_count"], record["softirq_ns"])
            came = {
                name for name, a in cpu.softirqs.items() if a.count != self._last(cpu.cpu, name)
            }
            cpu.softirq_latency = self._tracer.softirq_latency(cpu.cpu, full, came)
            self._softirqs[cpu.cpu] = cpu.softirqs
            if "cpu_idle" not in missing and cpu.idle:
                cpu.idle = _idle(cpu.idle, record)
            if cpu.freq_khz is None and record["freq_khz"]:
                cpu.freq_khz = int(record["freq_khz"])
        return counters, raw

    def _last(self, cpu: int, vector: str) -> int:
        activity = self._softirqs.get(cpu, {}).get(vector)
        return activity.count if activity else 0

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
        for line, total in totals.items():
            first = self._fired.setdefault(line, total)
            if not line.isdigit() or int(line) >= layout.IRQS:
                continue
            times = self._tracer.irq(int(line)) if total != first else None
            for cpu in counters:
                if line in cpu.irqs and (times is None or cpu.cpu < len(times)):
                    cpu.irqs[line].time_ns = times[cpu.cpu][1] if times else 0


def _activities(names: tuple[str, ...], counts: Record, times: Record) -> dict[str, Activity]:
    return {
        name: Activity(count, ns)
        for name, count, ns in zip(names, counts.tolist(), times.tolist(), strict=True)
        if count
    }


def _idle(states: list[IdleCounters], record: Record) -> list[IdleCounters]:
    """Time and entries as measured, the governor's misses from sysfs."""
    counts, times = record["idle_count"].tolist(), record["idle_ns"].tolist()
    return [
        IdleCounters(counts[i], times[i], state.above, state.below)
        for i, state in enumerate(states)
        if i < layout.IDLE_STATES
    ]
