"""CPU time of the ksoftirqd threads, which take softirq work over when there is too much of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from typing import Final

from agenttop.linux import paths, process
from agenttop.linux.files import KeptFile

#: So many reads after the last search CPUs without a known thread are searched for again.
_RETRY: Final = 10
#: Processes that a search looks at in one read, 6 us each: some CPUs have no thread for ever (they
#: were never online, or a container hides it), and processes may be many.
_PIECE: Final = 1000
_PREFIX: Final = "ksoftirqd/"


class Ksoftirqd:
    """Run time per CPU from /proc/PID/schedstat (first figure; Documentation/scheduler)."""

    def __init__(self, cpus: list[int]) -> None:
        self._cpus = cpus
        self._files: dict[int, KeptFile] = {}
        self._last: dict[int, int] = {}
        self._pause = 0
        #: What the search that is under way has not looked at.
        self._left: Iterator[int] | None = None
        self._search()

    def read(self) -> dict[int, int]:
        """CPU -> ns on a CPU; CPUs whose thread is not to be found are left out."""
        self._search()
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

    def _search(self) -> None:
        """One piece of a search, if one is under way or due."""
        root = str(paths.proc())
        if self._left is None:
            if len(self._files) >= len(self._cpus):
                return
            if self._pause > 0:
                self._pause -= 1
                return
            self._left = process.pids(root)
        piece = list(islice(self._left, _PIECE))
        for pid in piece:
            # Cheaper than reading stat: most processes are told apart by their name alone.
            comm = process.read_file(f"{root}/{pid}/comm", 64)
            name = process.text(comm).strip() if comm else ""
            number = name.removeprefix(_PREFIX)
            if not name.startswith(_PREFIX) or not (number.isascii() and number.isdigit()):
                continue
            # Any process may call itself so; kernel threads have no command line.
            info = process.read(pid, root=root)
            if info is None or not info.kernel:
                continue
            path = f"{root}/{pid}/schedstat"
            if int(number) not in self._files and os.path.exists(path):
                self._files[int(number)] = KeptFile(path)
        if len(piece) < _PIECE or len(self._files) >= len(self._cpus):
            self._left, self._pause = None, _RETRY - 1
