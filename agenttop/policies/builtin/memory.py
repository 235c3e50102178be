"""memory: the agents' hot memory outlives the cold scans of others.

- Agents that have a cgroup (v2) of their own: what they use is protected
  from reclaim (``memory.low``: as long as there is anything else to reclaim;
  if asked for, a part of it always, ``memory.min``).
- Chosen processes that scan much memory once are told to be cold, some
  megabytes a second (MADV_COLD, see madvise_cold.py). That is an action and no
  setting: it is repeated while the policy is on, cannot be undone and need
  not be, since what is used again is hot again. Off unless processes are
  chosen.

Protection has no effect below a cgroup that is not protected itself; such
ones are named.

Knobs: memory.low and memory.min of cgroup v2
(Documentation/admin-guide/cgroup-v2.rst). The action: process_madvise(2).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Final

import msgspec

from agenttop.linux import paths, process
from agenttop.linux.cgroup_mounts import cgroup2_mount
from agenttop.linux.process import printable
from agenttop.policies.base import Key, Settings, Targets
from agenttop.policies.parts import agent_cgroups, madvise_cold
from agenttop.policies.parts.chosen_processes import Chosen
from agenttop.policies.parts.madvise_cold import Cooler
from agenttop.policies.setting_requests import Wishes

MB: Final = 1 << 20
#: What is protected is adapted when the use has grown by this, or fallen below that.
GROWN, FALLEN = 1.25, 0.5
HOW_TO_CHOOSE: Final = "no processes chosen: --set 'memory.processes=[\"comm:RE\"]'"


class Params(msgspec.Struct, frozen=True, kw_only=True):
    """What can be set."""

    #: What agents' own cgroups use is protected by memory.low.
    low: bool = True
    #: Part of it that is protected whatever happens (memory.min), percent. Mind the OOM killer.
    min_percent: Annotated[int, msgspec.Meta(ge=0, le=50)] = 0
    #: All protection together, percent of the machine's memory.
    most_percent: Annotated[int, msgspec.Meta(ge=1, le=80)] = 50
    #: Patterns (as of --agent) of processes whose memory is told to be cold.
    processes: Annotated[list[str], msgspec.Meta(max_length=64)] = []
    #: How much of their address space, MB per second, all together.
    cold_mb: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 64


class Memory:
    """The policy."""

    name = "memory"
    key = "y"
    title = "agents' memory resists cold scans"

    def __init__(self, params: Params | None = None) -> None:
        """Raises UserError for what is no pattern."""
        self._params = params or Params()
        self._scanners = Chosen(self._params.processes)
        self.reset()

    def reset(self) -> None:
        #: cgroup -> bytes that are protected.
        self._protected: dict[str, int] = {}
        self._words: dict[int, str] = {}
        self._detail = ""
        #: (process, start) -> where it was left off.
        self._coolers: dict[tuple[int, int], Cooler] = {}
        self._cooled = 0
        self._cold: list[str] = []
        self._cold_error = ""

    def probe(self) -> str | None:
        if os.geteuid() != 0:
            return "needs root"
        why_no_low = agent_cgroups.why_not("memory") if self._params.low else "low is off"
        why_no_cold = madvise_cold.available() if self._scanners else HOW_TO_CHOOSE
        return f"{why_no_low}; {why_no_cold}" if why_no_low and why_no_cold else None

    # ----------------------------------------------------------------- protection

    def wanted(self, targets: Targets, held: Mapping[Key, str]) -> Settings:
        wishes = Wishes(held)
        parts = []
        self._words = {}
        if self._params.low:
            if reason := agent_cgroups.why_not("memory"):
                parts.append(f"no memory.low: {reason}")
            else:
                parts.append(self._protect(targets, held, wishes))
        self._detail = "; ".join(parts + wishes.left_text())
        return wishes.settings

    def _protect(self, targets: Targets, held: Mapping[Key, str], wishes: Wishes) -> str:
        mount = cgroup2_mount()
        own, shared = agent_cgroups.groups(targets)
        used = {path: _number(f"{mount}/{path}/memory.current") for path in own}
        self._protected = {p: n for p, n in self._protected.items() if p in own}
        for path, now in used.items():
            before = self._protected.get(path, 0)
            if now is None:
                wishes.left.append(f"{printable(path, 64)}: has no memory controller")
            elif now > before * GROWN or now < before * FALLEN:
                self._protected[path] = -(-now // MB) * MB
        most = _memory_total() * self._params.most_percent // 100
        total = sum(self._protected.values())
        scale = min(1.0, most / total) if total else 1.0
        loose: list[str] = []
        for path, size in self._protected.items():
            low = int(size * scale) // MB * MB
            hard = low * self._params.min_percent // 100 // MB * MB
            for file, value in (("memory.low", low), ("memory.min", hard)):
                if value:
                    _raise(file, path, value, held, wishes)
            self._words[own[path].id] = f"low {low // MB}M"
            loose += [p for p in _unprotected_above(f"{mount}", path, low) if p not in loose]
        text = f"{len(own)} cgroups of agents, {int(total * scale) // MB} MB"
        if scale < 1.0:
            text += f" (bounded by {self._params.most_percent}% of the machine's memory)"
        if shared:
            text += f"; {len(shared)} shared with other processes left alone"
        if loose:
            text += f"; little effect below {', '.join(printable(p, 64) for p in loose[:3])}"
            text += ", which is not protected itself"
        return text

    # ----------------------------------------------------------------- the action

    def act(self, targets: Targets) -> None:
        """Tell the scanners' memory to be cold, as much as is due in one second."""
        if not self._scanners:
            return
        found = {}
        for info in self._scanners.find(targets):
            found[info.pid, info.starttime] = info.comm
        self._coolers = {key: self._coolers.get(key) or Cooler(*key) for key in found}
        self._cold = sorted(set(found.values()))
        self._cold_error = ""
        for cooler in self._coolers.values():
            try:
                self._cooled += cooler.cool(self._params.cold_mb * MB // len(found))
            except OSError as error:
                self._cold_error = error.strerror or str(error)

    # ----------------------------------------------------------------- on screen

    def detail(self) -> str:
        parts = [self._detail] if self._detail else []
        if self._scanners:
            names = ", ".join(printable(comm, 32) for comm in self._cold[:4])
            text = f"told to be cold (cannot be undone): {self._cooled // MB} MB"
            parts.append(f"{text} of {names}" if names else "none of the chosen processes runs")
            if self._cold_error:
                parts.append(f"MADV_COLD: {self._cold_error}")
        return "; ".join(parts)

    def agents(self) -> dict[int, str]:
        return self._words


def _raise(file: str, path: str, value: int, held: Mapping[Key, str], wishes: Wishes) -> None:
    """Protect as much, unless somebody else protects more already."""
    target = f"{file}/{path}"
    if ("cgroup", target) not in held:
        current = _number(f"{cgroup2_mount()}/{path}/{file}")
        if current is not None and current >= value:
            wishes.left.append(f"{printable(path, 64)}: {file} is as high already")
            return
    wishes.set("cgroup", target, str(value))


def _unprotected_above(mount: str, path: str, low: int) -> list[str]:
    """The cgroups above it that are protected less, and so bound its protection."""
    above = path.split("/")[:-1]
    folders = ["/".join(above[:n]) for n in range(1, len(above) + 1)]
    return [f for f in folders if (_number(f"{mount}/{f}/memory.low") or 0) < low]


def _number(path: str) -> int | None:
    """Bytes, as a file of the memory controller tells them; None without the file."""
    raw = (process.read_file(path, 64) or b"").strip()
    if raw == b"max":
        return 1 << 63
    return int(raw) if raw.isdigit() else None


def _memory_total() -> int:
    """MemTotal of /proc/meminfo, bytes."""
    for line in (process.read_whole(f"{paths.proc()}/meminfo") or b"").splitlines():
        if line.startswith(b"MemTotal:"):
            return int(line.split()[1]) * 1024
    return 0
