"""What is derived from two Samples: the Snapshot that every view and the JSON output show.

Names are DESIGN.md's words with unit suffixes. None is "not available", never 0.
A value named in ``estimated`` rests on fewer than 5 samples beyond it and is
shown with a ~.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from agenttop.model.sample import Exemplar, Host, Level, PolicyStatus

SCHEMA_NAME = "agenttop.snapshot"
SCHEMA_VERSION = 1


class Base(msgspec.Struct, omit_defaults=False):
    pass


class Stat(Base):
    """A measure over the interval. A percentile that no sample lies beyond is None."""

    count: int = 0
    sum_ns: int = 0
    p50_ns: int | None = None
    p99_ns: int | None = None
    p999_ns: int | None = None
    max_ns: int | None = None
    #: Names of the values above that rest on fewer than 5 samples beyond them.
    estimated: list[str] = []
    #: The whole distribution as HdrHistogram V2, base64 (only when asked for).
    hdr: str | msgspec.UnsetType = msgspec.UNSET
    #: Names of the values above that are lower bounds: nothing beyond 67.6 s is told apart.
    over_range: list[str] = []


class CauseLabel(Base):
    """The steps in which a cause had one label: which line, device or function it was."""

    #: Its fields; none: the labels beyond the limit of 64, together.
    label: dict[str, str | int | None]
    #: The same in a few words.
    text: str
    steps: int
    events: int
    sum_ns: int
    #: The longest in a step since this label was seen first.
    max_ns: int
    #: What else is summed over these steps; None: this kernel does not tell.
    sums: dict[str, int | None]
    #: The same as means, in a few words; empty where nothing else is summed.
    facts: str


class CauseStat(Stat):
    """A cause in an agent's steps: count is the steps that had it, the times are per such step."""

    #: The stage that it explains.
    stage: str = ""
    #: How often it happened in these steps.
    events: int = 0
    #: By label, the most time first; empty where the cause has no labels.
    details: list[CauseLabel] = []


class Cause(Base):
    """Whether a cause is observed, and what that costs."""

    name: str
    #: The stage that it explains.
    stage: str
    #: What observing it costs: lite is a probe where it happens, full taxes every system call.
    level: Level
    state: Literal["on", "off", "n/a"]
    #: Why it is not observed; null while it is.
    reason: str | None
    #: Mean time of one run of its programs; null unless the kernel measures it (--bpf-stats).
    run_ns: float | None


class Tail(Base):
    """Which stage dominates the steps above the tail threshold."""

    stage: str | None = None
    #: Its share of those steps' slowpath, 0..1.
    ratio: float | None = None
    #: Stage -> share, slowpath stages only.
    shares: dict[str, float] = {}
    steps: int = 0


class NamedSteps(Base):
    """An agent's steps of one name."""

    steps: int
    steps_per_s: float
    step: Stat
    slowpath: Stat


class Deadlines(Base):
    """Step contexts of one class in the interval."""

    #: Ended before, or after, their deadline; those without one are in neither.
    met: int
    missed: int
    #: Took more time on a CPU than their budget.
    overrun: int


class Markers(Base):
    """The step markers of an agent in the interval."""

    #: Contexts begun.
    contexts: int
    #: Markers whose name was beyond the 16 of an agent, whose context was not in memory,
    #: that were not valid.
    crowded: int
    unread: int
    invalid: int
    #: Of what was told for io_uring's user_data, what had to give way to others; and requests
    #: whose number nobody had told of.
    forgotten: int
    strays: int


