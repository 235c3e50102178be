"""Knobs: the kernel settings that policies touch, each a read / write / compare triple.

The guardian imports this module, so it stays small: os, struct and nothing
that takes long to load. A knob is named by its kind and a target:

================ =================== ==================================================
kind             target              value
================ =================== ==================================================
``pm_qos``       ``cpuN``            text of the sysfs file: ``0``, microseconds, ``n/a``
``cpu_latency``  ``all``             ``none`` (no request) or microseconds
``affinity``     ``PID/TID/START``   CPU list, ``0-3,8``
================ =================== ==================================================

Those that are files of /proc, /sys and cgroup v2 are in files.py, a cgroup's CPUs
and its share of them in cgroup.py.
"""

from __future__ import annotations

import os
import re
import struct
from functools import lru_cache
from typing import NamedTuple, Protocol

from agenttop.linux import whole_file

CPU_LATENCY_DEVICE = "/dev/cpu_dma_latency"

#: Behind the CPU list of a thread that has no affinity of its own (cpusets.py).
UNPINNED = "+"

_CPU_LIST = re.compile(r"\d{1,5}(-\d{1,5})?(,\d{1,5}(-\d{1,5})?)*")


class KnobError(Exception):
    """The kernel refused a read or a write; the text is the reason."""


class Change(NamedTuple):
    """One write to a knob, for one policy."""

    policy: str
    kind: str
    target: str
    before: str
    after: str

    @property
    def key(self) -> tuple[str, str]:
        """What is written, whoever writes it."""
        return (self.kind, self.target)


class Knob(Protocol):
    """How one kind of setting is read, written and compared."""

    def valid(self, target: str, value: str) -> bool:
        """Whether the two may be used at all (a journal is checked with this)."""

    def label(self, target: str) -> str:
        """The target as a person knows it, free of control characters."""

    def read(self, target: str) -> str | None:
        """The value that holds now; None when the target has gone. Raises KnobError."""

    def write(self, target: str, value: str) -> None:
        """Set it. Raises KnobError with the kernel's reason."""

    def replace(self, target: str, current: str, value: str) -> bool:
        """Set it unless it has changed since ``current`` was read. Raises KnobError.

        Returns False if it has changed, as far as a knob can see that: the kernel has no call
        that compares and sets.
        """
        self.write(target, value)
        return True

    def same(self, a: str, b: str) -> bool:
        """Whether two values mean the same now."""

    def ours(self, current: str, written: str) -> bool:
        """Whether ``current`` is what became of our writing ``written``."""

    def drift(self, target: str, written: str, thorough: bool = True) -> str | None:
        """None while ``written`` holds, "" when the target has gone, else what holds instead.

        ``thorough`` False: what can be told for next to nothing.
        """


def reason(error: OSError) -> str:
    """The kernel's answer in words."""
    return error.strerror or str(error)


def sys_root() -> str:
    """/sys, or AGENTTOP_SYS as in agenttop.linux.paths (whose pathlib is too slow to load here)."""
    return os.environ.get("AGENTTOP_SYS", "/sys")


# --------------------------------------------------------------------------- CPU lists


@lru_cache(maxsize=64)  # Of hundreds of lines on a large machine most have the same few lists.
def parse_cpus(text: str) -> frozenset[int]:
    """A kernel CPU list ("0-3,8"; "" is empty). Raises ValueError."""
    cpus: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        low, high = int(first), int(last or first)
        if not 0 <= low <= high < 1 << 16:
            raise ValueError(f"not a CPU list: {text[:40]!r}")
        cpus.update(range(low, high + 1))
    return frozenset(cpus)


def format_cpus(cpus: frozenset[int] | set[int]) -> str:
    """The shortest kernel CPU list."""
    parts: list[list[int]] = []
    for cpu in sorted(cpus):
        if parts and parts[-1][1] == cpu - 1:
            parts[-1][1] = cpu
        else:
            parts.append([cpu, cpu])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def cpu_set(which: str = "online") -> frozenset[int]:
    """/sys/devices/system/cpu/online (or possible, present); empty if it cannot be read."""
    try:
        return parse_cpus(whole_file.read(f"{sys_root()}/devices/system/cpu/{which}").decode())
    except (OSError, ValueError):
        return frozenset()


# --------------------------------------------------------------------------- PM QoS


