"""BPF programs behind inheritance.py: who has a value from a held thread, who chose its own.

Written in the kernel's instruction set by hand, a dozen instructions each, so
that they load within milliseconds wherever bpf(2) and perf tracepoints are to
be had, without a compiler. The engine attaches them before the first thread
is held and lets go of them when none is held any more (lease.py); the guardian
has their descriptors too. The kernel detaches them with the last descriptor,
whoever is killed.

While they are attached the system call tracepoints cost time in every system
call of the machine (``python -m bench inherit``), so policies that
hold no thread attach nothing. No cheaper event tells the same: the LSM hooks
(security/security.c, task_setscheduler and its like) come before a call is
known to succeed, are not told what it sets, and want BPF trampolines, which
some kernels refuse with EPERM. 32-bit system calls have no tracepoint: what
they set is taken for inherited.
"""

from __future__ import annotations

import fcntl
import os
import re
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final

from agenttop.collectors.bpf.syscall import load_program
from agenttop.linux import kernel_filesystems
from agenttop.policies.guardian.inheritance import (
    DROPPED,
    ENTRIES,
    ENTRY,
    FIELDS,
    FORKS_AT,
    KEY,
    PENDING,
    THREAD,
    WRITER,
    Inherited,
    bpf,
)
from agenttop.policies.knobs.base import cpu_set

#: include/uapi/linux/bpf.h
_MAP_CREATE, _MAP_HASH, _PROG_TRACEPOINT = 0, 1, 5
_LOOKUP, _UPDATE, _DELETE, _PID_TGID, _READ_USER, _NS_PID_TGID = 1, 2, 3, 14, 112, 120
#: include/uapi/linux/sched/types.h: sched_flags in struct sched_attr; include/uapi/linux/sched.h
_FLAGS_AT, _KEEP_POLICY, _KEEP_PARAMS, _UTIL_MIN = 8, 0x08, 0x10, 0x20
#: include/uapi/linux/perf_event.h
_TYPE_TRACEPOINT, _CLOEXEC, _SET_BPF, _ENABLE = 2, 8, 0x40042408, 0x2400
#: arch/x86/entry/syscalls/syscall_64.tbl
_PERF_EVENT_OPEN: Final = 298

#: The system calls by which a thread is given a value: the argument that names it, the value of
#: the one before that says that it is a thread (ioprio_set(2)), and the fields that it sets.
_CALLS: Final = {
    "sched_setaffinity": (0, None, ("affinity",)),
    "sched_setscheduler": (0, None, ("sched_policy",)),
    "sched_setattr": (0, None, ("sched_policy", "slice", "uclamp_min")),
    "ioprio_set": (1, 1, ("ioprio",)),
}
#: The system calls by which a thread starts another (kernel/fork.c).
_FORK_CALLS: Final = ("clone", "clone3", "fork", "vfork")
#: Where the arguments, or the result, of a system call's event begin.
_ARGUMENTS: Final = 16
#: Below the frame pointer, which is register 10; 8 bytes for what a helper writes.
_FP, _KEY, _VALUE, _HERE = 10, -8, -40, -48


