"""A minimal io_uring: one request in flight, by plain system calls, without liburing.

Sources: include/uapi/linux/io_uring.h and io_uring(7). The call numbers are
the same on every architecture. The rings are shared memory: aligned 4-byte
stores through memoryviews, and every hand-over to the kernel is a system
call, so no further barrier is needed without SQPOLL.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from typing import Final

from agenttop.errors import UserError
from agenttop.workloads.syscalls import fast, libc

SETUP: Final = 425
ENTER: Final = 426
REGISTER: Final = 427

OP_TIMEOUT: Final = 11
OP_READ: Final = 22
OP_RECV: Final = 27

#: Hand the request to an io worker thread at once.
SQE_ASYNC: Final = 1 << 4
TIMEOUT_ABS: Final = 1

#: The offset for what has no offsets (pipes, ttys), as unsigned -1.
CURRENT: Final = 0xFFFF_FFFF_FFFF_FFFF

_ENTER_GETEVENTS: Final = 1
_REGISTER_EVENTFD: Final = 4
_FEAT_SINGLE_MMAP: Final = 1
_OFF_SQ_RING: Final = 0
_OFF_SQES: Final = 0x1000_0000

#: struct io_uring_params: seven words, three reserved, then the rings' offsets.
_PARAMS_SIZE: Final = 120
_SQ_OFFSETS: Final = 40
_CQ_OFFSETS: Final = 80
#: opcode, flags, ioprio, fd, off, addr, len, op flags, user_data, and 24 bytes of zeros.
_SQE: Final = struct.Struct("=BBHiQQIIQ24x")
_CQE: Final = struct.Struct("=QiI")

_enter = fast.syscall
_enter.argtypes = (
    ctypes.c_long,
    ctypes.c_int,
    ctypes.c_uint,
    ctypes.c_uint,
    ctypes.c_uint,
    ctypes.c_void_p,
    ctypes.c_size_t,
)
_enter.restype = ctypes.c_long


class Uring:
    """``queue`` a request, ``submit`` or ``wait``, then ``reap`` its result."""

    def __init__(self) -> None:
        """Raises UserError where the kernel offers no io_uring (to this process)."""
        params = bytearray(_PARAMS_SIZE)
        raw = (ctypes.c_char * _PARAMS_SIZE).from_buffer(params)
        self.fd = int(libc.syscall(SETUP, 4, raw))
        if self.fd < 0:
            code = ctypes.get_errno()
            hint = {
                errno.ENOSYS: "this kernel was built without it",
                errno.EPERM: "forbidden here, see /proc/sys/kernel/io_uring_disabled",
            }.get(code, os.strerror(code))
            raise UserError(f"no io_uring ({hint}): use --gate epoll or read")
        try:
            self._map(params)
        except BaseException:
            os.close(self.fd)
            raise

    def _map(self, params: bytearray) -> None:
        entries, cq_entries, _, _, _, features = struct.unpack_from("=6I", params)
        if not features & _FEAT_SINGLE_MMAP:
            raise UserError("io_uring here is older than Linux 5.4: use --gate epoll or read")
        sq_head, sq_tail, sq_mask, _, _, _, sq_array = struct.unpack_from(
            "=7I", params, _SQ_OFFSETS
        )
        cq_head, cq_tail, cq_mask, _, _, cqes = struct.unpack_from("=6I", params, _CQ_OFFSETS)
        size = max(sq_array + 4 * entries, cqes + _CQE.size * cq_entries)
        self._rings = mmap.mmap(self.fd, size, offset=_OFF_SQ_RING)
        self._sqes = mmap.mmap(self.fd, _SQE.size * entries, offset=_OFF_SQES)
        self._words = memoryview(self._rings)[: size & ~3].cast("I")
        self._sq_tail, self._cq_head, self._cq_tail = sq_tail >> 2, cq_head >> 2, cq_tail >> 2
        self._sq_mask = self._words[sq_mask >> 2]
        self._cq_mask = self._words[cq_mask >> 2]
        self._cqes = cqes
        # The submission ring holds indices of SQEs: slot i is always SQE i.
        for index in range(entries):
            self._words[(sq_array >> 2) + index] = index
        self._tail = self._words[sq_head >> 2]

    def queue(
        self,
        opcode: int,
        fd: int,
        address: int,
        length: int,
        offset: int,
        op_flags: int = 0,
        sqe_flags: int = 0,
        user_data: int | None = None,
    ) -> None:
        """Fill the next submission entry; the kernel sees it at ``submit`` or ``wait``."""
        _SQE.pack_into(
            self._sqes,
            (self._tail & self._sq_mask) * _SQE.size,
            opcode,
            sqe_flags,
            0,
            fd,
            offset,
            address,
            length,
            op_flags,
            self._tail if user_data is None else user_data,
        )
        self._tail = (self._tail + 1) & 0xFFFF_FFFF
        self._words[self._sq_tail] = self._tail

    def submit(self) -> None:
        """Hand over the queued request without waiting."""
        if _enter(ENTER, self.fd, 1, 0, 0, None, 0) != 1:
            raise OSError("io_uring_enter took no request")

    def wait(self) -> None:
        """Hand over the queued request and wait for a completion, in one io_uring_enter."""
        _enter(ENTER, self.fd, 1, 1, _ENTER_GETEVENTS, None, 0)

    def reap(self) -> int:
        """The result of the request in flight (negative errno); waits on if a signal broke in."""
        words = self._words
        head = words[self._cq_head]
        while words[self._cq_tail] == head:
            _enter(ENTER, self.fd, 0, 1, _ENTER_GETEVENTS, None, 0)
        result = _CQE.unpack_from(self._rings, self._cqes + (head & self._cq_mask) * _CQE.size)[1]
        words[self._cq_head] = (head + 1) & 0xFFFF_FFFF
        return int(result)

    def notify(self, eventfd: int) -> None:
        """Count each completion in an eventfd, so that epoll can wait for it."""
        number = ctypes.c_int(eventfd)
        if libc.syscall(REGISTER, self.fd, _REGISTER_EVENTFD, ctypes.byref(number), 1):
            raise OSError(ctypes.get_errno(), "io_uring_register(IORING_REGISTER_EVENTFD)")

    def close(self) -> None:
        """Give the rings back; the kernel cancels what is in flight."""
        self._words.release()
        self._rings.close()
        self._sqes.close()
        os.close(self.fd)
