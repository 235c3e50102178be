"""Causes made on purpose, each timed by the clock of who makes it: one a step, in its compute."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from agenttop.errors import UserError
from agenttop.workloads.blockfile import BLOCK, BlockFile, create, temporary
from agenttop.workloads.helpers import Helper, OwnGroup
from agenttop.workloads.metadata_fs import OwnFileSystem
from agenttop.workloads.syscalls import SYS_FUTEX, SYS_GETDENTS64, address, pread, sync_file_range

#: Its syscall() takes what the call takes.
_libc: Final = ctypes.CDLL(None)
_now = time.monotonic_ns

#: Page faults a step. Entering and leaving the exception, some 0.3 us each, is not seen.
PAGES: Final = 4
#: Size of the file that is read cold.
_FILE_BYTES: Final = 16 << 20
_RECLAIM_BYTES: Final = 1 << 18
#: Files in the directory that is listed.
_FILES: Final = 1000
#: Read at once past the page cache, so that the disk takes much longer than the call itself.
READ_BYTES: Final = 1 << 19
#: For how long a lock is held.
HOLD_NS: Final = 1_000_000
#: The quota of a throttled cgroup.
QUOTA_US: Final = 5000
PERIOD_US: Final = 100_000
#: A shorter stop is not looked at.
_STOP_NS: Final = 6_000_000
_LONG_STOP_NS: Final = 40_000_000

_FUTEX_WAIT: Final = 0
_FUTEX_WAKE: Final = 1
#: SYNC_FILE_RANGE_WRITE, include/uapi/linux/fs.h.
_START_WRITING: Final = 2


def _waits() -> int:
    """How often this thread has gone off its CPU to wait (getrusage(2), ru_nvcsw)."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


class Maker(Protocol):
    """Makes its cause."""

    def make(self) -> int:
        """Once; the time that it took, ns. 0: it could not be made."""

    def close(self) -> None:
        """Leave nothing behind."""


class MinorFault:
    """Pages given back to the kernel, then touched."""

    def __init__(self, file: str | None) -> None:
        self._size = PAGES * mmap.PAGESIZE
        self._memory = mmap.mmap(-1, self._size)

    def make(self) -> int:
        memory, size, page = self._memory, self._size, mmap.PAGESIZE
        memory.madvise(mmap.MADV_DONTNEED)
        begun = _now()
        for at in range(0, size, page):
            memory[at] = 1
        touched = _now()
        for at in range(0, size, page):
            memory[at] = 1
        # Without what touching them takes anyway.
        return 2 * touched - begun - _now()

    def close(self) -> None:
        self._memory.close()


class MajorFault:
    """A page of a mapped file that is not in memory, touched."""

    def __init__(self, file: str | None) -> None:
        self._file = BlockFile(file, _FILE_BYTES, direct=False)
        self._memory = mmap.mmap(
            self._file.fd, self._file.blocks * BLOCK, mmap.MAP_SHARED, mmap.PROT_READ
        )
        self._memory.madvise(mmap.MADV_RANDOM)
        self._next = 0

    def make(self) -> int:
        offset = self._next * BLOCK
        self._next = (self._next + 1) % self._file.blocks
        self._memory.madvise(mmap.MADV_DONTNEED, offset, BLOCK)
        self._file.forget(offset)
        begun = _now()
        self._memory[offset]
        return _now() - begun

    def close(self) -> None:
        self._memory.close()
        self._file.close()


class PageCacheMiss:
    """A block of a file that is not in the page cache, read."""

    def __init__(self, file: str | None) -> None:
        self._file = BlockFile(file, _FILE_BYTES, direct=False)
        self._next = 0

    def make(self) -> int:
        offset = self._next * BLOCK
        self._next = (self._next + 1) % self._file.blocks
        self._file.forget(offset)
        if not self._file.cold(offset):
            return 0  # somebody held on to the page
        begun = _now()
        os.pread(self._file.fd, BLOCK, offset)
        missed = _now()
        os.pread(self._file.fd, BLOCK, offset)
        # Without what a read takes anyway.
        return 2 * missed - begun - _now()

    def close(self) -> None:
        self._file.close()