class _Code:
    """Instructions of one program; jumps go to labels."""

    def __init__(self, map_fd: int) -> None:
        self._map = map_fd
        self._words: list[tuple[int, int, int, int | str, int]] = []
        self._labels: dict[str, int] = {}

    def op(self, code: int, to: int = 0, of: int = 0, at: int | str = 0, value: int = 0) -> None:
        self._words.append((code, to, of, at, value))

    def label(self, name: str) -> None:
        self._labels[name] = len(self._words)

    def move(self, to: int, of: int) -> None:
        self.op(0xBF, to, of)

    def move32(self, to: int, of: int) -> None:
        self.op(0xBC, to, of)

    def load32(self, to: int, of: int, at: int) -> None:
        self.op(0x61, to, of, at)

    def load64(self, to: int, of: int, at: int) -> None:
        self.op(0x79, to, of, at)

    def store32(self, of: int, at: int) -> None:
        self.op(0x63, _FP, of, at)

    def store64(self, of: int, at: int) -> None:
        self.op(0x7B, _FP, of, at)

    def set32(self, to: int, at: int, value: int) -> None:
        self.op(0x62, to, 0, at, value)

    def set64(self, to: int, at: int, value: int) -> None:
        self.op(0x7A, to, 0, at, value)

    def if_equal(self, register: int, value: int, label: str) -> None:
        self.op(0x15, register, 0, label, value)

    def if_other(self, register: int, value: int, label: str) -> None:
        self.op(0x55, register, 0, label, value)

    def wide(self, to: int, value: int, of: int = 0) -> None:
        self.op(0x18, to, of, 0, value & 0xFFFFFFFF)
        self.op(0, 0, 0, 0, value >> 32)

    def call(self, helper: int) -> None:
        self.op(0x85, value=helper)

    def stack(self, to: int, at: int) -> None:
        self.move(to, _FP)
        self.op(0x07, to, value=at)

    def key(self, register: int, what: int) -> None:
        self.store32(register, _KEY)
        self.set32(_FP, _KEY + 4, what)

    def on_map(self, helper: int) -> None:
        """A map's function with the key, and the value for an update."""
        self.wide(1, self._map, of=1)  # BPF_PSEUDO_MAP_FD
        self.stack(2, _KEY)
        if helper == _UPDATE:
            self.stack(3, _VALUE)
            self.op(0xB7, 4, value=0)
        self.call(helper)

    def end(self) -> bytes:
        self.label("out")
        self.op(0xB7, 0, value=0)
        self.op(0x95)
        out = b""
        for number, (code, to, of, at, value) in enumerate(self._words):
            offset = self._labels[at] - number - 1 if isinstance(at, str) else at
            out += struct.pack("<BBhI", code, to | of << 4, offset, value & 0xFFFFFFFF)
        return out


def _enter(code: _Code, argument: int, which: int | None, fields: tuple[str, ...]) -> None:
    """A system call that sets a value begins: note whose, if that thread is in the record."""
    code.move(6, 1)
    code.call(_PID_TGID)
    code.move(7, 0)
    code.op(0x77, 0, value=32)
    code.key(0, WRITER)
    code.on_map(_LOOKUP)
    code.if_other(0, 0, "out")
    if which is not None:
        code.load32(1, 6, _ARGUMENTS + 8 * (argument - 1))
        code.if_other(1, which, "out")
    code.load32(8, 6, _ARGUMENTS + 8 * argument)
    code.if_other(8, 0, "named")
    code.move32(8, 7)
    code.op(0x05, at="known")
    code.label("named")
    # A number of another PID namespace says nothing here.
    space = os.stat("/proc/self/ns/pid")
    code.wide(1, space.st_dev)
    code.wide(2, space.st_ino)
    code.stack(3, _HERE)
    code.op(0xB7, 4, value=8)
    code.call(_NS_PID_TGID)
    code.if_other(0, 0, "out")
    code.label("known")
    code.key(8, THREAD)
    code.on_map(_LOOKUP)
    code.if_equal(0, 0, "out")
    code.move32(1, 7)
    code.key(1, PENDING)
    code.store32(8, _VALUE)
    code.set32(_FP, _VALUE + 4, sum(1 << FIELDS.index(field) for field in fields))
    # What sched_setattr(2) is given; of no use for the others.
    code.load64(1, 6, _ARGUMENTS + 8)
    code.store64(1, _VALUE + 8)
    code.set64(_FP, _VALUE + 16, 0)
    code.on_map(_UPDATE)


