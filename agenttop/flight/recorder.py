"""The flight recorder: what a trace is made of, gathered from Samples and bounded.

Kept steps whole, the slowpath's p99 and the CPUs' heat Sample by Sample, and
the toggles of policies, over the last ``keep_s`` seconds. Nothing here is
asked of the kernel: it is what every Sample carries.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from agenttop.model.sample import CpuCounters, Exemplar, Host, Sample
from agenttop.model.vocabulary import STAGES
from agenttop.store.store import Marker, TrendPoint

#: Kept steps at most, whatever the time (each one about 600 bytes, and a trace of it 1 kB).
MOST_STEPS: Final = 16_384
#: Points of one kind of counter at most.
MOST_POINTS: Final = 32_768


@dataclass(frozen=True, slots=True)
class Who:
    """An agent, as a trace names it."""

    name: str
    rule: str
    pid: int


@dataclass(frozen=True, slots=True)
class Tail:
    """An agent's slowpath from one Sample to the next; None where it made no step."""

    from_ns: int
    t_ns: int
    agent: int
    steps: int
    p99_ns: int | None


@dataclass(frozen=True, slots=True)
class Heat:
    """Share of the time between two Samples, 0..1, that interrupts and softirqs took on a CPU."""

    from_ns: int
    t_ns: int
    cpu: int
    ratio: float


class Told(Protocol):
    """What is asked of a Store."""

    def trend(self, agent_id: int) -> Sequence[TrendPoint]: ...
    @property
    def markers(self) -> Sequence[Marker]: ...


class Flight:
    """Feed it each Sample after the Store has had it."""

    def __init__(self, keep_s: float = math.inf) -> None:
        self._keep_ns = keep_s * 1e9
        self._start()

    def _start(self) -> None:
        self.host: Host | None = None
        #: CLOCK_MONOTONIC and seconds since the epoch at the newest Sample.
        self.t_ns = 0
        self.wall_s = 0.0
        self.agents: dict[int, Who] = {}
        self.steps: deque[Exemplar] = deque(maxlen=MOST_STEPS)
        #: Older steps that had to make room.
        self.left_out = 0
        self.tails: deque[Tail] = deque(maxlen=MOST_POINTS)
        self.heat: deque[Heat] = deque(maxlen=MOST_POINTS)
        self.switches: list[Marker] = []
        self._before: Sample | None = None
        #: The last one with CPUs.
        self._cpus: Sample | None = None

    def feed(self, sample: Sample, store: Told) -> None:
        """Take in a Sample that ``store`` has just been fed."""
        before = self._before
        if before is not None and (sample.seq <= before.seq or sample.t_ns <= before.t_ns):
            # The engine was started anew: agents' ids are others'.
            self._start()
            before = None
        self.host = sample.host or self.host
        self.t_ns, self.wall_s = sample.t_ns, sample.wall_s
        for agent in sample.agents:
            if agent.id not in self.agents:
                self.agents[agent.id] = Who(agent.name, agent.rule, agent.pid)
        steps = [e for e in sample.exemplars if len(e.stages_ns) == len(STAGES)]
        self.left_out += max(len(self.steps) + len(steps) - MOST_STEPS, 0)
        self.steps.extend(steps)
        if before is not None:
            self._take_tails(before, sample, store)
        self._before = sample
        if sample.cpus:
            if self._cpus is not None:
                self._take_heat(self._cpus, sample)
            self._cpus = sample
        self.switches = list(store.markers)
        self._expire(sample.t_ns - self._keep_ns)

    def _take_tails(self, before: Sample, sample: Sample, store: Told) -> None:
        for agent in sample.agents:
            trend = store.trend(agent.id)
            if trend and (last := trend[-1]).t_ns == sample.t_ns:
                self.tails.append(Tail(before.t_ns, sample.t_ns, agent.id, last.steps, last.p99_ns))

    def _take_heat(self, before: Sample, sample: Sample) -> None:
        known = {cpu.cpu: busy_ns(cpu) for cpu in before.cpus}
        for cpu in sample.cpus:
            now, then = busy_ns(cpu), known.get(cpu.cpu)
            if now is not None and then is not None and now >= then:
                ratio = (now - then) / (sample.t_ns - before.t_ns)
                self.heat.append(Heat(before.t_ns, sample.t_ns, cpu.cpu, min(ratio, 1.0)))

    def _expire(self, oldest_ns: float) -> None:
        for kept in (self.steps, self.tails, self.heat):
            while kept and kept[0].t_ns < oldest_ns:
                kept.popleft()
        if len(self.agents) > MOST_STEPS:
            named = {step.agent for step in self.steps} | {tail.agent for tail in self.tails}
            self.agents = {id_: who for id_, who in self.agents.items() if id_ in named}


def busy_ns(cpu: CpuCounters) -> int | None:
    """Time in interrupts and softirqs so far; None where it cannot be had."""
    times = [
        activity.time_ns
        for table in (cpu.irqs, cpu.vectors, cpu.softirqs)
        for activity in table.values()
        if activity.time_ns is not None
    ]
    return sum(times) if times else None
