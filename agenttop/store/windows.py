"""Windows over histograms that only grow: add what is new, take off what has expired.

The engine sends cumulative counts of the buckets that changed. A Tick holds
what one Sample added; a Sums is the total over some Ticks. Both cost memory
for the buckets in use alone (sparse_counts.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from agenttop.model.row_layout import BLOCK
from agenttop.model.sample import CpuCounters, Histogram, Trust
from agenttop.stats.histogram import BUCKETS, EDGES
from agenttop.stats.sparse_counts import Cells, summed
from agenttop.stats.sparse_counts import Ints as Ints

#: A label of a cause: the cause's name, and the label's words.
Label = tuple[str, tuple[int, ...]]

_SLOT_CELLS: Final = BLOCK * BUCKETS
#: The ratios whose values every Stat carries, as exact fractions.
RATIOS: Final = ((1, 2), (99, 100), (999, 1000))
#: A percentile with fewer samples than this beyond it is an estimate.
BEYOND: Final = 5
#: As numbers of 32 bits cells take half the memory.
_SMALL: Final = np.iinfo(np.int32).max


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
    #: When ``cpus`` were read: with this Sample, or with one before it.
    cpus_ns: int = 0
    #: What was read of them before that, and when.
    earlier: tuple[list[CpuCounters], int] | None = None

    @property
    def fresh(self) -> bool:
        """Whether the CPUs were read with this Sample."""
        return self.cpus_ns == self.t_ns


@dataclass(slots=True)
class Tick:
    """What one Sample added to the one before."""

    start: Boundary
    end: Boundary
    #: Positions in Sums.counts (each once, rising), and what was added there.
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
    #: Time in BPF programs, and the time over which it was measured.
    bpf_ns: tuple[int, int] = (-1, -1)

    def __post_init__(self) -> None:
        if self.bpf_ns[0] < 0:
            before, after = self.start.trust.bpf_ns, self.end.trust.bpf_ns
            known = before is not None and after is not None and after >= before
            length = self.end.t_ns - self.start.t_ns
            self.bpf_ns = ((after or 0) - (before or 0), length) if known else (0, 0)
        if len(self.cells) and self.cells[-1] <= _SMALL and self.added.max() <= _SMALL:
            self.cells, self.added = self.cells.astype(np.int32), self.added.astype(np.int32)

    @property
    def weight(self) -> int:
        """About the memory that it takes, bytes."""
        own = self.cells.nbytes + self.added.nbytes + self.scalars.nbytes
        # Rows that were read before are those of a Tick before.
        cpus = len(self.end.cpus) if self.end.fresh else 0
        return own + 400 * len(self.slots) + 2000 * cpus + 1000

    def joined(self, other: Tick) -> Tick:
        """This one and the one that follows as one."""
        both = summed(
            np.concatenate([self.cells, other.cells]), np.concatenate([self.added, other.added])
        )
        slots = np.union1d(self.slots, other.slots)
        scalars = np.zeros((len(slots), self.scalars.shape[1]), dtype=np.int64)
        sums = Sums(0, 0)
        for each in (self, other):
            scalars[np.searchsorted(slots, each.slots)] += each.scalars
            sums.take(each)
        return Tick(
            self.start,
            other.end,
            both.keys,
            both.counts,
            slots,
            scalars,
            sums.cpu_steps,
            sums.labels,
            self.forgotten + other.forgotten,
            (self.bpf_ns[0] + other.bpf_ns[0], self.bpf_ns[1] + other.bpf_ns[1]),
        )

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
    """Totals over some Ticks."""

    slots: int
    width: int
    #: A table of (slots * BLOCK, BUCKETS).
    counts: Cells = field(default_factory=Cells)
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
        self.scalars = np.zeros((self.slots, self.width), dtype=np.int64)
        self.forgotten = np.zeros(self.width, dtype=np.int64)

    def resize(self, slots: int) -> None:
        """Room for so many slots; those that go are not in use."""
        kept = self.scalars[:slots]
        self.scalars = np.zeros((slots, self.width), dtype=np.int64)
        self.scalars[: len(kept)] = kept
        self.slots = slots

    def add(self, tick: Tick, sign: int = 1) -> None:
        """Count a Tick in, or (sign -1) out again."""
        self.counts.add(tick.cells, tick.added, sign)
        self.scalars[tick.slots] += sign * tick.scalars
        self.forgotten += sign * tick.forgotten
        self.take(tick, sign)

    def take(self, tick: Tick, sign: int = 1) -> None:
        """Of a Tick, what is no array."""
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
        self.bpf_ns += sign * tick.bpf_ns[0]
        self.bpf_time_ns += sign * tick.bpf_ns[1]

    def clear(self) -> None:
        """As if no Tick had been added."""
        self.counts = Cells()
        self.scalars[:] = 0
        self.forgotten[:] = 0
        self.cpu_steps.clear()
        self.labels.clear()
        self.bpf_ns = self.bpf_time_ns = 0

    def forget(self, slots: Iterable[int], agents: Iterable[int]) -> None:
        """Zero these slots (see Tick.forget)."""
        self.forgotten += self.scalars[list(agents)].sum(axis=0)
        _forget(self.counts, slots)
        for slot in slots:
            self.scalars[slot] = 0
            self.cpu_steps.pop(slot, None)
            self.labels.pop(slot, None)


def _forget(cells: Cells, slots: Iterable[int]) -> None:
    cells.keep(~np.isin(cells.keys // _SLOT_CELLS, list(slots)))


class Cumulative:
    """The counts as the kernel holds them, kept so that a Sample can be told from the last."""

    def __init__(self) -> None:
        self.counts = Cells()

    def forget(self, slots: Iterable[int]) -> None:
        """Zero these slots."""
        _forget(self.counts, slots)

    def update(self, rows: list[tuple[int, Histogram]], full: set[int]) -> tuple[Ints, Ints]:
        """Take in the histograms of a Sample: (row, Histogram) pairs.

        Rows in ``full`` are given with all their buckets, so one that is not
        named has become 0. Gives the changed cells (positions, each once and
        rising) and what was added there; a count that went back adds 0.
        """
        cells, now = unpack(sorted(rows, key=_row))
        added = np.maximum(now - self.counts.get(cells), 0)
        if full:
            self.counts.keep(~np.isin(self.counts.keys // BUCKETS, list(full)))
        self.counts.put(cells, now)
        used = added > 0
        return cells[used], added[used]


def _row(pair: tuple[int, Histogram]) -> int:
    return pair[0]


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


def figures(cells: Cells, rows: int, lacking: Callable[[Ints], Ints] | None = None) -> Figures:
    """Totals, percentiles (as histogram.percentiles) and maxima of a table's histograms, in ns.

    ``lacking`` tells from the rows' totals how many values of 0 each one lacks.
    """
    keys, counts = cells.keys, cells.counts
    if len(counts) and counts.min() <= 0:
        keys, counts = keys[counts > 0], counts[counts > 0]
    row, bucket = np.divmod(keys, BUCKETS)
    first = np.flatnonzero(np.concatenate(([True], row[1:] != row[:-1]))) if len(row) else row
    last = np.append(first[1:], len(row))[: len(first)] - 1
    used = row[first]
    sums = counts.cumsum()
    before = sums[first] - counts[first]
    total = np.zeros(rows, dtype=np.int64)
    total[used] = sums[last] - before
    zeros = lacking(total) if lacking else np.zeros(rows, dtype=np.int64)
    total += zeros
    # Where nothing is counted there are values of 0 alone, or none at all.
    maximum = np.where(total > 0, EDGES[1] - 1, -1)
    values = np.repeat(np.where(total > 0, 0, -1)[:, None], len(RATIOS), axis=1)
    maximum[used] = EDGES[bucket[last] + 1] - 1
    for column, (part, whole) in enumerate(RATIOS):
        # The smallest value with part / whole of all at or below it, but for the zeros.
        rank = total[used] - total[used] * (whole - part) // whole - zeros[used]
        at = np.clip(np.searchsorted(sums, before + np.maximum(rank, 1)), first, last)
        below = sums[at] - counts[at] - before
        low, high = EDGES[bucket[at]], EDGES[bucket[at] + 1]
        inside = low + ((high - low) * (rank - below - 0.5) / counts[at]).astype(np.int64)
        values[used, column] = np.where(rank > 0, inside, 0)
    return Figures(total, values, maximum)


def beyond(total: int) -> list[int]:
    """For each of RATIOS: how many of ``total`` samples lie beyond it."""
    return [total - (-(-total * part // whole)) for part, whole in RATIOS]


def estimated(total: int) -> list[bool]:
    """For each of RATIOS: do fewer than BEYOND of ``total`` samples lie beyond it?"""
    return [samples < BEYOND for samples in beyond(total)]
