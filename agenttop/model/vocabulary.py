"""The words of the project, in the order in which the kernel side numbers them.

The BPF programs index their arrays with these positions (the loader passes
the numbers on as #defines), the Samples carry lists in this order, and the
JSON output uses the names as keys.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

#: Parts of a step, in time order. They telescope: their sum is the step.
STAGES: Final = ("wait", "irq", "softirq", "ipi", "idle_exit", "queue", "return", "compute")

#: The stages that the kernel adds to a step; their sum is the slowpath.
SLOWPATH_STAGES: Final = ("irq", "softirq", "ipi", "idle_exit", "queue", "return")

#: What has a histogram per agent: the stages and the two sums.
MEASURES: Final = (*STAGES, "step", "slowpath")

#: What has a histogram per name of a step.
STEP_MEASURES: Final = ("step", "slowpath")

#: What completed and so ended the wait.
SOURCES: Final = ("net", "block", "io_uring", "timer", "ipc", "child", "kworker", "signal")

#: Parts of compute (sums only): running, runnable but not running, blocked.
COMPUTE_PARTS: Final = ("on_cpu", "preempted", "blocked")

#: Gates that always end a step.
LOOP_GATES: Final = (
    "epoll_wait",
    "epoll_pwait",
    "epoll_pwait2",
    "io_uring_enter",
    "poll",
    "ppoll",
    "select",
    "pselect6",
    "nanosleep",
    "clock_nanosleep",
)

#: Gates that end a step only if they slept and the thread uses no loop gate.
MAYBE_GATES: Final = (
    "read",
    "pread64",
    "readv",
    "recvfrom",
    "recvmsg",
    "recvmmsg",
    "accept",
    "accept4",
    "futex",
    "futex_waitv",
    "futex_wait",
    "wait4",
    "waitid",
)

GATES: Final = (*LOOP_GATES, *MAYBE_GATES)

#: Softirq vectors, include/linux/interrupt.h (the order is ABI for the tracepoints).
SOFTIRQS: Final = (
    "HI",
    "TIMER",
    "NET_TX",
    "NET_RX",
    "BLOCK",
    "IRQ_POLL",
    "TASKLET",
    "SCHED",
    "HRTIMER",
    "RCU",
)

#: Of Trust.drops, what is no loss: values beyond the histograms' range are counted in the last
#: bucket, and their sums are exact.
OVERFLOW: Final = "overflow"
#: Kind of loss: process events (exec, rename, cgroup move), which cost no step; anybody can cause
#: any number of them, and a scan of /proc finds the agents that they told of.
EVENTS: Final = "edge_ring_full"
#: Interrupt vectors that bypass the irq lines, from events/irq_vectors (x86).
VECTORS: Final = (
    "local_timer",
    "reschedule",
    "call_function",
    "call_function_single",
    "irq_work",
    "thermal_apic",
    "error_apic",
    "spurious_apic",
    "threshold_apic",
    "deferred_error_apic",
    "x86_platform_ipi",
)

#: Default p99 targets, ns (DESIGN.md): stage -> limit. "run" is ipi + idle_exit + queue.
TARGETS_NS: Final = {
    "irq": 10_000,
    "softirq": 50_000,
    "block_completion": 30_000,
    "run": 200_000,
    "return": 50_000,
}

#: Observation levels.
LEVELS: Final = ("lite", "full")

#: Stage -> its p99 target, ns. ipi, idle_exit and queue share the one of "run": a stage
#: that is beyond it alone is over for certain.
STAGE_TARGETS_NS: Final = {
    "irq": TARGETS_NS["irq"],
    "softirq": TARGETS_NS["softirq"],
    "ipi": TARGETS_NS["run"],
    "idle_exit": TARGETS_NS["run"],
    "queue": TARGETS_NS["run"],
    "return": TARGETS_NS["return"],
}


class Cause(NamedTuple):
    """Something that explains a part of a stage; causes may lie in one another."""

    name: str
    stage: str
    #: What observing it costs: lite is a probe where it happens, full taxes every system call.
    level: Literal["lite", "full"]
    meaning: str


#: Causes of stages, ns each, in the order in which the kernel side numbers them.
CAUSES: Final = (
    Cause("minor_fault", "compute", "lite", "page faults served from memory"),
    Cause("major_fault", "compute", "lite", "page faults that waited for a disk"),
    Cause("reclaim", "compute", "lite", "freeing memory for itself or its cgroup"),
    Cause("compaction", "compute", "lite", "moving pages to make room for a large one"),
    Cause("page_cache_miss", "compute", "lite", "reads of a file that waited for a disk"),
    Cause("lock", "compute", "lite", "blocked on a lock (futex) until it ran again"),
    Cause("throttled", "compute", "lite", "stopped by its cgroup's CPU quota"),
    Cause("file_metadata", "compute", "full", "opening, listing, looking up and naming files"),
    Cause("cold_metadata", "compute", "full", "calls of file_metadata that waited for a disk"),
    # Those with labels (DETAILS) from here on.
    Cause("interrupt", "irq", "lite", "the handler of the interrupt that completed the step"),
    Cause("softirq", "softirq", "lite", "the softirq that completed the step"),
    Cause("timer", "irq", "lite", "a timer's expiry to its wake-up"),
    Cause("network", "softirq", "lite", "the NAPI poll that brought the packet"),
    Cause("socket", "softirq", "lite", "from the packet's coming in to its socket's wake-up"),
    Cause("workqueue", "wait", "lite", "work that a kernel thread did before its wake-up"),
    Cause("block", "wait", "lite", "requests to a disk that gates waited for"),
    Cause("io_uring", "wait", "lite", "io_uring requests that gates waited for"),
    Cause("block_in_compute", "compute", "lite", "requests to a disk waited for outside of gates"),
    Cause("idle", "idle_exit", "lite", "leaving the idle state that the CPU was in"),
    Cause("placement", "queue", "lite", "resuming on another CPU than the last"),
    Cause("ran_meanwhile", "queue", "lite", "others that had the CPU while it waited for it"),
    Cause("avoidable_wait", "queue", "lite", "waiting while another allowed CPU was idle"),
    Cause("frequency", "compute", "lite", "computing until the CPU's frequency rose"),
)
CAUSE_NAMES: Final = tuple(cause.name for cause in CAUSES)


class Detail(NamedTuple):
    """What is told of a cause beside its time, label by label."""

    #: Fields of the label.
    label: tuple[str, ...]
    #: What else is summed over the steps that had the label; the unit is in the name.
    sums: tuple[str, ...] = ()


#: Causes whose steps are told apart by a label: which line, device, function, process.
DETAILS: Final = {
    # sums: by a softirq that the handler raised, which then woke; the handler's time to its end,
    # over the runs of which that is known.
    "interrupt": Detail(("line", "vector", "name", "cpu"), ("softirq_steps", "run_ns", "runs")),
    # sums: raise to entry (in stage irq); by ksoftirqd and not on the way out of an interrupt.
    "softirq": Detail(("vector", "cpu"), ("raised_ns", "ksoftirqd_steps")),
    # sums: passed since the earliest time that would have done (the thread's slack; in stage
    # wait); its slack whole; late after the last time (in stage irq; in idle_exit where the CPU
    # was idle). Those of wheel timers come in ticks.
    "timer": Detail(("function", "kind"), ("slack_used_ns", "slack_ns", "late_ns", "late_idle_ns")),
    # sums: the polls that woke, their packets and their time whole; those that used up the
    # budget of a poll; those of the CPU's backlog (loopback, virtual devices, RPS).
    "network": Detail(
        ("device", "kind", "queue", "napi"),
        ("polls", "packets", "poll_ns", "exhausted_polls", "backlog_polls"),
    ),
    "socket": Detail(
        ("family", "protocol", "local_address", "local_port", "peer_address", "peer_port")
    ),
    # sums: queued to run, over the steps for which it is known; run to wake.
    "workqueue": Detail(("function", "thread"), ("queued_ns", "queued_steps", "run_ns")),
    # role: gate, or background (nobody waited; these have events and no steps). sums: in the
    # queue, in the device, from its completion to the wake-up; what was asked for.
    "block": Detail(
        ("device", "operation", "role"), ("queue_ns", "device_ns", "wake_ns", "size_bytes")
    ),
    # role as above. sums: submission to completion, and requests that went to io_uring's workers.
    "io_uring": Detail(("operation", "role"), ("completion_ns", "worker_requests")),
    "block_in_compute": Detail(
        ("device", "operation"), ("queue_ns", "device_ns", "wake_ns", "size_bytes")
    ),
    # state: as cpuidle numbers them; sums: the governor's misses, where the kernel tells of each.
    "idle": Detail(("state", "name", "promised_ns"), ("too_deep", "too_shallow")),
    # The CPU before and after; sums: the stage ipi, steps that were moved while they waited.
    "placement": Detail(("from_cpu", "to_cpu"), ("ipi_ns", "moved_steps")),
    # kind: task, kernel (thread) or interrupts.
    "ran_meanwhile": Detail(("comm", "kind")),
    # The CPU that it waited for, and the one that was idle the longest meanwhile.
    "avoidable_wait": Detail(("cpu", "idle_cpu")),
    # Before and after the first rise, to_khz is null where there was none.
    "frequency": Detail(("from_khz", "to_khz"), ("wake_to_ramp_ns",)),
}
