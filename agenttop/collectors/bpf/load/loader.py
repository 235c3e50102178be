"""The short-lived process that compiles, loads and attaches.

LLVM takes over 80 MB; here it goes when the programs are in the kernel. What
stays are file descriptors, handed to the engine over a socket; when the
engine closes them or ends, however it ends, the kernel detaches everything.

    python -m agenttop.collectors.bpf.load.loader FD LEVEL tp_btf|raw_tp
"""

from __future__ import annotations

import array
import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from agenttop.collectors.bpf.read.cpu_rows import CpuRows
from agenttop.linux import descriptors, isolation

if TYPE_CHECKING:
    from agenttop.collectors.bpf.load.btf import Btf
    from agenttop.collectors.bpf.load.compile_cache import Compiled
    from agenttop.collectors.bpf.load.source import Plan

#: Where distributions put modules for their own Python; BCC's are pure Python.
DIST_PACKAGES: Final = ("/usr/lib/python3/dist-packages", "/usr/local/lib/python3/dist-packages")
HOW_TO_GET_BCC: Final = (
    "BCC is missing: install python3-bpfcc (Debian, Ubuntu) or python3-bcc (not PyPI's bcc)"
)
MAPS: Final = (
    "hist",
    "rows",
    "cause_rows",
    "cause_hist",
    "cause_wanted",
    "online_cpus",
    "cause_details",
    "cause_labels",
    "delivery",
    "works",
    "workers",
    "run_cpus",
    "power_cpus",
    "controls",
    "soft_hist",
    "idle_hist",
    "cpus",
    "irqs",
    "irq_source",
    "cpu_rows",
    "lost_apart",
    "learned",
    "assignments",
    "edges",
    "edge_round",
    "edge_told",
    "slows",
    "threads",
    "windows",
    "cells",
    "armed",
    "marks",
    "kept",
    "lanes",
    "lane_hist",
    "names",
    "shares",
    "free_lanes",
    "free_alone",
)
#: Most descriptors in one message, SCM_MAX_FD.
_SCM_MAX_FD: Final = 253


class LoadError(Exception):
    """No step chains; one line that says why."""


@dataclass(frozen=True)
class Loaded:
    """What the loader handed over."""

    mode: str
    level: str
    missing: tuple[str, ...]
    maps: dict[str, int]
    programs: dict[str, int]
    links: tuple[int, ...]
    #: Link of the task iterator, if there is one.
    iterator: int | None
    thread_size: int
    edge_pages: int
    slow_pages: int
    armed_pages: int
    #: The CPUs that have a row in the maps.
    rows: CpuRows


def bcc() -> Any:
    """The distribution's BCC module. Raises LoadError when it is missing or another project."""
    for folder in DIST_PACKAGES:
        there = os.path.join(folder, "bcc")
        if folder not in sys.path and isolation.of_root(folder) and isolation.of_root(there):
            sys.path.append(folder)
    try:
        import bcc as module
    except OSError as error:
        raise LoadError(descriptors.why(error, f"{HOW_TO_GET_BCC} ({error})")) from None
    except ImportError as error:
        raise LoadError(f"{HOW_TO_GET_BCC} ({error})") from None
    if not hasattr(module, "BPF"):
        where = getattr(module, "__file__", None) or "?"
        raise LoadError(
            f"{where} is not BCC but PyPI's unrelated bcc: uninstall it. {HOW_TO_GET_BCC}"
        )
    return module


# --------------------------------------------------------------------------- the child


