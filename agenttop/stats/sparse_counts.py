"""Counts of many histograms, of which only the buckets in use take memory.

An agent has up to 60 histograms of 1024 buckets; most are empty, and the others use some
tens of buckets. What is counted nowhere costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from agenttop.stats.histogram import BUCKETS

Ints = NDArray[np.int64]

_NONE: Final[Ints] = np.zeros(0, dtype=np.int64)


@dataclass(slots=True)
class Cells:
    """Cells of a table of (rows, BUCKETS), by their flat positions in rising order."""

    keys: Ints = field(default_factory=lambda: _NONE)
    counts: Ints = field(default_factory=lambda: _NONE)

    @classmethod
    def of(cls, dense: Ints) -> Cells:
        """From a whole table."""
        keys = np.flatnonzero(dense)
        return cls(keys, dense.reshape(-1)[keys].astype(np.int64))

    def __len__(self) -> int:
        return len(self.keys)

    def get(self, keys: Ints) -> Ints:
        """The counts in these cells."""
        if not len(self.keys):
            return np.zeros(len(keys), dtype=np.int64)
        at, known = self._find(keys)
        return np.where(known, self.counts[at], 0)

    def row(self, row: int) -> Ints:
        """One histogram, shape (BUCKETS,)."""
        out = np.zeros(BUCKETS, dtype=np.int64)
        first, end = np.searchsorted(self.keys, (row * BUCKETS, (row + 1) * BUCKETS))
        out[self.keys[first:end] - row * BUCKETS] = self.counts[first:end]
        return out

    def put(self, keys: Ints, counts: Ints) -> None:
        """Set these cells (each once, in rising order)."""
        at, known = self._find(keys)
        self.counts[at[known]] = counts[known]
        self._insert(keys[~known], counts[~known])

    def add(self, keys: Ints, counts: Ints, sign: int = 1) -> None:
        """Add to these cells (each once, in rising order), or (sign -1) take off."""
        at, known = self._find(keys)
        self.counts[at[known]] += sign * counts[known]
        self._insert(keys[~known], sign * counts[~known])
        if sign < 0:
            self.keep(self.counts != 0)

    def keep(self, chosen: NDArray[np.bool_]) -> None:
        """Drop the others."""
        if not chosen.all():
            self.keys, self.counts = self.keys[chosen], self.counts[chosen]

    def _find(self, keys: Ints) -> tuple[Ints, NDArray[np.bool_]]:
        """Where each is, and whether it is there."""
        if not len(self.keys):
            return np.zeros(len(keys), dtype=np.int64), np.zeros(len(keys), dtype=np.bool_)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return at, self.keys[at] == keys

    def _insert(self, keys: Ints, counts: Ints) -> None:
        if len(keys):
            at = np.searchsorted(self.keys, keys)
            self.keys = np.insert(self.keys, at, keys)
            self.counts = np.insert(self.counts, at, counts)


def summed(keys: Ints, counts: Ints) -> Cells:
    """From cells in any order, some of them several times."""
    order = np.argsort(keys, kind="stable")
    keys, counts = keys[order], counts[order]
    if not len(keys):
        return Cells()
    first = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))
    return Cells(keys[first].astype(np.int64), np.add.reduceat(counts, first, dtype=np.int64))
