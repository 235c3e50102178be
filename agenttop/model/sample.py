"""The typed data of the program: Samples (raw) and what travels beside them.

A Sample holds monotonic counters as the kernel holds them, with one
timestamp. It is made by the engine, crosses the stream, and two of them give
a Snapshot (snapshot.py). Nothing here computes anything.

Units are in the names: ``_ns`` nanoseconds, ``_khz`` kilohertz, ``_ratio``
0..1; a plain name is a count. None means "cannot be had here"; the reason
stands in Host.missing under the field's group name.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from agenttop.model.vocabulary import COMPUTE_PARTS, GATES, SOURCES, STAGES
from agenttop.step import CLASSES

#: Version of the stream between engine and view.
STREAM_VERSION = 1

#: How host.missing["chains"] begins while the engine loads its BPF programs.
LOADING = "loading"
#: CauseState.reason of one that is wanted, until its programs are in the kernel.
CAUSES_LOADING = "its programs are being loaded"

Level = Literal["lite", "full"]
#: How the chains are measured: BPF with task storage, BPF with raw tracepoints, /proc only.
Mode = Literal["tp_btf", "raw_tp", "procfs"]


class Struct(msgspec.Struct, forbid_unknown_fields=False, omit_defaults=False):
    """Base of everything on the stream; unknown fields are skipped, so that minor versions mix."""


# --------------------------------------------------------------------------- static facts


class IdleState(Struct):
    """An idle state as cpuidle's sysfs describes it (shared by the CPUs of a host)."""

    name: str
    #: Exit latency that the driver promises, us (sysfs ``latency``).
    latency_us: int
    residency_us: int
    #: Power in it that the driver tells, mW; None where it does not (nearly everywhere).
    power_mw: int | None = None


class Host(Struct):
    """Facts that do not change between Samples; sent first, and again when they change."""

    name: str
    kernel: str
    cpus: int
    level: Level
    mode: Mode
    idle_states: list[IdleState] = []
    idle_driver: str | None = None
    idle_governor: str | None = None
    freq_driver: str | None = None
    #: CPU figures are read at least so many seconds apart; 0: with each Sample.
    cpus_every_s: float = 0.0
    #: What this run cannot show and why: group ("chains", "idle", "freq", ...) -> reason.
    missing: dict[str, str] = {}
    #: One line that says what would unlock the rest, or None when nothing is missing.
    banner: str | None = None
    stream_version: int = STREAM_VERSION


# --------------------------------------------------------------------------- counters


class Activity(Struct):
    """How often something ran and for how long (None: only the count can be had)."""

    count: int = 0
    time_ns: int | None = None


class IdleCounters(Struct):
    """One CPU, one idle state (same order as Host.idle_states)."""

    entries: int = 0
    time_ns: int = 0
    #: Times the governor chose too deep (above) or too shallow (below) a state.
    above: int | None = None
    below: int | None = None


class Histogram(Struct):
    """Buckets (histogram.py) with their counts as the kernel holds them.

    In a full Sample all non-empty ones, otherwise those that changed since
    the Sample before. ``buckets`` packs little-endian u16, ``counts`` u64.
    """

    buckets: bytes = b""
    counts: bytes = b""


class Softnet(Struct):
    """Received packets of one CPU (/proc/net/softnet_stat)."""

    packets: int = 0
    #: As the CPU's backlog was full.
    dropped: int = 0
    #: Times that receiving stopped with packets left, its budget or time used up.
    time_squeezes: int = 0


class CpuCounters(Struct):
    cpu: int
    online: bool = True
    #: From /proc/stat (10 ms resolution).
    busy_ns: int = 0
    steal_ns: int = 0
    #: All interrupts, and all softirqs, from /proc/stat: sampled at ticks (irq nearly always 0)
    #: unless the kernel accounts for interrupt time. The only times without BPF.
    irq_ns: int | None = None
    softirq_ns: int | None = None
    #: Interrupt line (number as text) -> activity. Names stand in Sample.irq_names.
    irqs: dict[str, Activity] = {}
    #: Vector (words.VECTORS) -> activity.
    vectors: dict[str, Activity] = {}
    #: Softirq vector (words.SOFTIRQS) -> activity.
    softirqs: dict[str, Activity] = {}
    #: Softirq vector -> histogram of raise-to-entry latency.
    softirq_latency: dict[str, Histogram] = {}
    ksoftirqd_ns: int | None = None
    softnet: Softnet | None = None
    idle: list[IdleCounters] = []
    freq_khz: int | None = None
    freq_min_khz: int | None = None
    freq_max_khz: int | None = None


