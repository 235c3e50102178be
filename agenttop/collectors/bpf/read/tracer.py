"""The maps of the loaded programs, read from user space.

Counters are diffed by whoever reads Samples; nothing is reset here but the
rows and histograms of a slot that nobody uses, before its next agent.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import product
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agenttop.collectors.bpf import layout, syscall
from agenttop.collectors.bpf.causes.cpu_power import Power
from agenttop.collectors.bpf.causes.labels import Details
from agenttop.collectors.bpf.causes.observer import Causes
from agenttop.collectors.bpf.load.loader import Loaded
from agenttop.collectors.bpf.read.counter_rows import Rows
from agenttop.collectors.bpf.read.mmap_array import mapped
from agenttop.collectors.bpf.read.ring_buffer import Ring
from agenttop.collectors.bpf.read.step_names import Steps
from agenttop.collectors.bpf.read.windows import Windows
from agenttop.linux.process import is_ending, program_threads
from agenttop.model.histogram_layout import BUCKETS
from agenttop.model.sample import CauseCounters, Histogram
from agenttop.model.vocabulary import CAUSE_NAMES, MEASURES, SOFTIRQS, STAGES

_ROW: Final = layout.dtype(layout.ROW_FIELDS)
_CAUSE_ROW: Final = layout.dtype(layout.CAUSE_ROW_FIELDS)
_CPU: Final = layout.dtype(layout.CPU_FIELDS)
_IRQ: Final = layout.dtype(layout.IRQ_FIELDS)
_LEARNED: Final = layout.dtype(layout.LEARNED_FIELDS)
_CONTROL: Final = layout.dtype(layout.CONTROL_FIELDS)
_SLOW: Final = layout.dtype(layout.SLOW_FIELDS)
_EDGE: Final = layout.dtype(layout.EDGE_FIELDS)
_THREAD: Final = layout.dtype(layout.THREAD_FIELDS)
_U64: Final = np.dtype("<u8")
_U32: Final = np.dtype("<u4")
_U16: Final = np.dtype("<u2")
#: Size of one agent's histograms, whole pages.
_HIST_BYTES: Final = len(MEASURES) * BUCKETS * _U32.itemsize

_CAUSE_HIST_BYTES: Final = layout.CAUSE_HISTS * layout.CAUSE_BUCKETS * _U32.itemsize

_IN_ONE: Final = np.uint16(BUCKETS - 1)

#: Half of what the map assignments holds: the kernel may find no room for the last ones.
_ASSIGNED_AT_ONCE: Final = 8192

#: Threads that ask for a slot of which is told, for each user.
ASKING_EACH: Final = 64

#: Tries to learn flags, and how many sleeping threads must agree on them.
_LEARN_TRIES: Final = 8
_LEARN_SLEEPERS: Final = 2

Record = Any  # a structured numpy scalar or array


class Thread(NamedTuple):
    """A measured thread."""

    tgid: int
    tid: int
    slot: int
    steps: int
    #: CLOCK_MONOTONIC at the end of its last step, and the CPU on which it resumed.
    last_ns: int
    cpu: int


class Edge(NamedTuple):
    """Something happened to a process: kind is one of layout.EDGES."""

    kind: str
    tgid: int
    tid: int
    #: Its slot; of a thread that opts in (marker, sched_setattr) its real user.
    slot: int


class Asking(NamedTuple):
    """A thread that opted in and has no slot."""

    #: How: marker or sched_setattr.
    kind: str
    tgid: int
    tid: int
    #: Its real user, as the machine (not a container) numbers them.
    uid: int
    #: CLOCK_MONOTONIC when it asked last.
    asked_ns: int


class _Changes:
    """What changed in live 32-bit counters since the last look, as 64-bit totals."""

    def __init__(self, live: NDArray[np.uint32]) -> None:
        self.live = live
        self._last = np.zeros(live.shape, dtype=_U32)
        #: Added to the live counts; made when the first of them wraps.
        self._base: NDArray[np.uint64] | None = None

    def take(self, full: bool) -> tuple[NDArray[np.intp], NDArray[np.uint64]]:
        """Indices and totals: those that changed since the last call, or all that are not 0."""
        # The map is live: look at masks of our own, not at what changes meanwhile.
        changed = (self.live != self._last).nonzero()[0]
        counts = self.live.take(changed)
        wrapped = counts < self._last.take(changed)
        if wrapped.any():
            if self._base is None:
                self._base = np.zeros(self.live.shape, dtype=_U64)
            self._base[changed[wrapped]] += np.uint64(1 << 32)
        self._last[changed] = counts
        if full:
            used = self._last != 0
            changed = np.flatnonzero(used if self._base is None else used | (self._base != 0))
            counts = self._last[changed]
        totals = counts.astype(_U64)
        return changed, totals if self._base is None else totals + self._base[changed]


def _histogram(changes: _Changes, full: bool) -> Histogram | None:
    changed, totals = changes.take(full)
    if not len(changed):
        return None
    return Histogram(changed.astype(_U16).tobytes(), totals.tobytes())


@cache
def _bounds(histograms: int) -> NDArray[np.intp]:
    """Where each of so many histograms begins, and the last one ends."""
    return np.arange(histograms + 1) * BUCKETS


def _by_name(changes: _Changes, names: tuple[str, ...], full: bool) -> dict[str, Histogram]:
    """Of histograms that lie one behind the other, as ``_histogram``."""
    return _by_row(changes, names, 1, full)[0]


def _by_row(
    changes: _Changes, names: tuple[str, ...], rows: int, full: bool
) -> list[dict[str, Histogram]]:
    """The same of so many rows that lie one behind the other, with one look at all of them."""
    changed, totals = changes.take(full)
    found: list[dict[str, Histogram]] = [{} for _ in range(rows)]
    if not len(changed):
        return found
    # Where in the counters each histogram begins, and among those that changed.
    begins = changed.searchsorted(_bounds(rows * len(names))).tolist()
    buckets = (changed.astype(_U16) & _IN_ONE).tobytes()
    counts = totals.tobytes()
    histograms = product(found, names)
    for (row, name), start, end in zip(histograms, begins[:-1], begins[1:], strict=True):
        if start < end:
            row[name] = Histogram(buckets[2 * start : 2 * end], counts[8 * start : 8 * end])
    return found


def _spread(buckets: NDArray[np.intp], totals: NDArray[np.uint64]) -> Histogram:
    """Buckets as causes have them, each over the two of histogram.py that it covers."""
    both = np.repeat(2 * buckets, 2).astype(_U16)
    both[1::2] += 1
    counts = np.repeat(totals, 2)
    counts[::2] //= 2
    counts[1::2] -= counts[::2]
    return Histogram(both.tobytes(), counts.tobytes())


def _each_users_first(asking: Record) -> Record:
    """Of each user's records the ASKING_EACH with the newest time."""
    if len(asking) <= ASKING_EACH:
        return asking
    asking = asking[np.lexsort((-asking["last_ns"].astype(np.int64), asking["uid"]))]
    _, starts, counts = np.unique(asking["uid"], return_index=True, return_counts=True)
    place = np.arange(len(asking)) - np.repeat(starts, counts)
    return asking[place < ASKING_EACH]


