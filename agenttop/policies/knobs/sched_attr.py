"""Knobs of single threads beside the affinity: slice, uclamp, scheduling policy, I/O priority.

All through system calls that take a thread id: sched_setattr(2),
sched_getattr(2), ioprio_set(2), ioprio_get(2). A write changes one attribute
and keeps the others. Threads under SCHED_FIFO, SCHED_RR or SCHED_DEADLINE
are refused: somebody has decided about them.

The guardian imports this module, so it stays small.
"""

from __future__ import annotations

import os
import re
import struct
from ctypes import CDLL, c_long, create_string_buffer, get_errno

from agenttop.policies.knobs.base import Knob, KnobError, split_thread, thread_stat

#: arch/x86/entry/syscalls/syscall_64.tbl
_SCHED_SETATTR, _SCHED_GETATTR = 314, 315
_IOPRIO_SET, _IOPRIO_GET = 251, 252
#: struct sched_attr, include/uapi/linux/sched/types.h: size, policy, flags, nice, priority,
#: runtime, deadline, period, util_min, util_max.
_ATTR = struct.Struct("=IIQiIQQQII")
#: include/uapi/linux/sched.h
POLICIES = {0: "OTHER", 1: "FIFO", 2: "RR", 3: "BATCH", 5: "IDLE", 6: "DEADLINE", 7: "EXT"}
_NUMBERS = {name: number for number, name in POLICIES.items()}
_FAIR = (0, 3, 5)
_IDLE = _NUMBERS["IDLE"]
_RESET_ON_FORK, _KEEP_POLICY, _KEEP_PARAMS, _UTIL_MIN = 0x01, 0x08, 0x10, 0x20
UCLAMP_MAX = 1024
_UCLAMP_NONE = (1 << 32) - 1
#: include/uapi/linux/ioprio.h: bits of the level, and of the hint above it (since 6.5).
_LEVEL, _HINT = 0x7, 0x3FF

_libc = CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = c_long


class Attr:
    """A thread's scheduling attributes."""

    def __init__(self, tid: int) -> None:
        """Raises OSError."""
        buffer = create_string_buffer(_ATTR.size)
        if _syscall(_SCHED_GETATTR, c_long(tid), buffer, c_long(_ATTR.size), c_long(0)) < 0:
            raise _error()
        fields = _ATTR.unpack(buffer.raw)
        (_, self.policy, self.flags, self.nice, self.priority) = fields[:5]
        (self.runtime, self.deadline, self.period, self.util_min, self.util_max) = fields[5:]

    def write(self, tid: int, extra: int = 0) -> None:
        """Set all of them; ``extra`` flags. Raises OSError."""
        data = _ATTR.pack(
            _ATTR.size,
            self.policy,
            self.flags & _RESET_ON_FORK | extra,
            self.nice,
            self.priority,
            self.runtime,
            self.deadline,
            self.period,
            self.util_min,
            self.util_max,
        )
        if _syscall(_SCHED_SETATTR, c_long(tid), data, c_long(0)) < 0:
            raise _error()


def _error() -> OSError:
    number = get_errno()
    return OSError(number, os.strerror(number))


def default_slice() -> int:
    """The kernel's own slice, ns; 0 where it tells none (before 6.12).

    Read from process 1, or else a kernel thread, which nobody gives a slice.
    """
    for tid in (1, 2):
        try:
            attr = Attr(tid)
        except OSError:
            continue
        if attr.policy in _FAIR:
            return int(attr.runtime)
    return 0


class ThreadKnob(Knob):
    """What the knobs here have in common: a thread named ``PID/TID/START``."""

    #: What it is, for labels.
    word = ""
    values = re.compile("")

    def get(self, tid: int) -> str:
        """The value now. Raises OSError."""
        raise NotImplementedError

    def put(self, tid: int, value: str) -> None:
        """Set it. Raises OSError, KnobError."""
        raise NotImplementedError

    def valid(self, target: str, value: str) -> bool:
        return bool(
            re.fullmatch(r"\d{1,9}/\d{1,9}/\d{1,19}", target, re.A) and self.values.fullmatch(value)
        )

    def label(self, target: str) -> str:
        pid, tid, start = split_thread(target)
        stat = thread_stat(pid, tid)
        name = f" ({stat.comm})" if stat and stat.start == start else ""
        return f"{self.word} of tid {tid}{name}"

    def _lives(self, target: str) -> bool:
        pid, tid, start = split_thread(target)
        stat = thread_stat(pid, tid)
        return stat is not None and stat.start == start and stat.state not in "ZX"

    def read(self, target: str) -> str | None:
        if not self._lives(target):
            return None
        try:
            return self.get(split_thread(target)[1])
        except ProcessLookupError:
            return None
        except OSError as error:
            raise KnobError(error.strerror or str(error)) from None

    def write(self, target: str, value: str) -> None:
        self._write(target, value, None)

    def replace(self, target: str, current: str, value: str) -> bool:
        return self._write(target, value, current)

    def _write(self, target: str, value: str, expected: str | None) -> bool:
        if not self._lives(target):
            return True
        tid = split_thread(target)[1]
        try:
            if expected is not None and self.get(tid) != expected:
                return False
            self.put(tid, value)
        except ProcessLookupError:
            return True
        except OSError as error:
            raise KnobError(error.strerror or str(error)) from None
        return True

    def same(self, a: str, b: str) -> bool:
        return a == b

    def ours(self, current: str, written: str) -> bool:
        return current == written

    def back(self, current: str, original: str) -> str:
        """What gives ``original`` back where ``current`` holds, and keeps what is not ours."""
        return original

    def drift(self, target: str, written: str, thorough: bool = True) -> str | None:
        if not thorough:
            try:
                now = self.get(split_thread(target)[1])
            except OSError:
                return ""
            if self.ours(now, written):
                return None
        current = self.read(target)
        return "" if current is None else None if self.ours(current, written) else current


