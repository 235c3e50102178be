"""Windows over histograms that only grow: add what is new, take off what has expired.

The engine sends cumulative counts of the buckets that changed. A Tick holds
what one Sample added (sparse); a Sums is the dense total over some Ticks.
Keeping a window up to date costs as much as there are changed buckets, never
as much as there are histograms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from agenttop.histogram import BUCKETS, EDGES
from agenttop.model import CpuCounters, Histogram, Trust
from agenttop.words import MEASURES, SOFTIRQS

Ints = NDArray[np.int64]
#: A label of a cause: the cause's name, and the label's words.
Label = tuple[str, tuple[int, ...]]

#: Histograms of one owner: an agent's measures, or some of its causes, a CPU's softirq vectors,
#: the idle states (cpuidle has at most 10).
BLOCK: Final = max(len(MEASURES), len(SOFTIRQS), 10)
_SLOT_CELLS: Final = BLOCK * BUCKETS
#: The ratios whose values every Stat carries, as exact fractions.
RATIOS: Final = ((1, 2), (99, 100), (999, 1000))
#: A percentile with fewer samples than this beyond it is an estimate.
BEYOND: Final = 5
_GROUP: Final = 32


@dataclass(slots=True)
class Boundary:
    """What is not summed but read at both ends of an interval (all of it only grows)."""

    t_ns: int
    cpus: list[CpuCounters]
    trust: Trust
    #: CPU time of the view's own process.
    view_ns: int
    #: Package -> microjoules (Sample.energy_uj).
    energy_uj: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Tick:
    """What one Sample added to the one before."""

    start: Boundary
    end: Boundary
    #: Flat positions in Sums.counts (each once), and what was added there.
    cells: Ints
    added: Ints
    #: Slots with scalars, and theirs: shape (slots, scalars).
    slots: Ints
    scalars: Ints
    #: Slot -> CPU -> steps.
    cpu_steps: dict[int, dict[int, int]]
    #: Slot -> label of a cause -> its sums.
    labels: dict[int, dict[Label, list[int]]] = field(default_factory=dict)
    #: The scalars of agents that were forgotten, together.
    forgotten: Ints | int = 0

    def forget(self, slots: set[int], agents: set[int]) -> None:
        """Drop what belongs to these slots (they get another owner); ``agents`` are those of them
        whose scalars are an agent's.
        """
        gone = np.array(sorted(slots), dtype=np.int64)
        mine = np.isin(self.slots, np.array(sorted(agents), dtype=np.int64))
        self.forgotten = self.forgotten + self.scalars[mine].sum(axis=0)
        keep = ~np.isin(self.cells // _SLOT_CELLS, gone)
        self.cells, self.added = self.cells[keep], self.added[keep]
        keep = ~np.isin(self.slots, gone)
        self.slots, self.scalars = self.slots[keep], self.scalars[keep]
        for slot in slots:
            self.cpu_steps.pop(slot, None)
            self.labels.pop(slot, None)


@dataclass
class Sums:
    """Totals over some Ticks, dense."""

    slots: int
    width: int
    #: Shape (slots * BLOCK, BUCKETS).
    counts: Ints = field(init=False)
    #: Shape (slots, width).
    scalars: Ints = field(init=False)
    #: Shape (width,), as Tick has it.
    forgotten: Ints = field(init=False)
    cpu_steps: dict[int, dict[int, int]] = field(default_factory=dict)
    labels: dict[int, dict[Label, list[int]]] = field(default_factory=dict)
    #: Time in BPF programs, and the time over which it was measured.
    bpf_ns: int = 0
    bpf_time_ns: int = 0

    def __post_init__(self) -> None:
        self.counts = np.zeros((self.slots * BLOCK, BUCKETS), dtype=np.int64)
        self.scalars = np.zeros((self.slots, self.width), dtype=np.int64)
        self.forgotten = np.zeros(self.width, dtype=np.int64)

    def grow(self, slots: int) -> None:
        """Room for more slots."""
        more = slots - self.slots
        if more > 0:
            self.counts = np.concatenate(
                [self.counts, np.zeros((more * BLOCK, BUCKETS), dtype=np.int64)]
            )
            self.scalars = np.concatenate(
                [self.scalars, np.zeros((more, self.width), dtype=np.int64)]
            )
            self.slots = slots

    def add(self, tick: Tick, sign: int = 1) -> None:
        """Count a Tick in, or (sign -1) out again."""
        flat = self.counts.reshape(-1)
        if sign > 0:
            flat[tick.cells] += tick.added
            self.scalars[tick.slots] += tick.scalars
        else:
            flat[tick.cells] -= tick.added
            self.scalars[tick.slots] -= tick.scalars
        self.forgotten += sign * tick.forgotten
        for slot, steps in tick.cpu_steps.items():
            mine = self.cpu_steps.setdefault(slot, {})
            for cpu, count in steps.items():
                mine[cpu] = mine.get(cpu, 0) + sign * count
        for slot, labels in tick.labels.items():
            known = self.labels.setdefault(slot, {})
            for label, sums in labels.items():
                old = known.get(label) or [0] * len(sums)
                total = [a + sign * b for a, b in zip(old, sums, strict=True)]
                if any(total):
                    known[label] = total
                else:
                    known.pop(label, None)
        before, after = tick.start.trust.bpf_ns, tick.end.trust.bpf_ns
        if before is not None and after is not None and after >= before:
            self.bpf_ns += sign * (after - before)
            self.bpf_time_ns += sign * (tick.end.t_ns - tick.start.t_ns)

    def clear(self) -> None:
        """As if no Tick had been added."""
        self.counts[:] = 0
        self.scalars[:] = 0
        self.forgotten[:] = 0
        self.cpu_steps.clear()
        self.labels.clear()
        self.bpf_ns = self.bpf_time_ns = 0

    def forget(self, slots: Iterable[int], agents: Iterable[int]) -> None:
        """Zero these slots (see Tick.forget)."""
        self.forgotten += self.scalars[list(agents)].sum(axis=0)
        for slot in slots:
            self.counts[slot * BLOCK : (slot + 1) * BLOCK] = 0
            self.scalars[slot] = 0
            self.cpu_steps.pop(slot, None)
            self.labels.pop(slot, None)


class Cumulative:
    """The counts as the kernel holds them, kept dense so that a Sample can be told from the last.

    ``slots`` owners with BLOCK histograms each.
    """

    def __init__(self, slots: int) -> None:
        self.counts: Ints = np.zeros((slots * BLOCK, BUCKETS), dtype=np.int64)

    def grow(self, slots: int) -> None:
        """Room for more slots."""
        more = slots * BLOCK - len(self.counts)
        if more > 0:
            self.counts = np.concatenate([self.counts, np.zeros((more, BUCKETS), dtype=np.int64)])

    def forget(self, slots: Iterable[int]) -> None:
        """Zero these slots."""
        for slot in slots:
            self.counts[slot * BLOCK : (slot + 1) * BLOCK] = 0

    def update(self, rows: list[tuple[int, Histogram]], full: set[int]) -> tuple[Ints, Ints]:
        """Take in the histograms of a Sample: (row, Histogram) pairs.

        Rows in ``full`` are given with all their buckets, so one that is not
        named has become 0. Gives the changed cells (flat positions, each
        once) and what was added there; a count that went back adds 0.
        """
        flat = self.counts.reshape(-1)
        cells, now = unpack(rows)
        if full:
            chosen = np.array(sorted(full), dtype=np.int64)
            dense = np.zeros((len(chosen), BUCKETS), dtype=np.int64)
            where = np.searchsorted(chosen, cells // BUCKETS)
            dense[where, cells % BUCKETS] = now
            changed = np.nonzero(dense != self.counts[chosen])
            cells = chosen[changed[0]] * BUCKETS + changed[1]
            now = dense[changed]
        added = np.maximum(now - flat[cells], 0)
        flat[cells] = now
        used = added > 0
        return cells[used], added[used]


def unpack(rows: list[tuple[int, Histogram]]) -> tuple[Ints, Ints]:
    """Flat positions (row * BUCKETS + bucket) and counts of packed histograms.

    What cannot be (half a number, a bucket beyond the last) is left out: a
    recording may come from anywhere.
    """
    good = [
        (row, h)
        for row, h in rows
        if len(h.buckets) % 2 == 0 and len(h.counts) == 4 * len(h.buckets)
    ]
    if not good:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    buckets = np.frombuffer(b"".join(h.buckets for _, h in good), dtype="<u2").astype(np.int64)
    counts = np.frombuffer(b"".join(h.counts for _, h in good), dtype="<u8").astype(np.int64)
    lengths = [len(h.buckets) // 2 for _, h in good]
    cells = np.repeat(np.array([row for row, _ in good], dtype=np.int64) * BUCKETS, lengths)
    fits = (buckets < BUCKETS) & (counts >= 0)
    cells, counts = (cells + buckets)[fits], counts[fits]
    # A bucket named twice would be counted twice: the last one holds. The
    # engine sends them in rising order, which is quickly seen.
    same_row = cells[1:] // BUCKETS == cells[:-1] // BUCKETS
    if np.any(same_row & (cells[1:] <= cells[:-1])):
        cells, last = np.unique(cells[::-1], return_index=True)
        counts = counts[::-1][last]
    return cells, counts


@dataclass(slots=True)
class Figures:
    """Of many histograms at once; -1 where a histogram is empty."""

    total: Ints
    #: Shape (histograms, len(RATIOS)).
    values: Ints
    maximum: Ints


def figures(counts: Ints, lacking: Callable[[Ints], Ints] | None = None) -> Figures:
    """Totals, percentiles (as histogram.percentiles) and maxima of (rows, BUCKETS) counts, in ns.

    ``lacking`` tells from the rows' totals how many values of 0 each one
    lacks. Works in two steps, groups
    of buckets first, so that it reads the counts once and accumulates only a
    thirty-second of them.
    """
    rows = len(counts)
    grouped = counts.reshape(rows, BUCKETS // _GROUP, _GROUP)
    groups = grouped.sum(axis=2)
    total: Ints = groups.sum(axis=1)
    zeros = lacking(total) if lacking else np.zeros(rows, dtype=np.int64)
    groups[:, 0] += zeros
    total += zeros
    values = np.full((rows, len(RATIOS)), -1, dtype=np.int64)
    maximum = np.full(rows, -1, dtype=np.int64)
    used = np.flatnonzero(total)
    if not len(used):
        return Figures(total, values, maximum)
    groups = groups[used]
    cumulative = groups.cumsum(axis=1)
    line = np.arange(len(used))

    def inside_of(group: Ints) -> Ints:
        inner: Ints = grouped[used, group]
        inner[:, 0] += np.where(group == 0, zeros[used], 0)
        return inner

    for column, (part, whole) in enumerate(RATIOS):
        rank = np.maximum(-(-total[used] * part // whole), 1)
        group = (cumulative < rank[:, None]).sum(axis=1)
        before = cumulative[line, group] - groups[line, group]
        inner = inside_of(group)
        inner_cumulative = inner.cumsum(axis=1) + before[:, None]
        place = (inner_cumulative < rank[:, None]).sum(axis=1)
        inside = inner[line, place]
        below = inner_cumulative[line, place] - inside
        bucket = group * _GROUP + place
        low, high = EDGES[bucket], EDGES[bucket + 1]
        values[used, column] = low + ((high - low) * (rank - below - 0.5) / inside).astype(np.int64)
    group = groups.shape[1] - 1 - np.argmax(groups[:, ::-1] > 0, axis=1)
    place = _GROUP - 1 - np.argmax(inside_of(group)[:, ::-1] > 0, axis=1)
    maximum[used] = EDGES[group * _GROUP + place + 1] - 1
    return Figures(total, values, maximum)


def beyond(total: int) -> list[int]:
    """For each of RATIOS: how many of ``total`` samples lie beyond it."""
    return [total - (-(-total * part // whole)) for part, whole in RATIOS]


def estimated(total: int) -> list[bool]:
    """For each of RATIOS: do fewer than BEYOND of ``total`` samples lie beyond it?"""
    return [samples < BEYOND for samples in beyond(total)]