class NamedCounters(Struct):
    """An agent's steps of one name (step.py), since the name was seen first."""

    #: Never used twice by one agent.
    lane: int
    #: Empty: the names beyond the limit of 16, together.
    name: str
    steps: int = 0
    step_sum_ns: int = 0
    slowpath_sum_ns: int = 0
    #: words.STEP_MEASURES -> histogram; a measure without an entry has not changed.
    histograms: dict[str, Histogram] = {}


class MarkCounters(Struct):
    """What an agent's step markers told; lists are in the order of step.CLASSES."""

    contexts: int = 0
    #: Contexts that ended before, or after, their deadline.
    met: list[int] = msgspec.field(default_factory=lambda: [0] * len(CLASSES))
    missed: list[int] = msgspec.field(default_factory=lambda: [0] * len(CLASSES))
    #: Contexts that took more time on a CPU than their budget.
    overrun: list[int] = msgspec.field(default_factory=lambda: [0] * len(CLASSES))
    #: Markers whose name was one too many, whose context was not in memory, that were not valid.
    crowded: int = 0
    unread: int = 0
    invalid: int = 0
    #: Of what was told for io_uring's user_data, what had to give way; and requests whose
    #: number nobody had told of.
    forgotten: int = 0
    strays: int = 0


class DetailCounters(Struct):
    """The steps that had one label of a cause, since it was seen first."""

    #: The label as the kernel side has it: its identity.
    words: list[int]
    #: Its fields (words.DETAILS); none: the labels beyond the limit of 64, together.
    label: dict[str, str | int | None] = {}
    steps: int = 0
    events: int = 0
    sum_ns: int = 0
    #: The longest so far in a step.
    max_ns: int = 0
    #: What else is summed (words.DETAILS), but for what this kernel does not tell.
    sums: dict[str, int] = {}


class CauseCounters(Struct):
    """A cause in an agent's steps."""

    #: Steps that had it, how often it happened in them, and its time.
    steps: int = 0
    events: int = 0
    sum_ns: int = 0
    #: Of its time in each of these steps.
    histogram: Histogram = msgspec.field(default_factory=Histogram)
    #: By label, where the cause has labels; those without a new step may be left out.
    details: list[DetailCounters] = []


class CauseState(Struct):
    """Whether a cause (words.CAUSES) is observed."""

    name: str
    #: The stage that it explains.
    stage: str
    #: What observing it costs: lite is a probe where it happens, full taxes every system call.
    level: Level
    state: Literal["on", "off", "n/a"] = "off"
    #: Why it is not observed; empty while it is.
    reason: str = ""
    #: Runs of its programs and the time they took, ns, while the kernel measured it (bpf_stats).
    runs: int = 0
    run_ns: int = 0


