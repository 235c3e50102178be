"""Run time and run-queue wait of a process tree: /proc/PID/task/TID/schedstat.

The only measure of waiting without BPF. The files are per thread and die
with it: what a thread had when it was last read stays in the sum, so the
figures never fall; what it did between that and its end is lost.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple

from agenttop.linux import paths
from agenttop.linux.files import KeptFile


class SchedTotals(NamedTuple):
    """Sums over an agent's threads, living and dead, since it was first read."""

    run_ns: int
    #: Runnable but waiting for a CPU.
    run_delay_ns: int
    #: Times a thread was put on a CPU.
    timeslices: int
    #: Threads alive now.
    threads: int


_Figures = tuple[int, int, int]


class _Thread:
    __slots__ = ("file", "last")

    def __init__(self, path: str) -> None:
        self.file = KeptFile(path)
        self.last: _Figures | None = None

    def read(self) -> _Figures | None:
        raw = self.file.read(128)
        try:
            run, delay, slices = map(int, (raw or b"").split())
        except ValueError:
            return None
        return run, delay, slices


class _Process:
    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.count = -1
        self.threads: dict[str, _Thread] = {}


class TreeSchedstat:
    """One agent's totals; keep one per agent."""

    def __init__(self) -> None:
        self._root = str(paths.proc())
        self._processes: dict[int, _Process] = {}
        self._base: _Figures = (0, 0, 0)

    def read(self, pids: Iterable[int]) -> SchedTotals | None:
        """Totals with ``pids`` as the processes of the tree now.

        None if nothing was ever readable (a kernel without schedstat).
        """
        wanted = set(pids)
        for pid in [pid for pid in self._processes if pid not in wanted]:
            for thread in self._processes.pop(pid).threads.values():
                self._retire(thread)
        for pid in wanted:
            process = self._processes.get(pid)
            if process is None:
                process = self._processes[pid] = _Process(f"{self._root}/{pid}/task")
            self._read_process(process)
        total, alive = self._base, 0
        for process in self._processes.values():
            for thread in process.threads.values():
                if thread.last is not None:
                    alive += 1
                    total = _plus(total, thread.last)
        return SchedTotals(*total, alive) if alive or total != (0, 0, 0) else None

    def close(self) -> None:
        """Gives the descriptors back."""
        for process in self._processes.values():
            for thread in process.threads.values():
                thread.file.close()
        self._processes.clear()

    def _read_process(self, process: _Process) -> None:
        # The folder has one link per thread (and two more): an unchanged number saves
        # listing it, and a thread that gave way to another shows by its failing read.
        try:
            count = os.stat(process.folder).st_nlink
        except OSError:
            count = -1
        # (Some file systems count no links for folders at all.)
        stale = count != process.count or count < 3
        for tid, thread in list(process.threads.items()):
            figures = thread.read()
            if figures is None:
                stale = True
                del process.threads[tid]
                self._retire(thread)
                continue
            if thread.last is not None and figures[0] < thread.last[0]:
                # The number belongs to another thread now.
                self._base = _plus(self._base, thread.last)
            thread.last = figures
        if stale:
            process.count = count
            self._list(process)

    def _list(self, process: _Process) -> None:
        try:
            names = os.listdir(process.folder)
        except OSError:
            names = []
        for tid in names:
            if tid not in process.threads:
                thread = _Thread(f"{process.folder}/{tid}/schedstat")
                thread.last = thread.read()
                if thread.last is not None:
                    process.threads[tid] = thread
        for tid in [tid for tid in process.threads if tid not in set(names)]:
            self._retire(process.threads.pop(tid))

    def _retire(self, thread: _Thread) -> None:
        thread.file.close()
        if thread.last is not None:
            self._base = _plus(self._base, thread.last)
            thread.last = None


def _plus(a: _Figures, b: _Figures) -> _Figures:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]
