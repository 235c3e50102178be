"""Waiting for one descriptor, whatever its number: select(2) ends at 1024 (FD_SETSIZE)."""

from __future__ import annotations

import select


def readable(fd: int, seconds: float | None) -> bool:
    """Whether a read would not block, also because of an end or an error; waits so long for it.

    ``seconds`` None: without end.
    """
    return _ready(fd, select.POLLIN, seconds)


def writable(fd: int, seconds: float | None) -> bool:
    """Whether a write would not block, also because of an end or an error; waits so long for it."""
    return _ready(fd, select.POLLOUT, seconds)


def _ready(fd: int, event: int, seconds: float | None) -> bool:
    poll = select.poll()
    poll.register(fd, event)
    return bool(poll.poll(None if seconds is None else max(0.0, seconds) * 1000))
