"""What completes a loop's wait: timers, peers, disk reads, child processes.

A source is used once per step: ``arm`` before the gate (send the request,
start the child), ``take`` to get what has come. ``take`` blocks while nothing
has come: called without a gate before it, it is the gate of kind read.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
import select
import shutil
import signal
import socket
import time
import tty
from typing import NamedTuple

from agenttop.errors import UserError
from agenttop.workloads import uring
from agenttop.workloads.blockfile import BLOCK, BlockFile
from agenttop.workloads.detached_peer import peer_command, start_outside
from agenttop.workloads.syscalls import (
    ABSTIME,
    CLOCK_MONOTONIC,
    SignalWait,
    Timespec,
    address,
    pread,
    sleep_until,
    timerfd_create,
    timerfd_start,
)


class Request(NamedTuple):
    """An io_uring request that completes when the source does (io_uring_enter(2))."""

    opcode: int
    fd: int
    address: int
    length: int
    offset: int
    op_flags: int = 0
    sqe_flags: int = 0


class Source:
    #: Readable when the source has completed; None where that cannot be polled.
    fd: int | None = None

    def start(self) -> None:
        """The loop begins now: what happened before it must not count."""

    def arm(self) -> None:
        """Before the gate: have the next completion come."""

    def take(self) -> None:
        """Take the completion; blocks until it is there."""

    def origin(self) -> int:
        """When the completion was due or sent, CLOCK_MONOTONIC ns; 0 where that is unknown."""
        return 0

    def request(self) -> Request | None:
        """For io_uring, after ``arm``; None where the kernel has no such request."""
        return None

    def close(self) -> None:
        """Leave nothing behind."""


class Timer(Source):
    """A periodic timerfd. A period that passes during compute ends the next gate at once."""

    def __init__(self, interval_ns: int) -> None:
        self.fd: int = timerfd_create()
        self._interval = interval_ns
        self._due = 0

    def start(self) -> None:
        self._due = time.monotonic_ns()
        timerfd_start(self.fd, self._due + self._interval, self._interval)

    def take(self) -> None:
        # The read yields the number of periods since the last one.
        self._due += self._interval * int.from_bytes(os.read(self.fd, 8), "little")

    def origin(self) -> int:
        return self._due

    def close(self) -> None:
        os.close(self.fd)


class Deadline(Source):
    """The next multiple of the interval that still lies ahead, for clock_nanosleep and io_uring."""

    def __init__(self, interval_ns: int) -> None:
        self._interval = interval_ns
        self._due = 0
        self._time = Timespec()
        self._address = address(self._time)

    def start(self) -> None:
        self._due = time.monotonic_ns()

    def arm(self) -> None:
        self._due += self._interval
        behind = time.monotonic_ns() - self._due
        if behind >= 0:
            self._due += (behind // self._interval + 1) * self._interval
        self._time.sec, self._time.nsec = divmod(self._due, 1_000_000_000)

    def take(self) -> None:
        while sleep_until(CLOCK_MONOTONIC, ABSTIME, self._time, None):
            pass  # a signal broke in

    def origin(self) -> int:
        return self._due

    def request(self) -> Request:
        return Request(uring.OP_TIMEOUT, -1, self._address, 1, 0, uring.TIMEOUT_ABS)


class PeerPlan(NamedTuple):
    """How the peer of a loop behaves."""

    interval_ns: int
    cpu: int | None
    slack_ns: int
    name: str = "atpeer"


class Peer(Source):
    """A process outside the tree that answers each request after the interval.

    ``kind``: ipc (a pipe), tcp (a loopback connection), kworker (a pty, whose
    reader the kernel wakes from a work queue), signal (SIGUSR1).
    """

    def __init__(self, kind: str, plan: PeerPlan) -> None:
        self._open: list[int] = []
        page = self._keep(os.memfd_create("agenttop-stamp"))
        os.truncate(page, mmap.PAGESIZE)
        self._page = mmap.mmap(page, mmap.PAGESIZE)
        self._stamp = memoryview(self._page).cast("q")
        self._buffer = bytearray(64)
        self._address = address(self._buffer)
        self._socket: socket.socket | None = None
        self._signal: SignalWait | None = None
        theirs: list[int]
        if kind == "tcp":
            self._socket, remote = tcp_pair()
            self.fd = self._request = self._socket.fileno()
            request = answer = remote.detach()
            theirs = [request]
        else:
            request, self._request = os.pipe()
            self._keep(self._request)
            theirs = [request]
            if kind == "ipc":
                ours, answer = os.pipe()
            elif kind == "kworker":
                answer, ours = os.openpty()
                tty.setraw(ours)
            else:
                ours = answer = os.pidfd_open(os.getpid())
                self._signal = SignalWait(signal.SIGUSR1, self._request)
            if kind != "signal":
                theirs.append(answer)
                self.fd = ours
            self._keep(ours)
        fds = (request, answer, page)
        command = peer_command(kind, plan.name, plan.interval_ns, plan.cpu, plan.slack_ns, fds)
        try:
            self.pid = start_outside(command, fds)
        finally:
            for fd in theirs:
                os.close(fd)

    def _keep(self, fd: int) -> int:
        self._open.append(fd)
        return fd

    def arm(self) -> None:
        try:
            os.write(self._request, b"?")
        except (BrokenPipeError, ConnectionError):
            raise _peer_gone() from None

    def take(self) -> None:
        if self._signal:
            self._signal.wait()
            gone = self._signal.hung_up()
        else:
            try:
                if self._socket:
                    gone = not self._socket.recv_into(self._buffer)
                else:
                    gone = not os.read(self.fd or 0, 64)
            except OSError:
                # A pty whose master closed answers EIO, a reset connection ECONNRESET.
                gone = True
        if gone:
            raise _peer_gone()

    def origin(self) -> int:
        return self._stamp[0]

    def request(self) -> Request | None:
        if self.fd is None:
            return None
        if self._socket:
            return Request(uring.OP_RECV, self.fd, self._address, 64, 0)
        return Request(uring.OP_READ, self.fd, self._address, 64, uring.CURRENT)

    def close(self) -> None:
        if self._socket:
            self._socket.close()
        for fd in self._open:
            os.close(fd)


def _peer_gone() -> UserError:
    return UserError("the other end has gone: the peer was killed, or the file was cut")


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a loopback connection, without Nagle's delay. Raises OSError."""
    with socket.create_server(("127.0.0.1", 0), backlog=1) as server:
        near = socket.create_connection(server.getsockname())
        while True:
            far, whence = server.accept()
            if whence == near.getsockname():
                break
            far.close()  # a stranger
    for end in (near, far):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


