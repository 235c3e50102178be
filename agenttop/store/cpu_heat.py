"""How hot each CPU was, Sample by Sample."""

from __future__ import annotations

from typing import Final

from agenttop.model.sample import CpuCounters, Sample

#: Samples that are kept.
KEPT: Final = 120


class HeatHistory:
    """Share of the time that interrupts and softirqs took, per CPU and Sample."""

    def __init__(self) -> None:
        self.by_cpu: dict[int, list[float | None]] = {}
        self._before: dict[int, int | None] = {}
        self._t_ns: int | None = None

    def feed(self, sample: Sample) -> None:
        """Take in the next Sample; None is kept where the time cannot be had."""
        if not sample.cpus:
            return  # very many CPUs are not read with each Sample
        span = sample.t_ns - self._t_ns if self._t_ns is not None else 0
        for cpu in sample.cpus:
            now = _time_ns(cpu)
            before = self._before.get(cpu.cpu)
            self._before[cpu.cpu] = now
            if span <= 0:
                continue
            ratio = None
            if now is not None and before is not None and now >= before:
                ratio = (now - before) / span
            values = self.by_cpu.setdefault(cpu.cpu, [])
            values.append(ratio)
            del values[:-KEPT]
        self._t_ns = sample.t_ns


def _time_ns(cpu: CpuCounters) -> int | None:
    times = [
        activity.time_ns
        for table in (cpu.irqs, cpu.vectors, cpu.softirqs)
        for activity in table.values()
    ]
    known = [t for t in times if t is not None]
    return sum(known) if known else None
