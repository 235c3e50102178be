"""softirq: bounded batches of received packets, and receive work off the agents' CPUs.

A CPU that receives packets in softirq runs nothing else until the batch is
over. By default only the length of a batch is bounded, in packets and time,
for the whole machine: nothing is lost by that but some throughput under load
(the rest of the packets waits for the next round or for ksoftirqd). All else
is a parameter that is off:

- ``threaded``: a device's packets are polled by kernel threads (napi/...),
  kept off the agents' CPUs where there are others;
- ``rps``, ``xps``: receive processing, and the choice of the queue to send
  by, on the CPUs that no agent uses;
- ``gro_flush_us`` with ``defer_irqs``: interrupts of a busy device stay off
  while packets keep coming; each may wait for as long as gro_flush_us.

Knobs: the sysctls net.core.netdev_budget_usecs (the kernel counts it in
ticks, and newer ones refuse less than two of them: nothing below is asked
for) and net.core.netdev_budget; /sys/class/net/DEV/threaded,
gro_flush_timeout, napi_defer_hard_irqs, queues/rx-*/rps_cpus, tx-*/xps_cpus
(Documentation/networking/napi.rst, scaling.rst); sched_setaffinity(2) of the
napi threads. Numbers are only ever lowered. A setting of a device overrides
what was set for single queues by netlink, and is not given back to them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import msgspec

from agenttop.linux import paths, process
from agenttop.linux.process import printable
from agenttop.policies.agent_cpus import AgentCpus
from agenttop.policies.base import Key, Settings, Targets
from agenttop.policies.knobs.base import KnobError, format_cpus, thread_stat
from agenttop.policies.knobs.files import SYSCTL
from agenttop.policies.setting_requests import Wishes

BUDGET: Final = "net.core.netdev_budget"
BUDGET_USECS: Final = "net.core.netdev_budget_usecs"
#: The napi threads are looked for this often.
FIND_S: Final = 10.0
#: CLOCK_MONOTONIC_COARSE of clock_gettime(2), which Python does not name.
COARSE: Final = 6
#: Process id of kthreadd, the parent of all kernel threads.
KTHREADD: Final = 2


class Params(msgspec.Struct, frozen=True, kw_only=True):
    """What can be set."""

    #: Longest batch, us; 0 leaves it. Not below two clock ticks (8000 where a tick is 4 ms).
    budget_usecs: Annotated[int, msgspec.Meta(ge=0, le=20_000)] = 2000
    #: Longest batch, packets; 0 leaves it. One poll of a device takes up to 64.
    budget: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 128
    #: Devices for what follows; none named: all that are up and have hardware behind them.
    devices: Annotated[
        tuple[Annotated[str, msgspec.Meta(min_length=1, max_length=15)], ...],
        msgspec.Meta(max_length=64),
    ] = ()
    #: Packets are polled by threads of their own, off the agents' CPUs.
    threaded: bool = False
    #: Receive processing on the CPUs that no agent uses.
    rps: bool = False
    #: Queues to send by chosen as if from the CPUs that no agent uses.
    xps: bool = False
    #: With defer_irqs: how long packets may wait while interrupts are off, us; 0 leaves it.
    gro_flush_us: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0
    #: With gro_flush_us: empty polls before interrupts are on again; 0 leaves it.
    defer_irqs: Annotated[int, msgspec.Meta(ge=0, le=100)] = 0

    def __post_init__(self) -> None:
        if bool(self.gro_flush_us) != bool(self.defer_irqs):
            raise ValueError("gro_flush_us and defer_irqs have an effect together only")
        if self.budget and self.budget < 64:
            raise ValueError("budget is at least 64 packets, what one poll takes")
        if 0 < self.budget_usecs < 500:
            raise ValueError("budget_usecs is at least 500")

    @property
    def by_device(self) -> bool:
        """Whether anything is set device by device."""
        return self.threaded or self.rps or self.xps or bool(self.gro_flush_us)


class Device(NamedTuple):
    """A network device."""

    number: str
    name: str
    path: Path


class Softirq:
    """The policy."""

    name = "softirq"
    key = "o"
    title = "short receive batches, off the agents' CPUs"

    def __init__(self, params: Params | None = None) -> None:
        self._params = params or Params()
        self.reset()

    def reset(self) -> None:
        self._cpus = AgentCpus()
        self._detail = ""
        #: Knobs that were asked for before.
        self._asked: set[Key] = set()
        self._found_ns = -(1 << 62)
        #: Device -> its napi threads as knobs.
        self._threads: dict[str, list[str]] = {}

    def probe(self) -> str | None:
        if os.geteuid() != 0:
            return "needs root"
        try:
            missing = SYSCTL.read(BUDGET) is None
        except KnobError as error:
            return f"{BUDGET}: {error}"
        return f"{BUDGET}: missing (a network namespace of its own?)" if missing else None

    # ----------------------------------------------------------------- what should hold

    def wanted(self, targets: Targets, held: Mapping[Key, str]) -> Settings:
        params, wishes = self._params, Wishes(held)
        used = self._cpus.update(targets)
        online = frozenset(cpu.cpu for cpu in targets.cpus if cpu.online)
        quiet = online - used if used else frozenset()
        if params.budget_usecs:
            least = least_usecs()
            if params.budget_usecs < least:
                wishes.left.append(f"no batch below {least}us, two clock ticks of this kernel")
            wishes.lower("sysctl", BUDGET_USECS, max(params.budget_usecs, least))
        if params.budget:
            wishes.lower("sysctl", BUDGET, params.budget)
        # What was asked for and is not held, the kernel or somebody else refuses: not our news.
        parts = [
            f"{key[1]} {value}"
            for key, value in wishes.settings.items()
            if key in held or key not in self._asked
        ]
        self._asked.update(wishes.settings)
        if params.by_device:
            devices = self._devices(wishes)
            for device in devices:
                self._ask(device, quiet, wishes)
            if params.threaded:
                self._move_threads(targets.t_ns, devices, quiet, wishes, held)
            parts.append(self._on(devices, quiet, bool(used)))
        self._detail = "; ".join(parts + wishes.left_text())
        return wishes.settings

    def _devices(self, wishes: Wishes) -> list[Device]:
        """The devices that are meant."""
        base = paths.sys() / "class/net"
        found = []
        for path in sorted(base.iterdir()) if base.is_dir() else ():
            index, flags = _text(path / "ifindex"), _text(path / "flags")
            chosen = path.name in self._params.devices
            if not self._params.devices:
                # IFF_UP is bit 0.
                up = flags.startswith("0x") and int(flags, 16) & 1
                chosen = bool(up) and (path / "device").exists()
            if chosen and index.isdecimal():
                found.append(Device(index, path.name, path))
        names = {device.name for device in found}
        for name in self._params.devices:
            if name not in names:
                wishes.left.append(f"network device {printable(name, 15)}: not there")
        return found

    def _ask(self, device: Device, quiet: frozenset[int], wishes: Wishes) -> None:
        params = self._params
        if params.gro_flush_us:
            # First the time limit: without one, deferring would mean nothing.
            nanoseconds = str(params.gro_flush_us * 1000)
            wishes.set("netdev", f"{device.number}/gro_flush_timeout", nanoseconds)
            wishes.set("netdev", f"{device.number}/napi_defer_hard_irqs", str(params.defer_irqs))
        if params.threaded:
            wishes.set("netdev", f"{device.number}/threaded", "1")
        for wish, queues, file in (
            (params.rps, "rx-*", "rps_cpus"),
            (params.xps, "tx-*", "xps_cpus"),
        ):
            if wish and quiet:
                for queue in sorted(device.path.glob(f"queues/{queues}")):
                    target = f"{device.number}/queues/{queue.name}/{file}"
                    wishes.set("netdev", target, mask(quiet))

    def _move_threads(
        self,
        t_ns: int,
        devices: list[Device],
        quiet: frozenset[int],
        wishes: Wishes,
        held: Mapping[Key, str],
    ) -> None:
        """The napi threads, once there are any, to the quiet CPUs."""
        threaded = [d for d in devices if ("netdev", f"{d.number}/threaded") in held]
        if not threaded or not quiet:
            return
        if t_ns - self._found_ns >= FIND_S * 1e9:
            self._found_ns = t_ns
            self._threads = {d.number: _napi_threads(d.name) for d in threaded}
        for device in threaded:
            for target in self._threads.get(device.number, ()):
                wishes.set("kthread", target, format_cpus(quiet))

    def _on(self, devices: list[Device], quiet: frozenset[int], used: bool) -> str:
        """What is done on which devices."""
        params = self._params
        if not devices:
            return "no network device with hardware is up"
        ways = []
        if params.gro_flush_us:
            ways.append(f"interrupts deferred for up to {params.gro_flush_us}us")
        ways += [word for word, on in (("threaded", params.threaded), ("rps", params.rps)) if on]
        if params.xps:
            ways.append("xps")
        if params.threaded or params.rps or params.xps:
            if quiet:
                ways[-1] += f" on cpu{format_cpus(quiet)}"
            else:
                why = "agents use every CPU" if used else "no agent has run yet"
                ways.append(f"CPUs as they were ({why})")
        names = ", ".join(printable(device.name, 15) for device in devices[:4])
        more = f" and {len(devices) - 4} more" if len(devices) > 4 else ""
        return f"{names}{more}: {', '.join(ways)}"

    # ----------------------------------------------------------------- on screen

    def detail(self) -> str:
        return self._detail or "nothing asked for"

    def agents(self) -> dict[int, str]:
        return {}


def least_usecs() -> int:
    """The smallest net.core.netdev_budget_usecs that the kernel takes, us: two clock ticks.

    netdev_budget_usecs_min in net/core/sysctl_net_core.c, since 6.14 and its
    stable relatives; what older ones take below is rounded up to ticks
    all the same. A tick is what a coarse clock resolves: hrtimer_resolution
    has no part in it (kernel/time/posix-timers.c, KTIME_LOW_RES).
    """
    return 2_000_000 // round(1 / time.clock_getres(COARSE))


def mask(cpus: frozenset[int]) -> str:
    """CPUs as the kernel's bit mask: hexadecimal, in words of 32 bits."""
    text = f"{sum(1 << cpu for cpu in cpus):x}"
    first = len(text) % 8
    words = [text[:first]] if first else []
    return ",".join(words + [text[i : i + 8] for i in range(first, len(text), 8)])


def _napi_threads(device: str) -> list[str]:
    """The kernel threads ``napi/DEVICE-N`` as knobs."""
    prefix = f"napi/{device}-"
    found = []
    # The kernel's threads alone, where it tells (CONFIG_PROC_CHILDREN): processes may be many.
    children = process.read_whole(f"/proc/{KTHREADD}/task/{KTHREADD}/children")
    pids = process.pids("/proc") if children is None else map(int, children.split())
    for pid in pids:
        stat = thread_stat(pid, pid)
        # Anybody can take the name, only a kernel thread this parent.
        if stat and stat.ppid == KTHREADD and stat.comm.startswith(prefix):
            found.append(f"{pid}/{pid}/{stat.start}")
    return sorted(found)


def _text(path: Path) -> str:
    return (process.read_file(str(path), 256) or b"").decode(errors="replace").strip()
