"""The programs of causes: loaded when first wanted, onto the maps of the chain that runs.

    python -m agenttop.collectors.bpf.causes.loader FD LEVEL MAPS CPUS

MAPS is JSON: the descriptors of the maps by name. CPUS too: those that have
rows in the maps. As the loader, this process goes when the programs are in the
kernel; it attaches none.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from agenttop.collectors.bpf.load.loader import Child, LoadError, bcc, hand_over
from agenttop.collectors.bpf.read.cpu_rows import CpuRows
from agenttop.linux.files import read_text

if TYPE_CHECKING:
    from agenttop.collectors.bpf.load.btf import Btf
    from agenttop.collectors.bpf.load.compile_cache import Compiled

#: include/uapi/linux/time.h; Python has no name for it.
_CLOCK_MONOTONIC_COARSE: Final = 6
#: The maps that these programs use, of those that the chain's loader made.
MAPS: Final = (
    "threads",
    "cpus",
    "cpu_rows",
    "lost_apart",
    "cause_rows",
    "cause_hist",
    "cause_wanted",
    "online_cpus",
    "cause_details",
    "cause_labels",
    "delivery",
    "learned",
    "marks",
    "kept",
    "works",
    "workers",
    "run_cpus",
    "power_cpus",
)
#: Those that nobody else uses: made with the programs.
OWN_MAPS: Final = ("requests", "finished", "ring_sets", "ring_done")
ALL_MAPS: Final = (*MAPS, *OWN_MAPS)
#: Interrupt vectors that wake, of those that have tracepoints.
_VECTORS: Final = (
    "local_timer",
    "reschedule",
    "call_function",
    "call_function_single",
    "irq_work",
)
#: Program -> its tracepoint; ``tracepoint_of`` says which it is on a kernel that lacks it.
TRACEPOINTS: Final = {
    "page_fault_user": "page_fault_user",
    "page_fault_kernel": "page_fault_kernel",
    "direct_reclaim_begin": "mm_vmscan_direct_reclaim_begin",
    "direct_reclaim_end": "mm_vmscan_direct_reclaim_end",
    "memcg_reclaim_begin": "mm_vmscan_memcg_reclaim_begin",
    "memcg_reclaim_end": "mm_vmscan_memcg_reclaim_end",
    "compaction_begin": "mm_compaction_begin",
    "compaction_end": "mm_compaction_end",
    "cause_switch": "sched_switch",
    "page_cache_miss": "page_cache_sync_ra",
    "page_cache_got": "mm_filemap_get_pages",
    "cause_enter": "sys_enter",
    "cause_exit": "sys_exit",
    "metadata_read": "block_bio_queue",
    "cause_raise": "softirq_raise",
    "cause_softirq": "softirq_entry",
    "cause_fold": "sys_enter",
    "cause_waking": "sched_waking",
    "cause_line_exit": "irq_handler_exit",
    **{f"cause_{name}_exit": f"{name}_exit" for name in _VECTORS},
    "cause_hrtimer": "hrtimer_expire_entry",
    "cause_timer_exit": "timer_expire_exit",
    "cause_timer": "timer_expire_entry",
    "cause_packet": "netif_receive_skb",
    "cause_ready": "sk_data_ready",
    "cause_poll": "napi_poll",
    "cause_queue_work": "workqueue_queue_work",
    "cause_work": "workqueue_execute_start",
    "cause_work_end": "workqueue_execute_end",
    "cause_worker": "sched_switch",
    "block_begin": "block_io_start",
    "block_issue": "block_rq_issue",
    "block_complete": "block_rq_complete",
    "cause_run": "sched_switch",
    "cause_wakeup": "sched_wakeup",
    "cause_idle": "cpu_idle",
    "cause_idle_miss": "cpu_idle_miss",
    "cause_frequency": "cpu_frequency",
    "ring_submit": "io_uring_submit_req",
    "ring_worker": "io_uring_queue_async_work",
    "ring_complete": "io_uring_complete",
}
#: What older kernels have instead.
OLDER: Final = {
    "block_io_start": "block_rq_insert",
    "io_uring_submit_req": "io_uring_submit_sqe",
}
#: Program -> its software event, PERF_COUNT_SW_PAGE_FAULTS_MIN and _MAJ.
SOFTWARE_EVENTS: Final = {"minor_fault": 5, "major_fault": 6}
#: Level -> the programs that add up what an ended step had: every cause takes them.
FOLDS: Final = {"lite": ("cause_switch",), "full": ("cause_switch", "cause_fold")}
#: What every cause takes that the waker tells of.
_WAKE: Final = ("cause_switch", "cause_waking")
#: In the word of the causes that are observed: contexts that user_data names are followed too.
CONTEXTS: Final = 1 << 31
_RING: Final = ("ring_complete", "ring_worker", "ring_submit")
_BLOCK: Final = (*_WAKE, "block_complete", "block_issue", "block_begin")
#: What every cause takes that shows when the thread is in. Runs behind cause_switch, which is
#: there whenever it is.
_RUN: Final = ("cause_switch", "cause_run")
#: Most that the submission has on kernels where the request comes first.
_SUBMIT_ARGS: Final = 2
#: What it takes to follow contexts that io_uring's user_data names.
CONTEXT_PROGRAMS: Final = (*_WAKE, *_RING)
#: Cause -> its own programs.
PROGRAMS: Final = {
    "minor_fault": ("minor_fault", "page_fault_user", "page_fault_kernel"),
    "major_fault": ("major_fault", "page_fault_user", "page_fault_kernel"),
    "reclaim": (
        "direct_reclaim_end",
        "memcg_reclaim_end",
        "direct_reclaim_begin",
        "memcg_reclaim_begin",
    ),
    "compaction": ("compaction_end", "compaction_begin"),
    "page_cache_miss": ("cause_switch", "page_cache_got", "page_cache_miss"),
    "lock": ("cause_switch",),
    "throttled": ("cause_switch",),
    "file_metadata": ("cause_exit", "cause_enter"),
    "cold_metadata": ("cause_switch", "metadata_read", "cause_exit", "cause_enter"),
    "interrupt": (
        *_WAKE,
        "cause_softirq",
        "cause_raise",
        "cause_line_exit",
        *(f"cause_{name}_exit" for name in _VECTORS),
    ),
    "softirq": (*_WAKE, "cause_softirq", "cause_raise"),
    "timer": (*_WAKE, "cause_hrtimer", "cause_timer_exit", "cause_timer"),
    "network": (*_WAKE, "cause_softirq", "cause_packet", "cause_poll"),
    "socket": (*_WAKE, "cause_packet", "cause_ready"),
    "workqueue": (
        *_WAKE,
        "cause_queue_work",
        "cause_work",
        "cause_work_end",
        "cause_worker",
    ),
    "block": _BLOCK,
    "io_uring": (*_WAKE, *_RING),
    "block_in_compute": _BLOCK,
    "idle": (*_RUN, "cause_idle_miss"),
    "placement": _RUN,
    "ran_meanwhile": (*_RUN, "cause_wakeup", "cause_idle"),
    "avoidable_wait": (*_RUN, "cause_wakeup", "cause_idle"),
    "frequency": (*_RUN, "cause_frequency"),
}
#: Programs without which their causes can be had all the same, and what those then lack.
OPTIONAL: Final = {
    **{f"cause_{name}_exit": f"a handler's whole time ({name})" for name in _VECTORS},
    "cause_line_exit": "a handler's whole time",
    "page_cache_got": "reads that were over before their thread slept",
    "metadata_read": "cold calls of file systems that wait in a way of their own (XFS)",
    "cause_timer": "timers of the timer wheel",
    "cause_timer_exit": "timers of the timer wheel",
    "cause_idle_miss": "which steps met a state that the governor had chosen wrong",
}
#: Of those, the ones without which something that is summed by label is not known: its cause, and
#: the names of the sums (words.DETAILS).
SUMS_OF: Final = {"cause_idle_miss": ("idle", ("too_deep", "too_shallow"))}
#: Program -> the fields of kernel structs that it looks at, by the name that it has for them.
FIELDS: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "cause_waking": {"OFF_COMM": ("task_struct", "comm")},
    "cause_hrtimer": {
        "OFF_HRTIMER_SOFT": ("hrtimer", "_softexpires"),
        "OFF_HRTIMER_FUNCTION": ("hrtimer", "function"),
    },
    "block_begin": {"OFF_GROUP_LEADER": ("task_struct", "group_leader")},
    "ring_submit": {"OFF_RING_OPCODE": ("io_kiocb", "opcode")},
    "metadata_read": {"OFF_BIO_OPF": ("bio", "bi_opf")},
    "block_complete": {
        "OFF_REQUEST_FLAGS": ("request", "cmd_flags"),
        "OFF_REQUEST_QUEUE": ("request", "q"),
        "OFF_QUEUE_DISK": ("request_queue", "disk"),
        "OFF_DISK_MAJOR": ("gendisk", "major"),
        "OFF_DISK_MINOR": ("gendisk", "first_minor"),
    },
    "cause_timer": {
        "OFF_TIMER_EXPIRES": ("timer_list", "expires"),
        "OFF_TIMER_FUNCTION": ("timer_list", "function"),
    },
    "cause_packet": {
        "OFF_SKB_DEV": ("sk_buff", "dev"),
        "OFF_SKB_DATA": ("sk_buff", "data"),
        "OFF_SKB_NAPI": ("sk_buff", "napi_id"),
        "OFF_SKB_QUEUE": ("sk_buff", "queue_mapping"),
        "OFF_DEV_NAME": ("net_device", "name"),
        "OFF_DEV_FLAGS": ("net_device", "flags"),
    },
    "cause_poll": {"OFF_NAPI_DEV": ("napi_struct", "dev")},
    "cause_ready": {
        "OFF_SOCK_FAMILY": ("sock", "__sk_common", "skc_family"),
        "OFF_SOCK_PROTOCOL": ("sock", "sk_protocol"),
        "OFF_SOCK_NUM": ("sock", "__sk_common", "skc_num"),
        "OFF_SOCK_DPORT": ("sock", "__sk_common", "skc_dport"),
        "OFF_SOCK_DADDR": ("sock", "__sk_common", "skc_daddr"),
        "OFF_SOCK_SADDR": ("sock", "__sk_common", "skc_rcv_saddr"),
        "OFF_SOCK_DADDR6": ("sock", "__sk_common", "skc_v6_daddr"),
        "OFF_SOCK_SADDR6": ("sock", "__sk_common", "skc_v6_rcv_saddr"),
    },
    "cause_work": {"OFF_WORK_FUNC": ("work_struct", "func")},
    "cause_run": {
        "OFF_COMM": ("task_struct", "comm"),
        "OFF_CPUS_MASK": ("task_struct", "cpus_mask"),
    },
}
#: Kinds of system calls, arch/x86/entry/syscalls/syscall_64.tbl: those that read files; futex;
#: those that look files up, list or name them (open, stat, access, getdents, readlink, rename,
#: link, unlink, mkdir, getxattr and their newer forms).
CALLS_X86_64: Final = {
    "read": (0, 17, 19, 40, 275, 295, 326, 327),
    "futex": (202, 449, 455),
    "metadata": (
        *(2, 4, 5, 6, 21, 78, 82, 83, 84, 85, 86, 87, 88, 89, 191, 192, 193, 217),
        *(257, 258, 262, 263, 264, 265, 266, 267, 269, 316, 332, 437, 439),
    ),
}


@dataclass(frozen=True)
class LoadedCauses:
    """What the loader handed over: program descriptors, and why others are not among them."""

    programs: dict[str, int]
    refused: dict[str, str]


class CauseLoading(Child):
    """A load under way, as loader.Loading."""

    def __init__(self, level: str, maps: Mapping[str, int], rows: CpuRows) -> None:
        used = {name: maps[name] for name in MAPS}
        super().__init__(
            "agenttop.collectors.bpf.causes.loader",
            level,
            json.dumps(used),
            json.dumps(rows.cpus),
            pass_fds=tuple(used.values()),
        )

    def result(self) -> LoadedCauses:
        """Wait and take over. Raises LoadError with one line that says why not."""
        answer, fds = self.take()
        return LoadedCauses(dict(zip(answer["programs"], fds, strict=True)), answer["refused"])


def _load(level: str, maps: dict[str, int], rows: CpuRows) -> tuple[dict[str, Any], list[int]]:
    from agenttop.collectors.bpf import syscall
    from agenttop.collectors.bpf.load import compile_cache
    from agenttop.collectors.bpf.load import source as programs
    from agenttop.collectors.bpf.load.btf import Btf, BtfError

    try:
        btf = Btf.load()
        text, names = source(btf, "full" if level == "full" else "lite", rows)
    except (BtfError, programs.UnsupportedError) as error:
        raise LoadError(str(error)) from None
    made = compile_cache.recall(text, names)
    if made is None:
        try:
            made = compile_cache.compile_text(bcc(), text, ALL_MAPS, names)
        except LoadError:
            raise
        except Exception as error:  # BCC raises plain Exceptions
            raise LoadError(f"BCC could not compile the programs of causes: {error}") from None
        compile_cache.keep(made, text, names)
    threads = made.maps[MAPS.index("threads")].value_size
    (_, _, running, *_), _ = syscall.map_info(maps["threads"])
    if threads != running:
        raise LoadError("the chain's programs are of another version: start agenttop anew")
    own = [syscall.create_map(one.name, one.shape, None) for one in made.maps[len(MAPS) :]]
    return _into_kernel(btf, made, _names(level), [*(maps[name] for name in MAPS), *own])


def source(btf: Btf, level: Literal["lite", "full"], rows: CpuRows) -> tuple[str, list[str]]:
    """What is compiled, and the programs in it. Raises UnsupportedError."""
    from agenttop.collectors.bpf.load import source as programs

    text = programs.cause_text(btf, level, rows, _facts(btf, rows))
    return text, [f"p_{name}" for name in _names(level)]


def _names(level: str) -> tuple[str, ...]:
    """All programs of a level."""
    left_out = set(FOLDS["full"]) - set(FOLDS[level])
    return tuple(name for name in (*TRACEPOINTS, *SOFTWARE_EVENTS) if name not in left_out)


def tick_ns() -> int:
    """Length of the kernel's tick (1/HZ): the coarse clocks go by it."""
    return round(time.clock_getres(_CLOCK_MONOTONIC_COARSE) * 1e9)