def _leave(code: _Code, attributes: bool) -> None:
    """It ends: if it succeeded, the thread's value is no longer inherited.

    ``attributes``: sched_setattr(2), whose flags say what it leaves as it was.
    """
    code.move(6, 1)
    code.call(_PID_TGID)
    code.move32(7, 0)
    code.key(7, PENDING)
    code.on_map(_LOOKUP)
    code.if_equal(0, 0, "out")
    code.load32(8, 0, 0)
    code.load32(9, 0, 4)
    code.load64(3, 0, 8)
    code.load64(1, 6, _ARGUMENTS)
    code.if_other(1, 0, "delete")
    if attributes:
        # Now that the kernel has read it, it is in memory.
        code.stack(1, _HERE)
        code.op(0xB7, 2, value=8)
        code.op(0x07, 3, value=_FLAGS_AT)
        code.call(_READ_USER)
        code.if_other(0, 0, "delete")
        for flag, given, field in (
            (_KEEP_POLICY, False, "sched_policy"),
            (_KEEP_PARAMS, False, "slice"),
            (_UTIL_MIN, True, "uclamp_min"),
        ):
            code.load64(1, _FP, _HERE)
            code.op(0x57, 1, value=flag)
            (code.if_other if given else code.if_equal)(1, 0, f"sets {field}")
            code.op(0x57, 9, value=~(1 << FIELDS.index(field)))
            code.label(f"sets {field}")
    code.key(8, THREAD)
    code.on_map(_LOOKUP)
    code.if_equal(0, 0, "delete")
    for number in range(len(FIELDS)):
        code.move(1, 9)
        code.op(0x57, 1, value=1 << number)
        code.if_equal(1, 0, f"not {number}")
        code.set32(0, 4 * number, 0)
        code.label(f"not {number}")
    code.label("delete")
    code.key(7, PENDING)
    code.on_map(_DELETE)


def _pass_on(code: _Code, parent: int, child: int, moves: bool) -> None:
    """A fork, or (``moves``) an exec by which a thread gets its process's id: the entry goes along.

    The id that it had is free then: the next thread that gets it must not find the entry.
    """
    code.load32(7, 1, parent)
    code.load32(8, 1, child)
    if moves:
        code.op(0x1D, 7, 8, "out")  # It has the id already.
    code.key(7, THREAD)
    code.on_map(_LOOKUP)
    code.if_equal(0, 0, "out")
    code.move(9, 0)
    code.op(0xB7, 2, value=0)
    for at in range(0, ENTRY.size, 8):
        code.load64(1, 0, at)
        if at + 4 == FORKS_AT:
            code.move32(1, 1)  # The child is in no fork.
        code.store64(1, _VALUE + at)
        code.op(0x4F, 2, 1)
    if not moves:
        code.if_equal(2, 0, "out")
    code.key(8, THREAD)
    code.on_map(_UPDATE)
    # vfork(2) returns later, but its child is there.
    _count(code, 9, ends=True)
    if moves:
        code.move(6, 0)
        code.key(7, THREAD)
        code.on_map(_DELETE)
        code.move(0, 6)
    code.if_equal(0, 0, "out")
    code.op(0xB7, 1, value=0)
    code.key(1, DROPPED)
    code.on_map(_LOOKUP)
    code.if_equal(0, 0, "out")
    code.set32(0, 0, 1)


def _fork_call(code: _Code, ends: bool) -> None:
    """A fork begins or ends in a thread of the record: its number gets odd, or even."""
    code.call(_PID_TGID)
    code.move32(7, 0)
    code.key(7, THREAD)
    code.on_map(_LOOKUP)
    code.if_equal(0, 0, "out")
    _count(code, 0, ends)


def _count(code: _Code, entry: int, ends: bool) -> None:
    """The number of forks in the entry that a register points to: the next odd or even one.

    Not just one more: an event that the kernel has skipped leaves no thread in a fork for ever.
    """
    code.load32(1, entry, FORKS_AT)
    code.op(0x07, 1, value=1)
    if ends:
        code.op(0x57, 1, value=~1)
    else:
        code.op(0x47, 1, value=1)
    code.op(0x63, entry, 1, FORKS_AT)


def _gone(code: _Code) -> None:
    """A thread exits."""
    code.call(_PID_TGID)
    code.move32(7, 0)
    code.key(7, THREAD)
    code.on_map(_DELETE)
    code.key(7, PENDING)
    code.on_map(_DELETE)


