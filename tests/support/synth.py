"""A deterministic source of Samples, for tests of everything behind the stream.

It behaves as the engine does: cumulative counters, one Sample per second,
buckets only where they changed (except in a full Sample), stage sums that add
up to the step's sum to the nanosecond. The figures are made up, but lie where
real ones do, so that the same source serves screens in tests.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from agenttop.model.sample import (
    Activity,
    AgentCounters,
    CpuCounters,
    Event,
    Exemplar,
    Histogram,
    Host,
    IdleCounters,
    IdleState,
    Level,
    Mode,
    PolicyStatus,
    Sample,
    Trust,
)
from agenttop.model.vocabulary import (
    COMPUTE_PARTS,
    GATES,
    MEASURES,
    SLOWPATH_STAGES,
    SOURCES,
    STAGES,
)
from agenttop.stats import histogram

T = TypeVar("T")
SECOND_NS: Final = 1_000_000_000
Values = NDArray[np.int64]


@dataclass(frozen=True)
class Profile:
    """One kind of agent: medians in ns, and how often and how far each stage strays."""

    name: str
    pid: int
    steps_per_s: int
    gate: str
    sources: dict[str, float]
    #: Stage -> (median, sigma of the log, share of stray steps, their factor).
    stages: dict[str, tuple[float, float, float, float]]
    cpu: int
    background: bool = False
    threads: int = 2


def _stages(
    irq: float, softirq: float, ipi: float, idle: float, queue: float, stray: float, factor: float
) -> dict[str, tuple[float, float, float, float]]:
    return {
        "irq": (irq, 0.3, 0.004, 3),
        "softirq": (softirq, 0.35, 0.006, 5),
        "ipi": (ipi, 0.5, 0.01, 8),
        "idle_exit": (idle, 0.3, 0.01, 3),
        "queue": (queue, 0.4, stray, factor),
        "return": (1_000, 0.3, 0.01, 4),
    }


def _compute(
    stages: dict[str, tuple[float, float, float, float]], wait: float, compute: float
) -> dict[str, tuple[float, float, float, float]]:
    return {"wait": (wait, 0.25, 0.01, 3), **stages, "compute": (compute, 0.2, 0.01, 2)}


PROFILES: Final = (
    Profile("coder", 4121, 812, "epoll_wait", {"net": 0.9, "child": 0.1},
            _compute(_stages(2_000, 7_000, 1_000, 11_000, 6_000, 0.02, 60), 1e6, 180_000), 1),
    Profile("retriever", 4130, 3410, "pread64", {"block": 0.8, "net": 0.15, "timer": 0.05},
            _compute(_stages(1_500, 3_000, 900, 10_000, 3_000, 0.005, 12), 1.4e5, 50_000), 0),
    Profile("voice", 4144, 100, "clock_nanosleep", {"timer": 1.0},
            _compute(_stages(1_000, 2_000, 0, 15_000, 4_000, 0.005, 6), 9.9e6, 60_000), 1),
    Profile("toolcaller", 4151, 2890, "epoll_wait", {"net": 0.7, "child": 0.2, "ipc": 0.1},
            _compute(_stages(2_000, 12_000, 1_200, 9_000, 5_000, 0.006, 15), 2e5, 60_000), 0),
    Profile("indexer", 4160, 1002, "io_uring_enter", {"io_uring": 0.6, "block": 0.4},
            _compute(_stages(2_000, 6_000, 2_000, 9_000, 30_000, 0.03, 40), 4e5, 300_000), 0,
            background=True, threads=4),
)  # fmt: skip


def buckets_of(values: Values) -> Values:
    """histogram.bucket_of for many values."""
    clipped = np.clip(values, 0, histogram.MAX_VALUE_NS)
    exponent = np.frexp(clipped.astype(np.float64))[1] - 1
    shift = np.maximum(exponent - histogram.SUB_BITS, 0)
    out: Values = (shift << histogram.SUB_BITS) + (clipped >> shift)
    return out


def pack(before: histogram.Counts, now: histogram.Counts, full: bool) -> Histogram | None:
    """The buckets that a Sample carries: those in use (full) or those that changed."""
    chosen = np.flatnonzero(now if full else now != before)
    if len(chosen) == 0:
        return None
    return Histogram(chosen.astype("<u2").tobytes(), now[chosen].astype("<u8").tobytes())


@dataclass
class SynthAgent:
    """The kernel's counters of one agent."""

    profile: Profile
    counters: AgentCounters
    counts: histogram.Counts = field(default_factory=lambda: histogram.empty(len(MEASURES)))
    sent: histogram.Counts = field(default_factory=lambda: histogram.empty(len(MEASURES)))
    threshold_ns: float = float("inf")


