"""Which idle states of a CPU take longer to leave than a limit, and what the kernel is told.

A state is over the limit when the exit latency that its driver promises
(sysfs ``latency``) or the exit that was measured (median of idle_exit per
state) is. States cannot be closed one by one through PM QoS: the kernel is
told the longest promised latency that is still welcome, so the states below
the first closed one go with it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from agenttop.linux import paths
from agenttop.policies.base import Targets
from agenttop.policies.knobs.base import RESUME_LATENCY, KnobError, format_cpus

#: A measured exit counts from this many samples on.
MIN_SAMPLES: Final = 20
#: Without a measurement: what a guest's HLT takes. The promise of the haltpoll driver (1 us)
#: is a constant in its source, drivers/cpuidle/cpuidle-haltpoll.c; 6-12 us were measured.
HALTPOLL_EXIT_NS: Final = 8_000


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


def why_not() -> str | None:
    """Why no idle state can be closed on this machine; None if that can be done."""
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


class IdleLimits:
    """The limit for each CPU; remembers what was measured."""

    def __init__(self, limit_us: int) -> None:
        #: Longest exit of a state that is left open, us.
        self.limit_us = limit_us
        self._states: dict[int, list[State]] = {}
        self._driver = ""
        #: (CPU, state) -> newest measurement; once closed, a state is not measured any more.
        self._measured: dict[tuple[int, int], int] = {}

    def learn(self, targets: Targets, shut: Mapping[int, list[Closed]]) -> None:
        """Take in the measured exits; ``shut``: the states that are closed now, by CPU."""
        for cpu in targets.cpus:
            closed = {c.state.number for c in shut.get(cpu.cpu, ())}
            for index, exit_ in cpu.exits.items():
                # Of a closed state only stragglers are measured.
                if exit_.samples >= MIN_SAMPLES and index not in closed:
                    self._measured[cpu.cpu, index] = exit_.p50_ns

    def over(self, cpu: int) -> list[Closed]:
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

    def limit(self, closed: list[Closed]) -> int:
        """The promised latency, us, that keeps the closed states out; 0: none tolerated."""
        return max(0, min(self.limit_us, closed[0].state.latency_us - 1))

    def stricter(self, cpu: int, value: str) -> str | None:
        """What somebody else has set that is as strict already; that stays theirs."""
        try:
            current = RESUME_LATENCY.read(f"cpu{cpu}")
        except KnobError:
            return None
        if current is None or not RESUME_LATENCY.valid(f"cpu{cpu}", current):
            return None
        as_strict = RESUME_LATENCY.tolerance(current) <= RESUME_LATENCY.tolerance(value)
        return current if as_strict else None

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


def closes(shut: Mapping[int, list[Closed]]) -> list[str]:
    """Which CPUs close which states, one text for those that close the same."""
    groups: dict[tuple[str, ...], set[int]] = {}
    for cpu, closed in shut.items():
        texts = tuple(f"{c.state.name} ({_us(c.exit_ns)} {c.how})" for c in closed)
        groups.setdefault(texts, set()).add(cpu)
    return [f"cpu{format_cpus(cpus)} closes {', '.join(texts)}" for texts, cpus in groups.items()]


def _us(ns: int) -> str:
    """Without an exponent, however slow a hypervisor is."""
    return f"{ns / 1000:.3g}us" if ns < 100_000 else f"{ns / 1000:.0f}us"


def _text(path: Path) -> str:
    """A one-line sysfs file, "" if it cannot be read."""
    try:
        text = path.read_text(errors="replace").strip()
    except OSError:
        return ""
    return "".join(c if c.isprintable() else "?" for c in text)[:64]