def _facts(btf: Btf, rows: CpuRows) -> str:
    """C: the fields and system calls that only the programs of causes look at."""
    offsets = {
        "OFF_THROTTLED": btf.field_offset("task_struct", "throttled"),
        "OFF_CFS_RQ": btf.field_offset("task_struct", "se", "cfs_rq"),
        "OFF_THROTTLE_COUNT": btf.field_offset("cfs_rq", "throttle_count"),
        "BIT_IN_IOWAIT": btf.field_bit("task_struct", "in_iowait"),
    }
    # Programs that look at one that is missing are not loaded (_into_kernel).
    for fields in FIELDS.values():
        offsets |= {name: _offset(btf, path) or 0 for name, path in fields.items()}
    text = "".join(f"#define {name} {at}\n" for name, at in offsets.items() if at is not None)
    text += f"#define BLOCK_FROM_INSERT {int(not btf.has_tracepoint('block_io_start'))}\n"
    text += f"#define WANTED_CONTEXTS {CONTEXTS:#x}U\n"
    text += f"#define RING_HAS_CQE {int(btf.tracepoint_passes_pointer('io_uring_complete', 2))}\n"
    text += f"#define TICK_NS {tick_ns()}ULL\n"
    # NR_CPUS + 1; kernel_max is the highest of the NR_CPUS.
    most = read_text("/sys/devices/system/cpu/kernel_max") or str(rows.span - 1)
    text += f"#define MIN_NAPI_ID {int(most) + 2}\n"
    # include/uapi/linux/if.h, include/linux/socket.h
    text += "#define IFF_LOOPBACK 0x8\n#define AF_INET 2\n#define AF_INET6 10\n"
    text += "#define IPPROTO_UDP 17\n"
    text += f"#define KSOFTIRQ {int.from_bytes(b'ksoftirq', sys.byteorder)}ULL\n"
    kinds = ", ".join(f"CALL_{kind.upper()}" for kind in CALLS_X86_64)
    cases = "".join(
        "".join(f"\tcase {number}:\n" for number in numbers) + f"\t\treturn CALL_{kind.upper()};\n"
        for kind, numbers in CALLS_X86_64.items()
    )
    return (
        f"{text}enum {{ CALL_OTHER, {kinds} }};\n"
        "static inline __attribute__((always_inline)) int call_of(u32 nr)\n"
        f"{{\n\tswitch (nr) {{\n{cases}\t}}\n\treturn CALL_OTHER;\n}}\n"
    )


