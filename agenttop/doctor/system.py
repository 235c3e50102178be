"""Kernel, machine, privileges, and kernel features that are no part of BPF."""

from __future__ import annotations

import os
import platform
import re
from typing import Final

from agenttop.doctor.report import Item, Status
from agenttop.linux import paths
from agenttop.linux.cgroup_mounts import cgroup_mounts
from agenttop.linux.files import read_text
from agenttop.linux.process import printable, read_file, read_whole
from agenttop.policies.guardian import machine

#: include/uapi/linux/capability.h
CAPABILITIES: Final = {
    "CAP_SYS_ADMIN": 21,
    "CAP_SYS_NICE": 23,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
}

#: Policies are made for kernels from this one on.
OLDEST: Final = (5, 15)


def items() -> list[Item]:
    """All of them, in the order in which they are shown."""
    return [
        _kernel(),
        _privileges(),
        _schedstat(),
        _psi(),
        _cgroup(),
        _uclamp(),
        _writer(),
        _io_uring(),
    ]


def capabilities() -> frozenset[str]:
    """Those of CAPABILITIES that this process has (CapEff of /proc/self/status)."""
    raw = read_whole(f"{paths.proc()}/self/status") or b""
    at = raw.find(b"\nCapEff:")
    try:
        mask = int(raw[at + 8 :].split(None, 1)[0], 16) if at >= 0 else 0
    except (IndexError, ValueError):
        mask = 0
    return frozenset(name for name, bit in CAPABILITIES.items() if mask >> bit & 1)


def _kernel() -> Item:
    arch = platform.machine()
    known = arch == "x86_64"
    release = printable(read_text(f"{paths.proc()}/sys/kernel/osrelease") or "?")
    version = re.match(r"(\d{1,4})\.(\d{1,4})", release, re.A)
    old = version is not None and (int(version[1]), int(version[2])) < OLDEST
    notes = "" if known else ": the programs know x86_64 only"
    notes += f": untested, {OLDEST[0]}.{OLDEST[1]} is the oldest that is" if old else ""
    return Item(
        key="kernel",
        group="system",
        title="kernel and machine",
        status="missing" if not known else "limited" if old else "ok",
        detail=f"Linux {release}, {arch}{notes}",
        lost=None if known else "step chains",
        needed=True,
    )


def _privileges() -> Item:
    have = capabilities()
    admin = "CAP_SYS_ADMIN" in have
    tracing = admin or {"CAP_BPF", "CAP_PERFMON"} <= have
    root = os.geteuid() == 0
    shown = ", ".join(name for name in CAPABILITIES if name in have)
    status: Status
    lost: str | None = None
    if root and admin:
        status, detail = "ok", "root"
    elif tracing:
        status = "limited"
        detail = f"{'root' if root else 'not root'}, but {shown}"
        lost = "BPF run time, policies" if not admin else "policies"
    else:
        status = "missing"
        detail = "root without CAP_BPF and CAP_PERFMON (a container?)" if root else "not root"
        lost = "step chains, policies"
    return Item(
        key="privileges",
        group="system",
        title="privileges",
        status=status,
        detail=detail,
        lost=lost,
        remedy=None if status == "ok" else "give CAP_SYS_ADMIN" if root else "run as root",
        needed=True,
    )


def _schedstat() -> Item:
    there = read_text(f"{paths.proc()}/self/schedstat") is not None
    return Item(
        key="schedstat",
        group="kernel",
        title="schedstat",
        status="ok" if there else "missing",
        detail="/proc/PID/schedstat" if there else "no /proc/PID/schedstat (CONFIG_SCHED_INFO)",
        lost=None if there else "run-queue delay and CPU time of agents, ksoftirqd",
    )


def _psi() -> Item:
    path = f"{paths.proc()}/pressure/cpu"
    raw = read_file(path, 256)
    if raw:
        return Item(key="psi", group="kernel", title="pressure (PSI)", status="ok", detail=path)
    off = os.path.exists(path)
    return Item(
        key="psi",
        group="kernel",
        title="pressure (PSI)",
        status="missing",
        detail="switched off" if off else "not in this kernel (CONFIG_PSI)",
        lost="pressure figures",
        remedy="boot with psi=1" if off else None,
    )


def _cgroup() -> Item:
    mounts = list(cgroup_mounts())
    v2 = [mount for mount, kind, _ in mounts if kind == "cgroup2"]
    v1 = [mount for mount, kind, _ in mounts if kind == "cgroup"]
    if not mounts:
        return Item(
            key="cgroup",
            group="kernel",
            title="cgroups",
            status="missing",
            detail="none mounted",
            lost="agents by cgroup",
        )
    if v2:
        controllers = read_text(f"{v2[0]}/cgroup.controllers") or "no controllers"
        detail = f"v2 at {v2[0]} ({controllers})" + (f", v1 with {len(v1)} mounts" if v1 else "")
    else:
        detail = f"v1 only, {len(v1)} mounts"
    return Item(
        key="cgroup",
        group="kernel",
        title="cgroups",
        status="limited" if v1 else "ok",
        detail=printable(detail, 120),
        lost="policies on v2 controllers that v1 holds" if v1 else None,
    )


def _uclamp() -> Item:
    value = read_text(f"{paths.proc()}/sys/kernel/sched_util_clamp_min")
    there = value is not None
    return Item(
        key="uclamp",
        group="policies",
        title="uclamp",
        status="ok" if there else "missing",
        detail=f"sched_util_clamp_min {printable(value or '')}"
        if there
        else "no CONFIG_UCLAMP_TASK",
        lost=None if there else "frequency floors for agents' threads",
    )


def _writer() -> Item:
    refusal = machine.refusal()
    passing = machine.passing(str(paths.state()))
    return Item(
        key="writer",
        group="policies",
        title="writing, restoring",
        status="missing" if refusal else "limited" if passing else "ok",
        detail=refusal or passing or f"journal in {printable(str(paths.state()))}",
        lost="policies, agenttop restore" if refusal else None,
    )


def _io_uring() -> Item:
    value = read_text(f"{paths.proc()}/sys/kernel/io_uring_disabled")
    status: Status = {"1": "limited", "2": "missing"}.get(value or "0", "ok")  # type: ignore[assignment]
    return Item(
        key="io_uring",
        group="kernel",
        title="io_uring",
        status=status,
        detail={
            None: "allowed (no switch for it)",
            "0": "allowed",
            "1": "only for kernel.io_uring_group and CAP_SYS_ADMIN",
            "2": "switched off for all",
        }.get(value, f"kernel.io_uring_disabled {printable(value or '')}"),
        lost=None if status == "ok" else "source and gate io_uring (agents cannot use it)",
        remedy=None if status == "ok" else "sysctl kernel.io_uring_disabled=0",
    )