class AgentCounters(Struct):
    """One agent. Lists have the order of vocabulary.py; a new agent starts at 0."""

    #: Never used twice in a run of the engine.
    id: int
    name: str
    #: What made it an agent: the rule's name, "--agent ...", "marker" or "sched_setattr".
    rule: str
    #: The process at the root of the tree, and the processes in it (root first).
    pid: int
    pids: list[int] = []
    threads: int = 0
    alive: bool = True
    #: Threads that are measured, of ``threads`` (None without BPF).
    threads_tracked: int | None = None
    background: bool = False
    #: User id of its owner (seats.py), None: not known; and whether root's rules chose it in a way
    #: that nobody can fake.
    user: int | None = None
    chosen: bool = False
    steps: int = 0
    #: Gates that returned at once, a saturation signal and no steps (level full only).
    ready: int | None = None
    #: Steps whose wake-up was not seen, or whose waker could not be named.
    unattributed: int = 0
    #: Per stage; None where the level does not measure it (lite: return).
    stage_sum_ns: list[int | None] = msgspec.field(default_factory=lambda: [0] * len(STAGES))
    step_sum_ns: int = 0
    #: Sum of the measured stages irq..return.
    slowpath_sum_ns: int = 0
    #: words.MEASURES -> histogram; a measure without an entry has not changed.
    histograms: dict[str, Histogram] = {}
    sources: list[int] = msgspec.field(default_factory=lambda: [0] * len(SOURCES))
    gates: list[int] = msgspec.field(default_factory=lambda: [0] * len(GATES))
    compute_parts_ns: list[int | None] = msgspec.field(
        default_factory=lambda: [0] * len(COMPUTE_PARTS)
    )
    #: Steps above the tail threshold (about the slowpath p99), and their stages' sums.
    tail_steps: int = 0
    tail_sum_ns: list[int] = msgspec.field(default_factory=lambda: [0] * len(STAGES))
    #: CPU (as text) -> steps that resumed there.
    cpu_steps: dict[str, int] = {}
    #: words.CAUSES by name -> counters; one without an entry has never been seen.
    causes: dict[str, CauseCounters] = {}
    #: Per stage, the time in any of its causes, each moment once.
    explained_stage_ns: list[int] = msgspec.field(default_factory=lambda: [0] * len(STAGES))
    #: From /proc/PID/task/*/schedstat, the only measure without BPF.
    run_ns: int | None = None
    run_delay_ns: int | None = None
    timeslices: int | None = None
    #: Steps by name; None for the markers until there was one.
    named: list[NamedCounters] = []
    marks: MarkCounters | None = None


class Exemplar(Struct):
    """One whole slow step."""

    agent: int
    #: CLOCK_MONOTONIC at the end of the step.
    t_ns: int
    tid: int
    cpu: int
    gate: str
    source: str | None
    #: In words.STAGES order; None where the level does not measure it.
    stages_ns: list[int | None]
    #: Who woke it: a task (pid > 0, comm), an interrupt line, a vector or a softirq, as text.
    waker: str = ""
    #: Process of the thread; 0: not known.
    pid: int = 0
    #: The task that woke it, and the CPU that it was woken from (irq and softirq ran there).
    waker_tid: int | None = None
    waker_cpu: int | None = None


class Trust(Struct):
    """What a reader needs to believe the figures; counters are monotonic."""

    #: Kind of loss -> count: ring_full, storage_full, negative, clamped, overflow, ...
    drops: dict[str, int] = {}
    recursion_misses: int | None = None
    #: CPU time of agenttop's own processes, ns: engine, and what it started.
    self_ns: int = 0
    #: Time in BPF programs, ns; None unless it is asked for (it has a price of its own).
    bpf_ns: int | None = None
    #: How long reading the counters took, ns.
    read_ns: int = 0
    #: Agents that are not measured now because all slots are taken.
    slots_full: int = 0
    #: User id (as text) -> those, for the users with most of them.
    slots_full_by_user: dict[str, int] = {}
    #: Of agents that ended while no Sample was made, too many to be named in the next one: steps
    #: that no Sample has told otherwise, and those of them without a source.
    steps_of_ended: int = 0
    unattributed_of_ended: int = 0


class Change(Struct):
    """A percentile before and after, from merged counts (effect.py)."""

    before_ns: int | None = None
    after_ns: int | None = None
    #: After over before, and its 95 % interval; None until there are enough steps.
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    #: Steps that the side with fewer of them still lacks.
    missing_steps: int = 0


class Cost(Struct):
    """What holding a policy cost, before and after."""

    #: CPU (as text) -> share of the time in deeper idle states (all but the shallowest), 0..1.
    idle_before: dict[str, float] = {}
    idle_after: dict[str, float] = {}
    #: Power of the packages, watts; None where it cannot be had, and why.
    watts_before: float | None = None
    watts_after: float | None = None
    watts_missing: str | None = None
    #: The watts are an estimate from the idle states' own figures, not measured by RAPL.
    watts_estimated: bool = False
    #: Tokens that the agent's window took from its budget; None where no window told of any.
    tokens: int | None = None


class Effect(Struct):
    """An agent before and after the last switch of a policy."""

    agent: int
    #: Was it switched on or off?
    on: bool
    #: CLOCK_MONOTONIC of the switch.
    since_ns: int
    steps_before: int
    steps_after: int
    #: "step" and "slowpath" -> "p50", "p99" and "p999" -> change.
    measures: dict[str, dict[str, Change]] = {}
    cost: Cost = msgspec.field(default_factory=Cost)


