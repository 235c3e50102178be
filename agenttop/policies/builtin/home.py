"""home: each control-loop thread stays on one CPU that is quiet in IRQ and softirq.

The scheduler puts a thread that wakes on whatever CPU seems idle: its caches
are cold there, and the CPU may be the one that serves the interrupts. A home
is chosen by what it costs to live there: interrupt and softirq time, what
else keeps the CPU busy, and the agents' threads that live there already. It
is kept until another CPU would be clearly better for some time.

Knob: sched_setaffinity(2), never outside the CPUs that the thread was
allowed before. Threads and processes that a homed thread starts inherit its
CPUs; the manager widens them again (undo.release_heirs).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

import msgspec

from agenttop.linux.process import printable
from agenttop.policies.agent_threads import named
from agenttop.policies.base import Agent, Key, Settings, Targets, Thread
from agenttop.policies.knobs.base import AFFINITY, KnobError, cpu_set, format_cpus, parse_cpus

#: A home is kept at least this long, unless its CPU goes offline.
DWELL_S: Final = 5.0
#: It is left for a CPU whose cost (in shares of a CPU) is lower by this.
MARGIN: Final = 0.2
#: Interrupts hurt more than their time: they come exactly when the agent is woken.
HEAT_WEIGHT: Final = 2.0
#: What each further thread adds beside its load, so that idle agents spread too.
THREAD_COST: Final = 0.02
#: What the CPU that it ran on last, and its agent's home, are better by.
WARM_BONUS: Final = 0.03
#: Weight of the newest measurement; the rest is what was known before.
SMOOTHING: Final = 0.4


class Params(msgspec.Struct, frozen=True):
    """Nothing can be set."""


class Home:
    """The policy."""

    name = "home"
    key = "h"
    title = "home CPU: control-loop threads stay on a quiet CPU"

    def __init__(self, params: Params | None = None) -> None:
        self.reset()

    def reset(self) -> None:
        #: CPU -> smoothed cost of living there, without agents' threads.
        self._heat: dict[int, float] = {}
        #: Thread -> its home, and since when (CLOCK_MONOTONIC).
        self._homes: dict[str, tuple[int, int]] = {}
        #: Thread -> the CPUs that it may use without us.
        self._allowed: dict[str, frozenset[int]] = {}
        self._names: dict[int, str] = {}
        self._by_agent: dict[int, set[int]] = {}
        self._alone = 0

    def probe(self) -> str | None:
        if os.geteuid() != 0:
            return "needs root"
        if len(cpu_set("online")) < 2:
            return "only one CPU is online: nothing to choose"
        return None

    def wanted(self, targets: Targets, held: Mapping[Key, str]) -> Settings:
        online = frozenset(cpu.cpu for cpu in targets.cpus if cpu.online)
        self._feel(targets, online)
        threads = self._threads(targets, online, held)
        self._homes = {name: home for name, home in self._homes.items() if name in threads}
        # Those that live somewhere first, so that newcomers see where.
        load = dict.fromkeys(online, 0.0)
        for name, (_, thread) in threads.items():
            if name in self._homes and self._homes[name][0] in online:
                load[self._homes[name][0]] += thread.load_ratio + THREAD_COST
        busiest_first = sorted(threads.items(), key=lambda item: -item[1][1].load_ratio)
        self._by_agent = {}
        for name, (agent, thread) in busiest_first:
            self._choose(name, agent, thread, load, targets.t_ns)
        self._names = {agent.id: agent.name for agent in targets.agents}
        return {("affinity", name): str(cpu) for name, (cpu, _) in self._homes.items()}

    def _feel(self, targets: Targets, online: frozenset[int]) -> None:
        """Update what the CPUs cost."""
        own = dict.fromkeys(online, 0.0)
        for agent in targets.agents:
            for thread in agent.threads:
                if thread.cpu in own:
                    own[thread.cpu] += thread.load_ratio
        for cpu in targets.cpus:
            if not cpu.online:
                self._heat.pop(cpu.cpu, None)
                continue
            interrupts = cpu.irq_ratio + cpu.softirq_ratio
            others = max(0.0, cpu.busy_ratio - interrupts - own[cpu.cpu])
            cost = HEAT_WEIGHT * interrupts + others
            before = self._heat.get(cpu.cpu, cost)
            self._heat[cpu.cpu] = before + SMOOTHING * (cost - before)

    def _threads(
        self, targets: Targets, online: frozenset[int], held: Mapping[Key, str]
    ) -> dict[str, tuple[Agent, Thread]]:
        """Threads that can have a home, by their name as a knob."""
        threads: dict[str, tuple[Agent, Thread]] = {}
        allowed: dict[str, frozenset[int]] = {}
        self._alone = 0
        for name, agent, thread in named(targets, "affinity", held):
            if ("affinity", name) in held and name in self._allowed:
                allowed[name] = self._allowed[name]
            else:
                try:
                    allowed[name] = parse_cpus(AFFINITY.read(name) or "")
                except (KnobError, ValueError):
                    continue
            if len(allowed[name]) > 1 and allowed[name] & online:
                threads[name] = (agent, thread)
            else:
                self._alone += 1
        self._allowed = allowed
        return threads

    def _choose(
        self, name: str, agent: Agent, thread: Thread, load: dict[int, float], t_ns: int
    ) -> None:
        weight = thread.load_ratio + THREAD_COST
        home, since = self._homes.get(name, (None, 0))
        if home in load:
            load[home] -= weight
        family = self._by_agent.setdefault(agent.id, set())

        def cost(cpu: int) -> float:
            warm = (cpu == thread.cpu) + (cpu in family)
            return self._heat.get(cpu, 0.0) + load[cpu] - WARM_BONUS * warm

        best = min(sorted(self._allowed[name] & load.keys()), key=cost)
        settled = home in load and (
            t_ns - since < DWELL_S * 1e9 or cost(home) - cost(best) < MARGIN
        )
        if home is None or not settled:
            if home != best:
                self._homes[name] = (best, t_ns)
            home = best
        load[home] += weight
        family.add(home)

    # ----------------------------------------------------------------- on screen

    def detail(self) -> str:
        groups: dict[str, set[int]] = {}
        for agent, cpus in self._by_agent.items():
            groups.setdefault(printable(self._names.get(agent, str(agent)), 32), set()).update(cpus)
        parts = [f"{name} cpu{format_cpus(cpus)}" for name, cpus in list(groups.items())[:8]]
        if len(groups) > 8:
            parts.append(f"{len(groups) - 8} more")
        if not parts:
            parts.append("no control-loop thread yet")
        if self._alone:
            parts.append(f"{self._alone} threads pinned already")
        return ", ".join(parts)

    def agents(self) -> dict[int, str]:
        return {agent: f"cpu{format_cpus(cpus)}" for agent, cpus in self._by_agent.items()}
