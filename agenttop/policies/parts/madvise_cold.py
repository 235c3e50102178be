"""MADV_COLD for other processes: their memory is the first to be reclaimed.

process_madvise(2) with MADV_COLD (Linux 5.10) moves the pages that a process
alone has mapped to the end of the kernel's list, so that others' stay. Each
call is done once and for all: there is nothing to hold and nothing to give
back; a page that is used again is as hot as any. It says nothing of files
that are read without being mapped.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from typing import Final

from agenttop.policies.knobs.base import reason, thread_stat

MADV_COLD: Final = 20
#: The same on every architecture: process_madvise.
SYSCALL: Final = 440
#: Memory areas of a process that are looked at, and at a time.
MAX_AREAS: Final = 20_000
BATCH: Final = 64
#: Longest piece of an area.
PIECE: Final = 16 << 20
#: madvise(2) refuses what does not begin with a page.
PAGE: Final = os.sysconf("SC_PAGESIZE")


class _IoVec(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class Cooler:
    """Goes round the memory of one process, a bounded part at a time."""

    def __init__(self, pid: int, start: int) -> None:
        self._pid = pid
        #: Clock ticks since boot: the process is still the same one.
        self._start = start
        self._at = 0
        self._call = ctypes.CDLL(None, use_errno=True).syscall
        self._call.restype = ctypes.c_long

    def cool(self, limit: int) -> int:
        """Advise up to ``limit`` bytes (whole pages, at least one), on from where it was last.

        Returns how many it were; 0 once the process has ended. Raises OSError.
        """
        try:
            process = os.pidfd_open(self._pid)
        except ProcessLookupError:
            return 0
        try:
            stat = thread_stat(self._pid, self._pid)
            if stat is None or stat.start != self._start:
                return 0
            return self._round(process, limit)
        finally:
            os.close(process)

    def _round(self, process: int, limit: int) -> int:
        pieces = []
        # Whole pages, or all that follows in this area would begin within one.
        left = max(limit // PAGE, 1) * PAGE
        for begin, end in self._areas():
            begin = max(begin, self._at)
            while begin < end and left > 0:
                size = min(PIECE, end - begin, left)
                pieces.append((begin, size))
                begin += size
                left -= size
            if left <= 0:
                break
        # From the start again, the next time, when the end has been reached.
        self._at = 0 if left > 0 else pieces[-1][0] + pieces[-1][1]
        return sum(
            self._advise(process, pieces[i : i + BATCH]) for i in range(0, len(pieces), BATCH)
        )

    def _advise(self, process: int, pieces: list[tuple[int, int]]) -> int:
        """Areas that cannot be advised (locked, huge pages) are passed over."""
        done = 0
        while pieces:
            vector = (_IoVec * len(pieces))(*(_IoVec(*piece) for piece in pieces))
            result = self._call(
                ctypes.c_long(SYSCALL),
                ctypes.c_int(process),
                vector,
                ctypes.c_size_t(len(pieces)),
                ctypes.c_int(MADV_COLD),
                ctypes.c_uint(0),
            )
            if result < 0:
                error = ctypes.get_errno()
                if error not in (22, 12):  # EINVAL, ENOMEM: this area; all else: all of them.
                    raise OSError(error, os.strerror(error))
                pieces = pieces[1:]
                continue
            done += result
            while pieces and result >= pieces[0][1]:
                result -= pieces[0][1]
                pieces = pieces[1:]
            pieces = pieces[1:]  # The one at which the kernel stopped.
        return done

    def _areas(self) -> Iterator[tuple[int, int]]:
        """Begin and end of what is worth it, from /proc/PID/maps."""
        try:
            with open(f"/proc/{self._pid}/maps", "rb") as file:
                for number, line in enumerate(file):
                    if number >= MAX_AREAS:
                        return
                    fields = line.split(None, 5)
                    name = fields[5] if len(fields) > 5 else b""
                    if fields[1][:2] == b"--" or name.startswith((b"/dev/", b"[v", b"anon_inode")):
                        continue
                    begin, _, end = fields[0].partition(b"-")
                    # vsyscall lies above what a pointer of user space can be.
                    if int(end, 16) < 1 << 63 and int(end, 16) > self._at:
                        yield int(begin, 16), int(end, 16)
        except ProcessLookupError:
            return


def available() -> str | None:
    """Why MADV_COLD cannot be given to other processes; None if it can."""
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    # No process at all: EBADF where the call is known, ENOSYS where it is not.
    call(
        ctypes.c_long(SYSCALL),
        ctypes.c_int(-1),
        None,
        ctypes.c_size_t(0),
        ctypes.c_int(MADV_COLD),
        ctypes.c_uint(0),
    )
    error = ctypes.get_errno()
    return f"process_madvise: {reason(OSError(error, os.strerror(error)))}" if error == 38 else None
