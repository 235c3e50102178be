"""Consumer of a BPF ring buffer (Documentation/bpf/ringbuf.rst) by mmap.

A page that only we write (consumer position), one that only the kernel
writes (producer position), then the data mapped twice in a row, so that no
record is split. A record is a u32 length with a busy and a discard bit, a
u32, and the bytes, padded to 8.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from typing import Final

_BUSY: Final = 1 << 31
_DISCARD: Final = 1 << 30
_HEADER: Final = 8


class Ring:
    """One reader per map; ``pages`` is the size that the map was made with."""

    def __init__(self, fd: int, pages: int) -> None:
        page = mmap.PAGESIZE
        self._size = pages * page
        self._consumer = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._producer = mmap.mmap(
            fd, page + 2 * self._size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page
        )
        self._data = memoryview(self._producer)[page:]
        self._produced = memoryview(self._producer)[:8].cast("Q")
        self._consumed = memoryview(self._consumer)[:8].cast("Q")

    def records(self, limit: int = 4096) -> Iterator[bytes]:
        """What has come, at most ``limit`` records; each is given back as it is taken."""
        position = self._consumed[0]
        while limit > 0 and position < self._produced[0]:
            at = position % self._size
            (header,) = struct.unpack_from("<I", self._data, at)
            if header & _BUSY:
                return  # still being written; the next call finds it whole
            length = header & ~(_BUSY | _DISCARD)
            record = None
            if not header & _DISCARD:
                record = bytes(self._data[at + _HEADER : at + _HEADER + length])
            position += (_HEADER + length + 7) & ~7
            self._consumed[0] = position
            if record is not None:
                limit -= 1
                yield record

    def close(self) -> None:
        for view in (self._data, self._produced, self._consumed):
            view.release()
        self._producer.close()
        self._consumer.close()
