"""A bound, kept by the kernel, on the memory that reading something of others may take.

What a recording makes of a Store, a report or a trace is bounded in many places; all of them
together are bounded here, whatever was forgotten.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from agenttop.errors import UserError

#: What a recording may take beside what a small one takes, bytes.
MOST: Final = 64 << 20
#: Left of it for pages that are no data (code that a small one did not run).
_CODE: Final = 4 << 20


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


def _prepare() -> None:
    """What everyone needs: numpy, and the buffer (32 MB, hardly touched) of its products."""
    import numpy as np

    _ = np.ones((64, 64)) @ np.ones((64, 64))


def _data() -> int:
    """Private writable memory of this process, bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) << 10
    return 0
