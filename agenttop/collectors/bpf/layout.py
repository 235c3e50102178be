"""The layout of the maps: one description for the C structs and for the reader.

Every field is one u64 or an array of them; ``c_struct`` writes the C side and
``dtype`` the numpy side, so that the two cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from agenttop.model.histogram_layout import BUCKETS, MAX_EXPONENT, SUB_BITS
from agenttop.model.vocabulary import (
    CAUSE_NAMES,
    CAUSES,
    COMPUTE_PARTS,
    DETAILS,
    GATES,
    LOOP_GATES,
    MEASURES,
    SOFTIRQS,
    SOURCES,
    STAGES,
    STEP_MEASURES,
    VECTORS,
    Cause,
)
from agenttop.step import (
    CLASS_MASK,
    CLASSES,
    CONTEXT_BYTES,
    NAME_BYTES,
    PAUSE,
    RESUME,
    URING,
    URING_MAGIC,
)

if TYPE_CHECKING:
    import numpy as np

#: Agents at the same time, and one: slot 0 is nobody's, as fresh storage is all zeros.
SLOTS: Final = 257
#: A cause's histogram has half of the sub-buckets: 16 per power of two.
CAUSE_BUCKETS: Final = BUCKETS // 2
#: Words of a label, and of what is summed beside the time of a cause that has labels.
LABEL_WORDS: Final = 5
EXTRAS: Final = 5
#: Labels that a cause of an agent may have, and that there may be in all. Those beyond the first
#: limit are counted together, with a label of all ones.
LABELS_EACH: Final = 64
LABELS: Final = 8192
OTHER_LABELS: Final = ((1 << 64) - 1,) * LABEL_WORDS
#: Causes whose stages go into 64 bits.
_PACKED: Final = 21
#: An even number of them makes whole pages.
CAUSE_HISTS: Final = (len(CAUSE_NAMES) + 1) // 2 * 2
#: Bytes of a value, of maps that BCC sees only as a stub of.
VALUE_SIZES: Final = {
    "hist": 4 * len(MEASURES) * BUCKETS,
    "lane_hist": 4 * len(STEP_MEASURES) * BUCKETS,
    "cause_hist": 4 * CAUSE_HISTS * CAUSE_BUCKETS,
}
#: Names of steps that an agent may have; one more lane holds the steps of all others.
NAMES_EACH: Final = 16
#: Names whose lanes a thread has at hand (a power of two).
NAMES_NEAR: Final = 4
#: Lanes for names: 0 is none, then those for agents by rule, then for threads that opted in.
LANES_BY_RULE: Final = 256
LANES: Final = 1 + 2 * LANES_BY_RULE
#: Idle states per CPU (cpuidle's own limit is 10).
IDLE_STATES: Final = 10
#: Interrupt lines that are counted; larger numbers are counted as irq_range.
IRQS: Final = 2048
#: A maybe gate ends steps again when the thread has used no loop gate for this long.
LOOP_MEMORY_NS: Final = 10_000_000_000
#: A wake-up seen at most this long before the thread went off the CPU raced with it.
RACE_NS: Final = 50_000
#: A thread that asked to be an agent and has got no slot asks again by markers this far apart.
RETELL_NS: Final = 1_000_000_000

#: What can get lost, and is counted.
LOSSES: Final = (
    # Process events, not steps: the next scan of /proc finds what they told of.
    "edge_ring_full",
    "slow_ring_full",
    "storage_full",
    "negative",
    "overflow",
    "irq_range",
    # The kernel told of no switch to a thread that ran again (chain.bpf.c).
    "switch_in",
    # No room for one more label of a cause.
    "labels_full",
    # No room for one more request to a disk.
    "requests_full",
    # Steps that ended on a CPU that came after the programs were loaded (cpu_rows.py).
    "new_cpu",
    # The guardian was not told of a window that opened.
    "window_ring_full",
)

#: Sources in the kernel: 0 is unknown, then words.SOURCES.
SOURCE_NAMES: Final = ("unknown", *SOURCES)

Fields = tuple[tuple[str, int], ...]

#: Bytes that what a CPU writes on its own is a multiple of: two cache lines, which the processor
#: fetches together.
CPU_ALIGN: Final = 128


def _apart(fields: Fields) -> Fields:
    """With as much at the end as no other CPU's shares a cache line with it."""
    over = sum(size for _, size in fields) * 8 % CPU_ALIGN
    return (*fields, ("pad", (CPU_ALIGN - over) // 8)) if over else fields


#: Context of a CPU, then its counters.
CPU_FIELDS: Final = _apart(
    (
        ("hard", 1),  # kind of the hard interrupt that runs: 0 none, 1 line, 2 vector
        ("hard_id", 1),
        ("hard_ts", 1),
        ("hard_idle", 1),  # the CPU was idle when it came
        ("hrtimer", 1),  # an hrtimer's function runs
        ("hrtimer_late", 1),  # how long after its expiry, ns
        ("block_ts", 1),  # last block_rq_complete
        ("soft", 1),  # a softirq runs
        ("soft_vec", 1),
        ("soft_ts", 1),
        ("soft_event", 1),  # first kernel event of what raised it
        ("idle_now", 1),  # idle state + 1, 0 when not idle
        ("idle_enter", 1),
        ("idle_last", 1),  # idle state that was left last
        ("idle_exit", 1),  # when
        ("raise_ts", len(SOFTIRQS)),  # 0: not raised
        ("raise_event", len(SOFTIRQS)),
        ("vector_count", len(VECTORS)),
        ("vector_ns", len(VECTORS)),
        ("softirq_count", len(SOFTIRQS)),
        ("softirq_ns", len(SOFTIRQS)),
        ("idle_count", IDLE_STATES),
        ("idle_ns", IDLE_STATES),
        ("freq_khz", 1),
        ("stolen_ns", 1),  # in interrupts and softirqs, each moment once
        ("losses", len(LOSSES)),
    )
)
#: An interrupt line on a CPU.
IRQ_FIELDS: Final = (("count", 1), ("ns", 1))

#: Counters of one agent on one CPU. Only that CPU writes; seq is odd while it does.
ROW_FIELDS: Final = (
    ("seq", 1),
    ("steps", 1),
    ("ready", 1),
    ("step_ns", 1),
    ("stage_ns", len(STAGES)),
    ("compute_ns", len(COMPUTE_PARTS)),
    ("sources", len(SOURCE_NAMES)),
    ("gates", len(GATES)),
    ("tail_steps", 1),
    ("tail_ns", len(STAGES)),
)

#: Causes of one agent's steps on one CPU, as ROW_FIELDS.
CAUSE_ROW_FIELDS: Final = (
    ("seq", 1),
    ("steps", len(CAUSE_NAMES)),  # steps that had the cause
    ("events", len(CAUSE_NAMES)),  # how often it happened in them
    ("ns", len(CAUSE_NAMES)),
    ("explained_ns", len(STAGES)),  # time in any of them, each moment once
)

#: A label of a cause in an agent's steps, and what was summed over the steps that had it
#: (words.DETAILS has the meaning of label and extra).
DETAIL_KEY_FIELDS: Final = (
    ("owner", 1),  # slot, and the cause in the upper half
    ("label", LABEL_WORDS),
)
DETAIL_FIELDS: Final = (
    ("steps", 1),
    ("events", 1),
    ("ns", 1),
    ("max_ns", 1),
    ("extra", EXTRAS),
)
#: How many labels an agent has, by cause.
LABEL_FIELDS: Final = (("labels", len(CAUSE_NAMES)),)

#: What user space tells the kernel about a slot, and the slot's live threads.
CONTROL_FIELDS: Final = (
    ("slow_ns", 1),  # slowpath above which a step is kept whole; raised by the kernel
    ("keep", 1),  # so many more are kept before each one raises it
    ("tail_ns", 1),  # slowpath above which a step counts as tail; 0: not set
    ("threads", 1),
    ("window_ns", 1),  # length of the agent's latency window; 0: it has none
    ("closed", 1),  # another agent gets the slot: the iterator takes it from its threads
)

#: What the step markers of an agent's threads told (steps.bpf.c).
MARKS_FIELDS: Final = (
    ("contexts", 1),  # begun
    ("met", len(CLASSES)),  # ended before their deadline, by class
    ("missed", len(CLASSES)),
    ("overrun", len(CLASSES)),  # took more time on a CPU than their budget
    ("names", 1),  # that have a lane
    ("crowded", 1),  # markers whose name is beyond NAMES_EACH
    ("unread", 1),  # markers whose context was not in memory
    ("invalid", 1),  # markers with an unknown class or flag, or a context of another size
    ("kept", 1),  # told for user_data
    ("forgotten", 1),  # of those, what had to give way
    ("strays", 1),  # requests whose user_data has a number that nobody told of
    ("share", 1),  # whose lanes it draws on; 0: those of all, without a limit
)
#: Lanes of agents by rule, and of threads that opted in: the kernel takes, user space returns.
SHARE_FIELDS: Final = (("taken", 2), ("returned", 2))
#: What requests of one user_data are.
KEPT_FIELDS: Final = (
    ("key", 1),  # process, and number
    ("span", 1),  # longest that they should take, ns; 0: none
    ("latency", 1),
    ("lane", 1),  # of their name; 0: none
    ("when", 1),  # told last
)
#: Where an agent has them: so many sets of so many.
KEPT_SETS: Final = 8
KEPT_WAYS: Final = 8
#: Steps of one name.
LANE_FIELDS: Final = (
    ("slot", 1),  # of the agent; 0: nobody's
    ("steps", 1),
    ("step_ns", 1),
    ("slow_ns", 1),
    ("name", NAME_BYTES // 8),  # all 0: names beyond NAMES_EACH
)

#: An agent's window: its budget as budget.py explains it, and what became of its armings.
WINDOW_FIELDS: Final = (
    ("cost_ns", 1),  # price of an arming, in time that the bucket takes to refill it
    ("price", 1),  # instead of that: price of each 1024 ns that a CPU is held for longer
    ("cap_ns", 1),  # a full bucket
    ("mark_ns", 1),  # an emptied bucket grants again from here on
    ("floor", 1),  # the agent's own cell is wanted too
    ("zero", 1),  # when the bucket would have been empty
    ("throttled", 1),  # since when nothing is granted; 0: it is
    ("grants", 1),
    ("refusals", 1),
    ("throttles", 1),
    ("degraded_ns", 1),  # spent throttled, without the time since throttled
    ("paid_ns", 1),  # all that the bucket paid, in time that it takes to refill it
    ("held_ns", 1),  # by which CPUs were held for longer
)

#: Until when something (a CPU, or an agent wherever it runs) is held by windows, and whether
#: the guardian has been told and has not let go yet.
CELL_FIELDS: Final = (("until", 1), ("told", 1))
#: What tells it.
ARMED_FIELDS: Final = (("t", 1), ("cell", 1), ("slot", 1))

#: How a thread that slept all the while is told from one that was in user space.
LEARNED_FIELDS: Final = (
    ("learning", 1),
    ("count", 1),
    ("sleepers", 1),  # flags that all sleeping threads have
    ("reader", 1),  # flags of the one that reads the iterator
    ("off_cpu", 1),  # set by going off the CPU, cleared on the way to user space; 0: not known
)

#: A slow step as it crosses the ring.
SLOW_FIELDS: Final = (
    ("t", 1),
    ("pid_tgid", 1),
    ("slot", 1),
    ("gate", 1),
    ("source", 1),
    ("cpu", 1),
    ("waker_kind", 1),
    ("waker_id", 1),
    ("waker_cpu", 1),  # where it was woken from, + 1; 0: not known
    ("stage_ns", len(STAGES)),
)

#: A thread as the iterator lists it.
THREAD_FIELDS: Final = (
    ("pid_tgid", 1),
    ("slot", 1),
    ("steps", 1),
    ("last_ns", 1),
    ("cpu", 1),
    ("uid", 1),  # of one that asks for a slot, and by which of EDGES
    ("asks", 1),
)

#: Processes of which it is remembered that a record is in the ring (a power of two).
EDGE_TOLD: Final = 1024
#: What happens to processes, as it crosses the ring; slot is the user of a thread that opts in.
EDGE_FIELDS: Final = (("kind", 1), ("pid_tgid", 1), ("slot", 1))
EDGES: Final = ("exec", "rename", "cgroup", "exit", "marker", "sched_setattr")

#: What woke a thread (waker_kind).
WAKERS: Final = ("unknown", "task", "line", "vector", "softirq")

#: Who ran while a thread waited: nobody (the CPU was idle), a task, a kernel thread, interrupts.
RAN: Final = ("none", "task", "kernel", "interrupts")
#: Switches that each CPU keeps, and how many of them a thread looks back over (powers of two).
RAN_KEPT: Final = 64
RAN_WALK: Final = 24
#: Those of a step that are told apart; the others' time counts without a name.
RAN_EACH: Final = 4
#: Less time in interrupts may be the rest of the one that woke the thread.
RAN_STOLEN_NS: Final = 10_000
#: CPUs that may have been idle meanwhile, the first of them; and a shorter wait is not avoidable:
#: to wake another CPU takes as long.
AVOIDABLE_CPUS: Final = 128
AVOIDABLE_NS: Final = 10_000
#: Rises of its frequency that each CPU keeps; of a step with more of them the first is not known.
RAMPS_KEPT: Final = 32
#: Frequencies are told apart in steps of this, kHz.
KHZ_STEP: Final = 100_000

#: What causes know of a CPU's power; its other CPUs may write it too.
POWER_FIELDS: Final = _apart(
    (
        ("khz", 1),  # 0: not known; user space writes the first
        ("idle_kind", 1),  # which of the sets of idle states it has; user space writes it
        ("miss_at", 1),  # the idle governor's last miss
        ("miss_below", 1),  # it was too shallow, not too deep
        ("ramps", 1),  # how often the frequency rose
        ("ramp_at", RAMPS_KEPT),  # the last times, kHz before and after
        ("ramp_from", RAMPS_KEPT),
        ("ramp_to", RAMPS_KEPT),
    )
)

#: Slot of a thread that asked to be an agent and has not been given one yet.
PENDING_SLOT: Final = SLOTS
#: Slot of a thread that is not measured (any more).
NO_SLOT: Final = 0


def c_struct(name: str, fields: Fields) -> str:
    """The C definition."""
    members = "".join(
        f"\tu64 {field}{f'[{size}]' if size > 1 else ''};\n" for field, size in fields
    )
    return f"struct {name} {{\n{members}}};\n"


def dtype(fields: Fields) -> np.dtype[np.void]:
    """The numpy structured type of the same bytes."""
    import numpy as np  # not in the loader

    return np.dtype(
        [(field, np.uint64, (size,)) if size > 1 else (field, np.uint64) for field, size in fields]
    )


def _enum(prefix: str, names: tuple[str, ...], start: int = 0) -> str:
    members = ", ".join(
        f"{prefix}_{name.upper()}" + (f" = {start}" if i == 0 else "")
        for i, name in enumerate(names)
    )
    return f"enum {{ {members} }};\n"


def _mask(stage: str) -> str:
    bits = sum(1 << place for place, cause in enumerate(CAUSES) if cause.stage == stage)
    return f"{bits:#x}U"


def _packed(causes: Sequence[Cause]) -> str:
    """The stage of each cause, three bits for one."""
    places = (STAGES.index(cause.stage) << 3 * place for place, cause in enumerate(causes))
    return f"{sum(places):#x}ULL"


def prelude() -> str:
    """Constants, enums and structs for the C sources."""
    constants = {
        "SLOTS": SLOTS,
        "PENDING_SLOT": PENDING_SLOT,
        "NO_SLOT": NO_SLOT,
        "MEASURES": len(MEASURES),
        "BUCKETS": BUCKETS,
        "SUB_BITS": SUB_BITS,
        "MAX_EXPONENT": MAX_EXPONENT,
        "NR_SOFTIRQ": len(SOFTIRQS),
        "NR_IDLE": IDLE_STATES,
        "NR_IRQ": IRQS,
        "NR_LOSSES": len(LOSSES),
        "CPU_ALIGN": CPU_ALIGN,
        "NR_LOOP_GATES": len(LOOP_GATES),
        "LOOP_MEMORY_NS": f"{LOOP_MEMORY_NS}ULL",
        "RACE_NS": RACE_NS,
        "RETELL_NS": f"{RETELL_NS}ULL",
        "EDGE_TOLD": EDGE_TOLD,
        "NAMES_EACH": NAMES_EACH,
        "NAMES_NEAR": NAMES_NEAR,
        "NAME_WORDS": NAME_BYTES // 8,
        "LANES": LANES,
        "LANES_BY_RULE": LANES_BY_RULE,
        "NR_LANE_MEASURES": len(STEP_MEASURES),
        "NR_CLASSES": len(CLASSES),
        "CONTEXT_SIZE": CONTEXT_BYTES,
        "STEP_CLASS_MASK": CLASS_MASK,
        "STEP_PAUSE": PAUSE,
        "STEP_RESUME": RESUME,
        "STEP_URING": URING,
        "STEP_URING_MAGIC": URING_MAGIC,
        "STEP_KNOWN": CLASS_MASK | PAUSE | RESUME | URING,
        "KEPT_SETS": KEPT_SETS,
        "KEPT_WAYS": KEPT_WAYS,
        "NR_CAUSES": len(CAUSE_NAMES),
        "FIRST_LABELLED": CAUSE_NAMES.index(next(iter(DETAILS))),
        "NR_LABELLED": len(DETAILS),
        "LABEL_WORDS": LABEL_WORDS,
        "EXTRAS": EXTRAS,
        "LABELS_EACH": LABELS_EACH,
        "MAX_LABELS": LABELS,
        "CAUSES_OF_COMPUTE": _mask("compute"),
        "STAGES_OF_CAUSES": _packed(CAUSES[:_PACKED]),
        f"STAGES_OF_CAUSES_{_PACKED}": _packed(CAUSES[_PACKED:]),
        "RAN_KEPT": RAN_KEPT,
        "RAN_WALK": RAN_WALK,
        "RAN_EACH": RAN_EACH,
        "RAN_STOLEN_NS": RAN_STOLEN_NS,
        "AVOIDABLE_CPUS": AVOIDABLE_CPUS,
        "AVOIDABLE_NS": AVOIDABLE_NS,
        "RAMPS_KEPT": RAMPS_KEPT,
        "KHZ_STEP": KHZ_STEP,
        "CAUSES_LOOKING_BACK": "(1U << CAUSE_RAN_MEANWHILE | 1U << CAUSE_AVOIDABLE_WAIT)",
        "CAUSE_HISTS": CAUSE_HISTS,
        "CAUSE_BUCKETS": CAUSE_BUCKETS,
    }
    text = "".join(f"#define {name} {value}\n" for name, value in constants.items())
    text += _enum("STAGE", STAGES)
    text += _enum("MEASURE", MEASURES)
    text += _enum("LANE", STEP_MEASURES)
    text += _enum("SOURCE", SOURCE_NAMES)
    text += _enum("SOFTIRQ", SOFTIRQS)
    text += _enum("VECTOR", VECTORS)
    text += _enum("LOSS", LOSSES)
    text += _enum("PART", COMPUTE_PARTS)
    text += _enum("EDGE", EDGES)
    text += _enum("WAKER", WAKERS)
    text += _enum("CAUSE", CAUSE_NAMES)
    text += _enum("RAN", RAN)
    for name, fields in (
        ("cpu", CPU_FIELDS),
        ("irq_row", IRQ_FIELDS),
        ("row", ROW_FIELDS),
        ("cause_row", CAUSE_ROW_FIELDS),
        ("detail_key", DETAIL_KEY_FIELDS),
        ("detail", DETAIL_FIELDS),
        ("labels", LABEL_FIELDS),
        ("control", CONTROL_FIELDS),
        ("marks", MARKS_FIELDS),
        ("share", SHARE_FIELDS),
        ("kept", KEPT_FIELDS),
        ("lane", LANE_FIELDS),
        ("learned", LEARNED_FIELDS),
        ("slow", SLOW_FIELDS),
        ("listed", THREAD_FIELDS),
        ("edge", EDGE_FIELDS),
        ("window", WINDOW_FIELDS),
        ("cell", CELL_FIELDS),
        ("power_cpu", POWER_FIELDS),
        ("armed_edge", ARMED_FIELDS),
    ):
        text += c_struct(name, fields)
    return text
