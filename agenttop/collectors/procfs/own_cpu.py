"""CPU time of agenttop's own processes: the observer's price, for the trust line."""

from __future__ import annotations

import os
import time
from typing import Final

#: include/linux/posix-timers.h: CPUCLOCK_SCHED, in the low bits of a process's clock id.
_CPUCLOCK_SCHED: Final = 2


def process_cpu_ns(pid: int) -> int | None:
    """CPU time of all threads of a process, also ended ones, ns; None if it is gone.

    From the process's CPU clock (clock_getcpuclockid(3)), which is exact
    where /proc/PID/stat counts in ticks of 10 ms.
    """
    try:
        return time.clock_gettime_ns((~pid << 3) | _CPUCLOCK_SCHED)
    except (OSError, OverflowError):
        return None


class SelfCost:
    """Sum over this process and those that were added; never falls."""

    def __init__(self) -> None:
        self._pids: dict[int, int] = {os.getpid(): 0}
        self._base = 0

    def add(self, pid: int) -> None:
        """Counts a process of ours from now on, with all it has used so far."""
        self._pids.setdefault(pid, 0)

    def add_ns(self, cpu_ns: int) -> None:
        """Counts CPU time that is known otherwise, e.g. from os.wait4 of a short child."""
        self._base += cpu_ns

    def read(self) -> int:
        """CPU time in ns; a process that ended keeps what it had when it was last read."""
        for pid, last in list(self._pids.items()):
            now = process_cpu_ns(pid)
            if now is None or now < last:
                # Ended (or its number is somebody else's by now).
                self._base += last
                del self._pids[pid]
            else:
                self._pids[pid] = now
        return self._base + sum(self._pids.values())
