"""From the C sources and the running kernel's facts to a text that BCC compiles."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from agenttop.collectors.bpf import layout
from agenttop.collectors.bpf.load.btf import Btf
from agenttop.collectors.bpf.read.cpu_rows import CpuRows
from agenttop.model.vocabulary import GATES, VECTORS
from agenttop.step import MARKER

SOURCES: Final = (
    "chain/maps.bpf.c",
    "chain/percpu.bpf.c",
    "chain/window.bpf.c",
    "chain/steps.bpf.c",
    "causes/common.bpf.c",
    "chain/wake.bpf.c",
    "chain/chain.bpf.c",
    "chain/life.bpf.c",
)

#: The programs of causes are loaded apart, onto the maps of these.
CAUSE_SOURCES: Final = (
    "chain/maps.bpf.c",
    "causes/common.bpf.c",
    "causes/fold.bpf.c",
    "causes/memory.bpf.c",
    "causes/network.bpf.c",
    "causes/work.bpf.c",
    "causes/block.bpf.c",
    "causes/uring.bpf.c",
    "causes/wake.bpf.c",
    "causes/run.bpf.c",
    "causes/files.bpf.c",
    "causes/switch.bpf.c",
)

#: System calls by gate, arch/x86/entry/syscalls/syscall_64.tbl.
SYSCALLS_X86_64: Final = {
    "epoll_wait": 232,
    "epoll_pwait": 281,
    "epoll_pwait2": 441,
    "io_uring_enter": 426,
    "poll": 7,
    "ppoll": 271,
    "select": 23,
    "pselect6": 270,
    "nanosleep": 35,
    "clock_nanosleep": 230,
    "read": 0,
    "pread64": 17,
    "readv": 19,
    "recvfrom": 45,
    "recvmsg": 47,
    "recvmmsg": 299,
    "accept": 43,
    "accept4": 288,
    "futex": 202,
    "futex_waitv": 449,
    "futex_wait": 455,
    "wait4": 61,
    "waitid": 247,
}
_PRCTL: Final = 157
_SCHED_SETATTR: Final = 314

#: prctl(STEP_MARKER, step_id, class and flags, deadline_ns, context) from any process: "AGST".
STEP_MARKER: Final = MARKER
#: The flag of the kernel proposal; SCHED_FLAG_SUGOV inside a stock kernel.
SCHED_FLAG_AGENT_LATENCY: Final = 0x10000000

#: Sizes of the rings (powers of two).
EDGE_PAGES: Final = 32
SLOW_PAGES: Final = 64
ARMED_PAGES: Final = 8

#: Kernel functions that the C sources call: the number that stands for each until it is loaded.
KERNEL_CALLS: Final = {"bpf_preempt_disable": 0x41540001, "bpf_preempt_enable": 0x41540002}

#: Tracepoints in the order of attaching: exits first (percpu.bpf.c says why), then what
#: gives context, then the chain.
EXITS: Final = (
    "irq_handler_exit",
    *(f"{v}_exit" for v in VECTORS),
    "hrtimer_expire_exit",
    "softirq_exit",
)
ENTRIES: Final = (
    "irq_handler_entry",
    *(f"{v}_entry" for v in VECTORS),
    "hrtimer_expire_entry",
    "softirq_entry",
    "softirq_raise",
    "block_rq_complete",
    "cpu_idle",
    "cpu_frequency",
)
CHAIN: Final = ("sched_switch", "sched_waking", "sched_wakeup", "signal_deliver")
LIFE: Final = (
    "sched_process_fork",
    "sched_process_exit",
    "sched_process_exec",
    "task_rename",
    "cgroup_attach_task",
    "task_prctl_unknown",
)
CALLS: Final = ("sys_exit", "sys_enter")

#: Without these there are no chains; what is lost without each of the others.
REQUIRED: Final = ("sched_switch", "sched_waking", "sched_process_fork", "sched_process_exit")
LOSS_WITHOUT: Final = {
    "sched_wakeup": "stage ipi reads 0",
    "irq_handler_entry": "interrupt lines, stage irq and who woke",
    "softirq_entry": "softirq load and stage softirq",
    "softirq_raise": "raise-to-entry latency",
    "local_timer_entry": "time in interrupt vectors, source timer",
    "hrtimer_expire_entry": "how late timers fire",
    "block_rq_complete": "source block",
    "cpu_idle": "idle states and stage idle_exit",
    "cpu_frequency": "frequency changes between samples",
    "signal_deliver": "source signal",
    "sched_process_exec": "agents that start later",
    "task_rename": "agents found by a comm that they set themselves",
    "cgroup_attach_task": "agents found by a cgroup that they move to",
    "task_prctl_unknown": "the step marker at level lite",
    "sys_enter": "level full",
}


class UnsupportedError(Exception):
    """Step chains can't be had on this kernel; one line that says why."""


