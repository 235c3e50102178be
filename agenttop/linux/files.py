"""Reading the same small files of /proc and /sys again and again, cheaply.

A file is opened once and read with pread at offset 0, which makes the kernel
produce it anew: half the price of open, read, close. Only so many are kept
open (descriptors.KEPT); the others cost the whole price. Files come and go
(CPUs, drivers, threads): one that is gone reads as None and is opened again
when it is back.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from agenttop.linux import descriptors, whole_file
from agenttop.linux.descriptors import Budget

_budget: Final = Budget()


def _record(fd: int, size: int) -> bytes:
    return os.pread(fd, size, 0)


class KeptFile:
    """A file that is read again and again."""

    __slots__ = ("_fd", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = -1

    def read(self, size: int = 4096) -> bytes | None:
        """A file of one record (procinfo.read_file), or None if it is gone or unreadable now."""
        return self._read(_record, size)

    def read_all(self) -> bytes | None:
        """The whole file (/proc/interrupts of 1024 CPUs: some MB), or None likewise."""
        return self._read(whole_file.from_fd, whole_file.MOST_BYTES)

    def _read(self, reader: Callable[[int, int], bytes], size: int) -> bytes | None:
        fd = self._fd if self._fd >= 0 else self._open()
        if fd < 0:
            return None
        kept = self._fd >= 0
        try:
            return reader(fd, size)
        except OSError:
            # ENODEV, ESRCH: what it told about has gone; a new file may come.
            self.close()
            return None
        finally:
            if not kept:
                os.close(fd)

    def number(self) -> int | None:
        """The file as a decimal number, or None."""
        raw = self.read(64)
        try:
            return int(raw) if raw else None
        except ValueError:
            return None

    def close(self) -> None:
        """Gives the descriptor back; a later read opens the file again."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            _budget.give()
            os.close(fd)

    def _open(self) -> int:
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            descriptors.note(error)
            return -1
        if _budget.take():
            self._fd = fd
        return fd

    def __del__(self) -> None:
        self.close()


def read_text(path: str) -> str | None:
    """A file once, stripped; None if it is missing, empty or unreadable."""
    try:
        return whole_file.read(path, 1 << 20).decode("utf-8", "replace").strip() or None
    except OSError:
        return None


def read_number(path: str) -> int | None:
    """A small sysfs file once, as a number; None if it is missing or none."""
    value = read_text(path)
    try:
        return int(value) if value else None
    except ValueError:
        return None


def parse_cpulist(value: str) -> list[int]:
    """``0-3,8`` as CPU numbers, in order (Documentation/admin-guide/cputopology.rst).

    Raises ValueError on anything else.
    """
    cpus: set[int] = set()
    for part in value.strip().split(","):
        if not part:
            continue
        low, dash, high = part.partition("-")
        first, last = int(low), int(high) if dash else int(low)
        if not 0 <= first <= last < 65536:
            raise ValueError(f"no CPU list: {value[:40]!r}")
        cpus.update(range(first, last + 1))
    return sorted(cpus)