class Synth:
    """Samples one second apart; the same seed gives the same Samples."""

    def __init__(
        self,
        seed: int = 1,
        agents: int = 5,
        cpus: int = 2,
        level: Level = "lite",
        mode: Mode = "tp_btf",
    ) -> None:
        self.random = np.random.default_rng(seed)
        self.level: Level = level
        self.mode: Mode = mode
        self.t_ns = 1_000 * SECOND_NS
        self.wall_s = 1_763_680_000.0
        self.seq = 0
        self._next_id = 1
        self._full = True
        self._events: list[Event] = []
        self.agents: list[SynthAgent] = []
        self.cpus = [CpuCounters(cpu=i) for i in range(cpus)]
        self._latency = histogram.empty(cpus, 2)
        self._idle_exit = histogram.empty(2)
        self.trust = Trust(recursion_misses=0)
        self.held_by: int | None = None
        self.policies = [
            PolicyStatus("guard", "g", "idle guard", "off", "no idle state above 50 µs"),
            PolicyStatus("home", "h", "home CPU", "off", "a quiet CPU for control-loop threads"),
            PolicyStatus("floor", "f", "frequency floor", "n/a", "no cpufreq driver"),
        ]
        for _ in range(agents):
            self.add()

    # ------------------------------------------------------------------ what a test may do

    def add(self, profile: Profile | None = None) -> int:
        """A new agent; gives its id."""
        number = self._next_id - 1
        if profile is None:
            profile = PROFILES[number % len(PROFILES)]
            if number >= len(PROFILES):
                tag = number // len(PROFILES) + 1
                profile = replace(
                    profile,
                    name=f"{profile.name}-{tag}",
                    pid=profile.pid + 100 * tag,
                    cpu=number % len(self.cpus),
                )
        counters = AgentCounters(
            id=self._next_id, name=profile.name, rule=f"comm:{profile.name}", pid=profile.pid,
            pids=[profile.pid, profile.pid + 1], threads=profile.threads,
            threads_tracked=None if self.mode == "procfs" else profile.threads,
            background=profile.background, run_ns=5 * SECOND_NS, run_delay_ns=10**8,
            timeslices=10_000,
        )  # fmt: skip
        self._next_id += 1
        self.agents.append(SynthAgent(profile, counters))
        return counters.id

    def remove(self, agent: int) -> None:
        """An agent ends."""
        self.agents = [a for a in self.agents if a.counters.id != agent]

    def toggle(self, name: str, trial: bool = False) -> None:
        """Switch a policy; the next Sample shows it, and the distributions respond."""
        policy = next(p for p in self.policies if p.name == name)
        on = policy.state == "off"
        policy.state = "on" if on else "off"
        policy.since_ns, policy.by_trial = self.t_ns + SECOND_NS // 4, trial
        policy.cpus = list(range(len(self.cpus))) if on and name == "guard" else []
        policy.changes = (
            [f"cpu{c} pm_qos_resume_latency_us: 0 -> n/a" for c in policy.cpus] if on else []
        )
        policy.agents = (
            {str(a.counters.id): f"cpu{a.profile.cpu % len(self.cpus)}" for a in self.agents}
            if on and name == "home"
            else {}
        )
        self._events.append(Event(policy.since_ns, "policy", f"{name} {policy.state}"))

    def request_full(self) -> None:
        """The next Sample is a full one."""
        self._full = True

    def restart(self) -> None:
        """The engine was started again: every counter begins at 0, time goes on."""
        self.seq = 0
        self._full = True
        for agent in self.agents:
            old = agent.counters
            agent.counters = AgentCounters(
                id=old.id, name=old.name, rule=old.rule, pid=old.pid, pids=old.pids,
                threads=old.threads, threads_tracked=old.threads_tracked, run_ns=old.run_ns,
                background=old.background, run_delay_ns=old.run_delay_ns, timeslices=old.timeslices,
            )  # fmt: skip
            agent.counts[:] = 0
            agent.sent[:] = 0
        self.trust = Trust(recursion_misses=0)

    # ------------------------------------------------------------------ Samples

    def sample(self) -> Sample:
        """The next Sample, 1 s after the one before."""
        first = self.seq == 0
        full, self._full = self._full, False
        if not first:
            self.t_ns += SECOND_NS
            self.wall_s += 1.0
        exemplars: list[Exemplar] = []
        for agent in self.agents:
            exemplars += self._advance(agent, full)
        idle_before = self._idle_exit.copy()
        latency_before = self._latency.copy()
        for cpu in self.cpus:
            self._advance_cpu(cpu)
        self.trust.self_ns += 4_000_000
        self.trust.read_ns = 400_000
        if self.mode != "procfs":
            self.trust.drops["ring_full"] = self.trust.drops.get("ring_full", 0) + int(
                self.random.random() < 0.05
            )
        idle_exit = {
            str(i): packed
            for i in range(2)
            if (packed := pack(idle_before[i], self._idle_exit[i], full))
        }
        for i, cpu in enumerate(self.cpus):
            cpu.softirq_latency = {
                name: packed
                for j, name in enumerate(("TIMER", "NET_RX"))
                if (packed := pack(latency_before[i, j], self._latency[i, j], full))
            }
        sample = Sample(
            t_ns=self.t_ns, wall_s=self.wall_s, seq=self.seq, full=full,
            host=self._host() if first else None,
            cpus=_copies(self.cpus), agents=_copies([a.counters for a in self.agents]),
            irq_names={"24": "virtio0-input.0", "25": "virtio1-req.0", "9": "acpi"} if full else {},
            idle_exit=idle_exit, exemplars=exemplars, trust=_copy(self.trust),
            policies=_copies(self.policies), policies_held_by=self.held_by, events=self._events,
        )  # fmt: skip
        self._events = []
        self.seq += 1
        return sample

    def samples(self, count: int) -> list[Sample]:
        """The next ``count`` Samples."""
        return [self.sample() for _ in range(count)]

    def _host(self) -> Host:
        procfs = self.mode == "procfs"
        missing = {"freq": "no cpufreq driver"}
        if procfs:
            missing["chains"] = "BPF needs root (CAP_BPF and CAP_PERFMON)"
        return Host(
            name="build-7", kernel="6.18.0", cpus=len(self.cpus), level=self.level, mode=self.mode,
            idle_states=[IdleState("POLL", 0, 0), IdleState("C1", 1, 1)],
            idle_driver="haltpoll idle", idle_governor="haltpoll", missing=missing,
            banner="run as root to see step chains" if procfs else None,
        )  # fmt: skip

    def _advance(self, agent: SynthAgent, full: bool) -> list[Exemplar]:
        """One second of an agent's life; gives the slowest steps."""
        counters, profile = agent.counters, agent.profile
        counters.run_ns = (counters.run_ns or 0) + int(self.random.integers(10**8, 4 * 10**8))
        counters.timeslices = (counters.timeslices or 0) + profile.steps_per_s
        counters.run_delay_ns = (counters.run_delay_ns or 0) + profile.steps_per_s * 7_000
        if self.mode == "procfs":
            counters.stage_sum_ns = [None] * len(STAGES)
            counters.compute_parts_ns = [None] * len(COMPUTE_PARTS)
            return []
        steps = int(self.random.poisson(profile.steps_per_s))
        values = self._chains(profile, steps)
        slow = sum((values[s] for s in SLOWPATH_STAGES), np.zeros(steps, np.int64))
        step = sum((values[s] for s in STAGES), np.zeros(steps, np.int64))
        measured = [s for s in STAGES if self.level == "full" or s != "return"]
        rows = {**{s: values[s] for s in measured}, "step": step, "slowpath": slow}
        counters.histograms = {}
        for index, measure in enumerate(MEASURES):
            if measure not in rows:
                continue
            counted = rows[measure]
            if measure in ("irq", "softirq", "ipi", "idle_exit"):
                counted = counted[counted > 0]  # as the BPF programs do
            np.add.at(agent.counts[index], buckets_of(counted), np.uint64(1))
            packed = pack(agent.sent[index], agent.counts[index], full)
            if packed is not None:
                counters.histograms[measure] = packed
        agent.sent[:] = agent.counts
        counters.steps += steps
        counters.unattributed += int(self.random.binomial(steps, 0.0002))
        counters.ready = (counters.ready or 0) + steps // 50 if self.level == "full" else None
        counters.stage_sum_ns = [
            (old or 0) + int(values[stage].sum()) if stage in measured else None
            for stage, old in zip(STAGES, counters.stage_sum_ns, strict=True)
        ]
        counters.step_sum_ns += int(step.sum())
        counters.slowpath_sum_ns += int(slow.sum())
        compute = int(values["compute"].sum())
        parts = (compute * 8 // 10, compute // 10, compute - compute * 8 // 10 - compute // 10)
        counters.compute_parts_ns = [
            (old or 0) + part for old, part in zip(counters.compute_parts_ns, parts, strict=True)
        ]
        shares = self.random.multinomial(steps, list(profile.sources.values()))
        for source, count in zip(profile.sources, shares, strict=True):
            counters.sources[SOURCES.index(source)] += int(count)
        counters.gates[GATES.index(profile.gate)] += steps
        home = profile.cpu % len(self.cpus)
        away = int(self.random.binomial(steps, 0.1)) if len(self.cpus) > 1 else 0
        for cpu, count in ((home, steps - away), ((home + 1) % len(self.cpus), away)):
            if count:
                counters.cpu_steps[str(cpu)] = counters.cpu_steps.get(str(cpu), 0) + count
        return self._tail(agent, values, slow)

    def _tail(self, agent: SynthAgent, values: dict[str, Values], slow: Values) -> list[Exemplar]:
        counters, profile = agent.counters, agent.profile
        slowest = np.flatnonzero(slow > agent.threshold_ns)
        counters.tail_steps += len(slowest)
        counters.tail_sum_ns = [
            old + int(values[stage][slowest].sum())
            for stage, old in zip(STAGES, counters.tail_sum_ns, strict=True)
        ]
        agent.threshold_ns = float(np.quantile(slow, 0.99)) if len(slow) else float("inf")
        chosen = sorted(slowest.tolist(), key=lambda i: -int(slow[i]))[:3]
        source = max(profile.sources, key=lambda s: profile.sources[s])
        return [
            Exemplar(
                agent=counters.id, t_ns=self.t_ns - int(self.random.integers(SECOND_NS)),
                tid=profile.pid, cpu=profile.cpu % len(self.cpus), gate=profile.gate, source=source,
                stages_ns=[
                    int(values[s][i]) if self.level == "full" or s != "return" else None
                    for s in STAGES
                ],
                waker="NET_RX" if source == "net" else "irq 25 virtio1-req.0",
            )
            for i in chosen
        ]  # fmt: skip

    def _chains(self, profile: Profile, steps: int) -> dict[str, Values]:
        on = {p.name for p in self.policies if p.state == "on"}
        values: dict[str, Values] = {}
        for stage, (median, sigma, stray, factor) in profile.stages.items():
            if stage == "idle_exit" and "guard" in on:
                median *= 0.4
            if stage == "queue" and "home" in on:
                stray /= 4
            drawn = self.random.lognormal(np.log(max(median, 1)), sigma, steps)
            drawn *= np.where(self.random.random(steps) < stray, factor, 1)
            if stage == "idle_exit":
                drawn *= self.random.random(steps) < 0.8  # else the CPU was not idle
            values[stage] = drawn.astype(np.int64) if median else np.zeros(steps, np.int64)
        if self.level == "lite":
            values["compute"] += values["return"]
            values["return"] = np.zeros(steps, np.int64)
        return values

    def _advance_cpu(self, cpu: CpuCounters) -> None:
        random = self.random
        procfs = self.mode == "procfs"
        i = cpu.cpu
        cpu.busy_ns += int(random.integers(10, 60)) * 10_000_000
        cpu.steal_ns += int(random.integers(0, 3)) * 10_000_000

        def bump(table: dict[str, Activity], key: str, rate: int, each_ns: int) -> None:
            count = int(random.poisson(rate))
            old = table.get(key, Activity(0, None if procfs else 0))
            time_ns = None if old.time_ns is None else old.time_ns + count * each_ns
            table[key] = Activity(old.count + count, time_ns)

        bump(cpu.irqs, "24" if i % 2 == 0 else "25", 3000, 2_100)
        bump(cpu.vectors, "local_timer", 900, 1_800)
        bump(cpu.vectors, "reschedule", 400, 700)
        bump(cpu.softirqs, "NET_RX", 3000 if i % 2 == 0 else 40, 9_000)
        bump(cpu.softirqs, "TIMER", 500, 1_500)
        if not procfs:
            for j, median in enumerate((800, 2_500)):
                drawn = random.lognormal(np.log(median), 0.4, 100).astype(np.int64)
                np.add.at(self._latency[i, j], buckets_of(drawn), np.uint64(1))
            drawn = random.lognormal(np.log(9_000), 0.3, 50).astype(np.int64)
            np.add.at(self._idle_exit[1], buckets_of(drawn), np.uint64(1))
            cpu.ksoftirqd_ns = (cpu.ksoftirqd_ns or 0) + int(random.integers(0, 2_000_000))
        if not cpu.idle:
            cpu.idle = [IdleCounters(above=0, below=0), IdleCounters(above=0, below=0)]
        guarded = any(p.name == "guard" and p.state == "on" for p in self.policies)
        for state, share in zip(cpu.idle, (0.4, 0.0) if guarded else (0.05, 0.4), strict=True):
            state.entries += int(share * 2000)
            state.time_ns += int(share * SECOND_NS)
            state.above = (state.above or 0) + int(share * 10)
            state.below = (state.below or 0) + int(share * 20)


def _copy(value: T) -> T:
    """Apart from the original for good, as after a journey over the stream."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=type(value))


def _copies(values: list[T]) -> list[T]:
    return [_copy(value) for value in values]
