"""The power that is lost while a CPU is held out of its deepest idle state, W per CPU.

A budget priced in joules needs it. Two sources, the better one first:

- what the idle states' driver says each of them takes (cpuidle's ``power``,
  mW; Documentation/admin-guide/pm/cpuidle.rst): the difference between the
  deepest state that stays open and the deepest of all;
- RAPL (collectors/energy.py): what the packages took, over the time that CPUs
  were not in their deepest state. That puts the work that was done, and what
  is not the cores', on the same bill: at most this much is lost.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final, NamedTuple

from agenttop.collectors.procfs.energy import Energy
from agenttop.linux import paths
from agenttop.linux.files import read_number
from agenttop.policies.parts.idle_limits import Closed

#: Above, a driver's figure is none: "not known" is 0, or -1 as an unsigned number.
MOST_MW: Final = 100_000
#: RAPL is looked at for this long before it is believed, ns ...
LOOK_NS: Final = 2_000_000_000
#: ... and until CPUs were out of their deepest state for this share of the time.
LEAST_AWAKE: Final = 0.01

NO_POWER: Final = "no idle state tells its power (cpuidle/state*/power)"


class Lost(NamedTuple):
    """W by which one CPU takes more than it would, or why that cannot be told."""

    watts: float | None
    #: How it is known, or why it is not.
    how: str


class LostPower:
    """Remembers what RAPL told: once known, its figure stays, so that a price does not move."""

    def __init__(self) -> None:
        self._energy = Energy()
        self._base = f"{paths.sys()}/devices/system/cpu"
        #: CPU -> the ``time`` file of its deepest idle state.
        self._deepest: dict[int, str] = {}
        #: CPU -> state -> mW.
        self._told: dict[int, dict[int, int]] = {}
        #: CPU -> its states, shallowest first.
        self._order: dict[int, list[int]] = {}
        self._find()
        #: At the first look: CLOCK_MONOTONIC ns, uJ, us in the deepest states.
        self._first: tuple[int, int, int] | None = None
        self._measured: float | None = None

    def _find(self) -> None:
        cpu = 0
        while os.path.isdir(f"{self._base}/cpu{cpu}"):
            base = f"{self._base}/cpu{cpu}/cpuidle"
            latency: dict[int, int] = {}
            while os.path.isdir(folder := f"{base}/state{len(latency)}"):
                power = read_number(f"{folder}/power") or 0
                if 0 < power < MOST_MW:
                    self._told.setdefault(cpu, {})[len(latency)] = power
                latency[len(latency)] = read_number(f"{folder}/latency") or 0
            if latency:
                self._order[cpu] = sorted(latency, key=lambda state: (latency[state], state))
                self._deepest[cpu] = f"{base}/state{self._order[cpu][-1]}/time"
            cpu += 1

    def why_not(self) -> str | None:
        """Why nothing can be known on this machine; None if something can."""
        if self._told or self._energy.missing is None:
            return None
        return f"{self._energy.missing}, and {NO_POWER}"

    def look(self, now_ns: int) -> None:
        """Read RAPL; to be called every now and then."""
        if self._energy.missing is not None or self._measured is not None:
            return
        used = sum(self._energy.read().values())
        asleep = sum(read_number(path) or 0 for path in self._deepest.values())
        if self._first is None:
            self._first = (now_ns, used, asleep)
            return
        at, used_then, asleep_then = self._first
        all_us = (now_ns - at) / 1000 * len(self._deepest)
        awake_us = all_us - (asleep - asleep_then)
        if now_ns - at >= LOOK_NS and awake_us >= LEAST_AWAKE * all_us:
            self._measured = (used - used_then) / awake_us  # uJ per us

    def lost(self, shut: Mapping[int, list[Closed]]) -> Lost:
        """By the CPU that loses most, as an agent may be woken on any; ``shut``: what is closed."""
        if not any(shut.values()):
            return Lost(None, "no idle state is closed")
        told = [one for cpu, closed in shut.items() if (one := self._by_states(cpu, closed))]
        if told:
            return max(told)
        if self._measured is not None:
            return Lost(self._measured, "at most, measured by RAPL")
        if self._energy.missing is None:
            return Lost(None, "RAPL is still being looked at")
        return Lost(None, self.why_not() or NO_POWER)

    def _by_states(self, cpu: int, closed: list[Closed]) -> Lost | None:
        told = self._told.get(cpu, {})
        deepest = told.get(closed[-1].state.number) if closed else None
        if deepest is None:
            return None
        first = closed[0].state.number
        order = self._order[cpu]
        open_ = told.get(order[max(0, order.index(first) - 1)])
        if open_ is not None:
            return Lost(max(0, open_ - deepest) / 1000, "told by the idle states")
        # POLL stays open, whose power nobody tells: it is more than that of the first closed one.
        if len(closed) > 1 and first in told:
            return Lost(max(0, told[first] - deepest) / 1000, "at least, told by the idle states")
        return None
