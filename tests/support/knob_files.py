"""Fixture trees of /proc, /sys and cgroup v2 for the policies whose knobs are files."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from agenttop.policies.base import Agent, Cpu, Targets, Thread

SECOND = 1_000_000_000
#: The fixtures' clock starts here: CLOCK_MONOTONIC, as that of what counts from its making on.
START = time.monotonic_ns()


class Trees:
    """A machine made of files; ``proc`` and ``sys`` are its roots."""

    def __init__(self, root: Path, cpus: int = 4) -> None:
        self.proc = root / "proc"
        self.sys = root / "sys"
        self.cgroup = root / "cgroup"
        self.put("sys/devices/system/cpu/online", f"0-{cpus - 1}\n")
        self.put("proc/mounts", "proc /proc proc rw 0 0\n")

    def put(self, path: str, text: str, mode: int = 0o644) -> Path:
        """A file below the root, with its folders."""
        file = self.proc.parent / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)
        return file

    def link(self, path: str, to: Path) -> None:
        link = self.proc.parent / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(to)

    def irq(self, number: int, name: str, cpus: str, mode: int = 0o644, node: int = -1) -> Path:
        """An interrupt line; the file of its affinity."""
        base = f"proc/irq/{number}"
        (self.proc / f"irq/{number}/{name}").mkdir(parents=True)
        self.put(f"{base}/effective_affinity_list", f"{cpus.split('-')[0]}\n", 0o444)
        self.put(f"{base}/node", f"{node}\n", 0o444)
        return self.put(f"{base}/smp_affinity_list", f"{cpus}\n", mode)

    def interrupts(self, counts: Mapping[int, Mapping[int, int]], cpus: int = 4) -> None:
        """/proc/interrupts: line -> CPU -> count."""
        rows = ["      " + "".join(f"{f'CPU{cpu}':>11}" for cpu in range(cpus))]
        for irq, by_cpu in counts.items():
            figures = "".join(f"{by_cpu.get(cpu, 0):>11}" for cpu in range(cpus))
            rows.append(f"{irq:>4}: {figures}  PCI-MSIX-0000:00:01.0   0-edge      line{irq}")
        self.put("proc/interrupts", "\n".join(rows) + "\n")

    def sysctl(self, name: str, value: str) -> Path:
        return self.put(f"proc/sys/{name.replace('.', '/')}", f"{value}\n")

    def netdev(self, index: int, name: str, hardware: bool = True, up: bool = True) -> Path:
        """A network device with one queue each way; its folder."""
        base = f"sys/class/net/{name}"
        self.put(f"{base}/ifindex", f"{index}\n")
        self.put(f"{base}/flags", "0x1003\n" if up else "0x1002\n")
        for file in ("threaded", "gro_flush_timeout", "napi_defer_hard_irqs"):
            self.put(f"{base}/{file}", "0\n")
        self.put(f"{base}/queues/rx-0/rps_cpus", "0\n")
        self.put(f"{base}/queues/tx-0/xps_cpus", "0\n")
        folder = self.sys / f"class/net/{name}"
        if hardware:
            (folder / "device").mkdir()
        return folder

    def disk(
        self, number: str, name: str, wbt: str | None = "75000", hardware: bool = True
    ) -> Path:
        """A disk; its queue's folder."""
        base = f"sys/block/{name}"
        self.put(f"{base}/dev", f"{number}\n")
        self.put(f"{base}/queue/rq_affinity", "1\n")
        if wbt is not None:
            self.put(f"{base}/queue/wbt_lat_usec", f"{wbt}\n")
        folder = self.sys / f"block/{name}"
        if hardware:
            (folder / "device").mkdir()
        self.link(f"sys/dev/block/{number}", folder)
        return folder / "queue"

    def cgroup2(self, controllers: str) -> None:
        """Mount cgroup v2 with these controllers."""
        self.put("cgroup/cgroup.controllers", f"{controllers}\n")
        mount = str(self.cgroup).replace(" ", "\\040")
        self.put("proc/mounts", f"cgroup2 {mount} cgroup2 rw 0 0\n")

    def group(self, path: str, *pids: int, **files: str) -> Path:
        """A cgroup with these processes; files by name, with _ for the dot."""
        self.put(f"cgroup/{path}/cgroup.procs", "".join(f"{pid}\n" for pid in pids))
        for name, text in files.items():
            self.put(f"cgroup/{path}/{name.replace('_', '.')}", f"{text}\n")
        for pid in pids:
            self.put(f"proc/{pid}/cgroup", f"0::/{path}\n")
        return self.cgroup / path


def use(root: Path, monkeypatch: pytest.MonkeyPatch, cpus: int = 4) -> Trees:
    """Trees below ``root`` that take the place of /proc and /sys."""
    trees = Trees(root, cpus)
    monkeypatch.setenv("AGENTTOP_PROC", str(trees.proc))
    monkeypatch.setenv("AGENTTOP_SYS", str(trees.sys))
    return trees


def agent(cpu_steps: Mapping[int, int], number: int = 1, *pids: int) -> Agent:
    """An agent whose steps resumed on these CPUs."""
    pid = pids[0] if pids else 900_000 + number
    thread = Thread(pid, pid, min(cpu_steps, default=0))
    return Agent(number, f"coder{number}", pids or (pid,), (thread,), cpu_steps)


def targets(
    *agents: Agent, seconds: float = 0, cpus: int = 4, offline: tuple[int, ...] = ()
) -> Targets:
    return Targets(
        START + int(seconds * SECOND),
        agents,
        tuple(Cpu(n, n not in offline) for n in range(cpus)),
    )
