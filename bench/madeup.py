"""The kernel side made up: the tracer's own arrays in plain memory, for machines of any size.

What the programs would have counted is written here; what reads and sums it
is the tracer's own code. Its arrays lie in memory files named NAME, as maps of
the kernel would, so that they can be told apart from what the engine takes.
Left out: the system calls that read maps without memory of ours, causes, and
named steps.
"""

from __future__ import annotations

import mmap
import os
from types import SimpleNamespace
from typing import Any

import numpy as np

from agenttop.collectors.bpf import layout
from agenttop.collectors.bpf.read import tracer
from agenttop.collectors.bpf.read.counter_rows import Rows
from agenttop.collectors.bpf.read.cpu_rows import CpuRows
from agenttop.collectors.bpf.read.tracer import Thread, Tracer
from agenttop.model.vocabulary import MEASURES, SOFTIRQS
from agenttop.stats.histogram import BUCKETS

#: How the arrays are called in /proc/PID/smaps.
NAME = "agenttop-made-up-maps"
#: CPUs that an agent's steps resume on.
SPREAD = 4
#: Steps a second of an agent.
STEPS = 200


class MadeUp(Tracer):
    """Every thread that it is told to measure makes steps; every CPU is busy."""

    def __init__(self, numbers: list[int], seed: int = 1) -> None:
        self.mode, self.level, self.missing = "tp_btf", "lite", ()
        self.cpu_rows = CpuRows(numbers)
        cpus = self._count = len(self.cpu_rows)
        self._random = np.random.default_rng(seed)
        self._rows = Rows(_map((cpus, layout.SLOTS), tracer._ROW))
        histograms = _map((layout.SLOTS, len(MEASURES) * BUCKETS), np.dtype(np.uint32))
        self._histograms = histograms
        self._hists = {}
        self._controls = _map((layout.SLOTS,), tracer._CONTROL)
        self._slow_ns, self._tail_ns = self._controls["slow_ns"], self._controls["tail_ns"]
        self._keep = self._controls["keep"]
        soft = _map((cpus, len(SOFTIRQS), BUCKETS), np.dtype(np.uint32))
        self._soft_live = soft
        self._soft = tracer._Changes(soft.reshape(-1))
        idle = _map((layout.IDLE_STATES, BUCKETS), np.dtype(np.uint32))
        self._idle = [tracer._Changes(one) for one in idle]
        self._idle_live = idle
        self._records = _map((cpus,), tracer._CPU)
        self._listed: dict[int, int] = {}
        nothing: Any = SimpleNamespace(
            used=False,
            loading=None,
            follow_contexts=lambda on: None,
            follow_cpus=lambda cpus: None,
            states=lambda cost: [],
            marked=lambda: set(),
            keeps=lambda: False,
            name_lines=lambda names: None,
            clear=lambda slot: None,
        )
        self.causes = self.steps = self.details = self.windows = nothing
        self._stats_fd = None
        self._refused, self._asking = 0, []

    # What would be a system call.

    def assign(self, processes: Any, threads: Any) -> None:
        self._listed |= {**processes, **threads}

    def threads(self) -> list[Thread]:
        return [Thread(pid, pid, s, STEPS, 0, 0) for pid, s in self._listed.items() if s]

    def members(self, slot: int) -> int:
        return sum(s == slot for s in self._listed.values())

    def clear(self, slot: int, share: int = 0) -> None:
        self._rows.clear(slot)
        self._histograms[slot] = 0
        self._hists[slot] = tracer._Changes(self._histograms[slot])

    def release(self, slot: int) -> None:
        self._rows.release(slot)
        self._hists.pop(slot, None)

    def cpus(self) -> Any:
        return self._records.copy()

    def irq(self, line: int) -> list[tuple[int, int]]:
        return [(1, 1000)] * self._count

    def set_irq_source(self, line: int, source: str) -> None:
        pass

    def slows(self, limit: int = 2048) -> Any:
        return np.zeros(0, dtype=tracer._SLOW)

    def edges(self, limit: int = 512) -> list[Any]:
        return []

    def recursion_misses(self) -> int:
        return 0

    def losses(self, cpus: Any) -> dict[str, int]:
        return dict.fromkeys((*layout.LOSSES, "torn"), 0)

    # What the programs would have done.

    def pass_second(self) -> None:
        """One second of steps, interrupts and idle times."""
        random = self._random
        for slot in set(self._listed.values()) - {layout.NO_SLOT}:
            for cpu in (slot * 7 + np.arange(min(SPREAD, self._count))) % self._count:
                row = self._rows.live[cpu, slot]
                row["seq"] += 2
                row["steps"] += STEPS // SPREAD
                row["step_ns"] += STEPS // SPREAD * 5_000_000
                row["stage_ns"][:] += STEPS // SPREAD * 1000
                row["gates"][0] += STEPS // SPREAD
                row["sources"][1] += STEPS // SPREAD
            live = self._hists[slot].live.reshape(len(MEASURES), BUCKETS)
            for measure in live:
                centre = int(random.integers(60, 200))
                np.add.at(measure, random.integers(centre, centre + 40, STEPS), 1)
        records = self._records
        for name, kinds in (("vector_count", 3), ("softirq_count", 4), ("idle_count", 4)):
            records[name][:, :kinds] += np.uint64(250)
            records[name.replace("count", "ns")][:, :kinds] += np.uint64(40_000_000)
        records["freq_khz"][:] = 2_400_000
        at = random.integers(60, 120, (self._count, 20))
        for kind in range(4):
            self._soft_live[np.arange(self._count)[:, None], kind, at] += 1
        self._idle_live[1, random.integers(100, 140, 50)] += 1


def _map(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    size = int(np.prod(shape)) * dtype.itemsize
    fd = os.memfd_create(NAME)
    os.ftruncate(fd, size)
    memory = mmap.mmap(fd, size)
    os.close(fd)
    return np.frombuffer(memory, dtype=dtype).reshape(shape)
