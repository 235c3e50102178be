"""Processes that somebody has chosen by patterns, for what is done to background work only.

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
from agenttop.procinfo import ProcInfo
from agenttop.programs import Program, programs

#: Every so many looks known processes are read again: an exec changes them.
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
        """Those that run now, by process id."""
        spared = {pid for agent in targets.agents for pid in agent.pids}
        spared.update(thread.pid for agent in targets.agents for thread in agent.threads)
        self._looks += 1
        known = self._known if self._looks % REREAD else {}
        self._known = {
            pid: info
            for pid in procinfo.pids()
            if (info := known.get(pid) or procinfo.read(pid, uid=True, cgroups=True))
        }
        return [
            info
            for pid, info in sorted(self._known.items())
            if pid > 1 and pid not in spared and not info.kernel and self._matches(info)
        ]

    def _matches(self, info: ProcInfo) -> bool:
        if not any(pattern.matches(info, lambda: _names(info)) for pattern in self._patterns):
            return False
        return not is_own(_names(info))


def _names(info: ProcInfo) -> list[Program]:
    return programs(info.cmdline, info.comm)