class FileMetadata:
    """A directory of many files, listed with one call."""

    def __init__(self, file: str | None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="agenttop-", dir=file)
        for number in range(_FILES):
            Path(self._folder.name, f"{number:08}").touch()
        self._listing = Listing(self._folder.name)

    def make(self) -> int:
        return self._listing.make()

    def close(self) -> None:
        self._listing.close()
        self._folder.cleanup()


class ColdMetadata:
    """The same in a file system that has forgotten the directory: the disk has to be asked."""

    def __init__(self, file: str | None) -> None:
        self._system = OwnFileSystem(_FILES)
        try:
            self._listing = Listing(self._system.folder)
            self._io = os.open("/proc/thread-self/io", os.O_RDONLY)
        except BaseException as error:
            self._system.close()
            if isinstance(error, FileNotFoundError):
                raise UserError("this kernel keeps no account of I/O (/proc/PID/io)") from None
            raise

    def make(self) -> int:
        self._system.forget()
        before = self._read()
        took = self._listing.make()
        return took if self._read() > before else 0

    def _read(self) -> int:
        """Bytes that this thread has had read from disks, as the kernel accounts for them."""
        fields = dict(line.split(b": ") for line in os.pread(self._io, 512, 0).splitlines())
        return int(fields[b"read_bytes"])

    def close(self) -> None:
        os.close(self._io)
        self._listing.close()
        self._system.close()


class Listing:
    """A directory, listed with one call (getdents64)."""

    def __init__(self, folder: str) -> None:
        self._fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        self._buffer = ctypes.create_string_buffer(64 * _FILES)

    def make(self) -> int:
        os.lseek(self._fd, 0, os.SEEK_SET)
        number, size = SYS_GETDENTS64, len(self._buffer)
        begun = _now()
        got = _libc.syscall(number, self._fd, self._buffer, size)
        took = _now() - begun
        if got <= 0:
            raise OSError("getdents64 listed nothing")
        return took

    def close(self) -> None:
        os.close(self._fd)


class Lock:
    """A futex that another process holds for HOLD_NS."""

    def __init__(self, file: str | None) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self._word = ctypes.c_uint32.from_buffer(self._memory)
        self._holder = Helper(self._hold)

    def _hold(self, helper: Helper) -> None:
        """In the other process: it has the lock, and lets go of it after a while."""
        self._word.value = 1
        helper.reply()
        time.sleep(HOLD_NS / 1e9)
        self._word.value = 0
        _libc.syscall(SYS_FUTEX, ctypes.byref(self._word), _FUTEX_WAKE, 1, None, None, 0)

    def make(self) -> int:
        self._holder.ask()
        word, where = self._word, ctypes.byref(self._word)
        begun = _now()
        while word.value:
            _libc.syscall(SYS_FUTEX, where, _FUTEX_WAIT, 1, None, None, 0)
        return _now() - begun

    def close(self) -> None:
        self._holder.close()


class Throttled:
    """A cgroup of its own with a twentieth of a CPU, used up."""

    def __init__(self, file: str | None) -> None:
        self._group = OwnGroup("cpu")
        try:
            if self._group.v2:
                self._group.write("cpu.max", f"{QUOTA_US} {PERIOD_US}")
            else:
                self._group.write("cpu.cfs_period_us", str(PERIOD_US))
                self._group.write("cpu.cfs_quota_us", str(QUOTA_US))
            self._group.enter()
        except BaseException:
            self._group.close()
            raise

    def make(self) -> int:
        """Computes until it is stopped for most of a period; begun late in one, first for less."""
        last, stopped, times = _now(), 0, self._times()
        while True:
            now = _now()
            if now - last > _STOP_NS and self._times() > times:
                stopped += now - last
                if now - last > _LONG_STOP_NS:
                    return stopped
                times = self._times()
                now = _now()
            last = now

    def _times(self) -> int:
        """How often the quota was used up: a stop without is somebody else's doing."""
        return self._group.number("cpu.stat", "nr_throttled")

    def close(self) -> None:
        self._group.close()


