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
all online CPUs get the same limit.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import msgspec

from agenttop import paths
from agenttop.policies.base import Key, Settings, Targets
from agenttop.policies.knobs import (
    CPU_LATENCY_DEVICE,
    RESUME_LATENCY,
    KnobError,
    format_cpus,
)
from agenttop.policies.usage import Usage

DEFAULT_LIMIT_US: Final = 5
#: A CPU is guarded from this share of an agent's recent steps on ...
ENTER_RATIO: Final = 0.05
#: ... until the share has been below this for LEAVE_S.
STAY_RATIO: Final = 0.02
LEAVE_S: Final = 5.0
#: A measured exit counts from this many samples on.
MIN_SAMPLES: Final = 20
#: Without a measurement: what a guest's HLT takes. The promise of the haltpoll driver (1 us)
#: is a constant in its source, drivers/cpuidle/cpuidle-haltpoll.c; 6-12 us were measured.
HALTPOLL_EXIT_NS: Final = 8_000


class Params(msgspec.Struct, frozen=True):
    """What can be set."""

    #: Longest exit of an idle state that is left open, us.
    limit_us: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = DEFAULT_LIMIT_US


class State(NamedTuple):
    """An idle state as /sys/devices/system/cpu/cpuN/cpuidle/stateM has it."""

    number: int
    name: str
    latency_us: int


class Closed(NamedTuple):
    """A state that is over the limit, and what it takes."""

    state: State
    exit_ns: int
    #: measured, promised or assumed.
    how: str