def _load(level: str, raw: bool) -> tuple[dict[str, Any], list[int]]:
    from agenttop.collectors.bpf.load import compile_cache
    from agenttop.collectors.bpf.load import source as programs
    from agenttop.collectors.bpf.load.btf import Btf, BtfError

    try:
        btf = Btf.load()
        rows = CpuRows.present()
        plan = programs.plan(btf, "full" if level == "full" else "lite", rows, raw=raw)
    except (BtfError, programs.UnsupportedError) as error:
        raise LoadError(str(error)) from None
    known = compile_cache.recall(plan.text, plan.names)
    if known is not None:
        try:
            return _attach(plan, btf, rows, known)
        except (OSError, KeyError) as error:
            if isinstance(error, OSError) and descriptors.lacking(error):
                raise LoadError(descriptors.lack()) from None
            # Not what it was said to be: compile.
    module = bcc()
    try:
        made = compile_cache.compile_text(module, plan.text, MAPS, plan.names)
    except Exception as error:  # BCC raises plain Exceptions
        raise LoadError(f"BCC could not compile the programs: {error}") from None
    try:
        result = _attach(plan, btf, rows, made)
    except OSError as error:
        said = f"the kernel refused a program: {error.strerror or error}"
        raise LoadError(descriptors.why(error, said)) from None
    compile_cache.keep(made, plan.text, plan.names)
    return result


def _attach(
    plan: Plan, btf: Btf, rows: CpuRows, made: Compiled
) -> tuple[dict[str, Any], list[int]]:
    from agenttop.collectors.bpf import syscall
    from agenttop.collectors.bpf.load import source as programs

    maps = made.create_maps()
    table = maps[MAPS.index("cpu_rows")]
    for cpu, row in enumerate(rows.table()):
        syscall.map_update(table, struct.pack("<I", cpu), row)

    def code(name: str) -> bytes:
        return syscall.link_calls(made.code(f"p_{name}", maps), plan.calls)

    loaded: dict[str, int] = {}
    for name in plan.tracepoints:
        if plan.mode == "tp_btf":
            loaded[name] = syscall.load_program(
                code(name),
                name,
                syscall.PROG_TRACING,
                syscall.ATTACH_TRACE_RAW_TP,
                btf.typedef(f"btf_trace_{name}") or 0,
            )
        else:
            loaded[name] = syscall.load_program(code(name), name, syscall.PROG_RAW_TRACEPOINT)
    iterator = []
    if plan.iterator:
        loaded["iter_task"] = syscall.load_program(
            code("iter_task"),
            "iter_task",
            syscall.PROG_TRACING,
            syscall.ATTACH_TRACE_ITER,
            btf.function("bpf_iter_task") or 0,
        )
        iterator = [syscall.link_iterator(loaded["iter_task"])]
    # All are loaded before the first is attached: no half of a chain is measured.
    links = [
        syscall.attach_raw_tracepoint(loaded[name], None if plan.mode == "tp_btf" else name)
        for name in plan.tracepoints
    ]
    answer = {
        "mode": plan.mode,
        "level": plan.level,
        "missing": plan.missing,
        "programs": list(loaded),
        "links": len(links),
        "iterator": bool(iterator),
        "thread_size": made.maps[MAPS.index("threads")].value_size,
        "edge_pages": programs.EDGE_PAGES,
        "slow_pages": programs.SLOW_PAGES,
        "armed_pages": programs.ARMED_PAGES,
        "cpus": rows.cpus,
    }
    return answer, [*maps, *loaded.values(), *links, *iterator]


def main() -> int:
    """Answer on the socket with JSON and the descriptors, or with the reason."""
    return hand_over(lambda: _load(sys.argv[2], sys.argv[3] == "raw_tp"))


