"""Cgroups that somebody has chosen by their paths: background work.

Never the root, nor one that holds (or has below it) an agent's process, a
kernel thread, process 1 or agenttop's own, whatever was chosen.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterable
from typing import Final, NamedTuple

from agenttop.agents.own_processes import is_own
from agenttop.errors import UserError
from agenttop.linux import paths, process
from agenttop.linux.process import printable
from agenttop.policies.base import Targets
from agenttop.policies.knobs.cgroup import CPUSET, mount, valid_path
from agenttop.policies.parts import agent_cgroups

#: At one look in so many a process that was found to be harmless is read again.
REREAD: Final = 10
#: Processes in a group at most; and read at one look, some 10 ms.
MOST: Final = 2048
AT_ONCE: Final = 256


class Group(NamedTuple):
    """A cgroup in the hierarchy that has the controller which is asked for."""

    #: Below the mount.
    path: str
    #: cgroup's version.
    version: int
    folder: str
    #: All processes in it and below it.
    pids: frozenset[int]


class ChosenGroups:
    """The cgroups of these paths, below the mount. Raises UserError for what is no such path."""

    def __init__(self, chosen: Iterable[str]) -> None:
        self._paths = list(dict.fromkeys(text.strip("/") for text in chosen))
        for path in self._paths:
            if not path:
                raise UserError("demote.groups: '/' is the root cgroup, which everybody is in")
            if not valid_path(path):
                raise UserError(
                    f"demote.groups: '{printable(path, 80)}' is no path of a cgroup below its mount"
                )
        self._harmless: set[int] = set()
        #: Groups whose processes have all been read once.
        self._read: set[str] = set()
        self._looks = 0

    def __bool__(self) -> bool:
        return bool(self._paths)

    def find(self, controller: str, targets: Targets, left: list[str]) -> list[Group]:
        """Those that there are and that may be touched; the others go to ``left``, with why."""
        self._looks += 1
        turn = self._looks % REREAD
        self._harmless = {pid for pid in self._harmless if pid % REREAD != turn}
        found = where(controller)
        if isinstance(found, str):
            left.append(found)
            return []
        version, root = found
        agents = {pid: agent.name for agent in targets.agents for pid in agent.pids}
        agents.update((t.pid, agent.name) for agent in targets.agents for t in agent.threads)
        groups = []
        for path in self._paths:
            folder = f"{root}/{path}"
            if not os.path.isdir(folder):
                left.append(f"no cgroup {printable(path, 64)} in {root}")
                continue
            kind = (process.read_file(f"{folder}/cgroup.type", 64) or b"").strip()
            if kind.startswith(b"threaded"):
                # Its cgroup.procs cannot be read: nobody could tell an agent in it.
                left.append(f"cgroup {printable(path, 64)} refused: it is threaded (cgroup.type)")
                continue
            pids = agent_cgroups.members(folder, MOST)
            if reason := self._refuses(path, pids, agents):
                left.append(f"cgroup {printable(path, 64)} refused: {reason}")
            else:
                groups.append(Group(path, version, folder, frozenset(pids)))
        return groups

    def _refuses(self, path: str, pids: set[int], agents: dict[int, str]) -> str | None:
        """Why a group of these processes is not touched."""
        if len(pids) > MOST:
            return f"more than {MOST} processes are in it"
        for pid in sorted(pids):
            if pid in agents:
                return f"the agent {printable(agents[pid], 32)} is in it"
            if pid == os.getpid():
                return "agenttop itself is in it"
            if pid in (1, 2):
                return f"process {pid} is in it"
        unread = pids - self._harmless
        for pid in itertools.islice(unread, AT_ONCE):
            info = process.read(pid)
            if info is None:
                continue
            if info.ppid == 2:
                return f"the kernel thread {printable(info.comm, 32)} is in it"
            if is_own(info):
                return "agenttop itself is in it"
            self._harmless.add(pid)
        # Of one that is held, those that come in numbers are read one look later.
        if len(unread) > AT_ONCE and path not in self._read:
            return "its processes are being read"
        self._read.add(path)
        return None


def where(controller: str) -> tuple[int, str] | str:
    """(version, mount) of a controller of cgroups, or why there is none."""
    reason = agent_cgroups.why_not(controller)
    version = 2 if reason is None else 1
    root = mount(version, controller)
    return (version, root) if root else f"{reason}, and cgroup v1 has none mounted"


# --------------------------------------------------------------------------- pinned threads


@functools.cache
def keeps_pins(btf: str) -> bool:
    """Whether the kernel keeps what a thread asked for by sched_setaffinity(2) when its cpuset
    changes: since 6.2 (``Always preserve the user requested cpumask``), which came with the type
    ``struct affinity_context`` (kernel/sched/sched.h), told by the kernel's BTF."""
    try:
        with open(btf, "rb") as file:
            return b"\0affinity_context\0" in file.read()
    except OSError:
        return False


def pinned(group: Group) -> str | None:
    """A thread whose own choice of CPUs a write to the group's cpuset would lose; None if none."""
    if keeps_pins(f"{paths.sys()}/kernel/btf/vmlinux"):
        return None
    for folder, _, files in os.walk(group.folder):
        if "cgroup.procs" not in files:
            continue
        allowed = CPUSET[group.version].effective(folder)
        raw = process.read_whole(f"{folder}/cgroup.procs") or b""
        for pid in map(int, raw.split()):
            for tid in threads_of(pid):
                try:
                    own = os.sched_getaffinity(tid)
                except OSError:
                    continue
                if own != allowed:
                    return f"thread {tid}"
    return None


def threads_of(pid: int) -> list[int]:
    """The ids of a process's threads; none if it has ended."""
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return []