class Budget(Struct):
    """An agent's budget for latency windows, and what came of it; counts since it has one."""

    #: What is in it now, and when it is full.
    tokens: float
    capacity: float
    #: Armings that opened or moved on a window, and those that the budget refused.
    grants: int = 0
    refusals: int = 0
    #: Nothing is granted until the recovery mark is reached; how often that began.
    throttled: bool = False
    throttles: int = 0
    #: Time spent throttled, ns.
    degraded_ns: int = 0
    #: Time by which its windows held CPUs for longer than they would have been, ns.
    held_ns: int = 0
    #: Tokens that its armings have cost.
    spent: float = 0.0
    #: Wake-ups that brought a guard or floor into force, and the time that it took, ns.
    edges: int = 0
    edge_p50_ns: int | None = None
    edge_p99_ns: int | None = None
    edge_max_ns: int | None = None


class PolicyStatus(Struct):
    """One policy as the engine sees it."""

    name: str
    key: str
    title: str
    state: Literal["off", "on", "drift", "n/a", "error"]
    #: One line: what holds, why it cannot be had, or what drifted.
    detail: str = ""
    #: Each change that is in force, one line each ("/sys/...: 0 -> n/a").
    changes: list[str] = []
    #: What switching it on would change now, one line each (empty while it is on, or not known).
    plan: list[str] = []
    #: CPUs and thread ids that it holds.
    cpus: list[int] = []
    tids: list[int] = []
    #: Agent id (as text) -> short word for the table, e.g. "cpu1".
    agents: dict[str, str] = {}
    #: CLOCK_MONOTONIC of the last toggle.
    since_ns: int | None = None
    #: It was a trial that made the last toggle, not somebody who wanted it so.
    by_trial: bool = False
    #: Agent id (as text) -> its budget (policy window).
    budgets: dict[str, Budget] = {}
    #: CPUs that a window holds at this moment (policy window).
    armed: list[int] = []
    #: What the last toggle changed that was no trial's, per agent. The engine leaves it empty:
    #: the view knows.
    effects: list[Effect] = []


class Event(Struct):
    """Something to tell the reader once."""

    t_ns: int
    kind: Literal["policy", "agent", "info", "warning", "error"]
    text: str


class Sample(Struct, tag="sample"):
    #: CLOCK_MONOTONIC when the counters were read.
    t_ns: int
    #: Seconds since the epoch at the same moment.
    wall_s: float
    seq: int
    #: True: every non-empty bucket is in it. False: only those changed since the one before.
    full: bool
    host: Host | None = None
    #: Empty: not read with this Sample (Host.cpus_every_s); a full one has them.
    cpus: list[CpuCounters] = []
    agents: list[AgentCounters] = []
    #: Interrupt line (as text) -> name from /proc/interrupts; in full Samples and on change.
    irq_names: dict[str, str] = {}
    #: Idle state index (as text) -> what waking a CPU out of it took, all agents.
    idle_exit: dict[str, Histogram] = {}
    exemplars: list[Exemplar] = []
    #: CPU package -> energy by RAPL, microjoules (monotonic); empty where there is none.
    energy_uj: dict[str, int] = {}
    trust: Trust = msgspec.field(default_factory=Trust)
    #: Every cause; empty without step chains.
    causes: list[CauseState] = []
    policies: list[PolicyStatus] = []
    #: Process of another agenttop that holds policies, so that none can be switched here
    #: (0: not known which); None: nobody else does.
    policies_held_by: int | None = None
    events: list[Event] = []


# --------------------------------------------------------------------------- the way back


class Command(Struct, tag="command"):
    """From the view to the engine; answered by the next Samples' events and states."""

    kind: Literal["policy", "bundle", "plan", "causes", "bpf_stats", "delay", "full", "stop"]
    #: policy, bundle, plan: its name; causes: off, lite, full or names (options.py); on: wanted
    #: state (policy, bundle, bpf_stats), or whether its plan is to be in the Samples (plan);
    #: seconds: new delay; trial: a trial switches (policy).
    name: str = ""
    on: bool = False
    seconds: float = 0.0
    trial: bool = False


class Failure(Struct, tag="failure"):
    """The engine could not go on; the text is one line for the user."""

    text: str


Message = Sample | Command | Failure
