"""The kernel side of the latency windows, as user space switches and reads it.

Writes what window.bpf.c is told of each agent's slot, reads what it counted.
The guardian gets two of the maps: the cells, and the ring that tells it of
those that are newly held.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from numpy.typing import NDArray

from agenttop.collectors.bpf import layout
from agenttop.collectors.bpf.read.mmap_array import mapped
from agenttop.stats.token_bucket import Bucket, Rates

_WINDOW: Final = layout.dtype(layout.WINDOW_FIELDS)
_CELL: Final = layout.dtype(layout.CELL_FIELDS)


class Wiring(NamedTuple):
    """What the guardian needs to follow the windows."""

    #: Map descriptors.
    ring: int
    cells: int
    #: Size of the ring, and number of cells.
    pages: int
    size: int


class Opened(NamedTuple):
    """What became of an agent's windows so far."""

    bucket: Bucket
    #: Time by which CPUs were held for longer, ns; more than was paid for where a window
    #: followed its thread to another CPU.
    held_ns: int


class Windows:
    """Not more than one for the loaded programs; slots are the registry's."""

    def __init__(self, maps: dict[str, int], pages: int, span: int, controls: NDArray[Any]) -> None:
        """``span``: one more than the highest CPU; one without a row is never held."""
        self._cpus = span
        self._length: NDArray[Any] = controls["window_ns"]
        self._windows = mapped(maps["windows"], _WINDOW, layout.SLOTS)
        count = span + layout.SLOTS
        self._cells = mapped(maps["cells"], _CELL, count)
        self.wiring = Wiring(maps["armed"], maps["cells"], pages, count)

    def cell_of_cpu(self, cpu: int) -> int:
        """The cell that says until when a CPU is held."""
        return cpu

    def cell_of(self, slot: int) -> int:
        """The cell that says until when an agent's window is open, on whatever CPU."""
        return self._cpus + slot

    def open(self, slot: int, window_ns: int, rates: Rates, floor: bool) -> None:
        """The agent's wake-ups open windows from now on; its bucket stays as it is."""
        row = self._windows[slot]
        row["cost_ns"], row["price"] = rates.cost_ns, rates.price
        row["cap_ns"], row["mark_ns"] = rates.cap_ns, rates.mark_ns
        row["floor"] = floor
        self._length[slot] = window_ns

    def shut(self, slot: int) -> None:
        """No more windows; those that are open run out."""
        self._length[slot] = 0

    def clear(self, slot: int) -> None:
        """A slot that nobody uses: a full bucket, no counts."""
        self._windows[slot] = 0

    def read(self, slot: int, rates: Rates) -> Opened:
        """The kernel's bucket and counters."""
        row = self._windows[slot]
        names = ("zero", "throttled", "grants", "refusals", "throttles", "degraded_ns", "paid_ns")
        return Opened(Bucket(rates, *(int(row[name]) for name in names)), int(row["held_ns"]))

    def held(self, cell: int, now_ns: int) -> bool:
        """Whether a window holds this cell now."""
        return int(self._cells[cell]["until"]) > now_ns

    def held_cpus(self, now_ns: int) -> list[int]:
        """CPUs that are held by a window now."""
        until = self._cells["until"][: self._cpus]
        return [int(cpu) for cpu in (until > now_ns).nonzero()[0]]
