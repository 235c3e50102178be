"""Who watches while something is timed: nobody, agenttop's programs, bpftrace, bcc's runqlat."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from agenttop.collectors.bpf.load import loader as loader_module
from agenttop.collectors.bpf.load.btf import Btf
from agenttop.collectors.bpf.load.loader import Loading
from agenttop.collectors.bpf.read.tracer import Tracer
from agenttop.linux.readiness import readable

#: Given the pid of the process that is timed, makes it an agent (or does nothing).
Adopt = Callable[[int], None]

#: bpftrace's own runqlat.bt, which is what a person would type.
_RUNQLAT_BT = """
tracepoint:sched:sched_wakeup, tracepoint:sched:sched_wakeup_new { @qtime[args.pid] = nsecs; }
tracepoint:sched:sched_switch {
  if (args.prev_state == 0) { @qtime[args.prev_pid] = nsecs; }
  $ns = @qtime[args.next_pid];
  if ($ns) { @usecs = hist((nsecs - $ns) / 1000); }
  delete(@qtime[args.next_pid]);
}
"""
_CHAIN_BT = (
    _RUNQLAT_BT
    + """
tracepoint:irq:softirq_entry { @soft[args.vec] = nsecs; }
tracepoint:irq:softirq_exit /@soft[args.vec]/ { @softus = hist((nsecs - @soft[args.vec]) / 1000); }
tracepoint:irq:irq_handler_entry { @irq[args.irq] = nsecs; }
tracepoint:irq:irq_handler_exit /@irq[args.irq]/ { @irqus = hist((nsecs - @irq[args.irq]) / 1000); }
tracepoint:syscalls:sys_enter_read { @read[tid] = nsecs; }
tracepoint:syscalls:sys_exit_read /@read[tid]/ {
  @gate = hist((nsecs - @read[tid]) / 1000); delete(@read[tid]);
}
"""
)


@contextlib.contextmanager
def nobody() -> Iterator[Adopt]:
    yield lambda pid: None


@contextlib.contextmanager
def agenttop(level: str, agent: bool) -> Iterator[Adopt]:
    """The programs alone, as the engine leaves them in the kernel."""
    tracer = Tracer(Loading(level).result())
    try:
        yield (lambda pid: tracer.assign({pid: 1}, {})) if agent else (lambda pid: None)
    finally:
        tracer.close()


#: Longest that bpftrace takes to start, s.
START_S = 15.0


@contextlib.contextmanager
def bpftrace(program: str = _RUNQLAT_BT) -> Iterator[Adopt]:
    text = 'BEGIN { printf("READY\\n"); }' + _dialect(program)
    # bpftrace looks for tracepoints in tracefs; where that is not mounted it is for bpftrace
    # alone, in a mount namespace of its own.
    mounted = "mountpoint -q /sys/kernel/tracing || mount -t tracefs t /sys/kernel/tracing; "
    child = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", mounted + 'exec bpftrace -e "$1"', "sh", text],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert child.stdout is not None
        # Now and then the word does not come although everything is attached.
        said, end = b"", time.monotonic() + START_S
        while b"READY" not in said and readable(child.stdout.fileno(), end - time.monotonic()):
            more = os.read(child.stdout.fileno(), 4096)
            if not more:
                raise RuntimeError("bpftrace did not start")
            said += more
        time.sleep(0.5)
        yield lambda pid: None
    finally:
        child.terminate()
        child.communicate()


def bpftrace_chain() -> contextlib.AbstractContextManager[Adopt]:
    """As much of a chain as the published one-liners look at."""
    return bpftrace(_CHAIN_BT)


@contextlib.contextmanager
def runqlat() -> Iterator[Adopt]:
    """bcc's runqlat as it is; headers that fit this kernel are made from its BTF."""
    with tempfile.TemporaryDirectory() as folder:
        headers = Path(folder) / "headers"
        shutil.copytree(Path(loader_module.__file__).parents[1] / "shim", headers)
        _headers(headers / "include" / "linux")
        child = subprocess.Popen(
            [_runqlat_path() or "runqlat", "1", "100000"],
            env={**os.environ, "BCC_KERNEL_SOURCE": str(headers), "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            assert child.stdout is not None
            if "Tracing" not in child.stdout.readline():
                raise RuntimeError("runqlat did not start")
            time.sleep(0.5)
            yield lambda pid: None
        finally:
            child.kill()
            child.communicate()


def have_bpftrace() -> bool:
    return shutil.which("bpftrace") is not None


def have_runqlat() -> bool:
    return _runqlat_path() is not None


def _runqlat_path() -> str | None:
    return shutil.which("runqlat-bpfcc") or shutil.which("/usr/share/bcc/tools/runqlat")


def _dialect(program: str) -> str:
    """bpftrace before 0.17 wants args->field."""
    version = subprocess.run(["bpftrace", "--version"], capture_output=True, text=True).stdout
    numbers = version.split("v")[-1].strip().split(".")
    old = len(numbers) > 1 and int(numbers[0]) == 0 and int(numbers[1]) < 18
    return program.replace("args.", "args->") if old else program


def _headers(folder: Path) -> None:
    btf = Btf.load()

    def at(field: str) -> int:
        offset = btf.field_offset("task_struct", field)
        assert offset is not None
        return offset

    def member(field: str, declaration: str) -> str:
        return f"\t\tstruct {{ char pad_{field}[{at(field)}]; {declaration}; }};\n"

    (folder / "sched.h").write_text(
        "#pragma once\n#include <linux/types.h>\n#define TASK_RUNNING 0\n"
        "struct ns_common { unsigned int inum; };\n"
        "struct pid_namespace { struct ns_common ns; };\n"
        "struct upid { int nr; struct pid_namespace *ns; };\n"
        "struct pid { unsigned int level; struct upid numbers[1]; };\n"
        "struct task_struct {\n\tunion {\n"
        + member("__state", "unsigned int __state")
        + member("pid", "int pid; int tgid")
        + member("comm", "char comm[16]")
        + member("thread_pid", "struct pid *thread_pid")
        + "\t};\n};\n"
    )
    for name in ("nsproxy.h", "pid_namespace.h", "init_task.h"):
        (folder / name).write_text("#include <linux/sched.h>\n")
