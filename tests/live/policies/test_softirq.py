"""softirq on a network device of the real kernel: two queues each way, polled by threads."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agenttop.linux import process
from agenttop.policies.knobs.base import thread_stat
from agenttop.policies.manager import PolicyManager
from tests.support.knob_files import agent, targets
from tests.support.loops import until
from tests.support.policy_rig import machine_lock, needs_root

pytestmark = [
    needs_root,
    pytest.mark.skipif(shutil.which("ip") is None, reason="needs ip"),
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs"),
]

NAME, PEER = "attest0", "attest1"
#: include/uapi/linux/sockios.h, include/uapi/linux/ethtool.h
SIOCETHTOOL, ETHTOOL_SGRO = 0x8946, 0x2C
FOLDER = Path("/sys/class/net") / NAME
FILES = ("threaded", "gro_flush_timeout", "napi_defer_hard_irqs")
QUEUES = ("queues/rx-0/rps_cpus", "queues/rx-1/rps_cpus", "queues/tx-0/xps_cpus",
          "queues/tx-1/xps_cpus")  # fmt: skip


def merge_packets(name: str) -> None:
    """Switch on GRO: a veth that merges packets polls them, as hardware's drivers do."""
    value = ctypes.create_string_buffer(struct.pack("II", ETHTOOL_SGRO, 1))
    request = struct.pack("16sQ16x", name.encode(), ctypes.addressof(value))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCETHTOOL, request)


@pytest.fixture
def device() -> Iterator[None]:
    queues = ("numtxqueues", "2", "numrxqueues", "2")
    made = subprocess.run(
        ["ip", "link", "add", NAME, *queues, "type", "veth", "peer", "name", PEER, *queues],
        capture_output=True,
        text=True,
    )
    if made.returncode:
        pytest.skip(f"no veth devices here: {made.stderr.strip()}")
    try:
        for name in (NAME, PEER):
            subprocess.run(["ip", "link", "set", name, "up"], check=True)
        merge_packets(NAME)
        yield
    finally:
        subprocess.run(["ip", "link", "delete", NAME], check=True)


def settings() -> dict[str, str]:
    return {file: (FOLDER / file).read_text().strip() for file in (*FILES, *QUEUES)}


def threads() -> dict[int, set[int]]:
    """The kernel threads that poll the device, and the CPUs that each may use."""
    found = {}
    for pid in process.pids("/proc"):
        stat = thread_stat(pid, pid)
        if stat and stat.comm.startswith(f"napi/{NAME}-"):
            with contextlib.suppress(ProcessLookupError):
                found[pid] = os.sched_getaffinity(pid)
    return found


@pytest.mark.usefixtures("device")
def test_queues_and_polling_threads_go_off_the_agents_cpu_and_back(tmp_path: Path) -> None:
    quiet = max(os.sched_getaffinity(0))
    cpus = os.cpu_count() or 2
    given = {
        "devices": [NAME], "threaded": True, "rps": True, "xps": True,
        "gro_flush_us": 20, "defer_irqs": 2, "budget": 0, "budget_usecs": 0,
    }  # fmt: skip
    busy = agent({cpu: 10 for cpu in range(cpus) if cpu != quiet})
    with machine_lock():
        before = settings()
        assert not threads()
        manager = PolicyManager(str(tmp_path / "state"), settings={"softirq": given})
        try:
            events = manager.set("softirq", True, targets(busy, cpus=cpus))
            assert not [e for e in events if e.kind in ("warning", "error")], events
            assert [settings()[file] for file in FILES] == ["1", "20000", "2"]
            assert [int(settings()[file].replace(",", ""), 16) for file in QUEUES] == [
                1 << quiet
            ] * len(QUEUES)
            # Its threads come with the setting, and are found at the next look.
            assert until(lambda: len(threads()) == 2)
            later = targets(busy, cpus=cpus, seconds=20)

            def moved() -> bool:
                manager.tick(later)
                return list(threads().values()) == [{quiet}] * 2

            assert until(moved)
        finally:
            events = manager.close()
        assert not [e for e in events if e.kind in ("warning", "error")], events
        assert settings() == before
        assert until(lambda: not threads())
