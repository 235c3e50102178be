"""One writer at a time: a lock file in the state directory.

The engine takes it and hands it on to its guardian (the same open file), so
that it is held until the last of the two has ended and everything is restored.
It is an open file description lock (fcntl(2)): unlike flock's, one can ask
who has it without taking it from under somebody who is just starting.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import time
from typing import NamedTuple

from agenttop.policies.journal import open_own, open_state_dir
from agenttop.policies.knobs import thread_stat

NAME = "lock"
#: A guardian restores everything within a second of its engine's death.
PATIENCE_S = 2.0


class Owner(NamedTuple):
    """Who holds the lock; 0 for a process that is not known or has ended."""

    pid: int
    guardian: int


class LockedError(Exception):
    """Somebody else holds the lock; the text says who and what to do."""

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        who = f"agenttop with pid {owner.pid or owner.guardian or 'unknown'}"
        super().__init__(
            f"{who} holds the policies of this machine:"
            " end it, or take them back with 'agenttop policy revert'"
        )


def acquire(state_dir: str) -> int:
    """Take the lock; its descriptor, which holds it.

    Waits a little for the guardian of a dead owner to finish. Raises LockedError, JournalError.
    """
    dir_fd = open_state_dir(state_dir)
    assert dir_fd is not None
    try:
        fd = open_own(dir_fd, NAME, os.O_RDWR | os.O_CREAT)
    finally:
        os.close(dir_fd)
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_WRLCK))
            break
        except OSError:
            owner = _read(fd)
        if owner.pid or time.monotonic() > deadline:
            os.close(fd)
            raise LockedError(owner)
        time.sleep(0.02)
    sign(fd, os.getpid(), 0)
    return fd


def sign(fd: int, pid: int, guardian: int) -> None:
    """Write who holds the lock into it."""
    people = {"pid": [pid, _start(pid)], "guardian": [guardian, _start(guardian)]}
    os.truncate(fd, 0)
    os.pwrite(fd, json.dumps(people).encode(), 0)


def release(fd: int) -> None:
    """Give the lock back (it stays held while another process has the descriptor)."""
    try:
        os.truncate(fd, 0)
    finally:
        os.close(fd)


def owner(state_dir: str) -> Owner | None:
    """Who holds the lock now; None when nobody does. Raises JournalError."""
    dir_fd = open_state_dir(state_dir, create=False)
    if dir_fd is None:
        return None
    try:
        fd = open_own(dir_fd, NAME, os.O_RDWR)
    except FileNotFoundError:
        return None
    finally:
        os.close(dir_fd)
    try:
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK))
        held = struct.unpack_from("h", answer)[0] != fcntl.F_UNLCK
        return _read(fd) if held else None
    finally:
        os.close(fd)


def _flock(kind: int) -> bytes:
    """struct flock for the whole file."""
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 0, 0)


def _start(pid: int) -> int:
    stat = thread_stat(pid, pid) if pid else None
    return stat.start if stat and stat.state not in "ZX" else 0


def _read(fd: int) -> Owner:
    """The processes named in the lock, those that are still the same ones."""

    def alive(name: str) -> int:
        pid, start = people[name]
        return pid if type(pid) is int and pid > 0 and start and _start(pid) == start else 0

    try:
        people = json.loads(os.pread(fd, 4096, 0))
        return Owner(alive("pid"), alive("guardian"))
    except (ValueError, KeyError, TypeError):
        return Owner(0, 0)
