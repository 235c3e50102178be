"""The process table, read in passes that can be interrupted, and judged as it is read."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import Final, Generic, TypeVar

from agenttop.linux import process
from agenttop.linux.process import ProcInfo

#: Up to so many processes are all read anew at every pass, of more a share.
READ: Final = 1000
#: A process is read anew in so many passes after its first: most call exec then.
YOUNG: Final = 3
#: A pass may take one part in so many of the CPU time between two of them,
PACE: Final = 20
#: which are at least this far apart, s.
LEAST_S: Final = 0.9

Verdict = TypeVar("Verdict")


class ProcessTable(Generic[Verdict]):
    """All processes but the kernel's threads, each with what ``judge`` made of it."""

    def __init__(
        self,
        read: Callable[[int], ProcInfo | None],
        judge: Callable[[ProcInfo], Verdict],
        turns: int = 1,
    ) -> None:
        """``turns``: a process that is old is read anew at one pass in so many, or in more."""
        self._turns = turns
        self._read = read
        self._judge = judge
        self._passes = 0
        #: As of the last pass: all processes, the kernel's threads too.
        self._known: dict[int, ProcInfo] = {}
        #: Process -> passes that have read it, of those that are young.
        self._young: dict[int, int] = {}
        self._due = 0.0
        #: As of the last whole pass; False before the first.
        self.complete = False
        self.infos: dict[int, ProcInfo] = {}
        self.verdicts: dict[int, Verdict] = {}
        #: Process -> its children; 0 -> those whose parent is not in ``infos``.
        self.children: dict[int, list[int]] = {}

    @property
    def due(self) -> bool:
        """Whether passes as far apart as they cost allow for one more now."""
        return time.monotonic() >= self._due

    def look(self, anew: bool = False) -> Generator[None, None, None]:
        """One pass; ``anew``: every process is read. What was known holds until its end."""
        spent = 0.0
        began = time.thread_time()
        every = 1 if anew else max(self._turns, -(-len(self._known) // READ))
        self._passes += 1
        turn = self._passes % every
        known: dict[int, ProcInfo] = {}
        young: dict[int, int] = {}
        verdicts: dict[int, Verdict] = {}
        for pid in process.pids():
            old = self._known.get(pid)
            age = 0 if old is None else self._young.get(pid, YOUNG)
            if age < YOUNG:
                young[pid] = age + 1
            info = old if old and age >= YOUNG and pid % every != turn else self._read(pid)
            if info is not None:
                # The same object, if it is the same process still: less to keep, and judged.
                known[pid] = info = old if info == old and old is not None else info
                if not info.kernel:
                    judged = info is old and pid in self.verdicts
                    verdicts[pid] = self.verdicts[pid] if judged else self._judge(info)
            spent += time.thread_time() - began
            yield
            began = time.thread_time()
        infos: dict[int, ProcInfo] = {}
        for pid in verdicts:
            infos[pid] = known[pid]
            yield
        children: dict[int, list[int]] = {}
        for pid, info in infos.items():
            parent = info.ppid if info.ppid in infos and info.ppid != pid else 0
            children.setdefault(parent, []).append(pid)
            yield
        self._known, self._young = known, young
        self.infos, self.verdicts, self.children = infos, verdicts, children
        self.complete = True
        self._due = time.monotonic() + max(LEAST_S, PACE * spent)
