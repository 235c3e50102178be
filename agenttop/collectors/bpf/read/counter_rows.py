"""Rows of counters that the kernel writes while they are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

#: Tries to read a row between two writes; a writer takes well under 1 us.
_TRIES: Final = 64
#: Rows that there is room for at first.
_ROOM: Final = 64
#: No copy of this row is kept: it was never read.
_NONE: Final = -1

Record = Any  # a structured numpy scalar or array


class Rows:
    """Counters of agents on CPUs, live[CPU, slot], read so that the sums in a row always agree.

    Each row has one writer, which makes its seq odd while it writes; rows caught in between are
    read again. Most rows of many CPUs stay as they are between two reads, and their seq shows
    it: only the others are copied, and what they gained is added to their slot's sums.
    """

    def __init__(self, live: Record) -> None:
        self.live = live
        #: Rows that could not be read: their writer is a CPU that a hypervisor keeps from running.
        self.torn = 0
        self._seq = live["seq"]
        #: Their seq when they were read last, and where their copy is.
        self._seen = np.zeros(live.shape, dtype=np.uint64)
        self._place = np.full(live.shape, _NONE, dtype=np.int32)
        #: Copies, as 64-bit words: all fields are of 64 bits.
        self._copies = np.zeros((_ROOM, live.dtype.itemsize // 8), dtype=np.uint64)
        self._used = 0
        self._free: list[int] = []
        self._sums = np.zeros(live.shape[1], dtype=live.dtype)
        #: Slot -> row of its CPU -> steps, of those that have any.
        self._steps: dict[int, dict[int, int]] = {}

    def read(self, wanted: NDArray[np.intp]) -> Record:
        """The sums over all CPUs of these slots, shape (wanted,); torn rows count as last read."""
        seq = self._seq[:, wanted]
        cpus, columns = (seq != self._seen[:, wanted]).nonzero()
        slots = wanted[columns]
        before = seq[cpus, columns]
        rows = self.live[cpus, slots]
        after = self._seq[cpus, slots]
        torn = ((before != after) | (before & 1 == 1) | (rows["seq"] != after)).nonzero()[0]
        whole = np.ones(len(rows), dtype=bool)
        for at in torn.tolist():
            row = self._again(int(cpus[at]), int(slots[at]))
            if row is None:
                whole[at] = False
            else:
                rows[at] = row
        self._take(cpus[whole], slots[whole], rows[whole])
        return self._sums[wanted]

    def steps(self, slot: int) -> Mapping[int, int]:
        """Row of a CPU -> steps of a slot there, as of the last ``read``; zeros are left out."""
        return self._steps.get(slot, {})

    def _take(self, cpus: NDArray[np.intp], slots: NDArray[np.intp], rows: Record) -> None:
        if not len(rows):
            return
        words = rows.view(np.uint64).reshape(len(rows), -1)
        place = self._place[cpus, slots]
        for at in (place == _NONE).nonzero()[0].tolist():
            place[at] = self._new_place()
        self._place[cpus, slots] = place
        sums = self._sums.view(np.uint64).reshape(len(self._sums), -1)
        np.add.at(sums, slots, words - self._copies[place])
        self._copies[place] = words
        self._seen[cpus, slots] = rows["seq"]
        if "steps" in (rows.dtype.names or ()) and rows["steps"].ndim == 1:
            for cpu, slot, steps in zip(
                cpus.tolist(), slots.tolist(), rows["steps"].tolist(), strict=True
            ):
                if steps:
                    self._steps.setdefault(slot, {})[cpu] = steps

    def _new_place(self) -> int:
        if self._free:
            return self._free.pop()
        if self._used == len(self._copies):
            self._copies = np.concatenate([self._copies, np.zeros_like(self._copies)])
        self._used += 1
        return self._used - 1

    def _again(self, cpu: int, slot: int) -> Record | None:
        for _ in range(_TRIES):
            start = int(self._seq[cpu, slot])
            row = self.live[cpu, slot].copy()
            if start & 1 == 0 and int(self._seq[cpu, slot]) == start:
                return row
        self.torn += 1
        return None

    def clear(self, slot: int) -> None:
        """The slot's next agent begins with zeros."""
        used = (self._seq[:, slot] != 0).nonzero()[0]
        # A row that was never written has no page of its own to be touched for it.
        self.live[used, slot] = 0
        self.release(slot)

    def release(self, slot: int) -> None:
        """Nobody has the slot: what was read of it is forgotten."""
        places = self._place[:, slot]
        places = places[places != _NONE]
        self._copies[places] = 0
        self._free += places.tolist()
        self._place[:, slot] = _NONE
        self._seen[:, slot] = 0
        self._sums[slot] = 0
        self._steps.pop(slot, None)