class ResumeLatency(Knob):
    """/sys/devices/system/cpu/cpuN/power/pm_qos_resume_latency_us.

    Documentation/ABI/testing/sysfs-devices-power: the longest exit latency
    that the CPU's idle governor may choose, us; ``0`` is no constraint,
    ``n/a`` is none tolerated. One value shared by everybody on the machine.
    """

    def valid(self, target: str, value: str) -> bool:
        return bool(
            re.fullmatch(r"cpu\d{1,5}", target, re.A)
            and (value == "n/a" or re.fullmatch(r"\d{1,9}", value, re.A))
        )

    def path(self, target: str) -> str:
        return f"{sys_root()}/devices/system/cpu/{target}/power/pm_qos_resume_latency_us"

    label = path

    def read(self, target: str) -> str | None:
        try:
            with open(self.path(target), "rb") as file:
                return file.read(64).decode(errors="replace").strip()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise KnobError(reason(error)) from None

    def write(self, target: str, value: str) -> None:
        try:
            # No O_CREAT: in a fixture tree as in sysfs the file is there or is not.
            fd = os.open(self.path(target), os.O_WRONLY | os.O_CLOEXEC | os.O_TRUNC)
            try:
                os.write(fd, value.encode())
            finally:
                os.close(fd)
        except OSError as error:
            raise KnobError(reason(error)) from None

    def same(self, a: str, b: str) -> bool:
        return a == b

    def ours(self, current: str, written: str) -> bool:
        return self.same(current, written)

    def drift(self, target: str, written: str, thorough: bool = True) -> str | None:
        current = self.read(target)
        return "" if current is None else None if current == written else current

    @staticmethod
    def tolerance(value: str) -> float:
        """The longest tolerated exit in us: ``n/a`` 0, ``0`` infinite."""
        return 0.0 if value == "n/a" else float(value) or float("inf")


class CpuLatency(Knob):
    """/dev/cpu_dma_latency: the same limit for all CPUs, for as long as the file is open.

    Documentation/power/pm_qos_interface.rst. Nothing to restore after a
    crash: the kernel drops the request with its holder. A request belongs to
    the process that opened the file, so only the guardian writes this knob.
    """

    def __init__(self) -> None:
        self._fd: int | None = None
        self._value = "none"

    def valid(self, target: str, value: str) -> bool:
        return target == "all" and (value == "none" or bool(re.fullmatch(r"\d{1,9}", value, re.A)))

    def label(self, target: str) -> str:
        return CPU_LATENCY_DEVICE

    def read(self, target: str) -> str | None:
        return self._value

    def write(self, target: str, value: str) -> None:
        try:
            self._request(value)
        except BaseException as error:
            # The kernel keeps no request that ``read`` does not tell of.
            try:
                self._request(self._value)
            except BaseException:
                self._request("none")
                self._value = "none"
            if isinstance(error, OSError):
                raise KnobError(reason(error)) from None
            raise
        self._value = value

    def _request(self, value: str) -> None:
        """Have the kernel hold this value. Raises OSError, KnobError."""
        if value == "none":
            fd, self._fd = self._fd, None
            if fd is not None:
                os.close(fd)
            return
        if self._fd is None:
            self._fd = os.open(CPU_LATENCY_DEVICE, os.O_RDWR | os.O_CLOEXEC)
        os.write(self._fd, struct.pack("=i", int(value)))
        # Reading gives the strictest request of all holders.
        (effective,) = struct.unpack("=i", os.pread(self._fd, 4, 0))
        if effective > int(value):
            raise KnobError(f"the kernel holds {effective} us instead")

    def same(self, a: str, b: str) -> bool:
        return a == b

    def ours(self, current: str, written: str) -> bool:
        return self.same(current, written)

    def drift(self, target: str, written: str, thorough: bool = True) -> str | None:
        return None  # Nobody else can write to our request.


# --------------------------------------------------------------------------- affinity


class ThreadStat(NamedTuple):
    """What /proc/PID/task/TID/stat says of a thread."""

    comm: str
    state: str
    ppid: int
    #: Start, clock ticks since boot: with the id it names a thread for good.
    start: int
    #: CPU that it ran on last.
    cpu: int
    #: Time in user mode, clock ticks.
    utime: int = 0


