"""floor: a static performance floor for the agents.

A CPU that has been idle is clocked down; the step after a wake-up then runs
slowly until the governor has noticed. Where the kernel has utilization
clamps (CONFIG_UCLAMP_TASK) the control-loop threads count as at least
``min_util_ratio`` of a CPU, so that schedutil is at speed when they start.
Without them the lowest frequency of the domains in which agents run is
raised, and an energy preference that favours saving is moved to the middle.

Knobs: sched_setattr(2), util_min; /sys/devices/system/cpu/cpufreq/policyN,
scaling_min_freq and energy_performance_preference.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Final

import msgspec

from agenttop.linux import paths
from agenttop.policies.agent_cpus import Usage
from agenttop.policies.base import Key, Settings, Targets
from agenttop.policies.knobs.base import KnobError, format_cpus
from agenttop.policies.knobs.cpufreq import CPUFREQ
from agenttop.policies.parts.performance_floor import CAPACITY, Floor

#: From this share of an agent's recent steps on, its CPU counts as used.
USED_RATIO: Final = 0.05
#: Preferences that are weaker than the one that is set.
WEAKER: Final = ("balance_power", "power")
BALANCED: Final = "balance_performance"


class Params(msgspec.Struct, frozen=True):
    """What can be set."""

    #: Share of a CPU's capacity, or of its highest frequency, that is kept at least.
    min_util_ratio: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.5
    #: Also move a saving energy_performance_preference to balance_performance.
    energy_preference: bool = True


class StaticFloor:
    """The policy."""

    name = "floor"
    key = "f"
    title = "performance floor under the agents"

    def __init__(self, params: Params | None = None) -> None:
        given = params or Params()
        self._ratio = given.min_util_ratio
        self._preference = given.energy_preference
        self._floor = Floor()
        self.reset()

    def reset(self) -> None:
        self._usage = Usage()
        self._agents: dict[int, str] = {}
        self._set: list[str] = []
        #: Energy preferences that are left as they are.
        self._left: set[str] = set()

    def probe(self) -> str | None:
        if os.geteuid() != 0:
            return "needs root"
        return self._floor.why_not()

    def wanted(self, targets: Targets, held: Mapping[Key, str]) -> Settings:
        shares = self._usage.update(targets)
        used = {c for mine in shares.values() for c, share in mine.items() if share >= USED_RATIO}
        settings: Settings = {}
        self._agents, self._set = {}, []
        for agent in targets.agents:
            clamps = self._floor.clamps(agent, self._ratio, held)
            settings |= clamps
            if clamps:
                self._agents[agent.id] = f">={self._ratio:.0%}"
        if settings:
            self._set.append(f"uclamp.min {round(self._ratio * CAPACITY)}, {len(settings)} threads")
        for key, value, cpus in self._floor.frequencies(self._ratio, held, used):
            settings[key] = value
            self._set.append(f"cpu{format_cpus(set(cpus))} >={int(value) // 1000} MHz")
            domain = key[1].partition("/")[0]
            settings |= self._prefer(f"{domain}/energy_performance_preference", held)
            for agent_id, mine in shares.items():
                if any(mine.get(cpu, 0) >= USED_RATIO for cpu in cpus):
                    self._agents[agent_id] = f">={int(value) // 1000}MHz"
        return settings

    def _prefer(self, target: str, held: Mapping[Key, str]) -> Settings:
        key = ("cpufreq", target)
        if key in held:
            return {key: BALANCED}
        if not self._preference or target in self._left:
            return {}
        try:
            weak = CPUFREQ.read(target) in WEAKER
            available = (
                paths.sys()
                / "devices/system/cpu/cpufreq"
                / target.replace(
                    "energy_performance_preference", "energy_performance_available_preferences"
                )
            ).read_text()
        except (KnobError, OSError):
            return {}
        if weak and BALANCED in available.split():
            return {key: BALANCED}
        # What its owner chose when we came stays chosen: not read each second.
        self._left.add(target)
        return {}

    def detail(self) -> str:
        return "; ".join(self._set) or f"{self._floor.detail()}; no agent has run yet"

    def agents(self) -> dict[int, str]:
        return self._agents
