"""Processes that somebody has chosen by patterns, with what they start: background work.

Never an agent's process, a kernel thread, process 1 or agenttop's own,
whatever the patterns say.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from agenttop import procinfo
from agenttop.agents import is_own
from agenttop.patterns import Pattern
from agenttop.policies.base import Targets
from agenttop.policies.knobs import thread_stat
from agenttop.procinfo import ProcInfo
from agenttop.programs import Program, programs

#: Every so many looks known processes are read again.
REREAD: Final = 10


class Chosen:
    """The processes that match. Raises UserError for what is no pattern."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._patterns = [Pattern.parse(text) for text in patterns]
        self._known: dict[int, ProcInfo] = {}
        self._looks = 0

    def __bool__(self) -> bool:
        return bool(self._patterns)

    def find(self, targets: Targets) -> list[ProcInfo]:
        """Those that run now, and their descendants."""
        spared = {pid for agent in targets.agents for pid in agent.pids}
        spared.update(thread.pid for agent in targets.agents for thread in agent.threads)
        infos = self._processes()
        children: dict[int, list[int]] = {}
        for info in infos.values():
            children.setdefault(info.ppid, []).append(info.pid)
        queue = [info.pid for info in infos.values() if self._matches(info)]
        found: dict[int, ProcInfo] = {}
        while queue:
            pid = queue.pop()
            if pid in found or pid in spared or pid <= 2 or pid not in infos:
                continue
            info = infos[pid]
            # Without a command line: a kernel thread, or a zombie.
            if not info.cmdline or is_own(_names(info)):
                continue
            stat = thread_stat(pid, pid)
            if stat is None or stat.start != info.starttime:
                # Another process by now: the next look reads who it is.
                del infos[pid]
                continue
            found[pid] = info
            queue += children.get(pid, ())
        return list(found.values())

    def _processes(self) -> dict[int, ProcInfo]:
        """All of them; known ones are read again only now and then (an exec changes them)."""
        self._looks += 1
        known = self._known if self._looks % REREAD else {}
        self._known = {
            pid: info
            for pid in procinfo.pids()
            if (info := known.get(pid) or procinfo.read(pid, uid=True, cgroups=True))
        }
        return self._known

    def _matches(self, info: ProcInfo) -> bool:
        return any(pattern.matches(info, lambda: _names(info)) for pattern in self._patterns)


def _names(info: ProcInfo) -> list[Program]:
    return programs(info.cmdline, info.comm)
