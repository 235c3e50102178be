"""CPU time of a process tree, whose processes come, go and come back."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import Final

from agenttop.collectors.procfs.own_cpu import process_cpu_ns
from agenttop.linux import paths, process

#: The unit in which the kernel tells when a process started.
_TICK_NS: Final = 10**9 // os.sysconf("SC_CLK_TCK")


class TreeCpu:
    """One tree's CPU time; keep one per tree."""

    def __init__(self) -> None:
        self._total_ns = 0
        #: Process -> its CPU time when it was read last.
        self._last: dict[int, int] = {}
        self._read_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def read(self, pids: Iterable[int]) -> int:
        """ns that the processes of the tree have used in it; never falls.

        ``pids`` are those that are in it now. What one had used before it came
        into the tree (or back into it) is not the tree's; one that has started
        since the last call was always in it.
        """
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        last: dict[int, int] = {}
        for pid in pids:
            used = process_cpu_ns(pid)
            if used is None:
                continue
            before = self._last.get(pid)
            if before is None or used < before:  # the number may be another's by now
                before = 0 if _started_ns(pid) > self._read_ns else used
            self._total_ns += used - before
            last[pid] = used
        self._last, self._read_ns = last, now
        return self._total_ns


def _started_ns(pid: int) -> int:
    """The latest that a process may have started, after boot; 0 if it is gone."""
    stat = process.parse_stat(process.read_file(f"{paths.proc()}/{pid}/stat", 2048) or b"")
    return (stat[4] + 1) * _TICK_NS if stat else 0
