"""What step markers told, read from user space: contexts by class, steps by name.

An agent has a lane for each name of its steps (steps.bpf.c): taken in the
kernel when the name is seen first, given back here when the agent's slot is.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agenttop.collectors.bpf import layout, syscall
from agenttop.collectors.bpf.read.mmap_array import mapped
from agenttop.model.histogram_layout import BUCKETS
from agenttop.model.sample import Histogram
from agenttop.model.vocabulary import STEP_MEASURES

_MARKS: Final = layout.dtype(layout.MARKS_FIELDS)
_KEPT: Final = layout.dtype(layout.KEPT_FIELDS)
_KEPT_EACH: Final = layout.KEPT_SETS * layout.KEPT_WAYS
_SHARE: Final = layout.dtype(layout.SHARE_FIELDS)
_LANE: Final = layout.dtype(layout.LANE_FIELDS)
_U32: Final = np.dtype("<u4")
_CELLS: Final = len(STEP_MEASURES) * BUCKETS

#: Gives what changed in live counters, as Tracer's histograms do.
Take = Callable[[bool], tuple[NDArray[np.intp], NDArray[np.uint64]]]


class Named(NamedTuple):
    """Steps of one name; counters."""

    lane: int
    #: As the caller wrote it, to its NUL; empty: the names beyond the limit.
    name: bytes
    steps: int
    step_ns: int
    slow_ns: int
    #: words.STEP_MEASURES -> buckets.
    histograms: dict[str, Histogram]


class Marks(NamedTuple):
    """Contexts of one agent; counters. Lists are in the order of step.CLASSES."""

    contexts: int
    met: list[int]
    missed: list[int]
    overrun: list[int]
    #: Names that have a lane.
    names: int
    #: Markers whose name found none, whose context could not be read, that were not valid.
    crowded: int
    unread: int
    invalid: int
    #: Told for io_uring's user_data, of those forgotten, and requests whose number nobody told of.
    kept: int
    forgotten: int
    strays: int


class Steps:
    """Not more than one for the loaded programs; slots are the registry's.

    ``changes`` makes a reader of live counters.
    """

    def __init__(self, maps: dict[str, int], changes: Callable[[NDArray[np.uint32]], Take]) -> None:
        self._maps = maps
        self._changes = changes
        self._marks = mapped(maps["marks"], _MARKS, layout.SLOTS)
        self._kept = mapped(maps["kept"], _KEPT, layout.SLOTS * _KEPT_EACH).reshape(
            layout.SLOTS, _KEPT_EACH
        )
        self._lanes = mapped(maps["lanes"], _LANE, layout.LANES)
        self._slots: NDArray[np.uint64] = self._lanes["slot"]
        shares = mapped(maps["shares"], _SHARE, layout.SLOTS)
        self._returned: NDArray[np.uint64] = shares["returned"]
        #: Lane -> its histograms, mapped while somebody has it.
        self._hists: dict[int, Take] = {}
        for lane in range(1, layout.LANES):
            self._give_back(lane)

    def clear(self, slot: int) -> None:
        """A slot that nobody uses: its lanes are free again, its counts 0."""
        share = int(self._marks["share"][slot])
        for lane in self._slots_lanes(slot):
            for place in {0, share}:
                self._returned[place][int(lane > layout.LANES_BY_RULE)] += 1
            key = struct.pack("<Q", slot) + self._lanes["name"][lane].tobytes()
            syscall.map_delete(self._maps["names"], key)
            self._lanes[lane] = 0
            self._hists.pop(lane, None)
            self._histogram_cells(lane)[:] = 0
            self._give_back(lane)
        if self._marks["kept"][slot]:
            self._kept[slot] = 0
        self._marks[slot] = 0

    def share(self, slot: int, place: int) -> None:
        """A cleared slot draws on the lanes of one user: its place, 1 to SLOTS - 1; 0: no limit."""
        self._marks["share"][slot] = place

    def marked(self) -> set[int]:
        """Slots of which there is anything to tell."""
        fields = ("contexts", "names", "invalid", "unread", "kept")
        told = sum((self._marks[name] for name in fields), start=np.uint64(0))
        return set(np.flatnonzero(told).tolist())

    def keeps(self) -> bool:
        """Whether anybody has told what io_uring's user_data stands for."""
        return bool(self._marks["kept"].any())

    def marks(self, slot: int) -> Marks:
        """What the markers of this slot's threads told."""
        row: Any = self._marks[slot]
        return Marks(*(row[name].tolist() for name in Marks._fields))

    def named(self, slot: int, full: bool) -> list[Named]:
        """Steps by name; of the histograms what has changed since the last call, or all."""
        return [self._named(lane, full) for lane in self._slots_lanes(slot)]

    # ------------------------------------------------------------------ internals

    def _slots_lanes(self, slot: int) -> list[int]:
        return [int(lane) for lane in (self._slots == slot).nonzero()[0] if lane]

    def _named(self, lane: int, full: bool) -> Named:
        take = self._hists.get(lane)
        if take is None:
            take = self._hists[lane] = self._changes(self._histogram_cells(lane))
        row: Any = self._lanes[lane]
        cells, totals = take(full)
        histograms = {}
        for place, measure in enumerate(STEP_MEASURES):
            start, end = cells.searchsorted([place * BUCKETS, (place + 1) * BUCKETS])
            if start < end:
                buckets = (cells[start:end] - place * BUCKETS).astype("<u2")
                histograms[measure] = Histogram(buckets.tobytes(), totals[start:end].tobytes())
        name = row["name"].tobytes().partition(b"\0")[0]
        steps, step_ns, slow_ns = (int(row[field]) for field in ("steps", "step_ns", "slow_ns"))
        return Named(lane, name, steps, step_ns, slow_ns, histograms)

    def _histogram_cells(self, lane: int) -> NDArray[np.uint32]:
        size = _CELLS * _U32.itemsize  # whole pages
        return mapped(self._maps["lane_hist"], _U32, _CELLS, lane * size)

    def _give_back(self, lane: int) -> None:
        pool = "free_lanes" if lane <= layout.LANES_BY_RULE else "free_alone"
        syscall.queue_push(self._maps[pool], struct.pack("<I", lane))
