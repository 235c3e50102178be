"""Knobs that are files of /proc, /sys and cgroup v2.

================ ========================= ==========================================
kind             target                    value
================ ========================= ==========================================
``irq_affinity`` IRQ number                CPU list, ``0-3,8``
``kthread``      ``PID/TID/START``         CPU list, of a kernel thread (napi/...)
``sysctl``       name in SYSCTLS           number
``netdev``       ``IFINDEX/attribute``     text of the file under /sys/class/net/NAME
``blockdev``     ``MAJOR:MINOR/attribute`` text of the file under /sys/block/NAME/queue
``cgroup``       ``attribute/path``        text; ``path`` below the mount of cgroup v2
================ ========================= ==========================================

Devices are named by their numbers: a device that has been renamed is found
again, and another one that got its name is not taken for it.

The guardian imports this module with base.py: it stays as small.
"""

from __future__ import annotations

import os
import re

from agenttop.linux import whole_file
from agenttop.linux.cgroup_mounts import cgroup2_mount, proc_root
from agenttop.policies.knobs.base import (
    Affinity,
    Knob,
    KnobError,
    cpu_set,
    parse_cpus,
    reason,
    split_thread,
    sys_root,
    thread_stat,
)

#: The longest file that is read.
_MAX = 1 << 16
_CPU_LIST = re.compile(r"\d{1,5}(-\d{1,5})?(,\d{1,5}(-\d{1,5})?)*", re.A)
#: A bit mask of CPUs as Documentation/networking/scaling.rst has it, ``ff,ffffffff``.
_MASK = r"[0-9a-f]{1,8}(,[0-9a-f]{8}){0,255}"


def _shown(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)[:64]


class FileKnob(Knob):
    """A setting that is one file, written and read as text."""

    def valid(self, target: str, value: str) -> bool:
        raise NotImplementedError

    def path(self, target: str) -> str | None:
        """The file; None when the target has gone."""
        raise NotImplementedError

    def label(self, target: str) -> str:
        return _shown_path(self.path(target) or target)

    def read(self, target: str) -> str | None:
        path = self.path(target)
        if path is None:
            return None
        try:
            return self.parse(target, whole_file.read(path, _MAX).decode(errors="replace").strip())
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == 19:  # ENODEV: the device went while its file was open.
                return None
            raise KnobError(reason(error)) from None

    def write(self, target: str, value: str) -> None:
        path = self.path(target)
        if path is None:
            return
        try:
            # No O_CREAT: in a fixture tree as in sysfs the file is there or is not.
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_TRUNC)
            try:
                os.write(fd, self.format(target, value).encode())
            finally:
                os.close(fd)
        except OSError as error:
            raise KnobError(self.why(target, error)) from None

    def parse(self, target: str, text: str) -> str:
        """What the file says, as a value."""
        return text

    def format(self, target: str, value: str) -> str:
        """The value as the file wants it."""
        return value

    def why(self, target: str, error: OSError) -> str:
        """What a refused write means."""
        return reason(error)

    def same(self, a: str, b: str) -> bool:
        return a == b

    def ours(self, current: str, written: str) -> bool:
        return self.same(current, written)

    def drift(self, target: str, written: str, thorough: bool = True) -> str | None:
        try:
            current = self.read(target)
        except KnobError:
            return None  # It cannot be told: no reason to speak of somebody else.
        return "" if current is None else None if self.ours(current, written) else current


def _shown_path(path: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in path)[:256]


# --------------------------------------------------------------------------- interrupts


class IrqAffinity(FileKnob):
    """/proc/irq/N/smp_affinity_list (Documentation/core-api/irq/irq-affinity.rst).

    Lines whose queues the kernel spreads itself, and per-CPU ones, refuse
    (EPERM, EIO on older kernels; the file is then read-only since 6.12). The
    file tells the wish at once; effective_affinity_list follows, for some
    controllers only at the next interrupt.
    """

    def valid(self, target: str, value: str) -> bool:
        return bool(
            re.fullmatch(r"\d{1,7}", target, re.A)
            and len(value) < 4096
            and _CPU_LIST.fullmatch(value)
            and all(int(n) < 1 << 16 for n in re.split("[,-]", value))
        )

    def path(self, target: str) -> str:
        return f"{proc_root()}/irq/{target}/smp_affinity_list"

    def label(self, target: str) -> str:
        return f"affinity of IRQ {irq_label(target)}"

    def why(self, target: str, error: OSError) -> str:
        if error.errno in (1, 5):  # EPERM, EIO
            return "the kernel does not let it be moved"
        if error.errno == 28:  # ENOSPC
            return "no interrupt vector is free on these CPUs"
        if error.errno == 22:  # EINVAL
            return "none of these CPUs can take it"
        return reason(error)

    def same(self, a: str, b: str) -> bool:
        return _cpus(a) == _cpus(b)

    def ours(self, current: str, written: str) -> bool:
        # With its last CPU offline the kernel itself widens a line's mask.
        return self.same(current, written) or not _cpus(written) & cpu_set("online")


