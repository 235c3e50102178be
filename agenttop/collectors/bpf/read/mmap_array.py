"""Arrays of the kernel side as numpy arrays: the very memory, no copies.

By mmap(2) itself: Python's mmap keeps a descriptor for each mapping, and
there are some for each agent.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
#: (void *) -1
_FAILED: Final = ctypes.c_void_p(-1).value


def mapped(fd: int, dtype: np.dtype[Any], count: int, offset: int = 0) -> NDArray[Any]:
    """``count`` values of an mmap-able array map, from a byte offset on (whole pages).

    The mapping lasts as long as any array of it. Raises OSError.
    """
    page = mmap.PAGESIZE
    size = (dtype.itemsize * count + page - 1) // page * page
    access = mmap.PROT_READ | mmap.PROT_WRITE
    address = _libc.mmap(None, size, access, mmap.MAP_SHARED, fd, offset)
    if address == _FAILED:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    area = (ctypes.c_char * size).from_address(address)
    weakref.finalize(area, _libc.munmap, address, size).atexit = False
    return np.frombuffer(memoryview(area), dtype=dtype, count=count)
