"""/proc and /sys trees made by code, for machines that the tests do not run on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest


class Tree:
    """A root with a ``proc`` and a ``sys`` below it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.proc.mkdir(parents=True, exist_ok=True)
        self.sys.mkdir(parents=True, exist_ok=True)

    @property
    def proc(self) -> Path:
        return self.root / "proc"

    @property
    def sys(self) -> Path:
        return self.root / "sys"

    def use(self, monkeypatch: pytest.MonkeyPatch) -> Tree:
        """Points agenttop at this tree."""
        monkeypatch.setenv("AGENTTOP_PROC", str(self.proc))
        monkeypatch.setenv("AGENTTOP_SYS", str(self.sys))
        return self

    def write(self, path: str, content: str | bytes | int) -> Path:
        """``proc/...`` or ``sys/...`` with this content (a number gets its newline)."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, int):
            content = f"{content}\n"
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return file

    def process(
        self,
        pid: int,
        cmdline: str | list[str] | bytes = "",
        *,
        ppid: int = 1,
        comm: str | bytes | None = None,
        uid: int = 1000,
        cgroup: str = "/user.slice",
        kernel: bool = False,
        threads: Iterable[tuple[int, int, int, int]] = (),
    ) -> None:
        """A process; threads are (tid, run_ns, run_delay_ns, timeslices)."""
        if isinstance(cmdline, bytes):
            raw = cmdline
        else:
            words = cmdline.split() if isinstance(cmdline, str) else cmdline
            raw = b"".join(word.encode() + b"\0" for word in words)
        if comm is None:
            comm = raw.partition(b"\0")[0].rpartition(b"/")[2][:15]
        name = comm.encode() if isinstance(comm, str) else comm
        flags = 0x00200000 if kernel else 0x400000
        threads = list(threads)
        fields = ["S", ppid, pid, pid, 0, -1, flags, *[0] * 10, max(len(threads), 1), 0, pid * 10]
        tail = " ".join(map(str, fields)).encode()
        self.write(f"proc/{pid}/stat", b"%d (%s) %s 0 0\n" % (pid, name, tail))
        self.write(f"proc/{pid}/cmdline", raw)
        self.write(f"proc/{pid}/status", b"Name:\t%s\nUid:\t%d\t0\t0\t0\n" % (name, uid))
        self.write(f"proc/{pid}/cgroup", f"3:cpu:/old\n0::{cgroup}\n")
        for tid, run, delay, slices in threads:
            self.write(f"proc/{pid}/task/{tid}/schedstat", f"{run} {delay} {slices}\n")