def _offset(btf: Btf, path: tuple[str, ...]) -> int | None:
    return btf.field_offset(path[0], *path[1:])


def tracepoint_of(btf: Btf, program: str) -> str:
    """The tracepoint of a program on this kernel; one that it may not have."""
    name = TRACEPOINTS[program]
    return name if btf.has_tracepoint(name) else OLDER.get(name, name)


def lacks(btf: Btf, program: str) -> str:
    """What this kernel does not have for a program, in words; empty: nothing."""
    point = tracepoint_of(btf, program) if program in TRACEPOINTS else None
    if point is not None and not btf.has_tracepoint(point):
        return f"no tracepoint {point}"
    if program in _RING and not btf.tracepoint_passes_pointer(point or "", program == _RING[0]):
        return f"tracepoint {point} names no request"
    if program == "ring_submit" and (btf.tracepoint_args(point or "") or 0) > _SUBMIT_ARGS:
        return f"tracepoint {point} names its ring before its request"
    for path in FIELDS.get(program, {}).values():
        if _offset(btf, path) is None:
            return f"no field {'.'.join(path)}"
    return ""


def _into_kernel(
    btf: Btf, made: Compiled, names: tuple[str, ...], maps: list[int]
) -> tuple[dict[str, Any], list[int]]:
    from agenttop.collectors.bpf import syscall
    from agenttop.collectors.bpf.load import source as programs

    calls = programs.kernel_calls(btf)
    loaded: dict[str, int] = {}
    refused: dict[str, str] = {}
    for name in names:
        lacking = lacks(btf, name)
        if lacking:
            refused[name] = lacking
            continue
        code = syscall.link_calls(made.code(f"p_{name}", maps), calls)
        try:
            if name in SOFTWARE_EVENTS:
                loaded[name] = syscall.load_program(code, name, syscall.PROG_PERF_EVENT)
            else:
                btf_id = btf.typedef(f"btf_trace_{tracepoint_of(btf, name)}") or 0
                loaded[name] = syscall.load_program(
                    code, name, syscall.PROG_TRACING, syscall.ATTACH_TRACE_RAW_TP, btf_id
                )
        except OSError as error:
            refused[name] = f"the kernel refused a program: {error.strerror or error}"[:300]
    return {"programs": list(loaded), "refused": refused}, list(loaded.values())


def main() -> int:
    """Answer on the socket with JSON and the descriptors, or with the reason."""
    maps, cpus = json.loads(sys.argv[3]), json.loads(sys.argv[4])
    return hand_over(lambda: _load(sys.argv[2], maps, CpuRows(cpus)))


if __name__ == "__main__":
    sys.exit(main())
