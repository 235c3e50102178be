"""Makes Samples: reads every collector at one moment and puts the counters side by side."""

from __future__ import annotations

import time
from typing import Final

from agenttop import procinfo
from agenttop.collectors.bpf import layout
from agenttop.collectors.bpf.cpus import BpfCpus
from agenttop.collectors.bpf.tracer import Tracer
from agenttop.collectors.procfs import ProcfsCpus
from agenttop.collectors.selfcost import SelfCost
from agenttop.model import AgentCounters, CpuCounters, Exemplar, Histogram, Sample, Trust
from agenttop.procinfo import printable
from agenttop.registry import Agent, Registry
from agenttop.tails import Tail
from agenttop.words import COMPUTE_PARTS, GATES, SOFTIRQS, STAGES, VECTORS

#: A full Sample at least this often, so that a reader who lost one recovers.
FULL_EVERY: Final = 60
#: /proc/interrupts names are read again this often.
NAMES_EVERY: Final = 30

_RETURN: Final = STAGES.index("return")
_SLOWPATH: Final = slice(STAGES.index("irq"), _RETURN + 1)


class Sampler:
    """Reads and assembles; knows no stream and no policy."""

    def __init__(self, registry: Registry, cost: SelfCost) -> None:
        self._registry = registry
        self._cost = cost
        self._procfs = ProcfsCpus()
        self._tracer: Tracer | None = None
        self._cpus: BpfCpus | None = None
        self._tails: dict[int, Tail] = {}
        self._seq = 0
        self._full = True
        self._names: dict[str, str] = {}
        self._lost_edges = 0
        self._bpf_ns = 0

    @property
    def procfs(self) -> ProcfsCpus:
        """The /proc and /sys side, for facts about the host."""
        return self._cpus.procfs if self._cpus else self._procfs

    def attach(self, tracer: Tracer) -> None:
        """The programs are in the kernel: chains from the next Sample on."""
        self._tracer = tracer
        self._cpus = BpfCpus(tracer)
        self._registry.attach(tracer)
        self._full = True

    def ask_full(self) -> None:
        """The next Sample holds every bucket."""
        self._full = True

    def edges(self) -> None:
        """Take in process edges; to be called some ten times a second."""
        if self._tracer is not None:
            self._registry.edges(self._tracer.edges(), lost=False)

    def sample(self) -> Sample:
        """One Sample of now."""
        started = time.monotonic_ns()
        self._registry.refresh()
        full = self._full or self._seq % FULL_EVERY == 0
        self._full = False
        trust = Trust(slots_full=self._registry.slots_full)
        cpus: list[CpuCounters]
        idle_exit: dict[str, Histogram] = {}
        exemplars: list[Exemplar] = []
        tracer = self._tracer
        if tracer is None or self._cpus is None:
            cpus = self._procfs.read()
            now = time.monotonic_ns()
            counters = [_from_schedstat(agent) for agent in self._registry.agents()]
        else:
            cpus, raw = self._cpus.read(full)
            idle_exit = tracer.idle_exit(full)
            now = time.monotonic_ns()
            counters = self._from_rows(tracer, full)
            exemplars = self._exemplars(tracer)
            self._thresholds(tracer, now)
            trust.drops = tracer.losses(raw)
            lost = trust.drops["edge_ring_full"]
            self._registry.edges((), lost=lost > self._lost_edges)
            self._lost_edges = lost
            trust.recursion_misses = tracer.recursion_misses()
            if tracer.cost_measured:
                trust.bpf_ns = tracer.run_time_ns()
        names = self._irq_names(full)
        self._seq += 1
        self._registry.forget()
        trust.self_ns = self._cost.read()
        trust.read_ns = time.monotonic_ns() - started
        return Sample(
            t_ns=now,
            wall_s=time.time(),
            seq=self._seq,
            full=full,
            cpus=cpus,
            agents=counters,
            irq_names=names,
            idle_exit=idle_exit,
            exemplars=exemplars,
            trust=trust,
        )

    # ------------------------------------------------------------------ internals

    def _irq_names(self, full: bool) -> dict[str, str]:
        """New names of interrupt lines, as of the CPUs' last reading."""
        if not full and self._seq % NAMES_EVERY:
            return {}
        names = self._cpus.irq_names() if self._cpus else self._procfs.irq_names()
        if names == self._names and not full:
            return {}
        self._names = dict(names)
        return self._names

    def _from_rows(self, tracer: Tracer, full: bool) -> list[AgentCounters]:
        agents = self._registry.agents()
        measured = [agent for agent in agents if agent.slot != layout.NO_SLOT]
        out = [_identity(agent) for agent in agents if agent.slot == layout.NO_SLOT]
        if not measured:
            return out
        rows = tracer.rows(agent.slot for agent in measured)
        sums = {name: rows[name].sum(axis=0).tolist() for name, _ in layout.ROW_FIELDS}
        per_cpu = rows["steps"].T.tolist()
        lite = tracer.level == "lite"
        for i, agent in enumerate(measured):
            counters = _identity(agent)
            stages = sums["stage_ns"][i]
            counters.threads_tracked = len(agent.threads)
            counters.steps = sums["steps"][i]
            counters.ready = None if lite else sums["ready"][i]
            counters.unattributed, *counters.sources = sums["sources"][i]
            counters.gates = sums["gates"][i]
            counters.step_sum_ns = sums["step_ns"][i]
            counters.slowpath_sum_ns = sum(stages[_SLOWPATH])
            counters.stage_sum_ns = stages
            if lite:
                counters.stage_sum_ns = [*stages]
                counters.stage_sum_ns[_RETURN] = None
            counters.compute_parts_ns = sums["compute_ns"][i]
            counters.tail_steps = sums["tail_steps"][i]
            counters.tail_sum_ns = sums["tail_ns"][i]
            counters.cpu_steps = {str(cpu): n for cpu, n in enumerate(per_cpu[i]) if n}
            counters.histograms = tracer.histograms(agent.slot, full)
            counters.run_ns = agent.cpu_ns()
            out.append(counters)
        return out

    def _exemplars(self, tracer: Tracer) -> list[Exemplar]:
        records = tracer.slows().tolist()
        slots = {agent.slot: agent for agent in self._registry.agents()} if records else {}
        out = []
        for t_ns, pid_tgid, slot, gate, source, cpu, waker, waker_id, raw in records:
            agent = slots.get(slot)
            if agent is None:
                continue
            stages: list[int | None] = raw.tolist()
            self._tail(agent).keep(int(raw[_SLOWPATH].sum()), t_ns)
            if tracer.level == "lite":
                stages[_RETURN] = None
            out.append(
                Exemplar(
                    agent=agent.id,
                    t_ns=t_ns,
                    tid=pid_tgid & 0xFFFFFFFF,
                    cpu=cpu,
                    gate=GATES[gate],
                    source=layout.SOURCE_NAMES[source] if source else None,
                    stages_ns=stages,
                    waker=self._waker(layout.WAKERS[waker], waker_id),
                )
            )
        return out

    def _tail(self, agent: Agent) -> Tail:
        tail = self._tails.get(agent.id)
        if tail is None:
            tail = self._tails[agent.id] = Tail()
        return tail

    def _waker(self, kind: str, number: int) -> str:
        if kind == "task":
            comm = procinfo.read_file(f"/proc/{number}/comm", 64)
            name = printable(procinfo.text(comm).strip(), 20) if comm else "ended"
            return f"{name} [{number}]"
        if kind == "line":
            return f"irq {number} {self._names.get(str(number), '')}".strip()
        if kind == "vector":
            return VECTORS[number] if number < len(VECTORS) else "vector"
        if kind == "softirq":
            return f"softirq {SOFTIRQS[number]}" if number < len(SOFTIRQS) else "softirq"
        return ""

    def _thresholds(self, tracer: Tracer, now_ns: int) -> None:
        agents = [agent for agent in self._registry.agents() if agent.slot != layout.NO_SLOT]
        for agent in agents:
            tail = self._tail(agent)
            tail.update(now_ns)
            # One in five at a time: the work is spread over the Samples.
            if tail.due(now_ns) and (not tail.tail_ns or (agent.id + self._seq) % 5 == 0):
                tail.renew(tracer.slowpath(agent.slot), now_ns)
            tracer.set_thresholds(agent.slot, tail.slow_ns, tail.tail_ns)
        for gone in self._tails.keys() - {agent.id for agent in agents}:
            del self._tails[gone]


def _identity(agent: Agent) -> AgentCounters:
    return AgentCounters(
        id=agent.id,
        name=agent.name,
        rule=agent.rule,
        pid=agent.root,
        pids=list(agent.pids),
        threads=agent.thread_count,
        alive=agent.alive,
        background=agent.background,
    )


def _from_schedstat(agent: Agent) -> AgentCounters:
    """Without BPF: run time and run-queue delay only; steps are not to be had."""
    counters = _identity(agent)
    counters.stage_sum_ns = [None] * len(STAGES)
    counters.compute_parts_ns = [None] * len(COMPUTE_PARTS)
    totals = agent.schedstat.read(agent.pids) if agent.schedstat else None
    if totals is not None:
        counters.threads = totals.threads
        counters.run_ns = totals.run_ns
        counters.run_delay_ns = totals.run_delay_ns
        counters.timeslices = totals.timeslices
    return counters