class Guard:
    """The policy."""

    name = "guard"
    key = "g"
    title = "idle guard: no slow idle state where agents run"

    def __init__(self, params: Params | None = None) -> None:
        self.limit_us = (params or Params()).limit_us
        self._states: dict[int, list[State]] = {}
        self._driver = ""
        #: (CPU, state) -> newest measurement; once closed, a state is not measured any more.
        self._measured: dict[tuple[int, int], int] = {}
        self.reset()

    def reset(self) -> None:
        self._usage = Usage()
        #: CPU -> when it was last used enough, CLOCK_MONOTONIC.
        self._cpus: dict[int, int] = {}
        self._closed: dict[int, list[Closed]] = {}
        self._kept: dict[int, str] = {}
        self._agents: dict[int, str] = {}

    def probe(self) -> str | None:
        base = paths.sys() / "devices/system/cpu"
        if os.geteuid() != 0:
            return "needs root"
        states = sorted(base.glob("cpu[0-9]*/cpuidle/state[1-9]*"))
        if not states:
            return "no idle states to close: this kernel runs without a cpuidle driver"
        cpu = states[0].parent.parent.name
        knob = Path(RESUME_LATENCY.path(cpu))
        if not knob.exists():
            return f"{knob}: missing (kernel without CONFIG_PM)"
        if not os.access(knob, os.W_OK) or os.statvfs(knob).f_flag & os.ST_RDONLY:
            return f"{knob}: not writable (a container?)"
        return None

    # ----------------------------------------------------------------- what should hold

    def wanted(self, targets: Targets, held: Mapping[Key, str]) -> Settings:
        self._learn(targets)
        online = frozenset(cpu.cpu for cpu in targets.cpus if cpu.online)
        cpus = self._used(targets) & online
        self._closed = {cpu: closed for cpu in sorted(cpus) if (closed := self._over(cpu))}
        limits = {cpu: self._limit(closed) for cpu, closed in self._closed.items()}
        self._kept = {}
        if limits and limits.keys() == online and len(set(limits.values())) == 1:
            (limit,) = set(limits.values())
            if os.path.exists(CPU_LATENCY_DEVICE):
                return {("cpu_latency", "all"): str(limit)}
        settings: Settings = {}
        for cpu, limit in limits.items():
            key = ("pm_qos", f"cpu{cpu}")
            value = str(limit) if limit else "n/a"
            if key in held or not self._stricter(cpu, value):
                settings[key] = value
        return settings

    def _used(self, targets: Targets) -> frozenset[int]:
        """CPUs that agents use, with hysteresis."""
        shares = self._usage.update(targets)
        for by_cpu in shares.values():
            for cpu, share in by_cpu.items():
                if share >= (STAY_RATIO if cpu in self._cpus else ENTER_RATIO):
                    self._cpus[cpu] = targets.t_ns
        limit = targets.t_ns - int(LEAVE_S * 1e9)
        self._cpus = {cpu: t for cpu, t in self._cpus.items() if t > limit}
        self._agents = {
            agent: f"cpu{format_cpus(mine)}"
            for agent, by_cpu in shares.items()
            if (mine := {c for c, share in by_cpu.items() if share >= STAY_RATIO} & set(self._cpus))
        }
        return frozenset(self._cpus)

    def _stricter(self, cpu: int, value: str) -> bool:
        """Whether somebody has set at least as much already; that stays theirs."""
        try:
            current = RESUME_LATENCY.read(f"cpu{cpu}")
        except KnobError:
            return False
        if current is None or not RESUME_LATENCY.valid(f"cpu{cpu}", current):
            return False
        if RESUME_LATENCY.tolerance(current) <= RESUME_LATENCY.tolerance(value):
            self._kept[cpu] = current
            return True
        return False

    # ----------------------------------------------------------------- idle states

    def _learn(self, targets: Targets) -> None:
        for cpu in targets.cpus:
            closed = {c.state.number for c in self._closed.get(cpu.cpu, ())}
            for index, exit_ in cpu.exits.items():
                # Of a closed state only stragglers are measured.
                if exit_.samples >= MIN_SAMPLES and index not in closed:
                    self._measured[cpu.cpu, index] = exit_.p50_ns

    def _over(self, cpu: int) -> list[Closed]:
        """States of a CPU that are to be closed."""
        over: list[Closed] = []
        for state in self._idle_states(cpu):
            measured = self._measured.get((cpu, state.number))
            exit_ns, how = state.latency_us * 1000, "promised"
            if measured is not None and measured > exit_ns:
                exit_ns, how = measured, "measured"
            elif measured is None and self._driver == "haltpoll":
                exit_ns, how = max(exit_ns, HALTPOLL_EXIT_NS), "assumed"
            # Deeper states than a closed one are closed by the same limit.
            if exit_ns > self.limit_us * 1000 or over:
                over.append(Closed(state, exit_ns, how))
        return over

    def _limit(self, closed: list[Closed]) -> int:
        """The promised latency, us, that keeps the closed states out; 0: none tolerated."""
        return max(0, min(self.limit_us, closed[0].state.latency_us - 1))

    def _idle_states(self, cpu: int) -> list[State]:
        """A CPU's states beside POLL, shallowest first; read once."""
        if cpu not in self._states:
            base = paths.sys() / "devices/system/cpu"
            self._driver = _text(base / "cpuidle/current_driver")
            states = []
            for path in (base / f"cpu{cpu}/cpuidle").glob("state*"):
                index, latency = path.name[5:], _text(path / "latency")
                if index.isdecimal() and latency.isdecimal():
                    states.append(
                        State(int(index), _text(path / "name") or path.name, int(latency))
                    )
            ordered = sorted(states, key=lambda s: (s.latency_us, s.number))
            self._states[cpu] = [s for s in ordered if s.name != "POLL"]
        return self._states[cpu]

    # ----------------------------------------------------------------- on screen

    def detail(self) -> str:
        groups: dict[tuple[str, ...], set[int]] = {}
        for cpu, closed in self._closed.items():
            texts = tuple(f"{c.state.name} ({c.exit_ns / 1000:.3g}us {c.how})" for c in closed)
            groups.setdefault(texts, set()).add(cpu)
        parts = [
            f"cpu{format_cpus(cpus)} closes {', '.join(texts)}" for texts, cpus in groups.items()
        ]
        if not self._cpus:
            parts.append("no agent has run yet")
        elif not parts:
            parts.append(f"nothing to close on cpu{format_cpus(set(self._cpus))}")
        if self._kept:
            parts.append(
                "already as strict: " + ", ".join(f"cpu{c}={v}" for c, v in self._kept.items())
            )
        return f"<={self.limit_us}us: " + "; ".join(parts)

    def agents(self) -> dict[int, str]:
        return self._agents


def _text(path: Path) -> str:
    """A one-line sysfs file, "" if it cannot be read."""
    try:
        text = path.read_text(errors="replace").strip()
    except OSError:
        return ""
    return "".join(c if c.isprintable() else "?" for c in text)[:64]
