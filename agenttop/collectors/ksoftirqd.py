"""CPU time of the ksoftirqd threads, which take softirq work over when there is too much of it."""

from __future__ import annotations

import os
from typing import Final

from agenttop import paths, procinfo
from agenttop.collectors.files import KeptFile

#: After how many reads CPUs without a known thread are looked for again.
_RETRY: Final = 10
_PREFIX: Final = "ksoftirqd/"


class Ksoftirqd:
    """Run time per CPU from /proc/PID/schedstat (first figure; Documentation/scheduler)."""

    def __init__(self, cpus: list[int]) -> None:
        self._cpus = cpus
        self._files: dict[int, KeptFile] = {}
        self._last: dict[int, int] = {}
        self._reads = 0
        self._discover()

    def read(self) -> dict[int, int]:
        """CPU -> ns on a CPU; CPUs whose thread is not to be found are left out."""
        self._reads += 1
        if self._reads % _RETRY == 0 and len(self._files) < len(self._cpus):
            self._discover()
        for cpu, file in list(self._files.items()):
            raw = file.read(128)
            try:
                run_ns = int(raw.split(None, 1)[0]) if raw else None
            except (ValueError, IndexError):
                run_ns = None
            if run_ns is None:
                # The thread ended, or a container hides it; the last figure stays.
                del self._files[cpu]
            else:
                self._last[cpu] = max(run_ns, self._last.get(cpu, 0))
        return dict(self._last)

    def _discover(self) -> None:
        root = str(paths.proc())
        for pid in procinfo.pids(root):
            # Cheaper than reading stat: most processes are told apart by their name alone.
            comm = procinfo.read_file(f"{root}/{pid}/comm", 64)
            name = procinfo.text(comm).strip() if comm else ""
            number = name.removeprefix(_PREFIX)
            if not name.startswith(_PREFIX) or not (number.isascii() and number.isdigit()):
                continue
            # Any process may call itself so; kernel threads have no command line.
            info = procinfo.read(pid, root=root)
            if info is None or not info.kernel:
                continue
            path = f"{root}/{pid}/schedstat"
            if int(number) not in self._files and os.path.exists(path):
                self._files[int(number)] = KeptFile(path)
