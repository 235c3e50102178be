"""May this process use BPF?"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Final

#: include/uapi/linux/capability.h
CAP_SYS_ADMIN: Final = 21
CAP_PERFMON: Final = 38
CAP_BPF: Final = 39


def effective() -> int:
    """Bits of the effective capabilities, from /proc/self/status."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("CapEff:"):
                return int(line.split()[1], 16)
    except (OSError, ValueError):
        pass
    return -1 if os.geteuid() == 0 else 0


def why_no_bpf() -> str | None:
    """What keeps this process from loading the programs, with the remedy; None: it may try."""
    if platform.machine() != "x86_64":
        return f"step chains need x86_64, this is {platform.machine()}"
    have = effective()
    if have >> CAP_SYS_ADMIN & 1 or (have >> CAP_BPF & 1 and have >> CAP_PERFMON & 1):
        return None
    return "they need BPF: run as root (sudo agenttop), or with CAP_BPF and CAP_PERFMON"
