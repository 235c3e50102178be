"""What surrounds the demo's agents: servers that answer them, CPU hogs, a writer."""

from __future__ import annotations

import os
import random
import socket
import struct
import time
from typing import Final

from agenttop.workloads import blockfile, syscalls

#: A request to a server: answers wanted, ns before each, bytes of each.
ASK: Final = struct.Struct("=IQI")

_HOG_BURST_S: Final = (0.004, 0.020)
#: A hog runs for a third of the time.
_HOG_PAUSE: Final = 2.0

_WRITE: Final = 64 << 10
_FILE: Final = 4 << 20
_WRITE_PAUSE_S: Final = 0.1


def burn(ns: int) -> None:
    """Use the CPU for so long (by the clock: being preempted counts)."""
    now = time.monotonic_ns
    end = now() + ns
    while now() < end:
        pass


def server(connection: socket.socket) -> None:
    """A model or a tool server: streams the answers that are asked for, until the client ends."""
    while asked := connection.recv(ASK.size, socket.MSG_WAITALL):
        count, pause_ns, size = ASK.unpack(asked)
        for _ in range(count):
            time.sleep(pause_ns / 1e9)
            connection.sendall(bytes(size))


def hog(seed: int) -> None:
    """Bursts on the CPU between pauses, as a build that was confined to one CPU.

    All hogs share the first CPU that they may use, so that there is a quieter
    one to be found for the agents.
    """
    syscalls.pin(min(os.sched_getaffinity(0)))
    chance = random.Random(seed)
    while True:
        burst = chance.uniform(*_HOG_BURST_S)
        burn(round(burst * 1e9))
        time.sleep(burst * _HOG_PAUSE * chance.uniform(0.5, 1.5))


def writer() -> None:
    """Writes to a file without a name and waits for the disk, again and again."""
    fd = blockfile.temporary(_FILE)
    data = os.urandom(_WRITE)
    while True:
        for offset in range(0, _FILE, _WRITE):
            os.pwrite(fd, data, offset)
            os.fsync(fd)
            time.sleep(_WRITE_PAUSE_S)