class Agent(Base):
    id: int
    name: str
    rule: str
    pid: int
    pids: list[int]
    threads: int
    threads_tracked: int | None
    alive: bool
    background: bool
    #: None without step chains (host.missing["chains"] says why).
    steps: int | None
    #: Over the part of the interval in which the agent was there.
    steps_per_s: float | None
    #: words.SOURCES -> steps in the interval (those that are not 0).
    sources: dict[str, int]
    #: words.GATES -> steps in the interval (those that are not 0).
    gates: dict[str, int]
    ready: int | None
    unattributed: int | None
    step: Stat
    #: words.STAGES -> measure, null where the level does not measure it.
    stages: dict[str, Stat | None]
    slowpath: Stat
    tail: Tail
    #: words.COMPUTE_PARTS -> ns in the interval.
    compute_ns: dict[str, int | None]
    #: CPU on which most steps resumed, and its share 0..1.
    home_cpu: int | None
    home_ratio: float | None
    #: CPU (as text) -> steps.
    cpu_steps: dict[str, int]
    #: Policy name -> its short word for this agent.
    policies: dict[str, str]
    #: Mean run-queue wait per time slice, from schedstat (also without BPF).
    run_delay_ns: int | None
    cpu_ratio: float | None
    #: Name (of step markers) -> its steps; the rest of the agent's steps have no name.
    steps_by_name: dict[str, NamedSteps] = {}
    #: step.CLASSES -> deadlines; classes without any are left out.
    deadlines: dict[str, Deadlines] = {}
    #: None: there was no step marker.
    markers: Markers | None = None
    #: words.CAUSES -> measure, null while it is not observed (cause_states say why).
    causes: dict[str, CauseStat | None] = {}
    #: Stage -> what observed causes leave of its sum: unknown, and in compute the agent's own work.
    unexplained_ns: dict[str, int] = {}
    #: User id of its owner; and whether root's rules chose it in a way that nobody can fake.
    user: int | None = None
    chosen: bool = False


class Load(Base):
    """Count per second and share of the time."""

    per_s: float
    ratio: float | None
    p99_ns: int | None = None


class IdleShare(Base):
    name: str
    ratio: float
    per_s: float
    above_per_s: float | None
    below_per_s: float | None
    #: Promised by the driver, and measured: p50 of what waking the CPU out of it took.
    latency_ns: int
    exit_p50_ns: int | None


class Receiving(Base):
    """What became of received packets (/proc/net/softnet_stat)."""

    packets_per_s: float
    #: As the CPU's backlog was full.
    dropped_per_s: float
    #: Times that receiving stopped with packets left, its budget or time used up.
    time_squeezes_per_s: float


class Cpu(Base):
    cpu: int
    online: bool
    busy_ratio: float | None
    steal_ratio: float | None
    #: All interrupt lines and vectors together, then by name ("24 nvme0q1", "local_timer").
    irq: Load
    irqs: dict[str, Load]
    softirq: Load
    #: words.SOFTIRQS -> load; p99_ns is raise to entry.
    softirqs: dict[str, Load]
    ksoftirqd_ratio: float | None
    #: None where the kernel does not tell.
    receiving: Receiving | None
    idle: list[IdleShare]
    freq_khz: int | None
    #: Ids of the agents whose steps mostly resume here.
    agents: list[int]


class TrustLine(Base):
    #: Steps of all agents in the interval; None without step chains.
    steps: int | None
    drops: dict[str, int]
    #: Sum of drops and recursion misses in the interval.
    lost: int
    recursion_misses: int | None
    unattributed_ratio: float | None
    #: Tracked threads over the agents' threads, 0..1.
    coverage_ratio: float | None
    #: Age of the newest Sample when the Snapshot was made.
    sample_age_ns: int
    self_ratio: float | None
    bpf_ratio: float | None
    read_ns: int
    slots_full: int
    #: All agents together; None without step chains.
    steps_per_s: float | None = None
    #: Of ``steps``, those of ended agents that are too many to be among ``agents``.
    steps_of_others: int = 0
    #: Process events (exec, rename, cgroup move) that the kernel dropped: no step is lost by that,
    #: a scan of /proc finds the agents.
    events_dropped: int = 0
    #: User id (as text) -> agents without a slot, for the users with most of them.
    slots_full_by_user: dict[str, int] = {}


class Snapshot(Base):
    schema: str
    version: int
    host: Host
    #: Seconds since the epoch, and CLOCK_MONOTONIC, at the newest Sample.
    wall_s: float
    t_ns: int
    interval_ns: int
    trust: TrustLine
    cpus: list[Cpu]
    agents: list[Agent]
    policies: list[PolicyStatus]
    #: Process of another agenttop that holds policies, so that none can be switched here
    #: (0: not known which); null: nobody else does.
    policies_held_by: int | None = None
    #: What stages can be spent on; empty without step chains.
    cause_states: list[Cause] = []
    #: Slowest recent steps, slowest first, at most 16 per agent.
    exemplars: list[Exemplar] = []
