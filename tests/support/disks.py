"""Whether reads came to a disk: by the kernel's own counters, whatever our programs saw."""

from __future__ import annotations

from pathlib import Path

import pytest

#: Major numbers of what is no disk (Documentation/admin-guide/devices.txt): memory, loop devices.
_NO_DISK = ("1", "7")


def reads() -> int:
    """Completed reads of all disks (Documentation/admin-guide/iostats.rst)."""
    lines = [line.split() for line in Path("/proc/diskstats").read_text().splitlines()]
    return sum(int(words[3]) for words in lines if words[0] not in _NO_DISK)


class DiskReads:
    """Reads from here on."""

    def __init__(self) -> None:
        self._before = reads()

    def needed(self, count: int) -> None:
        """Skip where so many reads did not make the disks read as often."""
        if (came := reads() - self._before) < 0.9 * count:
            pytest.skip(f"of {count} reads {came} came to a disk")
