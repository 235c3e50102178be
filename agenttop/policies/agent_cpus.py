"""Which CPUs an agent has used lately, from its monotonic step counters."""

from __future__ import annotations

from typing import Final

from agenttop.policies.base import Targets
from agenttop.policies.knobs.base import format_cpus

#: Steps this old count half.
HALF_LIFE_S: Final = 2.0
#: A CPU is an agent's from this share of its recent steps on ...
ENTER_RATIO: Final = 0.05
#: ... until the share has been below this for LEAVE_S.
STAY_RATIO: Final = 0.02
LEAVE_S: Final = 5.0


class Usage:
    """Exponentially fading shares of each agent's steps by CPU."""

    def __init__(self) -> None:
        self._t_ns = 0
        self._seen: dict[int, dict[int, int]] = {}
        self._weight: dict[int, dict[int, float]] = {}

    def update(self, targets: Targets) -> dict[int, dict[int, float]]:
        """Agent id -> CPU -> share of its recent steps, 0..1.

        An agent without any steps yet is where its threads ran last.
        """
        fade = 0.5 ** (max(0, targets.t_ns - self._t_ns) / 1e9 / HALF_LIFE_S)
        self._t_ns = targets.t_ns
        seen: dict[int, dict[int, int]] = {}
        weight: dict[int, dict[int, float]] = {}
        for agent in targets.agents:
            before = self._seen.get(agent.id, {})
            weights = {c: w * fade for c, w in self._weight.get(agent.id, {}).items()}
            for cpu, steps in agent.cpu_steps.items():
                weights[cpu] = weights.get(cpu, 0.0) + max(0, steps - before.get(cpu, 0))
            seen[agent.id] = dict(agent.cpu_steps)
            weight[agent.id] = weights
        self._seen, self._weight = seen, weight
        return {agent.id: self._shares(agent.id, targets) for agent in targets.agents}

    def steps(self) -> dict[int, float]:
        """CPU -> recent steps of all agents there, as of the last update."""
        total: dict[int, float] = {}
        for by_cpu in self._weight.values():
            for cpu, weight in by_cpu.items():
                total[cpu] = total.get(cpu, 0.0) + weight
        return total

    def _shares(self, agent_id: int, targets: Targets) -> dict[int, float]:
        weights = self._weight[agent_id]
        total = sum(weights.values())
        if total >= 1e-6:
            return {cpu: w / total for cpu, w in weights.items()}
        agent = next(a for a in targets.agents if a.id == agent_id)
        cpus = [thread.cpu for thread in agent.threads]
        return {cpu: cpus.count(cpu) / len(cpus) for cpu in set(cpus)}


class AgentCpus:
    """The CPUs that agents use, with hysteresis."""

    def __init__(self) -> None:
        self._usage = Usage()
        #: CPU -> when it was last used enough, CLOCK_MONOTONIC.
        self._used: dict[int, int] = {}
        #: Agent id -> its CPUs among them.
        self.by_agent: dict[int, frozenset[int]] = {}

    def update(self, targets: Targets) -> frozenset[int]:
        """CPUs that are some agent's now; those that are offline are left out."""
        shares = self._usage.update(targets)
        for by_cpu in shares.values():
            for cpu, share in by_cpu.items():
                if share >= (STAY_RATIO if cpu in self._used else ENTER_RATIO):
                    self._used[cpu] = targets.t_ns
        limit = targets.t_ns - int(LEAVE_S * 1e9)
        self._used = {cpu: t for cpu, t in self._used.items() if t > limit}
        used = self._used.keys() & {cpu.cpu for cpu in targets.cpus if cpu.online}
        self.by_agent = {
            agent: frozenset(mine)
            for agent, by_cpu in shares.items()
            if (mine := {c for c, share in by_cpu.items() if share >= STAY_RATIO} & used)
        }
        return frozenset(used)

    def steps(self) -> dict[int, float]:
        """CPU -> recent steps of all agents there."""
        return self._usage.steps()

    def words(self) -> dict[int, str]:
        """Agent id -> its CPUs, for the table."""
        return {agent: f"cpu{format_cpus(cpus)}" for agent, cpus in self.by_agent.items()}
