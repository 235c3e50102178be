"""What the policy tests share: a victim process, the machine's state, waiting."""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from agenttop.policies.guardian import lock
from agenttop.policies.knobs.base import RESUME_LATENCY, cpu_set

needs_root = pytest.mark.policies
needs_two_cpus = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="a home can only be chosen among two CPUs"
)
needs_qos = pytest.mark.skipif(
    not os.path.exists(RESUME_LATENCY.path("cpu0"))
    or not os.path.isdir("/sys/devices/system/cpu/cpu0/cpuidle/state1")
    or not os.access(RESUME_LATENCY.path("cpu0"), os.W_OK),
    reason="no cpuidle states with PM QoS here",
)

#: Threads that sleep in a loop; each line on stdin starts one more thread and a child, and is
#: answered with their ids.
VICTIM = """
import subprocess, sys, threading, time
def loop():
    while True:
        time.sleep(0.002)
def start():
    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    return thread.native_id
for _ in range(3):
    start()
print("ready", flush=True)
child = None
for line in sys.stdin:
    child = child or subprocess.Popen(["sleep", "100"])
    print(start(), child.pid, flush=True)
if child:
    child.kill()
"""


class Victim:
    """An agent-like process with several threads."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", VICTIM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"
        #: The process and its children.
        self.pids: tuple[int, ...] = (self.pid,)

    @property
    def pid(self) -> int:
        return self.process.pid

    def tids(self) -> list[int]:
        return sorted(int(name) for name in os.listdir(f"/proc/{self.pid}/task"))

    def spawn(self) -> tuple[int, int]:
        """One more thread, and a child process: their ids."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        tid, child = map(int, self.process.stdout.readline().split())
        self.pids = (self.pid, child)
        return tid, child

    def masks(self) -> dict[int, set[int]]:
        return {tid: os.sched_getaffinity(tid) for tid in self.tids()}

    def end(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


@contextlib.contextmanager
def victims() -> Iterator[Victim]:
    with machine_lock():
        victim = Victim()
        try:
            yield victim
        finally:
            victim.end()


@contextlib.contextmanager
def machine_lock() -> Iterator[None]:
    """No agenttop in earnest changes the machine's settings when a test begins; its own hold it."""
    deadline = time.monotonic() + 60
    while os.geteuid() == 0 and (owner := lock.owner("/run/agenttop")) is not None:
        if owner.pid == os.getpid():
            break  # The test has a lease already.
        if time.monotonic() > deadline:
            pytest.skip(str(lock.LockedError(owner)))
        time.sleep(0.1)
    yield


def cpu_latency() -> int | None:
    """The limit for all CPUs that is in force, us."""
    try:
        with open("/dev/cpu_dma_latency", "rb", buffering=0) as file:
            return int(struct.unpack("=i", file.read(4))[0])
    except OSError:
        return None


def machine(victim: Victim) -> dict[str, object]:
    """Every setting that the two policies touch."""
    state: dict[str, object] = {
        cpu: RESUME_LATENCY.read(cpu) for cpu in (f"cpu{n}" for n in cpu_set("present"))
    }
    state["all"] = cpu_latency()
    state["masks"] = victim.masks()
    return state


def until(check: Callable[[], bool], seconds: float) -> bool:
    """Whether it became true in time."""
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True
