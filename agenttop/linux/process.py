"""One process as /proc tells it, read with as few system calls as will do.

Everything a process says about itself (name, command line) is hostile input:
it is decoded with replacement, bounded in length, and stays unprintable where
it was; ``printable`` makes it fit to show.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final, NamedTuple

from agenttop.linux import paths, whole_file

#: Bytes of a command line that are read; what follows tells nothing about what runs.
CMDLINE_BYTES: Final = 4096
#: Bytes of /proc/PID/cgroup that are read: 14 hierarchies with paths of 4 kB (PATH_MAX).
CGROUP_BYTES: Final = 1 << 16
#: include/linux/sched.h
_PF_EXITING: Final = 0x00000004
_PF_KTHREAD: Final = 0x00200000
#: PF_IO_WORKER and PF_USER_WORKER: the kernel's threads in a process, io_uring's and vhost's.
_PF_WORKERS: Final = 0x00000010 | 0x00004000


class ProcInfo(NamedTuple):
    """A process (proc(5)): what rules can ask for."""

    pid: int
    ppid: int
    #: At most 15 bytes, as the process last set it.
    comm: str
    #: Empty for kernel threads.
    cmdline: tuple[str, ...]
    #: Real user id; None if it was not asked for.
    uid: int | None
    #: Its path in each cgroup hierarchy, v2 first; None if it was not asked for.
    cgroups: tuple[str, ...] | None
    #: Clock ticks after boot: with the pid it names a process for good.
    starttime: int
    threads: int
    kernel: bool


def read_file(path: str, size: int) -> bytes | None:
    """A file of one record by one read, its first ``size`` bytes; None if it is gone.

    One record: what the kernel formats as a whole (single_open in fs/seq_file.c: stat, status,
    cgroup, comm, schedstat; a sysfs attribute), and cmdline. Lists take ``read_whole``.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(fd, size)
    except OSError:
        # ESRCH: the process ended between the open and the read.
        return None
    finally:
        os.close(fd)


def read_whole(path: str) -> bytes | None:
    """A whole file; None if it is gone, may not be read, or is larger than any of the kernel's."""
    try:
        return whole_file.read(path)
    except OSError:
        return None


def pids(root: str | None = None) -> Iterator[int]:
    """The processes there are (thread group leaders), in no particular order.

    The kernel lists them piece by piece: of 40,000 the first comes as soon as of 40.
    """
    try:
        with os.scandir(root or str(paths.proc())) as entries:
            for entry in entries:
                if entry.name.isascii() and entry.name.isdigit():
                    yield int(entry.name)
    except OSError:
        return


def read(
    pid: int, *, uid: bool = False, cgroups: bool = False, root: str | None = None
) -> ProcInfo | None:
    """One process, or None if it is gone.

    ``uid`` and ``cgroups`` cost one more file each. ``root`` is /proc; given,
    it saves looking it up for each of many processes.
    """
    base = f"{root or paths.proc()}/{pid}/"
    stat = read_file(base + "stat", 2048) or b""
    parsed = parse_stat(stat)
    if parsed is None:
        return None
    comm, ppid, kernel, threads, starttime = parsed
    cmdline: tuple[str, ...] = ()
    if not kernel:
        raw = read_file(base + "cmdline", CMDLINE_BYTES)
        if raw is None:
            return None
        if _fields(stat)[0] == b"Z":
            raw = _cmdline_of_a_thread(base + "task")
        cmdline = parse_cmdline(raw)
    groups: tuple[str, ...] | None = None
    if cgroups:
        groups = parse_cgroups(read_file(base + "cgroup", CGROUP_BYTES) or b"")
    owner = parse_uid(read_file(base + "status", 4096) or b"") if uid else None
    return ProcInfo(pid, ppid, comm, cmdline, owner, groups, starttime, threads, kernel)


def _cmdline_of_a_thread(base: str) -> bytes:
    """The command line of a process whose first thread has ended, and so has none."""
    told = (read_file(f"{base}/{tid}/cmdline", CMDLINE_BYTES) for tid in pids(base))
    return next(filter(None, told), b"")


