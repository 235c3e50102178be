"""Rows of counters that the kernel writes while they are read."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

#: Tries to read a row between two writes; a writer takes well under 1 us.
_TRIES: Final = 64

Record = Any  # a structured numpy scalar or array


class Rows:
    """Counters of agents on CPUs, live[CPU, slot], read so that the sums in a row always agree.

    Each row has one writer, which makes its seq odd while it writes; rows caught in between are
    read again.
    """

    def __init__(self, live: Record) -> None:
        self.live = live
        #: Rows that could not be read: their writer is a CPU that a hypervisor keeps from running.
        self.torn = 0
        #: Slot -> its rows as they were read last.
        self._last: dict[int, Record] = {}

    def read(self, wanted: NDArray[np.intp]) -> Record:
        """A copy of the rows of these slots, shape (CPUs, wanted); of the torn ones the last."""
        live = self.live
        before = live["seq"][:, wanted]
        out = live[:, wanted]
        after = live["seq"][:, wanted]
        torn = np.argwhere((before != after) | (before & 1 == 1) | (out["seq"] != after))
        for cpu, index in torn.tolist():
            out[cpu, index] = self._again(cpu, int(wanted[index]))
        self._last.update(zip(wanted.tolist(), out.swapaxes(0, 1), strict=True))
        return out

    def _again(self, cpu: int, slot: int) -> Record:
        for _ in range(_TRIES):
            start = int(self.live["seq"][cpu, slot])
            row = self.live[cpu, slot].copy()
            if start & 1 == 0 and int(self.live["seq"][cpu, slot]) == start:
                return row
        self.torn += 1
        last = self._last.get(slot)
        return np.zeros((), dtype=self.live.dtype) if last is None else last[cpu]

    def clear(self, slot: int) -> None:
        """The slot's next agent begins with zeros."""
        self.live[:, slot] = 0
        self.release(slot)

    def release(self, slot: int) -> None:
        """Nobody has the slot: a copy of its rows would keep all that were copied with them."""
        self._last.pop(slot, None)
