"""What processes use, read from outside: CPU time and resident memory."""

from __future__ import annotations

import sys
from pathlib import Path

from agenttop.collectors.procfs.own_cpu import process_cpu_ns


def cpu_s(pid: int) -> float:
    """CPU time of a process so far, seconds."""
    return (process_cpu_ns(pid) or 0) / 1e9


def rss_mb(pid: int) -> float:
    """Resident memory, VmRSS of /proc/PID/status, MB of 10^6 bytes."""
    return _status_mb(pid, "VmRSS:")


def peak_mb(pid: int) -> float:
    """The most that was resident since the start of its program, VmHWM, MB."""
    return _status_mb(pid, "VmHWM:")


def _status_mb(pid: int, name: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def agenttop(*arguments: object) -> list[str]:
    """The command line of agenttop with these arguments."""
    return [sys.executable, "-m", "agenttop", *map(str, arguments)]