class Tracer:
    """The programs in the kernel, until ``close`` or the end of the process."""

    def __init__(self, loaded: Loaded) -> None:
        self.mode = loaded.mode
        self.level = loaded.level
        self.missing = loaded.missing
        self._loaded = loaded
        #: The CPUs that are measured.
        self.cpu_rows = loaded.rows
        cpus = len(loaded.rows)
        maps = loaded.maps
        #: Slot -> its histograms, mapped while it is in use (a mapped page counts as resident).
        self._hists: dict[int, _Changes] = {}
        self._rows, self._cause_rows = (
            Rows(mapped(maps[name], row, layout.SLOTS * cpus).reshape(cpus, -1))
            for name, row in (("rows", _ROW), ("cause_rows", _CAUSE_ROW))
        )
        self._cause_hists: dict[int, _Changes] = {}
        self.power = Power(maps, loaded.rows)
        self.details = Details(maps, self.power, lambda: self.causes.unmeasured())
        #: What stages were spent on: switched on and off here.
        self.causes = Causes(
            loaded.level,
            maps,
            loaded.rows,
            self.power,
            "" if loaded.mode == "tp_btf" else "causes need task-local storage (Linux 5.11)",
        )
        self._controls = mapped(maps["controls"], _CONTROL, layout.SLOTS)
        self._slow_ns, self._tail_ns = self._controls["slow_ns"], self._controls["tail_ns"]
        self.steps = Steps(maps, lambda live: _Changes(live).take)
        self._keep = self._controls["keep"]
        self.windows = Windows(maps, loaded.armed_pages, loaded.rows.span, self._controls)
        soft = mapped(maps["soft_hist"], _U32, cpus * len(SOFTIRQS) * BUCKETS)
        #: By row of a CPU.
        self._soft = _Changes(soft.reshape(-1))
        idle = mapped(maps["idle_hist"], _U32, layout.IDLE_STATES * BUCKETS)
        self._idle = [_Changes(one) for one in idle.reshape(layout.IDLE_STATES, BUCKETS)]
        self._edges = Ring(maps["edges"], loaded.edge_pages)
        self._slows = Ring(maps["slows"], loaded.slow_pages)
        self._cpus = mapped(maps["cpus"], _CPU, cpus)
        self._irqs = mapped(maps["irqs"], _IRQ, cpus * layout.IRQS).reshape(cpus, layout.IRQS)
        #: What got lost on CPUs that have no row.
        self._lost_apart = mapped(maps["lost_apart"], _U64, len(layout.LOSSES))
        self._stats_fd: int | None = None
        #: Threads that opted in and have no slot, as listed last.
        self._asking: list[Asking] = []
        self._round = mapped(maps["edge_round"], _U64, 1)
        #: Processes and threads that found no room in a map.
        self._refused = 0
        if self.level == "lite" and loaded.iterator is not None:
            self._learn_off_cpu_flags()

    # ------------------------------------------------------------------ who is measured

    def assign(self, processes: Mapping[int, int], threads: Mapping[int, int]) -> None:
        """Measure processes (tgid -> slot, all their threads) and single threads (tid -> slot).

        Threads that they start later inherit, but for single threads'.
        Slot layout.NO_SLOT ends the measuring.
        """
        if self._loaded.iterator is None:
            self._assign_hash(processes, threads)
            return
        wanted = {
            **{tgid: (slot, 0) for tgid, slot in processes.items()},
            **{tid: (slot, 1) for tid, slot in threads.items()},
        }
        every = list(wanted.items())
        for start in range(0, len(every), _ASSIGNED_AT_ONCE):
            self._assign_some(every[start : start + _ASSIGNED_AT_ONCE])

    def _assign_some(self, wanted: list[tuple[int, tuple[int, int]]]) -> None:
        fd = self._loaded.maps["assignments"]
        try:
            for key, value in wanted:
                self._put(fd, key, struct.pack("<II", *value))
            # Twice: a thread that forks while the first pass goes by has a child
            # that the pass may have missed.
            self.threads()
            self.threads()
        finally:
            for key, _ in wanted:
                syscall.map_delete(fd, struct.pack("<I", key))

    def _put(self, fd: int, key: int, value: bytes) -> bool:
        """Whether there was room for it; if not, that is counted (LOSSES: storage_full)."""
        try:
            syscall.map_update(fd, struct.pack("<I", key), value)
        except OSError:
            self._refused += 1
            return False
        return True

    def threads(self) -> list[Thread]:
        """Every measured thread."""
        if self._loaded.iterator is None:
            return self._threads_hash()
        fd = syscall.open_iterator(self._loaded.iterator)
        chunks = []
        try:
            while chunk := os.read(fd, 1 << 16):
                chunks.append(chunk)
        finally:
            os.close(fd)
        listed = np.frombuffer(b"".join(chunks), dtype=_THREAD)
        pending = listed["slot"] == layout.PENDING_SLOT
        self._asking = [
            Asking(layout.EDGES[asks], pid >> 32, pid & 0xFFFFFFFF, uid, last)
            for pid, _, _, last, _, uid, asks in _each_users_first(listed[pending]).tolist()
        ]
        return [
            Thread(pid >> 32, pid & 0xFFFFFFFF, slot, steps, last, cpu)
            for pid, slot, steps, last, cpu, _, _ in listed[~pending].tolist()
        ]

    def asking(self) -> list[Asking]:
        """Threads that opted in and had no slot when ``threads`` was called last.

        Of each user the ASKING_EACH that asked last.
        """
        return self._asking

    def shut(self, slot: int) -> None:
        """No thread has or inherits this slot from the next ``threads`` on."""
        self._controls["closed"][slot] = 1
        if self._loaded.iterator is None:
            fd = self._loaded.maps["threads"]
            for thread in self._threads_hash():
                if thread.slot == slot:
                    syscall.map_delete(fd, struct.pack("<I", thread.tid))

    def members(self, slot: int) -> int:
        """Number of live measured threads of a slot."""
        if self._loaded.iterator is None:
            return sum(thread.slot == slot for thread in self._threads_hash())
        return int(self._controls["threads"][slot])

    def clear(self, slot: int, share: int = 0) -> None:
        """Zero the counters of a slot that nobody uses; ``share``: see Steps.share."""
        self._rows.clear(slot)
        self._controls[slot] = 0
        self.windows.clear(slot)
        self.steps.clear(slot)
        self.steps.share(slot, share)
        self._hists[slot] = changes = self._map_histograms(slot)
        changes.live[:] = 0
        self.details.clear(slot)
        if self._cause_rows.live["seq"][:, slot].any():
            self._cause_rows.clear(slot)
            self._cause_hists[slot] = changes = self._map_cause_histograms(slot)
            changes.live[:] = 0

    def release(self, slot: int) -> None:
        """Let go of the memory of a slot that nobody uses."""
        self._rows.release(slot)
        self._cause_rows.release(slot)
        self._hists.pop(slot, None)
        self.steps.clear(slot)
        self._cause_hists.pop(slot, None)
        self.details.clear(slot)

    def _map_cause_histograms(self, slot: int) -> _Changes:
        fd, count = self._loaded.maps["cause_hist"], layout.CAUSE_HISTS * layout.CAUSE_BUCKETS
        return _Changes(mapped(fd, _U32, count, slot * _CAUSE_HIST_BYTES))

    def _map_histograms(self, slot: int) -> _Changes:
        fd = self._loaded.maps["hist"]
        return _Changes(mapped(fd, _U32, len(MEASURES) * BUCKETS, slot * _HIST_BYTES))

    def set_thresholds(self, slot: int, slow_ns: int, tail_ns: int, keep: int) -> None:
        """Slowpath above which steps are kept whole, and counted as tail (0: none yet).

        ``keep`` steps are kept before each further one raises the threshold to itself.
        """
        self._slow_ns[slot] = slow_ns
        self._keep[slot] = keep
        self._tail_ns[slot] = tail_ns

    def _learn_off_cpu_flags(self) -> None:
        """Find out by which flags a thread that slept twice in one gate is known (life.bpf.c)."""
        fd, key = self._loaded.maps["learned"], b"\0\0\0\0"
        value = ctypes.create_string_buffer(_LEARNED.itemsize)
        flags = 0
        for _ in range(_LEARN_TRIES):
            syscall.map_update(fd, key, np.array((1, 0, ~np.uint64(0), 0, 0), _LEARNED).tobytes())
            self.threads()
            syscall.map_lookup_into(fd, key, value)
            told = np.frombuffer(value.raw, dtype=_LEARNED)[0]
            # One that is about to sleep has not got the flag yet; then it is tried again.
            if told["count"] >= _LEARN_SLEEPERS:
                flags = int(told["sleepers"]) & ~int(told["reader"]) & 0xFFFFFFFF
            if flags:
                break
        syscall.map_update(fd, key, np.array((0, 0, 0, 0, flags), _LEARNED).tobytes())

    def _assign_hash(self, processes: Mapping[int, int], threads: Mapping[int, int]) -> None:
        fd = self._loaded.maps["threads"]
        wanted = dict(threads)
        for tgid, slot in processes.items():
            wanted |= dict.fromkeys(program_threads(tgid), slot)
        for tid, slot in wanted.items():
            key = struct.pack("<I", tid)
            if slot == layout.NO_SLOT:
                syscall.map_delete(fd, key)
                continue
            value = bytearray(self._loaded.thread_size)
            struct.pack_into("<Q", value, 0, slot)
            # The program that sees its end may have run before it was there to be deleted.
            if self._put(fd, tid, bytes(value)) and is_ending(tid):
                syscall.map_delete(fd, key)

    def _threads_hash(self) -> list[Thread]:
        fd = self._loaded.maps["threads"]
        value = ctypes.create_string_buffer(self._loaded.thread_size)
        out = []
        pending = []
        for key in syscall.map_keys(fd, 4):
            if syscall.map_lookup_into(fd, key, value):
                slot, steps, last, cpu, uid, asks = struct.unpack_from("<QQQ3I", value)
                (tid,) = struct.unpack("<I", key)
                if 0 < slot < layout.SLOTS:
                    out.append(Thread(0, tid, slot, steps, last, cpu))
                elif slot == layout.PENDING_SLOT:
                    pending.append((tid, slot, steps, last, cpu, uid, asks))
        first = _each_users_first(np.array(pending, dtype=_THREAD))
        self._asking = [
            Asking(layout.EDGES[asks], 0, tid, uid, last)
            for tid, _, _, last, _, uid, asks in first.tolist()
        ]
        return out

    # ------------------------------------------------------------------ counters

    def rows(self, slots: Iterable[int]) -> Record:
        """The rows' sums over all CPUs, shape (slots,); the sums in a row always agree."""
        return self._rows.read(np.fromiter(slots, dtype=np.intp))

    def cpu_steps(self, slot: int) -> dict[str, int]:
        """CPU (as text) -> steps of a slot that resumed there, as of the last ``rows``."""
        cpus = self.cpu_rows.cpus
        return {str(cpus[row]): n for row, n in sorted(self._rows.steps(slot).items())}

    def cause_counters(self, slot: int, full: bool) -> tuple[dict[str, CauseCounters], list[int]]:
        """The causes of a slot's steps by name (those that were seen).

        And the time that they explain, by stage. Their labels are in ``details``.
        """
        row = self._cause_rows.read(np.array([slot], dtype=np.intp))[0]
        steps, events, sums = (row[name].tolist() for name in ("steps", "events", "ns"))
        if not any(steps):
            return {}, [0] * len(STAGES)
        changes = self._cause_hists.get(slot)
        if changes is None:
            changes = self._cause_hists[slot] = self._map_cause_histograms(slot)
        changed, totals = changes.take(full)
        owner, bucket = changed // layout.CAUSE_BUCKETS, changed % layout.CAUSE_BUCKETS
        return {
            name: CauseCounters(
                steps[i],
                events[i],
                sums[i],
                _spread(bucket[owner == i], totals[owner == i]),
            )
            for i, name in enumerate(CAUSE_NAMES)
            if steps[i]
        }, row["explained_ns"].tolist()

    def histograms(self, slot: int, full: bool) -> dict[str, Histogram]:
        """Measure -> buckets: those that changed since the last call, or all that are not empty."""
        changes = self._hists.get(slot)
        return {} if changes is None else _by_name(changes, MEASURES, full)

    def slowpath(self, slot: int) -> NDArray[np.uint32]:
        """The slowpath histogram's counts as they stand, shape (BUCKETS,)."""
        changes = self._hists.get(slot)
        if changes is None:
            return np.zeros(BUCKETS, dtype=_U32)
        start = MEASURES.index("slowpath") * BUCKETS
        return changes.live[start : start + BUCKETS].copy()

    def softirq_latency(self, full: bool) -> list[dict[str, Histogram]]:
        """Softirq vector -> raise-to-entry latency, as ``histograms``, of each CPU row."""
        return _by_row(self._soft, SOFTIRQS, len(self.cpu_rows), full)

    def idle_exit(self, full: bool) -> dict[str, Histogram]:
        """Idle state index (as text) -> what waking a CPU out of it took, as ``histograms``."""
        return {
            str(state): histogram
            for state, changes in enumerate(self._idle)
            if (histogram := _histogram(changes, full)) is not None
        }

    def cpus(self) -> Record:
        """Context and counters of every CPU, shape (rows,)."""
        return self._cpus.copy()

    def irq(self, line: int) -> list[tuple[int, int]]:
        """(count, ns) of an interrupt line by CPU row."""
        if line >= layout.IRQS:
            return [(0, 0)] * len(self.cpu_rows)
        times: list[tuple[int, int]] = self._irqs[:, line].tolist()
        return times

    def set_irq_source(self, line: int, source: str) -> None:
        """What wake-ups straight from this line's handler mean."""
        if line < layout.IRQS:
            syscall.map_update(
                self._loaded.maps["irq_source"],
                struct.pack("<I", line),
                struct.pack("<I", layout.SOURCE_NAMES.index(source)),
            )

    def losses(self, cpus: Record) -> dict[str, int]:
        """Kind of loss -> count, from what ``cpus`` read."""
        totals = (cpus["losses"].sum(axis=0) + self._lost_apart).tolist()
        losses = dict(zip(layout.LOSSES, totals, strict=True))
        losses["storage_full"] += self._refused
        losses["torn"] = self._rows.torn + self._cause_rows.torn
        return losses

    # ------------------------------------------------------------------ rings

    @property
    def edges_fd(self) -> int:
        """Readable while there are ``edges`` to take."""
        return self._loaded.maps["edges"]

    def edges(self, limit: int = 512) -> list[Edge]:
        """What happened to processes since the last call."""
        out = []
        for record in self._edges.records(limit):
            kind, pid, slot = struct.unpack_from("<QQQ", record)
            out.append(Edge(layout.EDGES[kind], pid >> 32, pid & 0xFFFFFFFF, slot))
        # Behind the last: whoever takes these looks at what the processes are from now on, and
        # what they become after that needs a record of its own.
        self._round[0] += 1
        return out

    def slows(self, limit: int = 2048) -> Record:
        """Slow steps since the last call, a structured array."""
        return np.frombuffer(b"".join(self._slows.records(limit)), dtype=_SLOW)

    # ------------------------------------------------------------------ what it costs

    def run_time_ns(self) -> int:
        """Time in the programs; grows only while ``measure_cost`` is on."""
        chain = sum(syscall.program_info(fd)[0] for fd in self._loaded.programs.values())
        return chain + self.causes.run_time_ns()

    def recursion_misses(self) -> int:
        """Runs that the kernel skipped because the program was running on that CPU already."""
        chain = sum(syscall.program_info(fd)[2] for fd in self._loaded.programs.values())
        return chain + self.causes.recursion_misses()

    def measure_cost(self, on: bool) -> None:
        """Have the kernel time all BPF programs (BPF_ENABLE_STATS), which itself costs."""
        if on and self._stats_fd is None:
            self._stats_fd = syscall.enable_stats()
        elif not on and self._stats_fd is not None:
            os.close(self._stats_fd)
            self._stats_fd = None

    @property
    def cost_measured(self) -> bool:
        return self._stats_fd is not None

    def close(self) -> None:
        """Detach everything."""
        self.measure_cost(False)
        self.causes.close()
        self._edges.close()
        self._slows.close()
        loaded = self._loaded
        fds = [*loaded.links, *loaded.programs.values(), *loaded.maps.values()]
        if loaded.iterator is not None:
            fds.append(loaded.iterator)
        for fd in fds:
            os.close(fd)
