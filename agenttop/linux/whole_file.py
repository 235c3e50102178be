"""Files of the kernel read whole.

One read(2) of a file of /proc, /sys or a cgroup gives what fits into the
kernel's buffer, mostly a page, however large ours is: only the read that
gives nothing is the end (seq_read_iter in fs/seq_file.c). Standard library
only: the guardian's side reads with this as well.
"""

from __future__ import annotations

import errno
import os
from typing import Final

#: Larger than any file that is read whole (cgroup.procs of 4 million processes: 30 MB).
MOST_BYTES: Final = 64 << 20
_PIECE: Final = 1 << 16


def read(path: str, most: int = MOST_BYTES, *, dir_fd: int | None = None) -> bytes:
    """The whole file. Raises OSError, EFBIG for more than ``most`` bytes: half a file is none."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=dir_fd)
    try:
        return from_fd(fd, most)
    finally:
        os.close(fd)


def from_fd(fd: int, most: int = MOST_BYTES) -> bytes:
    """The same of an open file, from its beginning; its own position stays. Raises OSError."""
    data = head(fd, most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    return data


def head(fd: int, size: int) -> bytes:
    """The first ``size`` bytes of an open file, fewer only where it ends. Raises OSError."""
    first = os.pread(fd, min(size, _PIECE), 0)
    parts, at = [first], len(first)
    while parts[-1] and at < size:
        parts.append(os.pread(fd, min(size - at, _PIECE), at))
        at += len(parts[-1])
    return first if at == len(first) else b"".join(parts)