class Block(Source):
    """Random 4 KiB reads past the page cache: pread, or a request for io_uring."""

    def __init__(self, file: BlockFile, sqe_flags: int = 0) -> None:
        self._file = file
        self._flags = sqe_flags
        self._random = random.Random(0)

    def _offset(self) -> int:
        return int(self._random.random() * self._file.blocks) * BLOCK

    def arm(self) -> None:
        self._next = self._offset()

    def take(self) -> None:
        if pread(self._file.fd, self._file.address, BLOCK, self._next) != BLOCK:
            raise UserError("the block file cannot be read: short or failed O_DIRECT read")

    def request(self) -> Request:
        return Request(
            uring.OP_READ, self._file.fd, self._file.address, BLOCK, self._next, 0, self._flags
        )

    def close(self) -> None:
        self._file.close()


class Worker(Block):
    """Random reads through the page cache that an io_uring worker makes, waits for and completes.

    A direct read would be completed by the disk's interrupt, whoever began it.
    """

    def __init__(self, file: BlockFile) -> None:
        super().__init__(file, uring.SQE_ASYNC)

    def arm(self) -> None:
        super().arm()
        self._file.forget(self._next)


class Ring(Source):
    """A source through io_uring whose completions arrive in an eventfd, for epoll."""

    def __init__(self, inner: Source) -> None:
        self._inner = inner
        self._ring = uring.Uring()
        self.fd: int = os.eventfd(0)
        self._ring.notify(self.fd)

    def start(self) -> None:
        self._inner.start()

    def arm(self) -> None:
        self._inner.arm()
        request = self._inner.request()
        assert request is not None
        self._ring.queue(*request)
        self._ring.submit()

    def take(self) -> None:
        os.eventfd_read(self.fd)
        check(self._ring.reap())

    def origin(self) -> int:
        return self._inner.origin()

    def close(self) -> None:
        self._ring.close()
        os.close(self.fd)
        self._inner.close()


def check(result: int) -> None:
    """Raise UserError for a failed io_uring request; a timeout's ETIME is success."""
    if result == 0:
        raise _peer_gone()
    if result < 0 and -result != errno.ETIME:
        raise UserError(f"an io_uring request failed: {os.strerror(-result)}")


class Child(Source):
    """A tool process: started before the gate, its end completes the step."""

    def __init__(self, poller: select.epoll | None) -> None:
        """``poller``: register each child's pidfd there; None: ``take`` waits in wait4."""
        tool = shutil.which("true")
        if tool is None:
            raise UserError("no program 'true' in PATH to start as the child")
        self._tool = tool
        self._poller = poller
        self._pid = 0
        self._pidfd = -1

    def arm(self) -> None:
        self._pid = os.posix_spawn(self._tool, ["true"], {}, setsigmask=())
        if self._poller:
            self._pidfd = os.pidfd_open(self._pid)
            self._poller.register(self._pidfd, select.EPOLLIN)

    def take(self) -> None:
        os.wait4(self._pid, 0)
        self._pid = 0
        if self._poller:
            os.close(self._pidfd)

    def close(self) -> None:
        if self._pid:
            os.wait4(self._pid, 0)
