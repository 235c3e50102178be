"""Arrays of the kernel side as numpy arrays: the very memory, no copies."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray


def mapped(fd: int, dtype: np.dtype[Any], count: int, offset: int = 0) -> NDArray[Any]:
    """``count`` values of an mmap-able array map, from a byte offset on (whole pages)."""
    size = dtype.itemsize * count
    page = mmap.PAGESIZE
    area = mmap.mmap(
        fd,
        (size + page - 1) // page * page,
        mmap.MAP_SHARED,
        mmap.PROT_READ | mmap.PROT_WRITE,
        offset=offset,
    )
    return np.frombuffer(area, dtype=dtype, count=count)
