"""Where the names of settings hold: a name means something else in another container.

Interface 2 of one network namespace is not that of another, and a cgroup's
path is below what is mounted: both are looked up below a folder (the root of
a kind), whose device and inode say which namespace it shows. sysfs has one
superblock for each network namespace (kernfs_get_tree in fs/kernfs/mount.c),
cgroup v2 one for the machine and an inode for the cgroup at its mount's root.
A hold keeps them (``view``), so that nobody restores another's setting.

What cannot be looked up has not ended: ``check`` and ``missing`` raise, and
the hold is kept. The guardian imports this module: it stays small.
"""

from __future__ import annotations

import os

from agenttop.linux.cgroup_mounts import proc_root
from agenttop.policies.knobs.base import KnobError, sys_root
from agenttop.policies.knobs.cgroup import mount
from agenttop.policies.knobs.files import NETDEV

#: Kind -> cgroup's version and controller.
_CGROUPS = {
    "cgroup": (2, ""),
    "cpu1": (1, "cpu"),
    "cpu2": (2, "cpu"),
    "cpuset1": (1, "cpuset"),
    "cpuset2": (2, "cpuset"),
}
#: Kind -> the folder in which its targets are, those of /sys and those of /proc.
_SYS = {
    "netdev": "class/net",
    "blockdev": "dev/block",
    "pm_qos": "devices/system/cpu",
    "cpufreq": "devices/system/cpu",
}
_PROC = {"irq_affinity": "irq", "sysctl": "sys"}
#: Those whose names mean something else in another namespace.
_VIEWS = {"netdev", *_CGROUPS}


def _root(kind: str) -> str | None:
    """The folder in which targets of this kind are; None if it is mounted nowhere."""
    if kind in _CGROUPS:
        return mount(*_CGROUPS[kind])
    if kind in _SYS:
        return f"{sys_root()}/{_SYS[kind]}"
    if kind in _PROC:
        return f"{proc_root()}/{_PROC[kind]}"
    return "/proc/self/task"  # Threads, and what has no file.


def view(kind: str) -> str:
    """Which namespace names of this kind are of, here and now; "" if it is the machine's."""
    if kind not in _VIEWS:
        return ""
    try:
        info = os.stat(_root(kind) or "")
    except OSError:
        return ""
    return f"{os.major(info.st_dev)}:{os.minor(info.st_dev)}/{info.st_ino}"


def check(kind: str, place: str) -> None:
    """Raises KnobError unless names of this kind mean what they meant in ``place``."""
    root = _root(kind)
    if root is None:
        raise KnobError("cgroups are not mounted here: mount them and restore again")
    if not os.path.isdir(root):
        raise KnobError(f"{root} is missing here: mount it and restore again")
    if place and place != view(kind):
        what = "network namespace" if kind == "netdev" else "cgroup namespace or mount"
        raise KnobError(f"set in another {what} than this one: restore it there")


def missing(kind: str, target: str) -> None:
    """For one that is not found: raises KnobError unless that means that it has ended."""
    if kind == "netdev" and NETDEV.path(target) is None:
        raise KnobError("no such interface here: removed, or moved to another network namespace")
    if kind == "sysctl":
        raise KnobError("not to be seen from here: restore from the host's namespaces")
