"""Where the cgroup hierarchies are mounted. The guardian imports this: it stays small."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from agenttop.linux import whole_file


def proc_root() -> str:
    """/proc, or AGENTTOP_PROC as in linux.paths (whose pathlib is too slow to load here)."""
    return os.environ.get("AGENTTOP_PROC") or "/proc"


def cgroup_mounts() -> Iterator[tuple[str, str, list[str]]]:
    """Mount point, ``cgroup`` or ``cgroup2``, and options of each (/proc/mounts, proc(5))."""
    try:
        table = whole_file.read(f"{proc_root()}/mounts")
    except OSError:
        return
    for line in table.split(b"\n"):
        fields = line.split(b" ")
        if len(fields) > 3 and fields[2].startswith(b"cgroup"):
            where = re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8) & 0xFF]), fields[1])
            kind, options = (field.decode(errors="replace") for field in fields[2:4])
            yield os.fsdecode(where), kind, options.split(",")


def cgroup2_mount() -> str | None:
    """Where cgroup v2 is mounted; None if it is not."""
    return next((where for where, kind, _ in cgroup_mounts() if kind == "cgroup2"), None)
