"""The cgroups (v2) of agents, for what can only be set by cgroup.

An agent has cgroups of its own when every process in them is its own; one
that others live in too (a login session, a container with more in it) is
left alone: what is set there would be theirs as well.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from agenttop.linux import paths, process
from agenttop.linux.cgroup_mounts import cgroup2_mount
from agenttop.policies.base import Agent, Targets


class Groups(NamedTuple):
    """Cgroups by their path below the mount, without a leading slash."""

    #: Path -> an agent that lives there; all others there are agents' too.
    own: dict[str, Agent]
    #: Path -> processes in it that are no agent's.
    shared: dict[str, int]


def why_not(controller: str) -> str | None:
    """Why a controller cannot be had through cgroup v2 here; None if it can."""
    mount = cgroup2_mount()
    if mount is None:
        return "cgroup v2 is not mounted"
    raw = process.read_whole(f"{mount}/cgroup.controllers") or b""
    if controller not in raw.decode(errors="replace").split():
        there = raw.decode(errors="replace").strip() or "none"
        return f"cgroup v2 does not have the {controller} controller here (it has: {there})"
    return None


def groups(targets: Targets) -> Groups:
    """The agents' cgroups, own and shared."""
    found = Groups({}, {})
    mount = cgroup2_mount()
    if mount is None:
        return found
    agents = {pid for agent in targets.agents for pid in agent.pids}
    for agent in targets.agents:
        for path in dict.fromkeys(map(group_of, agent.pids)):
            if not path or path in found.own or path in found.shared:
                continue
            others = members(f"{mount}/{path}") - agents
            if others:
                found.shared[path] = len(others)
            else:
                found.own[path] = agent
    return found


def group_of(pid: int) -> str:
    """The path of a process's cgroup; "" for the root, or if it has ended."""
    raw = process.read_whole(f"{paths.proc()}/{pid}/cgroup") or b""
    for line in raw.splitlines():
        if line.startswith(b"0::/"):
            path = line[4:].decode(errors="surrogateescape")
            # Another cgroup namespace's is not below our mount.
            return "" if path.startswith("..") or path.endswith(" (deleted)") else path
    return ""


def members(folder: str, most: int = 1 << 22) -> set[int]:
    """The processes in a cgroup and in those below it; no more are read beyond ``most``."""
    pids: set[int] = set()
    for number, (base, _, files) in enumerate(os.walk(folder)):
        if len(pids) > most or number > most:
            break
        if "cgroup.procs" in files:
            raw = process.read_whole(f"{base}/cgroup.procs") or b""
            pids.update(int(word) for word in raw.split() if word.isdigit())
    return pids
