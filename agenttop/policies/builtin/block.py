"""block: completions where they are waited for, the agents' reads before background writes.

- A disk's completions are processed on the very CPU that submitted, not on
  one of its neighbours (``rq_affinity`` 2).
- Control-loop threads have the highest best-effort I/O priority. mq-deadline
  tells classes apart, not levels; BFQ tells levels apart.
- Background writes are held back as soon as reads take longer than
  ``wbt_lat_us`` (writeback throttling), where the kernel has that on.
- In cgroup v2, agents that have a cgroup of their own get a larger share of
  the disks (``io.weight`` or ``io.bfq.weight``) and, if asked for, a
  latency target (``io.latency``).

Never the real-time I/O class: with it everybody else starves.

Knobs: /sys/block/DEV/queue/rq_affinity and wbt_lat_usec (given back as a
number; the kernel goes on to regard it as set by hand), ioprio_set(2), files
of cgroup v2 (Documentation/admin-guide/cgroup-v2.rst).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import msgspec

from agenttop.linux import paths, process
from agenttop.linux.cgroup_mounts import cgroup2_mount
from agenttop.linux.process import printable
from agenttop.policies.agent_threads import named
from agenttop.policies.base import Key, Settings, Targets
from agenttop.policies.parts import agent_cgroups
from agenttop.policies.setting_requests import Wishes

#: Best effort, the first of its eight levels.
IOPRIO: Final = "2:0"
#: rq_affinity: the CPU itself, not only its group of CPUs.
SUBMITTER: Final = "2"


class Params(msgspec.Struct, frozen=True, kw_only=True):
    """What can be set."""

    #: Disks, as sda; none named: all that have hardware behind them.
    devices: Annotated[
        tuple[Annotated[str, msgspec.Meta(min_length=1, max_length=31)], ...],
        msgspec.Meta(max_length=64),
    ] = ()
    #: Completions on the CPU that submitted.
    rq_affinity: bool = True
    #: Control-loop threads with the highest best-effort I/O priority.
    ioprio: bool = True
    #: Latency of reads that background writes must leave, us; only lowered; 0 leaves it.
    wbt_lat_us: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 2000
    #: Share of the disks of agents' own cgroups (others: 100); 0 leaves it.
    weight: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 300
    #: Latency target of agents' own cgroups, us; 0 leaves it.
    latency_us: Annotated[int, msgspec.Meta(ge=0, le=10_000_000)] = 0


class Disk(NamedTuple):
    """A disk."""

    number: str
    name: str
    queue: Path


class Block:
    """The policy."""

    name = "block"
    key = "d"
    title = "disk completions near the agent, its reads first"

    def __init__(self, params: Params | None = None) -> None:
        self._params = params or Params()
        self.reset()

    def reset(self) -> None:
        self._detail = ""
        self._words: dict[int, str] = {}

    def probe(self) -> str | None:
        return "needs root" if os.geteuid() != 0 else None

    # ----------------------------------------------------------------- what should hold

    def wanted(self, targets: Targets, held: Mapping[Key, str]) -> Settings:
        params, wishes = self._params, Wishes(held)
        parts = []
        disks = self._disks(wishes)
        for disk in disks:
            if params.rq_affinity:
                wishes.set("blockdev", f"{disk.number}/rq_affinity", SUBMITTER)
            if params.wbt_lat_us:
                self._throttle_writes(disk, wishes)
        if params.rq_affinity or params.wbt_lat_us:
            names = ", ".join(printable(disk.name, 31) for disk in disks[:4])
            more = f" and {len(disks) - 4} more" if len(disks) > 4 else ""
            parts.append(f"{names}{more}" if disks else "no disk with hardware behind it")
        self._words = {}
        if params.ioprio:
            parts.append(f"{self._prioritise(targets, wishes, held)} threads best effort 0")
        parts += self._by_cgroup(targets, disks, wishes)
        self._detail = "; ".join(parts + wishes.left_text())
        return wishes.settings

    def _disks(self, wishes: Wishes) -> list[Disk]:
        """The disks that are meant."""
        base = paths.sys() / "block"
        found = []
        for path in sorted(base.iterdir()) if base.is_dir() else ():
            chosen = path.name in self._params.devices
            if not self._params.devices:
                chosen = (path / "device").exists() and (path / "queue/rq_affinity").exists()
            number = _text(path / "dev")
            if chosen and number:
                found.append(Disk(number, path.name, path / "queue"))
        names = {disk.name for disk in found}
        for name in self._params.devices:
            if name not in names:
                wishes.left.append(f"disk {printable(name, 31)}: not there")
        return found

    def _throttle_writes(self, disk: Disk, wishes: Wishes) -> None:
        current = _text(disk.queue / "wbt_lat_usec")
        if current in ("", "0"):
            # Left off: switching it on would change more than a number.
            wishes.left.append(f"{printable(disk.name, 31)}: no writeback throttling here")
        else:
            wishes.lower("blockdev", f"{disk.number}/wbt_lat_usec", self._params.wbt_lat_us)

    def _prioritise(self, targets: Targets, wishes: Wishes, held: Mapping[Key, str]) -> int:
        """I/O priority of the control-loop threads; how many they are."""
        count = 0
        for name, agent, _ in named(targets, "ioprio", held):
            wishes.settings["ioprio", name] = IOPRIO
            self._words[agent.id] = "io first"
            count += 1
        return count

    def _by_cgroup(self, targets: Targets, disks: list[Disk], wishes: Wishes) -> list[str]:
        """Weights and latency targets; what there is to say of them."""
        params = self._params
        if not (params.weight or params.latency_us):
            return []
        if reason := agent_cgroups.why_not("io"):
            return [f"no io.weight: {reason}"]
        mount = cgroup2_mount()
        own, shared = agent_cgroups.groups(targets)
        for path in own:
            files = [
                f for f in ("io.weight", "io.bfq.weight") if os.path.exists(f"{mount}/{path}/{f}")
            ]
            for file in files if params.weight else ():
                wishes.set("cgroup", f"{file}/{path}", str(params.weight))
            for disk in disks if params.latency_us else ():
                wishes.set("cgroup", f"io.latency@{disk.number}/{path}", str(params.latency_us))
        parts = [f"{len(own)} cgroups of agents"]
        if shared:
            parts.append(f"{len(shared)} shared with other processes left alone")
        return [", ".join(parts)]

    # ----------------------------------------------------------------- on screen

    def detail(self) -> str:
        return self._detail or "nothing asked for"

    def agents(self) -> dict[int, str]:
        return self._words


def _text(path: Path) -> str:
    return (process.read_file(str(path), 256) or b"").decode(errors="replace").strip()
