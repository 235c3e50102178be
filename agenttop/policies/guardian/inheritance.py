"""The kernel's record of what held threads passed on, as the guardian reads it.

A thread passes its CPUs, its scheduling attributes and its I/O priority on to
what it starts. From the values alone nobody can tell a child that inherited
``CPU 1`` from one that chose it (``taskset -c 1``). So BPF programs
(inheritance_programs.py) keep a hash map: thread id -> for each kind of knob the id of
the held thread that the value came from. A fork copies the parent's entry,
sched_setaffinity(2) and its like clear a field when they succeed, an exit
removes the entry. Where BPF is missing there is no record: heirs.py then goes
by ancestry and value.

The map is bounded, and the kernel runs no program of a tracepoint on a CPU where
a bpf(2) call that reads or writes a map has been preempted (trace_call_bpf in
kernel/trace/bpf_trace.c). Both are counted, the latter from Linux 6.7 on, and
then the record is not relied upon.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable
from contextlib import suppress
from ctypes import CDLL, addressof, c_long, create_string_buffer, get_errno

from agenttop.policies.guardian.journal import Hold, Key, ticks
from agenttop.policies.knobs.base import split_thread

#: Kinds of knobs in the order of their fields in an entry.
FIELDS = ("affinity", "sched_policy", "slice", "uclamp_min", "ioprio")
#: An entry: a thread id for each of FIELDS, 0 for none, and the number of the thread's forks,
#: counted at their beginning and at their end: odd while it is in one.
ENTRY = struct.Struct("=6I")
FORKS_AT = 4 * len(FIELDS)
#: A key: a number, and in the upper half what it is the number of.
KEY = struct.Struct("=II")
THREAD, PENDING, WRITER, DROPPED = range(4)
ENTRIES = 16_384

#: arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/linux/bpf.h
SYS_BPF = 321
_LOOKUP, _UPDATE, _INFO, _LOOKUP_BATCH = 1, 2, 15, 24
#: union bpf_attr of a batch: in_batch, out_batch, keys, values, count, map_fd (Linux 5.6).
_BATCH = struct.Struct("=QQQQII")
#: struct bpf_prog_info: where recursion_misses is, after Linux 5.12.
_MISSED = struct.Struct("=208xQ")

_syscall = CDLL(None, use_errno=True).syscall
_syscall.restype = c_long


def bpf(command: int, attr: bytes) -> int:
    """bpf(2). Raises OSError."""
    buffer = create_string_buffer(attr, max(len(attr), 128))
    result = int(_syscall(c_long(SYS_BPF), c_long(command), buffer, c_long(len(buffer))))
    if result < 0:
        number = get_errno()
        raise OSError(number, os.strerror(number))
    return result


class Inherited:
    """The map and the program that sees forks. Only __init__ and heirs raise: OSError."""

    def __init__(self, fd: int, program: int, began: int | None = None) -> None:
        self.fd = fd
        self._program = program
        #: Holds from before are not in it; clock ticks since boot.
        self._began = ticks() if began is None else began
        #: Keys and entries of the whole map, and where a batch that had no room for all ended.
        sizes = ENTRIES * KEY.size, ENTRIES * ENTRY.size, KEY.size
        self._buffers = [create_string_buffer(size) for size in sizes]
        # The writer's own calls are no choice of the thread's.
        self._update(os.getpid(), WRITER, (1,))

    def start(self) -> None:
        """From now on all is recorded."""
        self._update(0, DROPPED, (0,))
        self._began = ticks()

    def _call(self, command: int, key: bytes, value: bytes = b"") -> bytes:
        keys = create_string_buffer(key, KEY.size)
        values = create_string_buffer(value, ENTRY.size)
        bpf(command, struct.pack("=IIQQQ", self.fd, 0, addressof(keys), addressof(values), 0))
        return values.raw[: ENTRY.size]

    def _update(self, number: int, what: int, fields: tuple[int, ...]) -> None:
        value = ENTRY.pack(*fields, *(0,) * (6 - len(fields)))
        self._call(_UPDATE, KEY.pack(number, what), value)

    def _entry(self, tid: int, what: int = THREAD) -> tuple[int, ...] | None:
        try:
            return ENTRY.unpack(self._call(_LOOKUP, KEY.pack(tid, what)))
        except OSError:
            return None

    def add(self, kind: str, target: str) -> None:
        """A thread is held: to be called before the value is written."""
        if kind not in FIELDS:
            return
        tid = split_thread(target)[1]
        fields = list(self._entry(tid) or (0,) * 6)
        fields[FIELDS.index(kind)] = tid
        try:
            self._update(tid, THREAD, tuple(fields))
        except OSError:
            with suppress(OSError):
                self._update(0, DROPPED, (1,))

    def covered(self, holds: Iterable[Hold]) -> set[Key]:
        """Those of which all who inherit from them are in the record."""
        dropped = self._entry(0, DROPPED)
        if dropped is None or dropped[0] or self._missed():
            return set()
        return {hold.key for hold in holds if hold.kind in FIELDS and hold.at >= self._began}

    def _missed(self) -> int:
        """Forks that the kernel has not shown to the program."""
        info = create_string_buffer(_MISSED.size)
        try:
            bpf(_INFO, struct.pack("=IIQ", self._program, _MISSED.size, addressof(info)))
        except OSError:
            return 0  # From before Linux 5.12.
        (missed,) = _MISSED.unpack(info.raw)
        return int(missed)

    def chosen(self, hold: Hold) -> bool:
        """Whether a held thread has been given the value that it has by another process."""
        if hold.kind not in FIELDS or hold.at < self._began:
            return False
        tid = split_thread(hold.target)[1]
        entry = self._entry(tid)
        # Not another thread's: one that execs takes the id of its process, and its entry along.
        return entry is not None and entry[FIELDS.index(hold.kind)] == 0

    def forks(self, tid: int) -> int | None:
        """Number of a thread's forks, odd while it is in one; None: it is not in the record."""
        entry = self._entry(tid)
        return None if entry is None else entry[-1]

    def heirs(self) -> dict[tuple[str, int], list[int]]:
        """(kind, id of the held thread) -> the threads that have inherited from it.

        Raises OSError. One call for all entries: what is started meanwhile may be overtaken only
        by who looks faster than it forks.
        """
        keys, values, after = self._buffers
        pointers = addressof(after), addressof(keys), addressof(values)
        attr = create_string_buffer(_BATCH.pack(0, *pointers, ENTRIES, self.fd), 128)
        if _syscall(c_long(SYS_BPF), c_long(_LOOKUP_BATCH), attr, c_long(len(attr))) < 0:
            number = get_errno()
            if number != errno.ENOENT:  # It says that these are all.
                raise OSError(number, os.strerror(number))
        count = _BATCH.unpack_from(attr)[4]
        found: dict[tuple[str, int], list[int]] = {}
        for (tid, what), entry in zip(
            KEY.iter_unpack(memoryview(keys)[: count * KEY.size]),
            ENTRY.iter_unpack(memoryview(values)[: count * ENTRY.size]),
            strict=True,
        ):
            if what != THREAD:
                continue
            for kind, holder in zip(FIELDS, entry, strict=False):
                if holder and holder != tid:
                    found.setdefault((kind, holder), []).append(tid)
        return found
