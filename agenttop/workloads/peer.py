"""The other end of a loop: answers each request after a pause. A program of its own.

It runs as a script of the standard library alone (``python -I -S peer.py``),
outside the agent's process tree and with a command line of its own, so that
nothing takes it for a part of the agent. It ends with its starter, however
that ends: the request channel then reads end-of-file.
"""

from __future__ import annotations

import mmap
import os
import select
import signal
import socket
import sys
import time

#: Look for a vanished starter this often in a long pause.
GLANCE_NS = 50_000_000


def pause(fd: int, until: int) -> None:
    """Sleep until CLOCK_MONOTONIC ``until``; end the process if the starter goes meanwhile."""
    watch = select.poll()
    watch.register(fd, select.POLLRDHUP)
    while (left := until - time.monotonic_ns()) > 0:
        if left < 2 * GLANCE_NS:
            time.sleep(left / 1e9)
        elif watch.poll(GLANCE_NS // 1_000_000):
            sys.exit(0)


def serve(kind: str, interval_ns: int, request: int, answer: int, page: int, ready: int) -> None:
    """Per request: pause, write the time into the shared page, answer."""
    now = time.monotonic_ns
    stamp = memoryview(mmap.mmap(page, mmap.PAGESIZE)).cast("q")
    stream = socket.socket(fileno=request) if kind == "tcp" else None
    os.close(ready)
    while stream.recv(64) if stream else os.read(request, 1):
        pause(request, now() + interval_ns)
        stamp[0] = now()
        if stream:
            stream.send(b"answer")
        elif kind == "signal":
            signal.pidfd_send_signal(answer, signal.SIGUSR1)
        else:
            os.write(answer, b"answer")


def main() -> None:
    kind, name, interval_ns, cpu, slack_ns, *fds = sys.argv[1:]
    # By /proc: importing ctypes for prctl would double the start-up time.
    for file, value in (("comm", name), ("timerslack_ns", slack_ns)):
        with open(f"/proc/self/{file}", "w") as out:
            out.write(value)
    if int(cpu) >= 0:
        os.sched_setaffinity(0, {int(cpu)})
    try:
        serve(kind, int(interval_ns), *map(int, fds))
    except (BrokenPipeError, ConnectionError, ProcessLookupError):
        pass


if __name__ == "__main__":
    main()
