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
#: Of so many CPUs at a time the histograms are looked through, and the governor's misses read:
#: with more the figures of a Sample are those of one of the Samples just before.
AT_ONCE: Final = 64

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
            self.procfs.idle.only_misses(AT_ONCE)
        self._reads = 0
        #: CPU -> softirqs that have run since its histograms were looked through.
        self._came: dict[int, set[str]] = {}
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
        turns = -(-len(counters) // AT_ONCE)
        self._reads += 1
        for place, cpu in enumerate(counters):
            row = self._tracer.cpu_rows.row(cpu.cpu)
            if row is None:
                continue
            record = raw[row]
            cpu.vectors |= _activities(VECTORS, record["vector_count"], record["vector_ns"])
            cpu.softirqs = _activities(SOFTIRQS, record["softirq_count"], record["softirq_ns"])
            came = self._came.setdefault(cpu.cpu, set())
            before = self._softirqs.get(cpu.cpu, {})
            for name, activity in cpu.softirqs.items():
                if (old := before.get(name)) is None or old.count != activity.count:
                    came.add(name)
            if full or place % turns == self._reads % turns:
                cpu.softirq_latency = self._tracer.softirq_latency(row, full, came)
                came.clear()
            self._softirqs[cpu.cpu] = cpu.softirqs
            if "cpu_idle" not in missing and cpu.idle:
                cpu.idle = _idle(cpu.idle, record)
            if cpu.freq_khz is None and record["freq_khz"]:
                cpu.freq_khz = int(record["freq_khz"])
        return counters, raw

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
