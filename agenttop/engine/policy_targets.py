"""What the engine tells the policies: agents with their control-loop threads, CPUs with their heat.

From the Samples and the registry, so that policies act on what is measured.
"""

from __future__ import annotations

import time
from typing import Final

import numpy as np

from agenttop.collectors.bpf.read.tracer import Thread as Measured
from agenttop.engine.agent_registry import Registry
from agenttop.linux import paths, process
from agenttop.model.sample import CpuCounters, Histogram, Sample
from agenttop.policies.base import Agent, Cpu, Exit, Targets, Thread
from agenttop.stats.histogram import Counts, empty, percentiles

#: An idle state's exit is judged by the wakes of about this many Samples.
EXIT_SAMPLES: Final = 30
#: Threads whose load is read at a Sample at most, 20 us each: anybody can start thousands.
LOADS: Final = 512


class EngineTargets:
    """Keeps the newest Targets."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        #: The last two that have CPUs.
        self._before: Sample | None = None
        self._newest: Sample | None = None
        #: The one whose CPUs ``_cpus`` are.
        self._computed: Sample | None = None
        #: The newest one while it has not been looked at.
        self._sample: Sample | None = None
        self._cpus: tuple[Cpu, ...] = ()
        self._agents: tuple[Agent, ...] = ()
        #: Thread -> its run time and when that was read, ns, and its load between the last two.
        self._loads: dict[int, tuple[int, int, float]] = {}
        self._turn = 0
        self._exits: dict[int, Counts] = {}
        self._seen: dict[int, Counts] = {}

    def current(self) -> Targets:
        """As of the last Sample, with the time of now."""
        if self._sample is not None:
            self._compute(self._sample)
            self._sample = None
        return Targets(time.monotonic_ns(), self._agents, self._cpus)

    def update(self, sample: Sample) -> None:
        """Take in a Sample that was just made. The work is done when somebody asks."""
        self._measure_exits(sample.idle_exit)
        if sample.cpus:
            self._before, self._newest = self._newest, sample
        self._sample = sample

    def _compute(self, sample: Sample) -> None:
        if self._newest is not None and self._newest is not self._computed:
            self._computed = self._newest
            self._compute_cpus(self._newest)
        self._compute_agents(sample)

    def _compute_cpus(self, sample: Sample) -> None:
        before = self._before
        known = {cpu.cpu: cpu for cpu in before.cpus} if before else {}
        elapsed = sample.t_ns - before.t_ns if before else 0
        exits = {
            state: Exit(int(p50), int(counts.sum()))
            for state, counts in self._exits.items()
            if (p50 := percentiles(counts, [0.5])[0]) is not None
        }
        self._cpus = tuple(
            Cpu(
                cpu.cpu,
                cpu.online,
                _ratio(_irq_ns(cpu), _irq_ns(old), elapsed) if (old := known.get(cpu.cpu)) else 0.0,
                _ratio(_softirq_ns(cpu), _softirq_ns(old), elapsed) if old else 0.0,
                _ratio(cpu.busy_ns, old.busy_ns, elapsed) if old else 0.0,
                exits,
            )
            for cpu in sample.cpus
        )

    def _compute_agents(self, sample: Sample) -> None:
        steps = {agent.id: agent.cpu_steps for agent in sample.agents}
        alive = [
            (agent, [thread for thread in agent.threads if thread.steps])
            for agent in self._registry.agents()
            if agent.alive
        ]
        self._read_loads([thread for _, threads in alive for thread in threads])
        self._agents = tuple(
            Agent(
                agent.id,
                agent.name,
                tuple(agent.pids),
                tuple(
                    Thread(t.tid, t.tgid or agent.root, t.cpu, t.steps, self._load_of(t.tid))
                    for t in threads
                ),
                {int(cpu): n for cpu, n in steps.get(agent.id, {}).items()},
                agent.slot,
                agent.background,
                agent.user,
                agent.chosen,
            )
            for agent, threads in alive
        )

    def _measure_exits(self, changed: dict[str, Histogram]) -> None:
        for counts in self._exits.values():
            counts -= counts // EXIT_SAMPLES
        for state, histogram in changed.items():
            buckets = np.frombuffer(histogram.buckets, dtype="<u2")
            now = np.frombuffer(histogram.counts, dtype="<u8")
            seen = self._seen.setdefault(int(state), empty())
            recent = self._exits.setdefault(int(state), empty())
            recent[buckets] += now - seen[buckets]
            seen[buckets] = now

    def _load_of(self, tid: int) -> float:
        known = self._loads.get(tid)
        return known[2] if known else 0.0

    def _read_loads(self, threads: list[Measured]) -> None:
        """Renew the loads: of LOADS threads at most, which take turns; the others keep theirs."""
        every = -(-len(threads) // LOADS)
        self._turn += 1
        loads = {}
        for at, thread in enumerate(threads):
            old = self._loads.get(thread.tid)
            if (at + self._turn) % every == 0:
                loads[thread.tid] = _load(thread, old)
            elif old is not None:
                loads[thread.tid] = old
        self._loads = loads


def _load(thread: Measured, old: tuple[int, int, float] | None) -> tuple[int, int, float]:
    """Its run time (ns, schedstat) now, the time, and CPU time over wall time since ``old``."""
    path = f"{paths.proc()}/{thread.tgid or thread.tid}/task/{thread.tid}/schedstat"
    raw = process.read_file(path, 128)
    now = time.monotonic_ns()
    try:
        run_ns = int(raw.split(None, 1)[0]) if raw else 0
    except (ValueError, IndexError):
        run_ns = 0
    last_run, last, _ = old or (run_ns, now, 0.0)
    return run_ns, now, _ratio(run_ns, last_run, now - last)


def _irq_ns(cpu: CpuCounters) -> int:
    return sum(a.time_ns or 0 for a in (*cpu.irqs.values(), *cpu.vectors.values())) or (
        cpu.irq_ns or 0
    )


def _softirq_ns(cpu: CpuCounters) -> int:
    return sum(a.time_ns or 0 for a in cpu.softirqs.values()) or (cpu.softirq_ns or 0)


def _ratio(now: int, before: int, elapsed: int) -> float:
    return min(1.0, max(0, now - before) / elapsed) if elapsed > 0 else 0.0
