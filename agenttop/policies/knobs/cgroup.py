"""Knobs that are files of a cgroup's cpu and cpuset controllers, in cgroup v1 and v2.

======================= ================== =============================================
kind                    target             value
======================= ================== =============================================
``cpu1``, ``cpu2``      ``attribute/path`` number; ``cpu.idle``: ``1``, or ``0 WEIGHT``
``cpuset1``, ``cpuset2`` ``path``          CPU list; v2: ``""`` for those of its parent
======================= ================== =============================================

The digit is cgroup's version, ``path`` is below the controller's mount and
never the root. The guardian imports this module with base.py: it stays small.
"""

from __future__ import annotations

import os
import re

from agenttop.linux import whole_file
from agenttop.linux.cgroup_mounts import cgroup2_mount, cgroup_mounts
from agenttop.policies.knobs.base import Knob, cpu_set, parse_cpus, reason
from agenttop.policies.knobs.files import FileKnob

_CPU_LIST = re.compile(r"\d{1,5}(-\d{1,5})?(,\d{1,5}(-\d{1,5})?)*", re.A)
#: Version -> the file of a group's weight, its smallest and largest value and the kernel's default
#: (Documentation/scheduler/sched-design-CFS.rst, admin-guide/cgroup-v2.rst).
WEIGHTS = {1: ("cpu.shares", 2, 1 << 18, 1024), 2: ("cpu.weight", 1, 10_000, 100)}


def mount(version: int, controller: str) -> str | None:
    """Where a controller of cgroup v1 is mounted, or cgroup v2 (/proc/mounts); None if not."""
    if version == 2:
        return cgroup2_mount()
    return next(
        (
            where
            for where, kind, options in cgroup_mounts()
            if kind == "cgroup" and controller in options
        ),
        None,
    )


def valid_path(path: str) -> bool:
    """Whether it names a cgroup below the root, and nothing else."""
    parts = path.split("/")
    return len(path) < 4096 and "\0" not in path and not any(p in ("", ".", "..") for p in parts)


class Cpu(FileKnob):
    """How much a cgroup counts: ``cpu.shares`` (v1), ``cpu.weight`` (v2), ``cpu.idle`` (both).

    With cpu.idle a group is to others what SCHED_IDLE is among threads. The
    kernel forgets the group's weight when it is set, and takes its own
    default when it is set back (sched_group_set_idle in
    kernel/sched/fair.c): so the weight is a part of the value.
    """

    def __init__(self, version: int) -> None:
        self._version = version
        self._weight, self._least, self._most, self._default = WEIGHTS[version]

    def valid(self, target: str, value: str) -> bool:
        attribute, _, path = target.partition("/")
        if not valid_path(path):
            return False
        if attribute == "cpu.idle":
            return value == "1" or (value.startswith("0 ") and self._is_weight(value[2:]))
        return attribute == self._weight and self._is_weight(value)

    def _is_weight(self, text: str) -> bool:
        return bool(re.fullmatch(r"\d{1,6}", text, re.A)) and (
            self._least <= int(text) <= self._most
        )

    def path(self, target: str) -> str | None:
        root = mount(self._version, "cpu")
        attribute, _, path = target.partition("/")
        return root and f"{root}/{path}/{attribute}"

    def label(self, target: str) -> str:
        with_weight = f" (with {self._weight})" if target.startswith("cpu.idle/") else ""
        return super().label(target) + with_weight

    def read(self, target: str) -> str | None:
        value = super().read(target)
        attribute, _, path = target.partition("/")
        if attribute == "cpu.idle" and value == "0":
            weight = super().read(f"{self._weight}/{path}")
            return None if weight is None else f"0 {weight}"
        return value

    def write(self, target: str, value: str) -> None:
        attribute, _, path = target.partition("/")
        idle, _, weight = value.partition(" ")
        super().write(target, idle)
        if attribute == "cpu.idle" and weight:
            super().write(f"{self._weight}/{path}", weight)

    def ours(self, current: str, written: str) -> bool:
        # After cpu.idle 1 the default weight is never anybody's choice, but the kernel's when
        # the group was set back (by us, half way, too): its own weight is still to be restored.
        reset = written == "1" and current == f"0 {self._default}"
        return current == written or reset

    def drift(self, target: str, written: str, thorough: bool = True) -> str | None:
        now = super().drift(target, written, thorough)
        if now is None and written == "1" and self.read(target) == f"0 {self._default}":
            return f"0 {self._default}"
        return now

    def why(self, target: str, error: OSError) -> str:
        if error.errno == 22 and not target.startswith("cpu.idle"):  # EINVAL
            return "the kernel takes no weight for a cgroup that is idle (cpu.idle)"
        return reason(error)


class CpuSet(FileKnob):
    """``cpuset.cpus`` of a cgroup (admin-guide/cgroup-v1/cpusets.rst, cgroup-v2.rst).

    Each write gives every task of the group the group's CPUs. Kernels from
    6.2 on keep what a task had asked for with sched_setaffinity(2) and honour
    it as far as the group allows; older ones forget it (chosen_cgroups.py).
    """

    def __init__(self, version: int) -> None:
        self._version = version

    def valid(self, target: str, value: str) -> bool:
        if not valid_path(target) or len(value) >= 4096:
            return False
        if not value:
            return self._version == 2
        return bool(_CPU_LIST.fullmatch(value)) and all(
            int(n) < 1 << 16 for n in re.split("[,-]", value)
        )

    def path(self, target: str) -> str | None:
        root = mount(self._version, "cpuset")
        return root and f"{root}/{target}/cpuset.cpus"

    def format(self, target: str, value: str) -> str:
        return value or "\n"  # Writing nothing at all would be no write.

    def same(self, a: str, b: str) -> bool:
        return _cpus(a) == _cpus(b)

    def ours(self, current: str, written: str) -> bool:
        # v1 takes CPUs that go offline out of the file.
        return self.same(current, written) or (
            self._version == 1 and _cpus(current) == _cpus(written) & cpu_set("online")
        )

    def why(self, target: str, error: OSError) -> str:
        return {
            13: "a cgroup above or below it does not allow these CPUs",  # EACCES
            16: "a cgroup below it uses other CPUs",  # EBUSY
            22: "a cgroup above it lacks these CPUs, or one beside it has them for itself",
            28: "it would have no CPU for the tasks in it",  # ENOSPC
        }.get(error.errno or 0, reason(error))

    def effective(self, folder: str) -> frozenset[int]:
        """The CPUs that tasks of a group may have; empty if that cannot be told."""
        name = "cpuset.effective_cpus" if self._version == 1 else "cpuset.cpus.effective"
        try:
            return _cpus(whole_file.read(os.path.join(folder, name)).decode(errors="replace"))
        except OSError:
            return frozenset()


def _cpus(text: str) -> frozenset[int]:
    try:
        return parse_cpus(text)
    except ValueError:
        return frozenset()


CPU = {1: Cpu(1), 2: Cpu(2)}
CPUSET = {1: CpuSet(1), 2: CpuSet(2)}

CGROUP_KNOBS: dict[str, Knob] = {
    **{f"cpu{version}": knob for version, knob in CPU.items()},
    **{f"cpuset{version}": knob for version, knob in CPUSET.items()},
}