def irq_label(irq: str) -> str:
    """``36 (virtio1-req.0)``: the number, and the devices as /proc/irq/N has them."""
    folder = f"{proc_root()}/irq/{irq}"
    try:
        names = sorted(n for n in os.listdir(folder) if os.path.isdir(f"{folder}/{n}"))
    except OSError:
        names = []
    return f"{irq} ({_shown(', '.join(names))})" if names else irq


def _cpus(text: str) -> frozenset[int]:
    try:
        return parse_cpus(text)
    except ValueError:
        return frozenset()


class KernelThread(Affinity):
    """sched_setaffinity(2) of a kernel thread; unlike an agent's it has no heirs."""

    def label(self, target: str) -> str:
        pid, tid, start = split_thread(target)
        stat = thread_stat(pid, tid)
        name = f" {stat.comm}" if stat and stat.start == start else ""
        return f"affinity of kernel thread {tid}{name}"


# --------------------------------------------------------------------------- sysctl

#: Name -> smallest and largest value that is ever written.
SYSCTLS = {
    # Documentation/admin-guide/sysctl/net.rst: packets, and us, of one softirq's receiving.
    "net.core.netdev_budget": (1, 1_000_000),
    "net.core.netdev_budget_usecs": (1, 10_000_000),
    # Documentation/admin-guide/sysctl/vm.rst: dentries and inodes against page cache, percent.
    "vm.vfs_cache_pressure": (0, 1_000_000),
}


class Sysctl(FileKnob):
    """/proc/sys, the few names above."""

    def valid(self, target: str, value: str) -> bool:
        if target not in SYSCTLS or not re.fullmatch(r"\d{1,9}", value, re.A):
            return False
        low, high = SYSCTLS[target]
        return low <= int(value) <= high

    def path(self, target: str) -> str:
        return f"{proc_root()}/sys/{target.replace('.', '/')}"

    def label(self, target: str) -> str:
        return target

    def why(self, target: str, error: OSError) -> str:
        if error.errno == 22:  # EINVAL
            if target == "net.core.netdev_budget_usecs":
                return "this kernel allows no less than two of its clock ticks"
            return "the kernel does not take this number"
        return reason(error)


# --------------------------------------------------------------------------- devices


class NetDevice(FileKnob):
    """/sys/class/net/NAME/{threaded,gro_flush_timeout,napi_defer_hard_irqs}, queues/*/?ps_cpus.

    Documentation/ABI/testing/sysfs-class-net and sysfs-class-net-queues.
    Busy polling (``threaded`` 2) is never written.
    """

    _VALUES = (
        ("threaded", "[01]"),
        ("gro_flush_timeout", r"\d{1,10}"),
        ("napi_defer_hard_irqs", r"\d{1,10}"),
        (r"queues/rx-\d{1,5}/rps_cpus", _MASK),
        (r"queues/tx-\d{1,5}/xps_cpus", _MASK),
    )

    def __init__(self) -> None:
        #: Class folder and interface number -> name when it was last looked up.
        self._names: dict[tuple[str, str], str] = {}

    def valid(self, target: str, value: str) -> bool:
        index, _, attribute = target.partition("/")
        return bool(re.fullmatch(r"\d{1,10}", index, re.A)) and any(
            re.fullmatch(name, attribute, re.A) and re.fullmatch(text, value, re.A)
            for name, text in self._VALUES
        )

    def path(self, target: str) -> str | None:
        index, _, attribute = target.partition("/")
        base = f"{sys_root()}/class/net"
        name = self._names.get((base, index))
        if name is None or _first_line(f"{base}/{name}/ifindex") != index:
            try:
                names = os.listdir(base)
            except OSError:
                return None
            for name in names:
                if _first_line(f"{base}/{name}/ifindex") == index:
                    self._names[base, index] = name
                    break
            else:
                return None
        return f"{base}/{name}/{attribute}"

    def same(self, a: str, b: str) -> bool:
        # Masks come back with leading zeros; for the plain numbers it is the same.
        try:
            return int(a.replace(",", ""), 16) == int(b.replace(",", ""), 16)
        except ValueError:
            return a == b


