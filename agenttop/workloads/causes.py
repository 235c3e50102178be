"""Causes made on purpose, each timed by the clock of who makes it: one a step, in its compute."""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable
from typing import Final, Protocol

from agenttop.workloads.blockfile import BLOCK, BlockFile

_now = time.monotonic_ns

#: Page faults a step. Entering and leaving the exception, some 0.3 us each, is not seen.
PAGES: Final = 4
#: Size of the file that is read cold.
_FILE_BYTES: Final = 16 << 20


class Maker(Protocol):
    """Makes its cause."""

    def make(self) -> int:
        """Once; the time that it took, ns."""

    def close(self) -> None:
        """Leave nothing behind."""


class MinorFault:
    """Pages given back to the kernel, then touched."""

    def __init__(self, file: str | None) -> None:
        self._size = PAGES * mmap.PAGESIZE
        self._memory = mmap.mmap(-1, self._size)

    def make(self) -> int:
        memory, size, page = self._memory, self._size, mmap.PAGESIZE
        memory.madvise(mmap.MADV_DONTNEED)
        begun = _now()
        for at in range(0, size, page):
            memory[at] = 1
        touched = _now()
        for at in range(0, size, page):
            memory[at] = 1
        # Without what touching them takes anyway.
        return 2 * touched - begun - _now()

    def close(self) -> None:
        self._memory.close()


class MajorFault:
    """A page of a mapped file that is not in memory, touched."""

    def __init__(self, file: str | None) -> None:
        self._file = BlockFile(file, _FILE_BYTES, direct=False)
        self._memory = mmap.mmap(
            self._file.fd, self._file.blocks * BLOCK, mmap.MAP_SHARED, mmap.PROT_READ
        )
        self._memory.madvise(mmap.MADV_RANDOM)
        self._next = 0

    def make(self) -> int:
        offset = self._next * BLOCK
        self._next = (self._next + 1) % self._file.blocks
        self._memory.madvise(mmap.MADV_DONTNEED, offset, BLOCK)
        self._file.forget(offset)
        begun = _now()
        self._memory[offset]
        return _now() - begun

    def close(self) -> None:
        self._memory.close()
        self._file.close()


MAKERS: Final[dict[str, Callable[[str | None], Maker]]] = {
    "minor_fault": MinorFault,
    "major_fault": MajorFault,
}
#: Those that read a file, the one of --file.
READS: Final = ("major_fault",)
