"""A file on a real disk that is read past the page cache (O_DIRECT), and leaves nothing behind."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import stat
import struct
from typing import Final

from agenttop.errors import UserError
from agenttop.linux import paths
from agenttop.workloads.syscalls import address, libc

BLOCK: Final = 4096

#: Super block magics of file systems in memory, include/uapi/linux/magic.h.
_IN_MEMORY: Final = {0x0102_1994: "tmpfs", 0x8584_58F6: "ramfs", 0x9584_58F6: "hugetlbfs"}

_CHUNK: Final = 1 << 20


def in_memory(path: str) -> str | None:
    """The name of the in-memory file system that holds ``path``; None on a disk. Raises OSError."""
    raw = ctypes.create_string_buffer(256)
    if libc.statfs64(os.fsencode(path), raw):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    kind = struct.unpack_from("@l", raw)[0] & 0xFFFF_FFFF
    return _IN_MEMORY.get(kind)


def candidates() -> list[str]:
    """Directories to try for a temporary file, best first."""
    given = os.environ.get("TMPDIR")
    wanted = (given, "/var/tmp", "/tmp", paths.home())
    return [
        path
        for path in dict.fromkeys(filter(None, wanted))
        if os.path.isabs(path) and os.path.isdir(path)
    ]


class BlockFile:
    """A descriptor for reads from the disk, the blocks in it and an aligned buffer."""

    def __init__(self, path: str | None, size: int, direct: bool = True) -> None:
        """``path``: a file or block device to read (never written), or a directory
        for the temporary file; None looks for one. ``direct``: O_DIRECT; else
        through the page cache, which ``forget`` empties. Raises UserError."""
        if path is not None and not os.path.isdir(path):
            self.fd = _open_existing(path)
        elif path is not None:
            self.fd = create(path, size)
        else:
            self.fd = temporary(size, direct=True)
        self.blocks = os.lseek(self.fd, 0, os.SEEK_END) // BLOCK
        if self.blocks == 0:
            os.close(self.fd)
            raise UserError(f"--file {path}: smaller than a block of {BLOCK} bytes")
        #: Made for ``cold``, never touched.
        self._map: mmap.mmap | None = None
        self._buffer = mmap.mmap(-1, BLOCK)
        self._buffer[0] = 1  # a page of its own now, no fault in the first step
        self.address = address(self._buffer)
        if not direct:
            flags = fcntl.fcntl(self.fd, fcntl.F_GETFL)
            fcntl.fcntl(self.fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)
            os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_RANDOM)

    def forget(self, offset: int) -> None:
        """Drop a block from the page cache: its next read waits for the disk."""
        os.posix_fadvise(self.fd, offset, BLOCK, os.POSIX_FADV_DONTNEED)

    def cold(self, offset: int) -> bool:
        """Is a block not in the page cache (mincore(2))? Not all that is forgotten goes."""
        if self._map is None:
            self._map = mmap.mmap(self.fd, self.blocks * BLOCK, mmap.MAP_PRIVATE)
        found = ctypes.c_ubyte()
        where = ctypes.c_void_p(address(self._map) + offset)
        if libc.mincore(where, ctypes.c_size_t(BLOCK), ctypes.byref(found)):
            code = ctypes.get_errno()
            raise OSError(code, f"mincore: {os.strerror(code)}")
        return not found.value & 1

    def close(self) -> None:
        os.close(self.fd)


def _open_existing(path: str) -> int:
    try:
        # O_NONBLOCK: a FIFO must not keep us waiting in open.
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        reason = (
            "its file system offers no O_DIRECT" if error.errno == errno.EINVAL else error.strerror
        )
        raise UserError(f"--file {path}: {reason}") from None
    mode = os.fstat(fd).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        os.close(fd)
        raise UserError(f"--file {path}: neither a regular file, a block device nor a directory")
    return fd


def temporary(size: int, direct: bool = False) -> int:
    """A descriptor of a nameless file of ``size`` random bytes on a disk. Raises UserError."""
    reasons = []
    for directory in candidates():
        try:
            return create(directory, size, direct)
        except UserError as error:
            reasons.append(str(error))
    raise UserError("; ".join(reasons) or "no directory for a temporary file: give --file PATH")


def create(directory: str, size: int, direct: bool = True) -> int:
    """The same in a directory. Raises UserError."""
    fd = -1
    try:
        memory = in_memory(directory)
        if memory:
            raise UserError(f"--file {directory}: {memory} is memory, block reads need a disk")
        fd = _nameless(directory)
        for written in range(0, size, _CHUNK):
            # Not zeros, which some disks and file systems do not store.
            os.write(fd, os.urandom(min(_CHUNK, size - written)))
        os.fsync(fd)
        if direct:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            fcntl.fcntl(fd, fcntl.F_SETFL, os.O_DIRECT)
    except BaseException as error:
        if fd >= 0:
            os.close(fd)
        if isinstance(error, OSError):
            raise UserError(f"--file {directory}: {error.strerror}") from None
        raise
    return fd


def _nameless(directory: str) -> int:
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
    path = os.path.join(directory, f".agenttop-{os.getpid()}")
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    os.unlink(path)
    return fd