class Reclaim:
    """The page cache of another process's cgroup, freed by this one."""

    def __init__(self, file: str | None) -> None:
        self._file = BlockFile(file, _RECLAIM_BYTES, direct=False)
        os.posix_fadvise(self._file.fd, 0, 0, os.POSIX_FADV_NORMAL)
        self._group = OwnGroup("memory")
        self._reader: Helper | None = None
        try:
            self._reader = Helper(self._read, self._group.enter)
            name = "memory.reclaim" if self._group.v2 else "memory.force_empty"
            self._fd = os.open(self._group.path / name, os.O_WRONLY)
        except BaseException:
            self.close()
            raise

    def _read(self, helper: Helper) -> None:
        """In the other process: what it reads is its cgroup's."""
        os.posix_fadvise(self._file.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        for offset in range(0, _RECLAIM_BYTES, BLOCK):
            os.pread(self._file.fd, BLOCK, offset)
        helper.reply()

    def make(self) -> int:
        assert self._reader is not None
        self._reader.ask()
        begun = _now()
        try:
            os.write(self._fd, str(_RECLAIM_BYTES // 2).encode())
        except BlockingIOError:
            pass  # it freed less than that
        return _now() - begun

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
        self._group.close()
        self._file.close()


class Compaction:
    """All memory compacted, as vm.compact_memory asks for. Nothing stays changed."""

    def __init__(self, file: str | None) -> None:
        self._fd = os.open("/proc/sys/vm/compact_memory", os.O_WRONLY)

    def make(self) -> int:
        begun = _now()
        os.write(self._fd, b"1")
        return _now() - begun

    def close(self) -> None:
        os.close(self._fd)


class BlockInCompute:
    """Many blocks read past the page cache at once, outside of any gate."""

    def __init__(self, file: str | None) -> None:
        self._file = BlockFile(file, _FILE_BYTES)
        self._memory = mmap.mmap(-1, READ_BYTES)
        self._memory.write(bytes(READ_BYTES))
        self._address = address(self._memory)
        self._next = 0

    def make(self) -> int:
        """The time off the CPU: what the read computes is not waiting.

        0 if the disk was done before the thread could wait, as where a host takes the CPU away.
        """
        offset = self._next * READ_BYTES
        self._next = (self._next + 1) % max(self._file.blocks * BLOCK // READ_BYTES, 1)
        waits = _waits()
        begun, ran = _now(), time.thread_time_ns()
        got = pread(self._file.fd, self._address, READ_BYTES, offset)
        ran, took = time.thread_time_ns() - ran, _now() - begun
        if got <= 0:
            raise OSError("nothing could be read past the page cache")
        return took - ran if _waits() > waits else 0

    def close(self) -> None:
        self._file.close()


class BackgroundWrite:
    """A block written to a file, and sent to the disk without waiting for it."""

    def __init__(self, file: str | None) -> None:
        self._fd = temporary(_FILE_BYTES) if file is None else create(file, _FILE_BYTES, False)
        self._data = os.urandom(BLOCK)
        self._next = 0

    def make(self) -> int:
        offset = self._next * BLOCK
        self._next = (self._next + 1) % (_FILE_BYTES // BLOCK)
        begun = _now()
        os.pwrite(self._fd, self._data, offset)
        sync_file_range(self._fd, offset, BLOCK, _START_WRITING)
        return _now() - begun

    def close(self) -> None:
        os.close(self._fd)


MAKERS: Final[dict[str, Callable[[str | None], Maker]]] = {
    "minor_fault": MinorFault,
    "major_fault": MajorFault,
    "reclaim": Reclaim,
    "compaction": Compaction,
    "page_cache_miss": PageCacheMiss,
    "lock": Lock,
    "throttled": Throttled,
    "file_metadata": FileMetadata,
    "cold_metadata": ColdMetadata,
    "block_in_compute": BlockInCompute,
}
#: What takes a disk's time, and none of a step's.
ASIDE: Final[dict[str, Callable[[str | None], Maker]]] = {"background_write": BackgroundWrite}
#: Those that read a file, the one of --file.
READS: Final = ("major_fault", "page_cache_miss", "reclaim", "block_in_compute")
