"""One writer a machine: a lock that the kernel holds, and a file that says who has it.

The lock is flock(2) on what every writer can open (machine.open_anchor), whatever
its /run, its state directory or its namespaces are. The file, ``lock`` in
the state directory, names the processes; it is locked as well (an open file
description lock, fcntl(2): one can ask who has it without taking it).

The engine takes both and hands them on to its guardian (the same open
files), so that they are held until the last of the two has ended and
everything is restored.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import time
from contextlib import suppress
from typing import NamedTuple

from agenttop.policies.guardian import liveness, machine
from agenttop.policies.guardian.journal import JournalError, open_own, open_state_dir
from agenttop.policies.knobs.base import thread_stat

NAME = "lock"
#: A guardian restores everything within a second of its engine's death; whoever of the two is
#: last has the kernel detach BPF programs (inheritance_programs.py), which takes another one.
PATIENCE_S = 4.0


class Owner(NamedTuple):
    """Who holds the lock; 0 for a process that is not known or has ended."""

    pid: int
    guardian: int
    #: It has another state directory than the one that was asked about.
    elsewhere: bool = False


class Lock(NamedTuple):
    """The descriptors that hold it."""

    machine: int
    file: int


class LockedError(Exception):
    """Another process holds the lock; the text says which and what to do."""

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        pid = owner.pid or owner.guardian
        if owner.elsewhere and (stranger := _stranger(pid)):
            super().__init__(f"{stranger} holds the lock of this machine's policies: end it")
            return
        who = f"agenttop with pid {pid or 'unknown'}"
        if owner.elsewhere:
            who += ", which has another state directory or runs in a container,"
        super().__init__(
            f"{who} holds the policies of this machine:"
            f" end it, or take them back{' there' * owner.elsewhere} with 'agenttop policy revert'"
        )


def acquire(state_dir: str) -> Lock:
    """Take the lock.

    Waits a little for the guardian of a dead owner to finish. Raises LockedError, JournalError.
    """
    if reason := machine.refusal():
        raise JournalError(f"policies are refused: {reason}")
    dir_fd = open_state_dir(state_dir)
    assert dir_fd is not None
    try:
        file = open_own(dir_fd, NAME, os.O_RDWR | os.O_CREAT)
    finally:
        os.close(dir_fd)
    try:
        lock = Lock(machine.open_anchor(), file)
    except machine.AnchorError as error:
        os.close(file)
        raise JournalError(f"policies are refused: {error}") from None
    try:
        deadline = time.monotonic() + PATIENCE_S
        while (found := _take(lock)) is not None:
            if found.pid or time.monotonic() > deadline:
                raise LockedError(found)
            time.sleep(0.02)
        sign(lock, os.getpid(), 0)
    except BaseException:
        close(lock)
        raise
    return lock


def _take(lock: Lock) -> Owner | None:
    """Take both parts; else who has them."""
    try:
        fcntl.flock(lock.machine, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return _read(lock.file) if _is_held(lock.file) else Owner(_holder(), 0, True)
    try:
        fcntl.fcntl(lock.file, fcntl.F_OFD_SETLK, _flock(fcntl.F_WRLCK))
    except OSError:
        fcntl.flock(lock.machine, fcntl.LOCK_UN)
        return _read(lock.file)
    return None


def sign(lock: Lock, pid: int, guardian: int) -> None:
    """Write who holds the lock into it, if there is room: a full disk keeps nobody from it."""
    people = {"pid": [pid, _start(pid)], "guardian": [guardian, _start(guardian)]}
    with suppress(OSError):
        os.truncate(lock.file, 0)
        os.pwrite(lock.file, json.dumps(people).encode(), 0)


def release(lock: Lock) -> None:
    """Give the lock back (it stays held while another process has the descriptors)."""
    try:
        os.truncate(lock.file, 0)
    finally:
        close(lock)


def close(lock: Lock) -> None:
    """Close its descriptors, with what the file says left as it is."""
    for fd in lock:
        os.close(fd)


def owner(state_dir: str) -> Owner | None:
    """Who holds the lock now; None when nobody does. Raises JournalError."""
    dir_fd = open_state_dir(state_dir, create=False)
    if dir_fd is not None:
        try:
            file = open_own(dir_fd, NAME, os.O_RDWR)
        except FileNotFoundError:
            file = -1
        finally:
            os.close(dir_fd)
        if file >= 0:
            try:
                if _is_held(file):
                    return _read(file)
            finally:
                os.close(file)
    pid = _holder()
    return Owner(pid, 0, True) if pid else None


def _is_held(file: int) -> bool:
    answer = fcntl.fcntl(file, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK))
    return bool(struct.unpack_from("h", answer)[0] != fcntl.F_UNLCK)


def _flock(kind: int) -> bytes:
    """struct flock for the whole file."""
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 0, 0)


def _holder() -> int:
    """The living process that took the machine's lock; 0 if there is none, or it has ended.

    From /proc/locks, which names the process that took it also while only its guardian has it.
    """
    try:
        fd = machine.open_anchor()
        try:
            info = os.fstat(fd)
        finally:
            os.close(fd)
        device = f"{os.major(info.st_dev):02x}:{os.minor(info.st_dev):02x}:{info.st_ino}"
        with open("/proc/locks") as file:
            # "1: FLOCK  ADVISORY  WRITE 10633 00:0d:1 0 EOF"
            for line in file:
                fields = line.split()
                if fields[1] == "FLOCK" and fields[5] == device:
                    pid = int(fields[4])
                    return pid if _start(pid) else 0
    except (machine.AnchorError, OSError, ValueError, IndexError):
        pass
    return 0


def _stranger(pid: int) -> str | None:
    """A process that cannot be an agenttop with policies, as it is not root's."""
    try:
        # Not the owner of /proc/PID: of a process that may not be traced it is root.
        with open(f"/proc/{pid}/status", "rb") as file:
            uid = next(int(line.split()[1]) for line in file if line.startswith(b"Uid:"))
    except (OSError, StopIteration):
        return None
    stat = thread_stat(pid, pid)
    return f"pid {pid} ({stat.comm}) of uid {uid}" if uid and stat else None


def _start(pid: int) -> int:
    """When it started; 0 for one that has ended, or is ending: it is only closing its files."""
    stat = thread_stat(pid, pid) if pid > 0 else None
    return stat.start if stat and liveness.look(pid) != liveness.EXITING else 0


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
