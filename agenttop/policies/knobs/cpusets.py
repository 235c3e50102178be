"""Whether a thread has CPUs of its own choice, or those that its cpuset allows.

The kernel keeps what a thread has asked for (kernel/sched/core.c,
user_cpus_ptr, since 6.2) and intersects it with its cpuset; one that never
asked follows its cpuset when that is widened. Nothing in /proc says which it
is, but a thread that has all CPUs of its cpuset has either not asked, or
asked for what makes no difference today. It is held with ``+`` behind its
CPU list: restored by asking for all possible CPUs, which follows the cpuset
as well.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from agenttop.policies.knobs.base import UNPINNED, Change, cpu_set, parse_cpus, split_thread
from agenttop.policies.knobs.cgroup import CPUSET, mount


def as_found(change: Change) -> Change:
    """The first change of an affinity, with what ``before`` says of the thread's own choice."""
    if change.kind != "affinity" or change.before.endswith(UNPINNED):
        return change
    try:
        pid, tid, _ = split_thread(change.target)
        cpus = parse_cpus(change.before)
        online = cpu_set("online")
        allowed = _allowed(pid, tid) & online
    except (OSError, ValueError):
        return change
    if not allowed or cpus & online != allowed:
        return change
    return change._replace(before=change.before + UNPINNED)


def granted(target: str, current: str, asked: Iterable[str]) -> bool:
    """Whether ``current`` is what a thread's cpuset leaves of CPUs that were ``asked`` for.

    When the cpuset changes, or the thread is moved to another, the kernel intersects the two, or
    takes all of the cpuset if that is empty (__set_cpus_allowed_ptr in kernel/sched/core.c); it
    keeps what was asked for, and a later change of the cpuset brings it back.
    """
    try:
        pid, tid, _ = split_thread(target)
        allowed = _allowed(pid, tid)
        left = {parse_cpus(value) & allowed or allowed for value in asked}
        return bool(allowed) and parse_cpus(current) in left
    except (OSError, ValueError):
        return False


def _allowed(pid: int, tid: int) -> frozenset[int]:
    """The CPUs that a thread's cpuset allows; empty if that cannot be told. Raises OSError."""
    with open(f"/proc/{pid}/task/{tid}/cpuset", "rb") as file:
        path = file.read(8192).removesuffix(b"\n")
    for version in (1, 2):
        root = mount(version, "cpuset")
        if root is None:
            continue
        if cpus := CPUSET[version].effective(root + os.fsdecode(path)):
            return cpus
    return frozenset()
