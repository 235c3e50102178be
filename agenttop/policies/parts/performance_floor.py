"""The window's performance floor: which knob holds it on this machine, and at which value.

Best are the scheduler's own clamps (CONFIG_UCLAMP_TASK; sched_setattr(2),
util_min): they follow the thread. Without them the lowest frequency of the
CPU's domain (cpufreq's scaling_min_freq) is raised, for all that runs there.
Neither is there on most virtual machines: then there is no floor.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from agenttop.linux import paths
from agenttop.policies.base import Agent, Key, Settings
from agenttop.policies.knobs import KNOBS
from agenttop.policies.knobs.base import KnobError, cpu_set, parse_cpus, thread_stat

#: The scheduler's scale of utilization, SCHED_CAPACITY_SCALE.
CAPACITY = 1024


class Domain(NamedTuple):
    """What of a frequency domain stays as it is while the same CPUs are online."""

    name: str
    highest_khz: int
    cpus: frozenset[int]
    #: What a driver with a table can be asked for, kHz; empty: anything.
    table: tuple[int, ...]

    def at_least(self, wanted: int) -> int:
        """The lowest frequency that can be asked for and is high enough, kHz."""
        return min((khz for khz in self.table if khz >= wanted), default=wanted)


class Floor:
    """See the module. Domains are read once, and again when a CPU comes or goes."""

    def __init__(self) -> None:
        self._known: dict[str, Domain] = {}
        self._online: frozenset[int] | None = None

    @property
    def by_thread(self) -> bool:
        """Whether it is the threads that are clamped, wherever they run."""
        return "uclamp_min" in KNOBS and (paths.proc() / "sys/kernel/sched_util_clamp_min").exists()

    def why_not(self) -> str | None:
        """Why there is no floor on this machine; None if there is one."""
        if self.by_thread or ("cpufreq" in KNOBS and any(self._domains())):
            return None
        return "this kernel has no utilization clamps, and no cpufreq driver"

    def clamps(self, agent: Agent, ratio: float, held: Mapping[Key, str]) -> Settings:
        """The agent's control-loop threads with the utilization that they count for at least."""
        settings: Settings = {}
        if not self.by_thread:
            return settings
        value = round(ratio * CAPACITY)
        for thread in agent.threads:
            stat = thread_stat(thread.pid, thread.tid)
            if stat is None:
                continue
            key = ("uclamp_min", f"{thread.pid}/{thread.tid}/{stat.start}")
            if key in held or not self._as_high(key, value):
                settings[key] = str(value)
        return settings

    def frequencies(
        self, ratio: float, held: Mapping[Key, str], used: Collection[int] | None = None
    ) -> Iterator[tuple[Key, str, tuple[int, ...]]]:
        """Each domain's lowest frequency, kHz, and its CPUs; nothing where threads are clamped.

        ``used``: only domains of these CPUs.
        """
        if self.by_thread or "cpufreq" not in KNOBS:
            return
        for domain in self._all_domains():
            if used is not None and domain.cpus.isdisjoint(used):
                continue
            key = ("cpufreq", f"{domain.name}/scaling_min_freq")
            value = domain.at_least(round(ratio * domain.highest_khz))
            if key in held or not self._as_high(key, value):
                yield key, str(value), tuple(sorted(domain.cpus))

    def _all_domains(self) -> list[Domain]:
        online = cpu_set("online")
        if online != self._online:
            self._online = online
            self._known.clear()
        found = []
        for name in self._domains():
            if (domain := self._known.get(name)) is None and (domain := _domain(name)) is None:
                continue
            self._known[name] = domain
            found.append(domain)
        return found

    def detail(self) -> str:
        """One line on it."""
        if reason := self.why_not():
            return f"no floor: {reason}"
        return "floor by uclamp.min" if self.by_thread else "floor by scaling_min_freq"

    def _domains(self) -> list[str]:
        folder = paths.sys() / "devices/system/cpu/cpufreq"
        try:
            return sorted(name for name in os.listdir(folder) if name.startswith("policy"))
        except OSError:
            return []

    def _as_high(self, key: Key, value: int) -> bool:
        try:
            current = KNOBS[key[0]].read(key[1])
        except KnobError:
            return False
        return current is not None and current.isdecimal() and int(current) >= value


def _domain(name: str) -> Domain | None:
    """A domain as it is now; None if it has gone."""
    folder = paths.sys() / "devices/system/cpu/cpufreq" / name
    try:
        highest = int((folder / "cpuinfo_max_freq").read_text())
        cpus = parse_cpus((folder / "affected_cpus").read_text().replace(" ", ","))
    except (OSError, ValueError):
        return None
    try:
        words = (folder / "scaling_available_frequencies").read_text().split()
        table = tuple(int(word) for word in words)
    except (OSError, ValueError):
        table = ()
    return Domain(name, highest, cpus, table)
