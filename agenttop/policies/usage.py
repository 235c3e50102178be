"""Which CPUs an agent has used lately, from its monotonic step counters."""

from __future__ import annotations

from typing import Final

from agenttop.policies.base import Targets

#: Steps this old count half.
HALF_LIFE_S: Final = 2.0


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

    def _shares(self, agent_id: int, targets: Targets) -> dict[int, float]:
        weights = self._weight[agent_id]
        total = sum(weights.values())
        if total >= 1e-6:
            return {cpu: w / total for cpu, w in weights.items()}
        agent = next(a for a in targets.agents if a.id == agent_id)
        cpus = [thread.cpu for thread in agent.threads]
        return {cpu: cpus.count(cpu) / len(cpus) for cpu in set(cpus)}