class BlockDevice(FileKnob):
    """/sys/block/NAME/queue/{rq_affinity,wbt_lat_usec} (Documentation/ABI/stable/sysfs-block)."""

    def valid(self, target: str, value: str) -> bool:
        device, _, attribute = target.partition("/")
        text = {"rq_affinity": "[012]", "wbt_lat_usec": r"\d{1,9}"}.get(attribute)
        return bool(
            text
            and re.fullmatch(r"\d{1,4}:\d{1,7}", device, re.A)
            and re.fullmatch(text, value, re.A)
        )

    def path(self, target: str) -> str:
        device, _, attribute = target.partition("/")
        return f"{sys_root()}/dev/block/{device}/queue/{attribute}"

    def label(self, target: str) -> str:
        device, _, attribute = target.partition("/")
        name = os.path.basename(os.path.realpath(f"{sys_root()}/dev/block/{device}"))
        return f"/sys/block/{_shown(name)}/queue/{attribute}"


def _first_line(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.readline(64).decode(errors="replace").strip()
    except OSError:
        return ""


# --------------------------------------------------------------------------- cgroup v2


class Cgroup(FileKnob):
    """A file of a cgroup (Documentation/admin-guide/cgroup-v2.rst), never of the root.

    ``memory.low`` and ``memory.min`` in bytes or ``max``; ``io.weight``,
    ``io.bfq.weight``: the default weight; ``io.latency@MAJOR:MINOR``: target in
    us, ``max`` is none. For its CPUs see cgroup.py.
    """

    _VALUES = (
        (r"memory\.(low|min)", r"max|\d{1,19}"),
        (r"io\.(bfq\.)?weight", r"[1-9]\d{0,4}"),
        (r"io\.latency@\d{1,4}:\d{1,7}", r"max|[1-9]\d{0,9}"),
    )

    def valid(self, target: str, value: str) -> bool:
        attribute, _, path = target.partition("/")
        parts = path.split("/")
        return (
            len(path) < 4096
            and "\0" not in path
            and not any(part in ("", ".", "..") for part in parts)
            and any(
                re.fullmatch(name, attribute, re.A) and re.fullmatch(text, value, re.A)
                for name, text in self._VALUES
            )
        )

    def path(self, target: str) -> str | None:
        mount = cgroup2_mount()
        attribute, _, path = target.partition("/")
        return mount and f"{mount}/{path}/{attribute.partition('@')[0]}"

    def label(self, target: str) -> str:
        device = target.partition("/")[0].partition("@")[2]
        return super().label(target) + (f" ({device})" if device else "")

    def parse(self, target: str, text: str) -> str:
        attribute = target.partition("/")[0]
        name, _, device = attribute.partition("@")
        if name in ("io.weight", "io.bfq.weight"):
            # "default 100", then lines of single devices; older BFQ: the number alone.
            first = text.partition("\n")[0]
            return first.removeprefix("default ").strip()
        if name == "io.latency":
            found = re.search(rf"^{re.escape(device)} .*?target=(\w+)", text, re.M)
            return found[1] if found else "max"
        return text

    def format(self, target: str, value: str) -> str:
        name, _, device = target.partition("/")[0].partition("@")
        if name in ("io.weight", "io.bfq.weight"):
            return f"default {value}"
        return f"{device} target={value}" if device else value


IRQ_AFFINITY = IrqAffinity()
KERNEL_THREAD = KernelThread()
SYSCTL = Sysctl()
NETDEV = NetDevice()
BLOCKDEV = BlockDevice()
CGROUP = Cgroup()

FILE_KNOBS: dict[str, Knob] = {
    "irq_affinity": IRQ_AFFINITY,
    "kthread": KERNEL_THREAD,
    "sysctl": SYSCTL,
    "netdev": NETDEV,
    "blockdev": BLOCKDEV,
    "cgroup": CGROUP,
}
