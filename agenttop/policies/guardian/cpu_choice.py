"""Where the guardian runs while it follows windows: not in the way of those who open them.

At real-time priority it is woken where it ran last, and before the agent
whose wake-up opened the window. So it stays off the CPUs that windows open
on, as long as there are others, and goes to the quietest where there are none.
"""

from __future__ import annotations

import os
from collections import Counter

#: Looked at this often, s: an agent may move with every wake-up, the guardian need not.
PERIOD_S = 0.5


class Aside:
    """Of this process: its affinity, a part of what it was allowed at first."""

    def __init__(self) -> None:
        self._allowed = os.sched_getaffinity(0)
        self._chosen = self._allowed
        self._openings: Counter[int] = Counter()
        self._next = 0.0

    def opened(self, cpu: int) -> None:
        """A window has opened there."""
        self._openings[cpu] += 1

    def update(self, wanted: bool, now: float) -> None:
        """Move if that is better. ``now``: monotonic, s. Without windows it may run anywhere."""
        if not wanted:
            self._choose(self._allowed)
            self._openings.clear()
        elif now >= self._next and self._openings:
            self._next = now + PERIOD_S
            fewest = min(self._openings[cpu] for cpu in self._allowed)
            self._choose({cpu for cpu in self._allowed if self._openings[cpu] == fewest})
            self._openings.clear()

    def _choose(self, cpus: set[int]) -> None:
        if cpus == self._chosen:
            return
        try:
            os.sched_setaffinity(0, cpus)
            self._chosen = cpus
        except OSError:
            pass  # a CPU went offline, a cpuset changed: it runs where it may