class Slice(ThreadKnob):
    """EEVDF slice of a fair thread, ns (sched_runtime of sched_setattr, since 6.12)."""

    word = "slice"
    values = re.compile(r"\d{1,12}", re.A)

    def get(self, tid: int) -> str:
        return str(Attr(tid).runtime)

    def put(self, tid: int, value: str) -> None:
        attr = _fair(tid)
        if attr.policy == _IDLE:
            # It keeps the one that it has (__setscheduler_params: only fair_policy), silently.
            raise KnobError("the kernel changes no slice of a thread under SCHED_IDLE")
        # 0 gives back the kernel's own, which may change (with CPUs that come and go).
        attr.runtime = 0 if int(value) == default_slice() else int(value)
        attr.write(tid)


class UclampMin(ThreadKnob):
    """Minimum utilization that schedutil assumes of a thread, 0..1024 (uclamp)."""

    word = "uclamp.min"
    values = re.compile(r"\d{1,4}", re.A)

    def get(self, tid: int) -> str:
        return str(Attr(tid).util_min)

    def put(self, tid: int, value: str) -> None:
        attr = _fair(tid)
        # One of 0 is as good as none of its own: the kernel drops it (uclamp_validate, 5.11).
        attr.util_min = min(int(value), UCLAMP_MAX) or _UCLAMP_NONE
        attr.write(tid, _KEEP_POLICY | _KEEP_PARAMS | _UTIL_MIN)


class SchedPolicy(ThreadKnob):
    """Scheduling policy and nice value, ``OTHER:0``, ``BATCH:5``, ``IDLE:0``.

    Only the policy is ours: the nice value is written as it was found, and one
    that somebody gives the thread meanwhile (``nice`` and ``renice``) stays.
    """

    word = "policy"
    values = re.compile(r"(OTHER|BATCH|IDLE):(-?\d|-?1\d|-20)", re.A)

    def get(self, tid: int) -> str:
        attr = Attr(tid)
        return f"{POLICIES.get(attr.policy, attr.policy)}:{attr.nice}"

    def put(self, tid: int, value: str) -> None:
        attr = _fair(tid)
        name, _, nice = value.partition(":")
        attr.policy, attr.nice = _NUMBERS[name], int(nice)
        if attr.runtime == default_slice():
            attr.runtime = 0
        attr.write(tid)

    def ours(self, current: str, written: str) -> bool:
        return current.partition(":")[0] == written.partition(":")[0]

    def back(self, current: str, original: str) -> str:
        return f"{original.partition(':')[0]}:{current.partition(':')[2]}"


class IoPriority(ThreadKnob):
    """I/O class and level, ``2:0``: 0 none, 2 best effort (0 first, 7 last), 3 idle.

    A third number is the hint for the device, if there is one (``2:0:1``, since 6.5).
    The real-time class (1) is never written: it starves everybody else.
    """

    word = "I/O priority"
    values = re.compile(r"[023]:[0-7](:[1-9]\d{0,3})?", re.A)

    def get(self, tid: int) -> str:
        value = _syscall(_IOPRIO_GET, c_long(1), c_long(tid))
        if value < 0:
            raise _error()
        kind, hint = value >> 13, value >> 3 & _HINT
        # A thread without a class has no level either; older kernels say 4, and refuse it.
        level = value & _LEVEL if kind else 0
        return f"{kind}:{level}" + (f":{hint}" if hint else "")

    def put(self, tid: int, value: str) -> None:
        kind, level, hint = map(int, f"{value}:0".split(":")[:3])
        if self.get(tid).startswith("1:"):
            raise KnobError("has real-time I/O priority: left alone")
        number = kind << 13 | hint << 3 | level
        if _syscall(_IOPRIO_SET, c_long(1), c_long(tid), c_long(number)) < 0:
            raise _error()


def _fair(tid: int) -> Attr:
    attr = Attr(tid)
    if attr.policy not in _FAIR:
        raise KnobError(f"runs under SCHED_{POLICIES.get(attr.policy, attr.policy)}: left alone")
    return attr


SLICE = Slice()
UCLAMP_MIN = UclampMin()
SCHED_POLICY = SchedPolicy()
IO_PRIORITY = IoPriority()

THREAD_KNOBS: dict[str, ThreadKnob] = {
    "slice": SLICE,
    "uclamp_min": UCLAMP_MIN,
    "sched_policy": SCHED_POLICY,
    "ioprio": IO_PRIORITY,
}
