"""steer: interrupts that hit the CPUs of agents are served on other CPUs.

Line by line: only those that really fire on agents' CPUs are moved (counts
of /proc/interrupts), to the CPUs that no agent uses, of the line's NUMA node
if it has some there, within what the line was allowed before. Where agents
use every CPU, to the one with the fewest of their steps.

Knob: /proc/irq/N/smp_affinity_list. Many lines cannot be moved, as those of
multi-queue disks, which the kernel spreads itself: they are named. A wish is
in force once effective_affinity_list agrees, for some interrupt controllers
only with the next interrupt. What irqbalance or somebody else rewrites is
shown as drift and left alone.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Annotated, Final

import msgspec

from agenttop.linux import paths, process
from agenttop.policies.agent_cpus import AgentCpus
from agenttop.policies.base import Key, Settings, Targets
from agenttop.policies.knobs.base import KnobError, cpu_set, format_cpus, parse_cpus
from agenttop.policies.knobs.files import IRQ_AFFINITY, irq_label

#: Rates are over at least this long ...
SPAN_S: Final = 3.0
#: ... but for a start this is enough.
FIRST_SPAN_S: Final = 0.2
#: With hundreds of CPUs and lines the counts take some 50 ms to read: one part in so many of the
#: time between two readings.
PACE: Final = 20
#: The CPUs that serve are chosen anew at most this often, unless one goes offline.
DWELL_S: Final = 5.0
#: Where agents use every CPU: another one takes over with so much less of their steps.
CLEARLY_LESS: Final = 0.5

Rates = dict[int, dict[int, float]]


class Params(msgspec.Struct, frozen=True, kw_only=True):
    """What can be set."""

    #: Interrupts per second on agents' CPUs from which on a line is moved.
    min_rate: Annotated[float, msgspec.Meta(ge=0.1, le=1_000_000)] = 5.0
    #: Lines (IRQ numbers) that stay where they are.
    keep: tuple[Annotated[int, msgspec.Meta(ge=0, le=1_000_000)], ...] = ()


class LineRates:
    """How often each interrupt line fires on each CPU, per second, over the last seconds."""

    def __init__(self, t_ns: int) -> None:
        # With numpy, which a command that only lists policies does not need.
        from agenttop.collectors.procfs.interrupts import Interrupts

        self._source = Interrupts()
        self._seen: deque[tuple[int, dict[int, dict[int, int]]]] = deque()
        self._rates: Rates = {}
        #: When they are read again, CLOCK_MONOTONIC.
        self._due_ns = t_ns
        self.update(t_ns)

    def update(self, t_ns: int) -> Rates:
        """Line -> CPU -> rate, as of the last reading; empty while there is too little to tell."""
        if t_ns >= self._due_ns:
            began = time.thread_time_ns()
            self._rates = self._read(t_ns)
            self._due_ns = t_ns + PACE * (time.thread_time_ns() - began)
        return self._rates

    def _read(self, t_ns: int) -> Rates:
        by_cpu, _ = self._source.read()
        now: dict[int, dict[int, int]] = {}
        for cpu, lines in by_cpu.items():
            for line, activity in lines.items():
                now.setdefault(int(line), {})[cpu] = activity.count
        if not self._seen or t_ns > self._seen[-1][0]:
            self._seen.append((t_ns, now))
        while len(self._seen) > 2 and t_ns - self._seen[1][0] >= SPAN_S * 1e9:
            self._seen.popleft()
        then_ns, then = self._seen[0]
        span_s = (t_ns - then_ns) / 1e9
        if span_s < FIRST_SPAN_S:
            return {}
        rates: Rates = {}
        for irq, counts in now.items():
            old = then.get(irq, {})
            for cpu, count in counts.items():
                if (more := count - old.get(cpu, 0)) > 0:
                    rates.setdefault(irq, {})[cpu] = more / span_s
        return rates


class Steer:
    """The policy."""

    name = "steer"
    key = "i"
    title = "interrupts away from the CPUs of agents"

    def __init__(self, params: Params | None = None) -> None:
        self._params = params or Params()
        # Not forgotten when it is switched: what fires where is a fact of the machine.
        self._rates: LineRates | None = None
        self.reset()

    def reset(self) -> None:
        self._cpus = AgentCpus()
        #: The CPUs that serve, and since when (CLOCK_MONOTONIC).
        self._serving: frozenset[int] = frozenset()
        self._since = 0
        self._crowded = False
        self._used: frozenset[int] = frozenset()
        #: Line -> the CPUs that it had without us.
        self._allowed: dict[int, frozenset[int]] = {}
        self._asked: set[int] = set()
        self._moved: list[int] = []
        self._fixed: list[int] = []
        self._waiting: list[int] = []
        self._balancer: int | None = None
        self._looked = False

    def probe(self) -> str | None:
        if os.geteuid() != 0:
            return "needs root"
        if len(cpu_set("online")) < 2:
            return "only one CPU is online: nowhere to steer to"
        folder = paths.proc() / "irq"
        if not any(_writable(folder / line / "smp_affinity_list") for line in _lines(folder)):
            return f"{folder}: no interrupt line can be moved here"
        if os.statvfs(folder).f_flag & os.ST_RDONLY:
            return f"{folder}: not writable (a container?)"
        # Counted from here on, so that there is something to go by at once.
        self._count(time.monotonic_ns())
        return None

    # ----------------------------------------------------------------- what should hold

    def wanted(self, targets: Targets, held: Mapping[Key, str]) -> Settings:
        rates = self._count(targets.t_ns)
        if not self._looked:
            self._balancer, self._looked = _find("irqbalance"), True
        online = frozenset(cpu.cpu for cpu in targets.cpus if cpu.online)
        self._used = self._cpus.update(targets)
        self._choose(online, targets.t_ns)
        self._moved, self._fixed, self._waiting = [], [], []
        if not self._serving:
            return {}
        spared = self._used - self._serving
        settings: Settings = {}
        held_lines = {int(target) for kind, target in held if kind == "irq_affinity"}
        for irq in sorted(rates.keys() | held_lines):
            hits = sum(rate for cpu, rate in rates.get(irq, {}).items() if cpu in spared)
            if irq in self._params.keep or (irq not in held_lines and hits < self._params.min_rate):
                continue
            if not _writable(paths.proc() / f"irq/{irq}/smp_affinity_list"):
                self._fixed.append(irq)
            elif cpus := self._where(irq, online):
                # Asked for before and not held: refused or rewritten, which the manager tells.
                if irq in held_lines or irq not in self._asked:
                    self._moved.append(irq)
                self._asked.add(irq)
                settings["irq_affinity", str(irq)] = format_cpus(cpus)
                if irq in held_lines and not _effective(irq) <= cpus:
                    self._waiting.append(irq)
        return settings

    def _count(self, t_ns: int) -> Rates:
        if self._rates is None:
            self._rates = LineRates(t_ns)
        return self._rates.update(t_ns)

    def _choose(self, online: frozenset[int], t_ns: int) -> None:
        """Which CPUs serve the interrupts."""
        if not self._used:
            self._serving = frozenset()
            return
        still = bool(self._serving) and self._serving <= online
        if still and t_ns - self._since < DWELL_S * 1e9:
            return
        serving = online - self._used
        self._crowded = not serving
        if not serving:
            steps = self._cpus.steps()
            least = min(sorted(online), key=lambda cpu: steps.get(cpu, 0.0))
            serving = frozenset({least})
            if still and len(self._serving) == 1:
                (current,) = self._serving
                if steps.get(least, 0.0) > steps.get(current, 0.0) * CLEARLY_LESS:
                    serving = self._serving
        if serving != self._serving:
            self._serving, self._since = serving, t_ns

    def _where(self, irq: int, online: frozenset[int]) -> frozenset[int]:
        """The CPUs for a line; none if its affinity cannot be told."""
        if irq not in self._allowed:
            try:
                allowed = parse_cpus(IRQ_AFFINITY.read(str(irq)) or "")
            except (KnobError, ValueError):
                return frozenset()
            self._allowed[irq] = allowed
        cpus = self._serving & self._allowed[irq] or self._serving
        return cpus & _near(irq) or cpus

    # ----------------------------------------------------------------- on screen

    def detail(self) -> str:
        if not self._serving:
            return "no agent has run yet"
        where = f"cpu{format_cpus(self._serving)}"
        if self._crowded:
            where += " (agents use every CPU; the fewest steps are there)"
        parts = []
        if self._moved:
            parts.append(f"{_names(self._moved)} -> {where}")
        elif not self._asked:
            spared = self._used - self._serving
            parts.append(
                f"no movable line fires {self._params.min_rate:g} times a second"
                f" on cpu{format_cpus(spared)}"
                if spared
                else f"agents run on {where} only"
            )
        if self._waiting:
            parts.append(f"not in force before their next interrupt: {_names(self._waiting)}")
        if self._fixed:
            firing = len(self._moved) + len(self._fixed)
            parts.append(f"{len(self._fixed)} of {firing} cannot be moved: {_names(self._fixed)}")
        if self._balancer:
            parts.append(f"irqbalance (pid {self._balancer}) may move them: stop it, or see drift")
        return "; ".join(parts) or f"nothing moved to {where}"

    def agents(self) -> dict[int, str]:
        spared = {
            agent: cpus - self._serving
            for agent, cpus in self._cpus.by_agent.items()
            if self._moved and cpus - self._serving
        }
        return {agent: f"cpu{format_cpus(cpus)}" for agent, cpus in spared.items()}


def _names(irqs: Iterable[int]) -> str:
    """The first few lines by number and device."""
    some = list(irqs)
    shown = ", ".join(irq_label(str(irq)) for irq in some[:6])
    return f"{shown} and {len(some) - 6} more" if len(some) > 6 else shown


def _lines(path: os.PathLike[str]) -> list[str]:
    try:
        return [name for name in os.listdir(path) if name.isdigit()]
    except OSError:
        return []


def _writable(path: os.PathLike[str]) -> bool:
    """Whether anybody may write it: what cannot be moved is read-only, for root too."""
    try:
        return bool(os.stat(path).st_mode & 0o222)
    except OSError:
        return False


def _effective(irq: int) -> frozenset[int]:
    """Where a line is really served; empty if the kernel does not tell."""
    raw = process.read_whole(f"{paths.proc()}/irq/{irq}/effective_affinity_list") or b""
    try:
        return parse_cpus(raw.decode())
    except ValueError:
        return frozenset()


def _near(irq: int) -> frozenset[int]:
    """CPUs of the NUMA node that the line's device is on; empty if it has none."""
    raw = (process.read_file(f"{paths.proc()}/irq/{irq}/node", 32) or b"").strip()
    if not raw.isdigit():
        return frozenset()
    cpus = process.read_whole(f"{paths.sys()}/devices/system/node/node{int(raw)}/cpulist") or b""
    try:
        return parse_cpus(cpus.decode())
    except ValueError:
        return frozenset()


def _find(comm: str) -> int | None:
    """A process with this name."""
    root = str(paths.proc())
    wanted = comm.encode()[:15]
    for pid in process.pids(root):
        if (process.read_file(f"{root}/{pid}/comm", 32) or b"").strip() == wanted:
            return pid
    return None
