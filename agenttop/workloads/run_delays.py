"""Causes of the way from a loop's wake-up to its run, made on purpose, for its next gate to meet.

What makes them is another process that knows when the loop's timer is due.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Callable
from typing import Final, Protocol

from agenttop.errors import UserError
from agenttop.workloads.helpers import Helper
from agenttop.workloads.syscalls import set_name

_now = time.monotonic_ns
_cpu: Final = ctypes.CDLL(None).sched_getcpu

#: So long before the timer is due the other process begins, and so long behind it the hog ends.
BEFORE_NS: Final = 500_000
HOG_NS: Final = 1_000_000
#: A shorter wait was none: another CPU had fetched the loop.
_LEAST_NS: Final = 300_000
#: So long behind the due time the loop is allowed on other CPUs: it has been woken by then.
_WIDEN_NS: Final = 200_000
#: The loop needs the time between for its own work.
LEAST_INTERVAL_NS: Final = 3_000_000
HOG_NAME: Final = "athog"


class Awaited(Protocol):
    """Makes its cause in the loop's next gate."""

    def make(self, due: int, left: int) -> int:
        """Behind a gate that was due and has returned then: the time of the cause in it, ns.

        0: it had none.
        """

    def close(self) -> None:
        """Leave nothing behind."""


class _Apart:
    """Another process that does ``at_due`` around the time at which the loop's timer is due."""

    def __init__(self, interval_ns: int, first: Callable[[], None]) -> None:
        """``first`` is done once, in the other process. Raises UserError."""
        if interval_ns < LEAST_INTERVAL_NS:
            least = LEAST_INTERVAL_NS // 1000
            raise UserError(f"this cause needs --source timer and --interval-us {least} or more")
        self._interval = interval_ns
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        #: When the timer is due; and until when the other process has made the cause.
        self.due = ctypes.c_int64.from_buffer(self._memory)
        self.ended = ctypes.c_int64.from_buffer(self._memory, 8)
        self._helper = Helper(self._work, first)

    def _work(self, helper: Helper) -> None:
        due = self.due.value
        helper.reply()
        time.sleep(max(due - BEFORE_NS - _now(), 0) / 1e9)
        self.at_due(due)

    def at_due(self, due: int) -> None:
        """In the other process, a little before it is due."""
        raise NotImplementedError

    def next(self, due: int) -> None:
        """The timer's next turn that still lies far enough ahead."""
        self.due.value = due + self._interval
        while self.due.value < _now() + BEFORE_NS:
            self.due.value += self._interval
        self._helper.ask()

    def close(self) -> None:
        self._helper.close()


class Hog(_Apart):
    """A real-time hog on the loop's CPU when the loop is woken."""

    #: Allow the loop on all CPUs while it waits, which the scheduler takes no notice of.
    WIDENS = False

    def __init__(self, interval_ns: int) -> None:
        self._all = os.sched_getaffinity(0)
        if self.WIDENS and len(self._all) < 2:
            raise UserError("this cause needs two CPUs that this process may use")
        self._cpu = min(self._all)
        self._loop = os.getpid()
        super().__init__(interval_ns, self._turn_hog)
        os.sched_setaffinity(0, {self._cpu})

    def _turn_hog(self) -> None:
        os.sched_setaffinity(0, {self._cpu})
        try:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        except PermissionError:
            raise SystemExit(1) from None  # the loop says that it takes root
        set_name(HOG_NAME)

    def at_due(self, due: int) -> None:
        if self.WIDENS:
            while _now() < due + _WIDEN_NS:
                pass
            os.sched_setaffinity(self._loop, self._all)
        while _now() < due + HOG_NS:
            pass
        self.ended.value = _now()

    def make(self, due: int, left: int) -> int:
        if self.WIDENS:
            os.sched_setaffinity(0, {self._cpu})
        # It may still be at it, where the loop was let in elsewhere.
        ended = self.ended.value if self.ended.value > due else left
        took = min(ended, left) - due
        self.next(due)
        return took if took >= _LEAST_NS else 0


class Stuck(Hog):
    """The same, but the loop might have run on a CPU that was idle."""

    WIDENS = True


class Moved(_Apart):
    """The loop's CPU is forbidden to it while it sleeps: it wakes up on another one, in turns."""

    def __init__(self, interval_ns: int) -> None:
        self._all = sorted(os.sched_getaffinity(0))
        if len(self._all) < 2:
            raise UserError("this cause needs two CPUs that this process may use")
        self._loop = os.getpid()
        self._turn = 0
        super().__init__(interval_ns, lambda: None)
        os.sched_setaffinity(0, {self._all[0]})
        self._was = _cpu()

    def at_due(self, due: int) -> None:
        self._turn = 1 - self._turn
        os.sched_setaffinity(self._loop, {self._all[self._turn]})

    def make(self, due: int, left: int) -> int:
        now, self._was = self._was, _cpu()
        self.next(due)
        return left - due if now != self._was else 0


AWAITED: Final[dict[str, Callable[[int], Awaited]]] = {
    "placement": Moved,
    "avoidable_wait": Stuck,
    "ran_meanwhile": Hog,
}
