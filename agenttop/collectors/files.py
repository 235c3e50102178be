"""Reading the same small files of /proc and /sys again and again, cheaply.

A file is opened once and read with pread at offset 0, which makes the kernel
produce it anew: half the price of open, read, close. Files come and go
(CPUs, drivers, threads): one that is gone reads as None and is opened again
when it is back.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from typing import Final

from agenttop import wholefile

#: Descriptors left to the rest of the program.
_SPARE: Final = 256


class _Budget:
    """How many descriptors may be kept; the soft limit is raised as far as it may be."""

    def __init__(self) -> None:
        self.used = 0
        self._limit = 0

    def take(self) -> bool:
        """May one more be kept?"""
        if self.used >= self._limit and not self._raise():
            return False
        self.used += 1
        return True

    def _raise(self) -> bool:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        ceiling = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
        wanted = min(max(soft, self.used * 2 + 2 * _SPARE), max(ceiling, soft))
        if wanted > soft:
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            except (OSError, ValueError):
                wanted = soft
        self._limit = wanted - _SPARE
        return self.used < self._limit


_budget: Final = _Budget()


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
        return self._read(wholefile.from_fd, wholefile.MOST_BYTES)

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
            _budget.used -= 1
            os.close(fd)

    def _open(self) -> int:
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return -1
        if _budget.take():
            self._fd = fd
        return fd

    def __del__(self) -> None:
        self.close()


def read_text(path: str) -> str | None:
    """A file once, stripped; None if it is missing, empty or unreadable."""
    try:
        return wholefile.read(path, 1 << 20).decode("utf-8", "replace").strip() or None
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
