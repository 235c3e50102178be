"""A bound, kept by the kernel, on the memory that reading something of others may take.

What a recording makes of a Store, a report or a trace is bounded in many places; all of them
together are bounded here, whatever was forgotten.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import CDLL
from pathlib import Path
from typing import Final

from agenttop.errors import UserError

#: What a recording may take beside what a small one takes, bytes.
MOST: Final = 64 << 20
#: Left of it for pages that are no data (code that a small one did not run).
_CODE: Final = 4 << 20
#: malloc.h of glibc, and a block that is large, bytes.
_MMAP_THRESHOLD: Final = -3
_TRIM_THRESHOLD: Final = -1
_LARGE: Final = 128 << 10
#: What a screen may come to need after it has begun: its popups, and its cached lines.
_SCREEN: Final = 32 << 20


@contextmanager
def memory(name: str) -> Iterator[None]:
    """Within it this process cannot get more than MOST bytes on top of what it has.

    Private writable memory (RLIMIT_DATA; the kernel counts all of it since 4.7). Not for a
    process with threads: each takes 8 MB of it for its stack. Raises UserError where it is not
    enough for what ``name`` asks for.
    """
    _prepare()
    before = resource.getrlimit(resource.RLIMIT_DATA)
    allowed = _data() + MOST - _CODE
    low = [limit for limit in before if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min([allowed, *low]), before[1]))
    try:
        yield
    except (MemoryError, SystemError):  # Python's own code forgets the one at times
        raise UserError(
            f"{name}: takes more than {MOST >> 20} MB of memory: read less of it, with --for"
        ) from None
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


class Budget:
    """The same for a process with threads and a screen: looked at, not kept by the kernel.

    It may go beyond by what one Sample makes before the next look.
    """

    def __init__(self, name: str) -> None:
        _return_large_blocks()
        self._name = name
        self._most = _resident() + MOST + _SCREEN

    def check(self) -> None:
        """Raises UserError once more is taken."""
        if _resident() > self._most:
            raise UserError(
                f"{self._name}: takes more than {MOST >> 20} MB of memory to show:"
                " 'agenttop snapshot --from' with --for reads less of it"
            )


def _prepare() -> None:
    """What everyone needs: numpy, and the buffer (32 MB, hardly touched) of its products."""
    import numpy as np

    _return_large_blocks()
    _ = np.ones((64, 64)) @ np.ones((64, 64))


def _return_large_blocks() -> None:
    """Have malloc(3) return large blocks to the kernel as they are freed, whatever came before.

    By itself glibc keeps ever larger ones for later (mallopt(3), M_MMAP_THRESHOLD): of 256
    agents the gaps between them took as much as what was read.
    """
    mallopt = getattr(CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option in (_MMAP_THRESHOLD, _TRIM_THRESHOLD):
            mallopt(option, _LARGE)


def _data() -> int:
    """Private writable memory of this process, bytes."""
    return _status("VmData:")


def _resident() -> int:
    """Of it, what is in memory."""
    return _status("RssAnon:")


def _status(name: str) -> int:
    """Bytes; 0 where the kernel does not tell."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) << 10
    return 0
