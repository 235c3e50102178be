"""Cgroups of the real kernel for policy tests, made below the mounts of v1 and removed again."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agenttop.policies.knobs.cgroup import mount
from tests.support.policy_rig import machine_lock

needs_cgroup1 = pytest.mark.skipif(
    os.geteuid() != 0
    or not all((root := mount(1, c)) and os.access(root, os.W_OK) for c in ("cpu", "cpuset")),
    reason="no cgroup v1 with cpu and cpuset here",
)


class RealGroup:
    """One cgroup of the same name in the hierarchies of cpu and of cpuset, on CPUs 0 and 1."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.cpu = Path(f"{mount(1, 'cpu')}/{name}")
        self.cpuset = Path(f"{mount(1, 'cpuset')}/{name}")
        self._processes: list[subprocess.Popen[bytes]] = []
        for folder in (self.cpu, self.cpuset):
            folder.mkdir()
        (self.cpuset / "cpuset.cpus").write_text("0-1")
        mems = (self.cpuset.parent / "cpuset.mems").read_text()
        (self.cpuset / "cpuset.mems").write_text(mems)

    def start(self, cpus: set[int] | None = None) -> int:
        """A sleeping process in it, with these CPUs of its own choice: its id."""
        process = subprocess.Popen(["sleep", "100"])
        self._processes.append(process)
        if cpus:
            os.sched_setaffinity(process.pid, cpus)
        for folder in (self.cpu, self.cpuset):
            (folder / "cgroup.procs").write_text(str(process.pid))
        return process.pid

    def read(self, file: str) -> str:
        """A file, of whichever controller."""
        folder = self.cpuset if file.startswith("cpuset") else self.cpu
        return (folder / file).read_text().strip()

    def remove(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        for folder in (self.cpu, self.cpuset):
            for _ in range(100):  # A dead process leaves its cgroup a moment later.
                try:
                    folder.rmdir()
                    break
                except OSError:
                    time.sleep(0.02)
            else:
                raise AssertionError(f"{folder} could not be removed")


@contextmanager
def real_group(tag: str = "") -> Iterator[RealGroup]:
    with machine_lock():
        group = RealGroup(f"agenttop-test-{os.getpid()}{tag}")
        try:
            yield group
        finally:
            group.remove()