@dataclass(frozen=True)
class Plan:
    """What to compile and where to attach it."""

    mode: Literal["tp_btf", "raw_tp"]
    level: Literal["lite", "full"]
    text: str
    tracepoints: tuple[str, ...]
    iterator: bool
    missing: tuple[str, ...]
    #: Number in the compiled code -> BTF id of the kernel function to call.
    calls: dict[int, int]

    @property
    def names(self) -> list[str]:
        """The programs, as the text calls them."""
        return [f"p_{name}" for name in self.tracepoints] + ["p_iter_task"] * self.iterator


def plan(btf: Btf, level: Literal["lite", "full"], rows: CpuRows, raw: bool = False) -> Plan:
    """Choose by facts, never by version. Raises UnsupportedError with the reason.

    ``raw`` asks for the fall-back (raw tracepoints and a hash) on a kernel
    that has better. It knows no saved registers, so it measures at level full.
    """
    if platform.machine() != "x86_64":
        raise UnsupportedError(f"step chains need x86_64, this is {platform.machine()}")
    lost = [name for name in REQUIRED if not btf.has_tracepoint(name)]
    if lost:
        raise UnsupportedError(f"this kernel has no tracepoint {lost[0]}")
    storage = not raw and btf.field_offset("task_struct", "bpf_storage") is not None
    if not storage:
        level = "full"
    wanted = (*EXITS, *ENTRIES, *CHAIN, *LIFE, *(CALLS if level == "full" else ()))
    there = tuple(name for name in wanted if btf.has_tracepoint(name))
    iterator = storage and btf.function("bpf_iter_task") is not None
    return Plan(
        mode="tp_btf" if storage else "raw_tp",
        level=level,
        text=_prelude(btf, level, storage, rows) + _sources(),
        tracepoints=there,
        iterator=iterator,
        missing=tuple(name for name in wanted if name not in there),
        calls=kernel_calls(btf),
    )


def _kernel_calls(btf: Btf) -> tuple[str, ...]:
    """What it takes to keep preemption off: nothing, or the functions that do it."""
    # Since 7.0 this guards tracepoints instead of preemption being off. Before 6.13 it was
    # there for idle CPUs only: then the two short calls at level full change nothing.
    if not btf.has_variable("tracepoint_srcu_srcu_data"):
        return ()
    return tuple(KERNEL_CALLS) if all(btf.function(name) for name in KERNEL_CALLS) else ()


def kernel_calls(btf: Btf) -> dict[int, int]:
    """Plan.calls: number in the compiled code -> BTF id of the kernel function."""
    return {KERNEL_CALLS[name]: btf.function(name) or 0 for name in _kernel_calls(btf)}


def cause_text(btf: Btf, level: Literal["lite", "full"], rows: CpuRows, more: str) -> str:
    """What the programs of causes are compiled from; ``more`` is what only they need to know."""
    return _prelude(btf, level, True, rows) + more + _sources(CAUSE_SOURCES)


def _sources(names: tuple[str, ...] = SOURCES) -> str:
    here = Path(__file__).parents[1]
    return "".join((here / name).read_text() for name in names)