def hand_over(load: Callable[[], tuple[dict[str, Any], list[int]]]) -> int:
    """The child's side of ``Child``; ``load`` may raise LoadError."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    try:
        answer, fds = load()
    except (LoadError, OSError) as error:
        said = descriptors.why(error, str(error)) if isinstance(error, OSError) else str(error)
        channel.sendall(json.dumps({"error": said}).encode())
        return 1
    if len(fds) > _SCM_MAX_FD:
        channel.sendall(json.dumps({"error": "too many programs for one message"}).encode())
        return 1
    socket.send_fds(channel, [json.dumps(answer).encode()], fds)
    channel.recv(1)  # the fds are in flight until the other side has taken them
    return 0


# --------------------------------------------------------------------------- the parent


class Child:
    """A module of ours that loads programs in a process of its own and hands them over."""

    def __init__(self, module: str, *options: str, pass_fds: tuple[int, ...] = ()) -> None:
        """Raises LoadError when it cannot be started."""
        try:
            self._start(module, options, pass_fds)
        except OSError as error:
            said = f"the loader cannot be started: {error.strerror or error}"
            raise LoadError(descriptors.why(error, said)) from None

    def _start(self, module: str, options: tuple[str, ...], pass_fds: tuple[int, ...]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket = ours
        # In memory: no directory for temporary files is needed, or trusted.
        self._said = open(os.memfd_create("agenttop-loader-said"), "w+b")  # noqa: SIM115
        with theirs:
            self._child = subprocess.Popen(
                isolation.python("-m", module, str(theirs.fileno()), *options),
                pass_fds=[theirs.fileno(), *pass_fds],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._said,
            )

    def fileno(self) -> int:
        """Readable when the result is there (or the child is gone)."""
        return self._socket.fileno()

    def take(self) -> tuple[dict[str, Any], list[int]]:
        """Wait for its answer and descriptors. Raises LoadError with one line that says why not."""
        fds = array.array("i")
        flags = 0
        try:
            text, fds_list, flags, _ = socket.recv_fds(self._socket, 1 << 16, _SCM_MAX_FD)
            fds.extend(fds_list)
        except OSError:
            text = b""
        else:
            # One that answered with a reason may have ended already.
            with suppress(OSError):
                self._socket.send(b"k")
        finally:
            code = self._finish()
        if not text:
            raise LoadError(f"the loader ended with code {code}, no answer{self._last_words()}")
        answer = json.loads(text)
        if flags & socket.MSG_CTRUNC:
            for fd in fds:
                os.close(fd)
            raise LoadError(descriptors.lack())
        if "error" in answer:
            raise LoadError(str(answer["error"]) + self._last_words())
        return answer, list(fds)

    def cancel(self) -> None:
        """Stop it; what it had loaded goes with it."""
        if self._child.poll() is None:
            self._child.kill()
        self._finish()

    def _finish(self) -> int:
        self._socket.close()
        return self._child.wait()

    def _last_words(self) -> str:
        self._said.seek(0)
        text = self._said.read().decode(errors="replace")
        if remedy := isolation.remedy(text):
            return f": {remedy}"
        lines = [line for line in text.splitlines() if line]
        errors = [line for line in lines if "error" in line.lower()] or lines[-1:]
        return f": {errors[0][:200]}" if errors else ""


class Loading(Child):
    """A load under way: start it, do other things, collect the result."""

    def __init__(self, level: str, raw: bool = False) -> None:
        super().__init__(
            "agenttop.collectors.bpf.load.loader", level, "raw_tp" if raw else "tp_btf"
        )

    def result(self) -> Loaded:
        """Wait and take over. Raises LoadError with one line that says why not."""
        return _unpack(*self.take())


def _unpack(answer: dict[str, Any], fds: list[int]) -> Loaded:
    names = list(answer["programs"])
    at = len(MAPS) + len(names)
    links = fds[at : at + answer["links"]]
    return Loaded(
        mode=answer["mode"],
        level=answer["level"],
        missing=tuple(answer["missing"]),
        maps=dict(zip(MAPS, fds, strict=False)),
        programs=dict(zip(names, fds[len(MAPS) : at], strict=True)),
        links=tuple(links),
        iterator=fds[-1] if answer["iterator"] else None,
        thread_size=answer["thread_size"],
        edge_pages=answer["edge_pages"],
        slow_pages=answer["slow_pages"],
        armed_pages=answer["armed_pages"],
        rows=CpuRows(answer["cpus"]),
    )


if __name__ == "__main__":
    sys.exit(main())
