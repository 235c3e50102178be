"""Processes that somebody has chosen by patterns, with what they start: background work.

Never an agent's process, a kernel thread, process 1 or agenttop's own,
whatever the patterns say.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from agenttop.agents.own_processes import is_own
from agenttop.agents.patterns import Pattern
from agenttop.agents.program_names import Program, programs
from agenttop.linux import process
from agenttop.linux.process import ProcInfo
from agenttop.linux.process_table import ProcessTable
from agenttop.linux.slices import Job, whole
from agenttop.policies.base import Targets
from agenttop.policies.knobs.base import thread_stat

#: Known processes are read again at one look in so many (an exec changes them).
TURNS: Final = 10


class Chosen:
    """The processes that match. Raises UserError for what is no pattern."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._patterns = [Pattern.parse(text) for text in patterns]
        kinds = {pattern.kind for pattern in self._patterns}
        uid, cgroups = "user" in kinds, "cgroup" in kinds
        self._table = ProcessTable(
            lambda pid: process.read(pid, uid=uid, cgroups=cgroups), self._matches, TURNS
        )
        self._looked_for = False

    def __bool__(self) -> bool:
        return bool(self._patterns)

    def look(self) -> Job:
        """Read the processes, in pieces. Who calls this does so again and again.

        Without it ``find`` reads them all itself.
        """
        self._looked_for = True
        if self._patterns and (self._table.due or not self._table.complete):
            yield from self._table.look()

    def find(self, targets: Targets) -> list[ProcInfo]:
        """Those that run now, and their descendants."""
        if not self._looked_for:
            whole(self._table.look())
        spared = {pid for agent in targets.agents for pid in agent.pids}
        spared.update(thread.pid for agent in targets.agents for thread in agent.threads)
        infos, children = self._table.infos, self._table.children
        queue = [pid for pid, matches in self._table.verdicts.items() if matches]
        found: dict[int, ProcInfo] = {}
        while queue:
            pid = queue.pop()
            if pid in found or pid in spared or pid <= 2 or pid not in infos:
                continue
            info = infos[pid]
            # Without a command line: a zombie.
            if not info.cmdline or is_own(info):
                continue
            stat = thread_stat(pid, pid)
            if stat is None or stat.start != info.starttime:
                # It has ended, or is another process by now: the next look reads who it is.
                continue
            found[pid] = info
            queue += children.get(pid, ())
        return list(found.values())

    def _matches(self, info: ProcInfo) -> bool:
        return any(pattern.matches(info, lambda: _names(info)) for pattern in self._patterns)


def _names(info: ProcInfo) -> list[Program]:
    return programs(info.cmdline, info.comm)
