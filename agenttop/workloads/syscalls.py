"""The system calls that Python's standard library lacks, through ctypes.

ctypes lets go of the interpreter lock around each call, and none of these is
declared with ``use_errno`` where the loop calls it once a step: the errno
copies would cost as much as the call.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import signal
from typing import Final

from agenttop.errors import UserError

#: include/uapi/linux/prctl.h
PR_SET_PDEATHSIG: Final = 1
PR_SET_NAME: Final = 15
PR_SET_TIMERSLACK: Final = 29

#: The step marker ("AGST"): no such prctl exists, the kernel answers EINVAL
#: and agenttop sees the call at the tracepoint task_prctl_unknown.
MARKER: Final = 0x41475354

#: The opt-in flag of the agent latency proposals, sched_setattr(2).
SCHED_FLAG_AGENT_LATENCY: Final = 0x1000_0000

CLOCK_MONOTONIC: Final = 1
#: clock_nanosleep(2), timerfd_settime(2): the time given is a point, not a span.
ABSTIME: Final = 1

#: Numbers of the calls without a libc function; io_uring's are the same everywhere.
_SCHED_SETATTR: Final = {"x86_64": 314, "aarch64": 274, "riscv64": 274}

#: For workloads of causes, x86_64's unless the machine has the numbers of newer ones.
SYS_FUTEX: Final = 202 if platform.machine() == "x86_64" else 98
SYS_GETDENTS64: Final = 217 if platform.machine() == "x86_64" else 61

libc: Final = ctypes.CDLL(None, use_errno=True)
#: The same without errno copies, for calls made once a step.
fast: Final = ctypes.CDLL(None)


class Timespec(ctypes.Structure):
    """struct timespec (64 bit); ``__kernel_timespec`` has the same layout."""

    _fields_ = (("sec", ctypes.c_int64), ("nsec", ctypes.c_int64))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", Timespec), ("value", Timespec))


class _SchedAttr(ctypes.Structure):
    """struct sched_attr, first version (48 bytes), include/uapi/linux/sched/types.h."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
    )


class _Pollfd(ctypes.Structure):
    _fields_ = (("fd", ctypes.c_int), ("events", ctypes.c_short), ("revents", ctypes.c_short))


def _failed(what: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, f"{what}: {os.strerror(code)}")


def set_name(name: str) -> None:
    """This thread's comm; the kernel keeps 15 bytes (prctl PR_SET_NAME)."""
    libc.prctl(PR_SET_NAME, ctypes.c_char_p(name.encode()[:15]), 0, 0, 0)


def set_timer_slack(slack_ns: int) -> None:
    """How late the kernel may make this thread's timers to batch them; 0 is the default again."""
    if libc.prctl(PR_SET_TIMERSLACK, ctypes.c_ulong(slack_ns), 0, 0, 0):
        raise _failed("prctl(PR_SET_TIMERSLACK)")


def die_with(parent: int) -> None:
    """End this process (SIGKILL) when ``parent`` does; at once if it has already ended.

    The signal comes when the parent's *thread* that forked ends: fork from one that lasts.
    """
    libc.prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def pin(cpu: int | None) -> None:
    """Keep this thread on one CPU; None leaves it free. Raises UserError."""
    if cpu is None:
        return
    try:
        os.sched_setaffinity(0, {cpu})
    except (OSError, ValueError, OverflowError):
        allowed = ", ".join(map(str, sorted(os.sched_getaffinity(0))))
        raise UserError(f"cannot run on CPU {cpu}: this process may use {allowed}") from None


def opt_in_sched_setattr() -> bool:
    """Ask to be an agent through sched_setattr; whether this kernel knows the flag.

    A stock kernel answers EINVAL; agenttop sees the call all the same.
    """
    number = _SCHED_SETATTR.get(platform.machine())
    if number is None:
        raise UserError(f"--opt-in sched_setattr is not known on {platform.machine()}")
    attr = _SchedAttr(size=ctypes.sizeof(_SchedAttr), flags=SCHED_FLAG_AGENT_LATENCY)
    if libc.syscall(number, 0, ctypes.byref(attr), 0) == 0:
        return True
    if ctypes.get_errno() != errno.EINVAL:
        raise _failed("sched_setattr")
    return False


_prctl = fast.prctl
_prctl.argtypes = (ctypes.c_int, *(ctypes.c_ulong,) * 4)


def mark_step(step: int) -> None:
    """The step marker: ``prctl("AGST", step, class, deadline_ns)``."""
    _prctl(MARKER, step, 0, 0, 0)


def timerfd_create() -> int:
    """A blocking timer descriptor on CLOCK_MONOTONIC (in the standard library from 3.13)."""
    fd = int(libc.timerfd_create(CLOCK_MONOTONIC, os.O_CLOEXEC))
    if fd < 0:
        raise _failed("timerfd_create")
    return fd


def timerfd_start(fd: int, first_ns: int, interval_ns: int) -> None:
    """Expire at ``first_ns`` (CLOCK_MONOTONIC) and every ``interval_ns`` after that."""
    spec = _Itimerspec(
        Timespec(*divmod(interval_ns, 1_000_000_000)), Timespec(*divmod(first_ns, 1_000_000_000))
    )
    if libc.timerfd_settime(fd, ABSTIME, ctypes.byref(spec), None):
        raise _failed("timerfd_settime")


sleep_until = fast.clock_nanosleep
sleep_until.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.POINTER(Timespec), ctypes.c_void_p)
sleep_until.restype = ctypes.c_int

pread = fast.pread64
pread.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64)
pread.restype = ctypes.c_ssize_t

sync_file_range = fast.sync_file_range
sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


class Sleeps:
    """How often this thread has gone to sleep of its own will (getrusage's ru_nvcsw)."""

    def __init__(self) -> None:
        # struct rusage: two timevals (4 longs), then 14 longs; ru_nvcsw is the 13th of those.
        self._usage = (ctypes.c_long * 18)()
        self._getrusage = fast.getrusage
        self._argument = ctypes.byref(self._usage)

    def count(self) -> int:
        self._getrusage(resource.RUSAGE_THREAD, self._argument)
        return self._usage[16]


class SignalWait:
    """Waits in ppoll for one signal, which can come at no other time.

    The signal stays blocked outside the call, so that it is never lost
    between a check and the wait. ``watch`` is a descriptor whose hang-up
    (its other end is gone) ends the wait too.
    """

    def __init__(self, number: int, watch: int) -> None:
        signal.signal(number, lambda *_: None)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
        mask = sum(1 << (n - 1) for n in before - {number})
        self._mask = ctypes.c_uint64(mask)
        # libc's sigset_t is longer than the kernel's 8 bytes.
        self._set = (ctypes.c_uint64 * 16)(mask)
        self._fds = _Pollfd(watch, 0, 0)
        self._ppoll = fast.ppoll
        self._arguments = (ctypes.byref(self._fds), 1, None, ctypes.byref(self._set))

    def wait(self) -> None:
        self._ppoll(*self._arguments)

    def hung_up(self) -> bool:
        return bool(self._fds.revents)


def address(buffer: object) -> int:
    """Where a writable buffer (mmap, bytearray) lies in memory."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))  # type: ignore[arg-type]