def program_threads(pid: int) -> list[int]:
    """The thread ids of a process, without those that the kernel keeps in it for its own work."""
    base = f"{paths.proc()}/{pid}/task"
    return [
        tid
        for tid in pids(base)
        if (stat := read_file(f"{base}/{tid}/stat", 2048)) and not is_worker(stat)
    ]


def is_worker(raw: bytes) -> bool:
    """Is a /proc/PID/task/TID/stat line that of a worker of io_uring or vhost?"""
    return bool(_flags(raw) & _PF_WORKERS)


def is_ending(tid: int) -> bool:
    """Has a thread begun to end (or ended, or been reaped)?"""
    stat = read_file(f"{paths.proc()}/{tid}/stat", 2048)
    return not stat or bool(_flags(stat) & _PF_EXITING)


def process_of(tid: int) -> int:
    """The process of a thread; 0 if it is gone."""
    status = read_file(f"{paths.proc()}/{tid}/status", 4096) or b""
    return parse_number(status, b"Tgid") or 0


def owner_of(pid: int) -> int | None:
    """The real user of a process, as this user namespace numbers them; None if it is gone."""
    return parse_uid(read_file(f"{paths.proc()}/{pid}/status", 4096) or b"")


def _fields(raw: bytes) -> list[bytes]:
    """What follows the name in a stat line: the state first."""
    return raw[raw.rfind(b")") + 1 :].split()


def _flags(raw: bytes) -> int:
    try:
        return int(_fields(raw)[6])
    except (IndexError, ValueError):
        return 0


def parse_stat(raw: bytes) -> tuple[str, int, bool, int, int] | None:
    """comm, ppid, kernel thread?, threads, starttime of a /proc/PID/stat line.

    None for what is no such line, and for a process that has ended and only
    waits to be reaped (state Z or X; in state Z with more than one thread only
    its first has). The name may hold spaces, newlines and parentheses: it ends
    at the last ``)``.
    """
    start, end = raw.find(b"("), raw.rfind(b")")
    if start < 0 or end < start:
        return None
    fields = _fields(raw)
    try:
        threads = int(fields[17])
        if fields[0] == b"X" or (fields[0] == b"Z" and threads < 2):
            return None
        return (
            text(raw[start + 1 : end]),
            int(fields[1]),
            bool(int(fields[6]) & _PF_KTHREAD),
            threads,
            int(fields[19]),
        )
    except (IndexError, ValueError):
        return None


def parse_cmdline(raw: bytes) -> tuple[str, ...]:
    """The arguments; programs that rewrite their title leave NULs or spaces at its end."""
    raw = raw.rstrip(b"\0 ")
    return tuple(text(part) for part in raw.split(b"\0")) if raw else ()


def parse_cgroups(raw: bytes) -> tuple[str, ...]:
    """Paths of /proc/PID/cgroup (``id:controllers:path``): v2's first, each once."""
    found: list[str] = []
    for line in raw.splitlines():
        number, _, rest = line.partition(b":")
        path = text(rest.partition(b":")[2])
        if not path.startswith("/"):
            continue
        if number == b"0":
            found.insert(0, path)
        else:
            found.append(path)
    return tuple(dict.fromkeys(found))


def parse_uid(raw: bytes) -> int | None:
    """The real user id of /proc/PID/status."""
    return parse_number(raw, b"Uid")


def parse_number(raw: bytes, name: bytes) -> int | None:
    """The first number of a line of /proc/PID/status."""
    at = raw.find(b"\n" + name + b":")
    try:
        return int(raw[at + len(name) + 2 :].split(None, 1)[0]) if at >= 0 else None
    except (IndexError, ValueError):
        return None


def text(raw: bytes) -> str:
    """Bytes of unknown encoding as text without surrogates (which no output could encode)."""
    return raw.decode("utf-8", "replace")


def printable(value: str, limit: int = 64) -> str:
    """``value`` fit for a terminal: one line, no control or format characters, bounded."""
    shown = "".join(c if c.isprintable() else "\ufffd" for c in value[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"
