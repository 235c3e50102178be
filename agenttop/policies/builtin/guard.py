"""guard: no idle state whose exit takes longer than a limit, on the CPUs that agents use.

An idle state is closed on a CPU when the exit latency that its driver
promises (sysfs ``latency``) or the exit that was measured (median of
idle_exit per state) is over the limit. States cannot be closed one by one
through PM QoS: the kernel is told the longest promised latency that is still
welcome, so the states below the first closed one go with it.

The default limit is 5 us, not the tens of microseconds of C2 and deeper: on
a virtual machine the only state, HLT, promises 1 us and takes some 8, and
that is a third of a wake-up. On bare metal 5 us leaves C1 open; ``limit_us``
raises it where power matters more.

Knobs: /sys/devices/system/cpu/cpuN/power/pm_qos_resume_latency_us (PM QoS
per CPU, shared by everybody: a stricter value of somebody else is kept), or
/dev/cpu_dma_latency, which the kernel drops by itself with its holder, when
all online CPUs get the same limit and ``per_cpu`` is not asked for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Final

import msgspec

from agenttop.policies.agent_cpus import AgentCpus
from agenttop.policies.base import Key, Settings, Targets
from agenttop.policies.knobs.base import CPU_LATENCY_DEVICE, format_cpus
from agenttop.policies.parts.idle_limits import Closed, IdleLimits, closes, why_not

DEFAULT_LIMIT_US: Final = 5


class Params(msgspec.Struct, frozen=True):
    """What can be set."""

    #: Longest exit of an idle state that is left open, us.
    limit_us: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = DEFAULT_LIMIT_US
    #: Each CPU's own file always: that is what can outlive its writer (--keep).
    per_cpu: bool = False


class Guard:
    """The policy."""

    name = "guard"
    key = "g"
    title = "idle guard: no slow idle state where agents run"

    def __init__(self, params: Params | None = None) -> None:
        params = params or Params()
        self.limit_us = params.limit_us
        self._per_cpu = params.per_cpu
        self._limits = IdleLimits(self.limit_us)
        self.reset()

    def reset(self) -> None:
        self._cpus = AgentCpus()
        self._used: frozenset[int] = frozenset()
        self._closed: dict[int, list[Closed]] = {}
        self._kept: dict[int, str] = {}

    def probe(self) -> str | None:
        return why_not()

    # ----------------------------------------------------------------- what should hold

    def wanted(self, targets: Targets, held: Mapping[Key, str]) -> Settings:
        self._limits.learn(targets, self._closed)
        online = frozenset(cpu.cpu for cpu in targets.cpus if cpu.online)
        self._used = self._cpus.update(targets)
        self._closed = {
            cpu: closed for cpu in sorted(self._used) if (closed := self._limits.over(cpu))
        }
        limits = {cpu: self._limits.limit(closed) for cpu, closed in self._closed.items()}
        self._kept = {}
        same = limits.keys() == online and len(set(limits.values())) == 1
        if same and not self._per_cpu:
            (limit,) = set(limits.values())
            if os.path.exists(CPU_LATENCY_DEVICE):
                return {("cpu_latency", "all"): str(limit)}
        settings: Settings = {}
        for cpu, limit in limits.items():
            key = ("pm_qos", f"cpu{cpu}")
            value = str(limit) if limit else "n/a"
            stricter = None if key in held else self._limits.stricter(cpu, value)
            if stricter is None:
                settings[key] = value
            else:
                self._kept[cpu] = stricter
        return settings

    # ----------------------------------------------------------------- on screen

    def detail(self) -> str:
        parts = closes(self._closed)
        if not self._used:
            parts.append("no agent has run yet")
        elif not parts:
            parts.append(f"nothing to close on cpu{format_cpus(self._used)}")
        if self._kept:
            parts.append(
                "already as strict: " + ", ".join(f"cpu{c}={v}" for c, v in self._kept.items())
            )
        return f"<={self.limit_us}us: " + "; ".join(parts)

    def agents(self) -> dict[int, str]:
        return self._cpus.words()