def thread_stat(pid: int, tid: int) -> ThreadStat | None:
    """One thread; None when it has ended."""
    try:
        with open(f"/proc/{pid}/task/{tid}/stat", "rb") as file:
            text = file.read()
    except OSError:
        return None
    # comm may hold blanks and brackets: it ends at the last ")".
    head, _, tail = text.rpartition(b")")
    fields = tail.split()
    if len(fields) < 37:
        return None
    comm = head.partition(b"(")[2].decode(errors="replace")
    return ThreadStat(
        "".join(c if c.isprintable() else "?" for c in comm),
        fields[0].decode(),
        int(fields[1]),
        int(fields[19]),
        int(fields[36]),
        int(fields[11]),
    )


def split_thread(target: str) -> tuple[int, int, int]:
    """``PID/TID/START`` as numbers."""
    pid, tid, start = target.split("/")
    return int(pid), int(tid), int(start)


def _listed(value: str) -> frozenset[int]:
    return parse_cpus(value.removesuffix(UNPINNED))


class Affinity(Knob):
    """sched_setaffinity(2) of one thread, named by process, thread and start time.

    The start time keeps a thread id that the kernel gave away again from
    being taken for the thread that was changed. ``0-3+``: whatever the
    thread's cpuset allows, which was CPUs 0 to 3 (cpusets.py).
    """

    def valid(self, target: str, value: str) -> bool:
        value = value.removesuffix(UNPINNED)
        return bool(
            re.fullmatch(r"\d{1,9}/\d{1,9}/\d{1,19}", target, re.A)
            and len(value) < 4096
            and _CPU_LIST.fullmatch(value)
            and all(int(n) < 1 << 16 for n in re.split("[,-]", value))
        )

    def label(self, target: str) -> str:
        pid, tid, start = split_thread(target)
        stat = thread_stat(pid, tid)
        name = f" ({stat.comm})" if stat and stat.start == start else ""
        return f"affinity of tid {tid}{name}"

    def read(self, target: str) -> str | None:
        pid, tid, start = split_thread(target)
        stat = thread_stat(pid, tid)
        if stat is None or stat.start != start or stat.state in "ZX":
            return None
        # Not sched_getaffinity: that leaves out CPUs that are offline just now.
        try:
            with open(f"/proc/{pid}/task/{tid}/status", "rb") as file:
                for line in file:
                    # A line break in the thread's name is escaped; other bytes are as they are.
                    if line.startswith(b"Cpus_allowed_list:"):
                        return line.split(b":", 1)[1].decode().strip()
        except OSError:
            return None
        return None

    def write(self, target: str, value: str) -> None:
        self._write(target, value, None)

    def replace(self, target: str, current: str, value: str) -> bool:
        # A child often chooses within its first 0.1 ms, and checking /proc takes about as long.
        return self._write(target, value, _listed(current))

    def _write(self, target: str, value: str, expected: frozenset[int] | None) -> bool:
        pid, tid, start = split_thread(target)
        stat = thread_stat(pid, tid)
        if stat is None or stat.start != start:
            return True
        cpus = _listed(value)
        if value.endswith(UNPINNED) or cpus >= cpu_set("present"):
            # Unrestricted: say so, or the thread would miss CPUs that its cpuset gains later.
            cpus |= cpu_set("possible")
        try:
            if expected is not None and not os.sched_getaffinity(tid) <= expected:
                return False
            os.sched_setaffinity(tid, cpus)
        except ProcessLookupError:
            return True
        except OSError as error:
            raise KnobError(reason(error)) from None
        return True

    def same(self, a: str, b: str) -> bool:
        return _listed(a) == _listed(b)

    def ours(self, current: str, written: str) -> bool:
        # With its last CPU offline the kernel itself widens a thread's mask.
        cpus = _listed(written)
        return cpus == _listed(current) or not cpus & cpu_set("online")

    def drift(self, target: str, written: str, thorough: bool = True) -> str | None:
        tid = split_thread(target)[1]
        try:
            if os.sched_getaffinity(tid) == _listed(written) and not thorough:
                return None
        except OSError:
            return ""
        current = self.read(target)
        return "" if current is None else None if self.ours(current, written) else current


RESUME_LATENCY = ResumeLatency()
CPU_LATENCY = CpuLatency()
AFFINITY = Affinity()
