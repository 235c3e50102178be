"""Real-time priority for the guardian while it follows windows, within a limit.

From the wake-up that opens a window to its guard in force is the guardian's
own way through the run queue, and beside CPU hogs that is what takes longest.
So it runs as SCHED_FIFO at the lowest priority, as audio servers do by rtkit,
with what bounds that: SCHED_RESET_ON_FORK, and RLIMIT_RTTIME, by which the
kernel sends SIGXCPU when it has run for so long without sleeping; then it is
an ordinary process again for a while (setrlimit(2), sched(7)).

Only for agenttop's own guardian, which sleeps at every event; for agents it
is among what is never offered.
"""

from __future__ import annotations

import os
import resource
import signal
from types import FrameType

#: Not among the resource module's names (include/uapi/asm-generic/resource.h).
RLIMIT_RTTIME = 15
#: Longest run without a sleep, us; an edge takes some 100.
LIMIT_US = 20_000
#: How long it is an ordinary process after that, s.
REST_S = 1.0


class Urgency:
    """Of this process. Where it is not allowed, nothing happens."""

    def __init__(self) -> None:
        self.on = False
        self._not_before = 0.0
        self._over = False

    def update(self, wanted: bool, now: float) -> None:
        """Take it, if it is wanted and no rest is due, or give it up. ``now``: monotonic, s."""
        if not wanted:
            self._leave()
        elif self._over:
            self._over = False
            self._not_before = now + REST_S
        elif not self.on and now >= self._not_before:
            self._take(now)

    def _take(self, now: float) -> None:
        self._not_before = now + REST_S
        try:
            signal.signal(signal.SIGXCPU, self._limit)
            # Set anew each time: the kernel raises it with each signal.
            hard = resource.getrlimit(RLIMIT_RTTIME)[1]
            resource.setrlimit(RLIMIT_RTTIME, (LIMIT_US, hard))
            policy = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
            os.sched_setscheduler(0, policy, os.sched_param(1))
        except (OSError, ValueError):
            return
        self.on = True

    def _limit(self, number: int, frame: FrameType | None) -> None:
        self._over = True
        self._leave()

    def _leave(self) -> None:
        if self.on:
            self.on = False
            os.sched_setscheduler(0, os.SCHED_OTHER | os.SCHED_RESET_ON_FORK, os.sched_param(0))
