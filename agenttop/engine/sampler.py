"""Makes Samples: reads every collector at one moment and puts the counters side by side."""

from __future__ import annotations

import math
import time
from typing import Final

from agenttop.collectors.bpf import layout
from agenttop.collectors.bpf.read.cpus import BpfCpus
from agenttop.collectors.bpf.read.tracer import Tracer
from agenttop.collectors.procfs.cpus import ProcfsCpus
from agenttop.collectors.procfs.energy import Energy
from agenttop.collectors.procfs.own_cpu import SelfCost
from agenttop.engine.agent_registry import Agent, Registry
from agenttop.engine.tail_thresholds import Tail, kept_each, renew_every_ns
from agenttop.linux import process
from agenttop.linux.process import printable
from agenttop.model.sample import (
    AgentCounters,
    CauseCounters,
    CauseState,
    CpuCounters,
    Exemplar,
    Histogram,
    MarkCounters,
    NamedCounters,
    Sample,
    Trust,
)
from agenttop.model.vocabulary import COMPUTE_PARTS, GATES, SOFTIRQS, STAGES, VECTORS
from agenttop.step import NAME_BYTES

#: A full Sample at least this often, so that a reader who lost one recovers.
FULL_EVERY: Final = 60
#: With more agents than this, a Sample has the new counts of every third one's histograms: the
#: sums are of each Sample, percentiles over a window lag by up to two.
MANY: Final = 64
TURNS: Final = 3
#: Figures of so many CPUs are read a second; of more CPUs every second one, and so on.
CPUS_A_SECOND: Final = 64
#: Recursion misses are asked for this often: one call for each program.
MISSES_EVERY: Final = 5
#: A Sample that comes so much early counts as in time, s.
EARLY_S: Final = 0.2
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
        self._energy = Energy()
        self._tracer: Tracer | None = None
        self._cpus: BpfCpus | None = None
        self._tails: dict[int, Tail] = {}
        self._seq = 0
        self._full = True
        self._names: dict[str, str] = {}
        self._lost_edges = 0
        self._misses = 0
        #: When the CPUs were read last, CLOCK_MONOTONIC, s.
        self._cpus_read = -math.inf
        #: Agent id -> steps and those without a source, as of the newest Sample.
        self._told: dict[int, tuple[int, int]] = {}
        #: The same of agents that no Sample names any more, since then or since they began.
        self._of_ended = (0, 0)

    @property
    def procfs(self) -> ProcfsCpus:
        """The /proc and /sys side, for facts about the host."""
        return self._cpus.procfs if self._cpus else self._procfs

    @property
    def no_power(self) -> str | None:
        """Why there are no energy counters, None if there are."""
        return self._energy.missing

    def attach(self, tracer: Tracer) -> None:
        """The programs are in the kernel: chains from the next Sample on."""
        self._tracer = tracer
        self._cpus = BpfCpus(tracer)
        # The files that were kept open until now are closed with this.
        self._procfs = self._cpus.procfs
        self._registry.attach(tracer)
        self._tails.clear()
        self._told = {}
        self._of_ended = (0, 0)
        self._lost_edges = self._misses = 0
        self._full = True

    @property
    def later_cpus(self) -> frozenset[int]:
        """CPUs that run and came after ``attach``: they are not measured."""
        return self.procfs.later

    def look_again(self) -> None:
        """Without BPF: the CPUs that are there now, from the next Sample on."""
        self._procfs = ProcfsCpus()
        self._full = True

    @property
    def cpus_every_s(self) -> float:
        """CPU figures are read at least so many seconds apart; 0: with each Sample."""
        turns = -(-len(self.procfs.cpus) // CPUS_A_SECOND)
        return float(turns) if turns > 1 else 0.0

    def ask_full(self) -> None:
        """The next Sample holds every bucket."""
        self._full = True

    def ask_cpus(self) -> None:
        """The next Sample has the CPUs: figures of before and after it are to be told apart."""
        self._cpus_read = -math.inf

    def edges(self) -> bool:
        """Take in process edges; whether some are left for later, as it takes no long time."""
        if self._tracer is not None:
            self._registry.edges(self._tracer.edges(), lost=False)
        return self._registry.behind

    def pass_by(self) -> None:
        """In the place of a Sample: ended agents make room, their steps stay in the totals."""
        self._registry.refresh()
        surplus = self._registry.surplus
        seated = [agent for agent in surplus if agent.slot != layout.NO_SLOT]
        if self._tracer is not None and seated:
            rows = self._tracer.rows(agent.slot for agent in seated)
            steps, unattributed = self._of_ended
            steps += int(rows["steps"].sum()) - sum(self._before(a)[0] for a in seated)
            unattributed += int(rows["sources"][..., 0].sum())
            unattributed -= sum(self._before(a)[1] for a in seated)
            self._of_ended = steps, unattributed
        self._registry.forget(surplus)

    def _before(self, agent: Agent) -> tuple[int, int]:
        return self._told.get(agent.id, (0, 0))

    def sample(self) -> Sample:
        """One Sample of now."""
        started = time.monotonic_ns()
        self._registry.refresh()
        full = self._full or self._seq % FULL_EVERY == 0
        self._full = False
        trust = Trust(
            slots_full=self._registry.slots_full,
            slots_full_by_user=self._registry.slots_full_by_user,
            steps_of_ended=self._of_ended[0],
            unattributed_of_ended=self._of_ended[1],
        )
        causes: list[CauseState] = []
        cpus: list[CpuCounters]
        idle_exit: dict[str, Histogram] = {}
        exemplars: list[Exemplar] = []
        tracer = self._tracer
        if tracer is None or self._cpus is None:
            cpus = self._procfs.read() if self._cpus_due(full) else []
            now = time.monotonic_ns()
            counters = [_from_schedstat(one) for one in self._registry.agents() if one.seated]
        else:
            raw = tracer.cpus()
            cpus = self._cpus.read(raw, full) if self._cpus_due(full) else []
            if cpus:
                tracer.causes.follow_cpus(frozenset(cpu.cpu for cpu in cpus if cpu.online))
            idle_exit = tracer.idle_exit(full)
            now = time.monotonic_ns()
            counters = self._from_rows(tracer, full)
            exemplars = self._exemplars(tracer)
            causes = tracer.causes.states(tracer.cost_measured)
            self._thresholds(tracer, now, {exemplar.agent for exemplar in exemplars})
            trust.drops = tracer.losses(raw)
            lost = trust.drops["edge_ring_full"]
            self._registry.edges((), lost=lost > self._lost_edges)
            self._lost_edges = lost
            if self._seq % MISSES_EVERY == 0:
                self._misses = tracer.recursion_misses()
            trust.recursion_misses = self._misses
            if tracer.cost_measured:
                trust.bpf_ns = tracer.run_time_ns()
        energy = self._energy.read()
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
            energy_uj=energy,
            trust=trust,
            causes=causes,
        )

    # ------------------------------------------------------------------ internals

    def _cpus_due(self, full: bool) -> bool:
        """Whether this Sample has the CPUs: reading very many takes long."""
        now = time.monotonic()
        # A Sample that comes a little early must not leave them out for one more.
        if not full and now - self._cpus_read < self.cpus_every_s - EARLY_S:
            return False
        self._cpus_read = now
        return True

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
        out: list[AgentCounters] = []
        if not measured:
            return out
        rows = tracer.rows(agent.slot for agent in measured)
        sums = {name: rows[name].tolist() for name, _ in layout.ROW_FIELDS}
        lite = tracer.level == "lite"
        marked = tracer.steps.marked()
        tracer.causes.follow_contexts(tracer.steps.keeps())
        tracer.details.name_lines(self._names)
        details = tracer.details.read(full) if tracer.causes.used else {}
        self._told = {
            agent.id: (sums["steps"][i], sums["sources"][i][0]) for i, agent in enumerate(measured)
        }
        often, turn = full or len(measured) <= MANY, self._seq % TURNS
        for i, agent in enumerate(measured):
            stages = sums["stage_ns"][i]
            slowpath = sum(stages[_SLOWPATH])
            if lite:
                stages[_RETURN] = None
            unattributed, *sources = sums["sources"][i]
            causes, explained = (
                tracer.cause_counters(agent.slot, full)
                if tracer.causes.used
                else ({}, [0] * len(STAGES))
            )
            for name, labels in details.get(agent.slot, {}).items():
                # Of what no step waited for there are labels alone.
                causes.setdefault(name, CauseCounters()).details = labels
            out.append(
                AgentCounters(
                    id=agent.id,
                    name=agent.name,
                    rule=agent.rule,
                    pid=agent.root,
                    pids=agent.told,
                    threads=agent.thread_count,
                    alive=agent.alive,
                    threads_tracked=len(agent.threads),
                    background=agent.background,
                    user=agent.user,
                    chosen=agent.chosen,
                    steps=sums["steps"][i],
                    ready=None if lite else sums["ready"][i],
                    unattributed=unattributed,
                    stage_sum_ns=stages,
                    step_sum_ns=sums["step_ns"][i],
                    slowpath_sum_ns=slowpath,
                    histograms=tracer.histograms(agent.slot, full)
                    if often or agent.id % TURNS == turn or not agent.alive
                    else {},
                    sources=sources,
                    gates=sums["gates"][i],
                    compute_parts_ns=sums["compute_ns"][i],
                    tail_steps=sums["tail_steps"][i],
                    tail_sum_ns=sums["tail_ns"][i],
                    cpu_steps=tracer.cpu_steps(agent.slot),
                    causes=causes,
                    explained_stage_ns=explained,
                    run_ns=agent.cpu_ns(),
                    named=_named(tracer, agent.slot, full) if agent.slot in marked else [],
                    marks=_marks(tracer, agent.slot) if agent.slot in marked else None,
                )
            )
        return out

    def _exemplars(self, tracer: Tracer) -> list[Exemplar]:
        records = tracer.slows().tolist()
        slots = {agent.slot: agent for agent in self._registry.agents()} if records else {}
        out = []
        for t_ns, pid_tgid, slot, gate, source, cpu, waker, waker_id, waker_cpu, raw in records:
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
                    pid=pid_tgid >> 32,
                    waker_tid=waker_id if layout.WAKERS[waker] == "task" else None,
                    waker_cpu=waker_cpu - 1 if waker_cpu else None,
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
            comm = process.read_file(f"/proc/{number}/comm", 64)
            name = printable(process.text(comm).strip(), 20) if comm else "ended"
            return f"{name} [{number}]"
        if kind == "line":
            return f"irq {number} {self._names.get(str(number), '')}".strip()
        if kind == "vector":
            return VECTORS[number] if number < len(VECTORS) else "vector"
        if kind == "softirq":
            return f"softirq {SOFTIRQS[number]}" if number < len(SOFTIRQS) else "softirq"
        return ""

    def _thresholds(self, tracer: Tracer, now_ns: int, kept: set[int]) -> None:
        """Renew those of agents that had a step kept (``kept``: their ids), and of a fifth."""
        agents = [agent for agent in self._registry.agents() if agent.slot != layout.NO_SLOT]
        most = kept_each(len(agents))
        every = renew_every_ns(len(agents))
        for agent in agents:
            if agent.id not in kept and (agent.id + self._seq) % 5 and agent.id in self._tails:
                continue
            tail = self._tail(agent)
            if tail.due(now_ns, every):
                tail.renew(tracer.slowpath(agent.slot), now_ns, most)
            tail.update(now_ns, most)
            tracer.set_thresholds(agent.slot, tail.slow_ns, tail.tail_ns, most)
        if len(self._tails) > len(agents):
            for gone in self._tails.keys() - {agent.id for agent in agents}:
                del self._tails[gone]


def _named(tracer: Tracer, slot: int, full: bool) -> list[NamedCounters]:
    return [
        NamedCounters(
            lane=one.lane,
            name=printable(one.name.decode(errors="replace"), NAME_BYTES),
            steps=one.steps,
            step_sum_ns=one.step_ns,
            slowpath_sum_ns=one.slow_ns,
            histograms=one.histograms,
        )
        for one in tracer.steps.named(slot, full)
    ]


def _marks(tracer: Tracer, slot: int) -> MarkCounters:
    told = tracer.steps.marks(slot)
    return MarkCounters(
        told.contexts,
        told.met,
        told.missed,
        told.overrun,
        told.crowded,
        told.unread,
        told.invalid,
        told.forgotten,
        told.strays,
    )


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
        user=agent.user,
        chosen=agent.chosen,
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