def _offsets(btf: Btf) -> dict[str, int | None]:
    task = "task_struct"
    return {
        "OFF_PID": btf.field_offset(task, "pid"),
        "OFF_TGID": btf.field_offset(task, "tgid"),
        "OFF_FLAGS": btf.field_offset(task, "flags"),
        "OFF_STATE": btf.field_offset(task, "__state") or btf.field_offset(task, "state"),
        "OFF_TASK_CPU": btf.field_offset(task, "thread_info", "cpu")
        or btf.field_offset(task, "cpu"),
        "OFF_BPF_STORAGE": btf.field_offset(task, "bpf_storage"),
        "OFF_THREAD_FLAGS": btf.field_offset(task, "thread_info", "flags"),
        "OFF_HRTIMER_EXPIRES": btf.field_offset("hrtimer", "node", "expires"),
        "OFF_ITER_SEQ": btf.field_offset("bpf_iter_meta", "seq"),
        "OFF_REGS_NR": btf.field_offset("pt_regs", "orig_ax"),
        "OFF_REGS_RET": btf.field_offset("pt_regs", "ax"),
        "OFF_REGS_ARG1": btf.field_offset("pt_regs", "di"),
        "OFF_REGS_ARG2": btf.field_offset("pt_regs", "si"),
        "OFF_REGS_ARG3": btf.field_offset("pt_regs", "dx"),
        "OFF_REGS_ARG4": btf.field_offset("pt_regs", "r10"),
        "OFF_REGS_ARG5": btf.field_offset("pt_regs", "r8"),
    }


def _prelude(btf: Btf, level: str, storage: bool, rows: CpuRows) -> str:
    offsets = _offsets(btf)
    optional = {"OFF_THREAD_FLAGS"}
    if not storage:
        optional |= {"OFF_BPF_STORAGE", "OFF_ITER_SEQ"}
    for name, offset in offsets.items():
        if offset is None and name not in optional:
            raise UnsupportedError(f"this kernel's BTF lacks the field for {name}")
    numbers = {
        "TASK_STORAGE": int(storage),
        "LEVEL_FULL": int(level == "full"),
        "PREEMPTIBLE": int(bool(_kernel_calls(btf))),
        "CALL_PREEMPT_DISABLE": KERNEL_CALLS["bpf_preempt_disable"],
        "CALL_PREEMPT_ENABLE": KERNEL_CALLS["bpf_preempt_enable"],
        "SWITCH_HAS_STATE": int((btf.tracepoint_args("sched_switch") or 0) >= 4),
        "HRTIMER_NOW_IS_POINTER": int(btf.tracepoint_passes_pointer("hrtimer_expire_entry", 1)),
        "CPU_ROWS": len(rows),
        "CPU_SPAN": rows.span,
        "CPU_GAPS": int(rows.gaps),
        "NR_GATES": len(GATES),
        "NR_PRCTL": _PRCTL,
        "NR_SCHED_SETATTR": _SCHED_SETATTR,
        "STEP_MARKER": STEP_MARKER,
        "HAS_PRCTL_UNKNOWN": int(btf.has_tracepoint("task_prctl_unknown")),
        "SCHED_FLAG_AGENT_LATENCY": SCHED_FLAG_AGENT_LATENCY,
        "PAGE_SIZE": os.sysconf("SC_PAGE_SIZE"),
        "EDGE_PAGES": EDGE_PAGES,
        "SLOW_PAGES": SLOW_PAGES,
        "ARMED_PAGES": ARMED_PAGES,
        "GATE_IO_URING_ENTER": GATES.index("io_uring_enter"),
        **{name: offset for name, offset in offsets.items() if offset is not None},
    }
    text = "".join(f"#define {name} {value}\n" for name, value in numbers.items())
    # Two types that BCC's prelude names and no header of ours gives.
    text += "typedef struct { unsigned long s[1]; } sigset_t;\n"
    text += "typedef struct { unsigned long f[16]; } fd_set;\n"
    text += layout.prelude()
    cases = "".join(
        f"\tcase {SYSCALLS_X86_64[name]}: return {i};\n" for i, name in enumerate(GATES)
    )
    text += (
        "/* System call to gate (words.GATES), -1 for the others. */\n"
        "static inline __attribute__((always_inline)) int gate_of(u32 nr)\n"
        f"{{\n\tswitch (nr) {{\n{cases}\t}}\n\treturn -1;\n}}\n"
    )
    return text