class Attached:
    """The programs, attached. Raises OSError when they cannot be.

    Their descriptors: the map's, that of the program which sees forks, and the attachments.
    """

    def __init__(self) -> None:
        self.fds: list[int] = []
        try:
            attr = struct.pack("=5I", _MAP_HASH, KEY.size, ENTRY.size, ENTRIES, 0)
            self._map = bpf(_MAP_CREATE, attr)
            self.fds.append(self._map)
            self._attach()
            self.record = Inherited(*self.fds[:2])
            self.record.start()
        except BaseException:
            self.close()
            raise

    def _attach(self) -> None:
        events = _events()
        try:
            for call, (argument, which, fields) in _CALLS.items():
                # The end first: no beginning is left without one.
                end = partial(_leave, attributes=call == "sched_setattr")
                self._add(events, f"syscalls/sys_exit_{call}", end)
                self._add(
                    events,
                    f"syscalls/sys_enter_{call}",
                    partial(_enter, argument=argument, which=which, fields=fields),
                )
            for call in _FORK_CALLS:
                for event, ends in (("exit", True), ("enter", False)):
                    where = f"syscalls/sys_{event}_{call}"
                    self._add(events, where, partial(_fork_call, ends=ends))
            for event, names in {
                "sched/sched_process_fork": ("parent_pid", "child_pid"),
                "sched/sched_process_exec": ("old_pid", "pid"),
            }.items():
                parent, child = _offsets(events, event, names)
                fork = event == "sched/sched_process_fork"
                pass_on = partial(_pass_on, parent=parent, child=child, moves=not fork)
                self._add(events, event, pass_on, keep=fork)
            self._add(events, "sched/sched_process_exit", _gone)
        finally:
            os.close(events)

    def _add(
        self, events: int, event: str, build: Callable[[_Code], None], keep: bool = False
    ) -> None:
        code = _Code(self._map)
        build(code)
        name = event.rpartition("/")[2]
        program = load_program(code.end(), re.sub("^s.*_", "", name), _PROG_TRACEPOINT)
        try:
            self.fds.append(_attach(program, int(_read(events, f"{event}/id"))))
            if keep:
                self.fds.insert(1, os.dup(program))
        finally:
            os.close(program)

    def close(self) -> threading.Thread:
        """Let go of them; the thread that does.

        The kernel detaches with the last descriptor, and has whoever closes that wait for
        some 0.1 s each: a thread does.
        """
        fds, self.fds = self.fds, []
        thread = threading.Thread(target=_close, args=(fds,), daemon=True)
        thread.start()
        return thread


def attach() -> Attached | None:
    """The record, or None where the kernel has none to give (no BPF, no tracepoints)."""
    try:
        return Attached()
    except (OSError, ValueError):
        return None


def _close(fds: list[int]) -> None:
    for fd in fds:
        with suppress(OSError):
            os.close(fd)


def _attach(program: int, event: int) -> int:
    """A descriptor that keeps a program attached to a tracepoint. Raises OSError."""
    # struct perf_event_attr, version 0: type, size, config, a sample of each, created disabled.
    attr = struct.pack("<IIQQQQQIIQ", _TYPE_TRACEPOINT, 64, event, 1, 0, 0, 1, 0, 0, 0)
    # Through one CPU's event the program sees those of all CPUs.
    cpu = min(cpu_set("online"), default=0)
    fd = kernel_filesystems.syscall(_PERF_EVENT_OPEN, attr, -1, cpu, -1, _CLOEXEC)
    try:
        fcntl.ioctl(fd, _SET_BPF, program)
        fcntl.ioctl(fd, _ENABLE, 0)
    except OSError:
        os.close(fd)
        raise
    return fd


def _events() -> int:
    """tracefs's events folder. Raises OSError."""
    root = kernel_filesystems.root("tracefs")
    try:
        return os.open("events", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)
    finally:
        os.close(root)


def _read(folder: int, name: str) -> bytes:
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    with open(fd, "rb") as file:
        return file.read(1 << 16)


def _offsets(events: int, event: str, names: tuple[str, str]) -> tuple[int, int]:
    """Where two fields of an event are. Raises ValueError."""
    text = _read(events, f"{event}/format")
    found = []
    for name in names:
        field = re.search(rb"\s%s;\s*offset:(\d+);\s*size:4;" % name.encode(), text)
        if field is None:
            raise ValueError(f"{event} has no {name}")
        found.append(int(field[1]))
    return found[0], found[1]
