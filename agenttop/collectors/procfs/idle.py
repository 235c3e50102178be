"""cpuidle in sysfs: idle states, and how each CPU used them.

Documentation/admin-guide/pm/cpuidle.rst, "Representation of Idle States".
"""

from __future__ import annotations

import os

from agenttop.linux import paths
from agenttop.linux.files import KeptFile, read_number, read_text
from agenttop.linux.process import printable
from agenttop.model.sample import IdleCounters, IdleState

#: After how many reads CPUs without idle states are looked at again (a driver may be loaded).
_RETRY = 10
#: No CPU takes more in an idle state, mW.
_MOST_MW = 100_000


class _StateFiles:
    __slots__ = ("above", "below", "last", "time", "usage")

    def __init__(self, base: str) -> None:
        self.usage = KeptFile(f"{base}/usage")
        self.time = KeptFile(f"{base}/time")
        self.above = KeptFile(f"{base}/above")
        self.below = KeptFile(f"{base}/below")
        self.last = IdleCounters()

    def read(self) -> IdleCounters:
        usage = self.usage.number()
        if usage is None or (usage and usage == self.last.entries):
            # The kernel adds to all four when the CPU leaves the state.
            return self.last
        time_us = self.time.number()
        if time_us is not None:
            # above and below came with Linux 5.0.
            above, below = self.above.number(), self.below.number()
            self.last = IdleCounters(usage, time_us * 1000, above, below)
        return self.last

    def read_misses(self) -> IdleCounters:
        """Only what the governor got wrong: the rest is measured elsewhere."""
        above, below = self.above.number(), self.below.number()
        self.last = IdleCounters(self.last.entries, self.last.time_ns, above, below)
        return self.last

    def close(self) -> None:
        for file in (self.usage, self.time, self.above, self.below):
            file.close()


class Idle:
    """Idle counters per CPU, in the order of ``states``."""

    def __init__(self, cpus: list[int]) -> None:
        self._base = f"{paths.sys()}/devices/system/cpu"
        self._cpus = cpus
        #: The host's states, shallow first; what Host.idle_states holds.
        self.states: list[IdleState] = []
        self._index: dict[int, list[int]] = {}
        self._files: dict[int, list[_StateFiles]] = {}
        self._reads = 0
        self._only_misses = False
        self._discover()

    def only_misses(self) -> None:
        """From now on entries and times are not read: they are measured elsewhere."""
        self._only_misses = True
        for files in self._files.values():
            for state in files:
                state.close()

    def driver(self) -> str | None:
        """The idle driver in charge, e.g. intel_idle; None if there is none."""
        name = read_text(f"{self._base}/cpuidle/current_driver")
        return printable(name) if name and name != "none" else None

    def governor(self) -> str | None:
        """The idle governor in charge, e.g. menu, teo, haltpoll."""
        for file in ("current_governor", "current_governor_ro"):
            if name := read_text(f"{self._base}/cpuidle/{file}"):
                return printable(name)
        return None

    def index_of(self, cpu: int, state: int) -> int | None:
        """Position in ``states`` of a CPU's own state number (they differ on hybrid machines)."""
        index = self._index.get(cpu, ())
        return index[state] if 0 <= state < len(index) else None

    def of(self, cpu: int) -> list[IdleState]:
        """A CPU's own states, as it numbers them."""
        return [self.states[place] for place in self._index.get(cpu, ())]

    def read(self, online: frozenset[int] | None = None) -> dict[int, list[IdleCounters]]:
        """CPU -> counters; a state that a CPU does not have counts 0. CPUs without any: left out.

        A CPU that is not in ``online`` (None: all are) keeps what it had.
        """
        self._reads += 1
        if self._reads % _RETRY == 0 and len(self._files) < len(self._cpus):
            self._discover()
        found = {}
        for cpu, files in self._files.items():
            counters = [IdleCounters() for _ in self.states]
            runs = online is None or cpu in online
            for at, state in zip(self._index[cpu], files, strict=True):
                if not runs:
                    # Its folder may go, and another come when it is back.
                    state.close()
                    counters[at] = state.last
                else:
                    counters[at] = state.read_misses() if self._only_misses else state.read()
            found[cpu] = counters
        return found

    def _discover(self) -> None:
        own: dict[int, list[IdleState]] = {}
        for cpu in self._cpus:
            if states := self._states_of(cpu):
                own[cpu] = states
        merged: list[IdleState] = []
        # The CPU with the most states gives the order; what others have beside them follows.
        for states in sorted(own.values(), key=len, reverse=True):
            merged += [state for state in states if state not in merged]
        if merged != self.states:
            # Never shuffle what was counted: new states go behind the known ones.
            self.states += [state for state in merged if state not in self.states]
        for cpu, states in own.items():
            self._index[cpu] = [self.states.index(state) for state in states]
            if len(self._files.get(cpu, ())) != len(states):
                self._files[cpu] = [
                    _StateFiles(f"{self._base}/cpu{cpu}/cpuidle/state{i}")
                    for i in range(len(states))
                ]

    def _states_of(self, cpu: int) -> list[IdleState]:
        base = f"{self._base}/cpu{cpu}/cpuidle"
        states: list[IdleState] = []
        while os.path.isdir(f"{base}/state{len(states)}"):
            folder = f"{base}/state{len(states)}"
            name = read_text(f"{folder}/name") or f"state{len(states)}"
            latency = read_number(f"{folder}/latency") or 0
            residency = read_number(f"{folder}/residency") or 0
            power = read_number(f"{folder}/power") or 0
            # 0 and -1 (as unsigned) stand for "not known".
            known = power if 0 < power < _MOST_MW else None
            states.append(IdleState(printable(name, 16), latency, residency, known))
        return states
