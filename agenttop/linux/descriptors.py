"""File descriptors: how many this process may have, and what to say when it has no more."""

from __future__ import annotations

import errno
import resource
from typing import Final

#: More are never asked for, whatever the hard limit is.
MOST: Final = 65536
#: Files of /proc and /sys that are kept open at most; the others are opened at each reading.
KEPT: Final = 512
#: Descriptors left to the rest of the program: maps, programs, links, channels.
SPARE: Final = 384
#: What everything together may need; with fewer some of it may be missing.
ENOUGH: Final = 1024


def raise_limit() -> int:
    """Raise the soft limit as far as the hard one allows; the soft limit now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = hard == resource.RLIM_INFINITY
    wanted = max(soft, MOST if unlimited else min(hard, MOST))
    if soft != resource.RLIM_INFINITY and wanted > soft:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):
            return soft
    return wanted


def lacking(error: OSError) -> bool:
    """Whether it failed for want of descriptors."""
    return error.errno in (errno.EMFILE, errno.ENFILE)


def why(error: OSError, otherwise: str) -> str:
    """What to say of a failure: that descriptors lack, with the remedy, or ``otherwise``."""
    return lack() if lacking(error) else otherwise


def lack() -> str:
    """What is wrong and what helps, when something failed for want of descriptors."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (
        f"too few file descriptors (the limit is {soft}):"
        f" raise it ('ulimit -n {ENOUGH}', or LimitNOFILE= of the service)"
    )


def note(error: OSError) -> None:
    """An open that failed: something cannot be read now, if descriptors lack."""
    global _noted
    _noted = _noted or lacking(error)


def noted() -> bool:
    """Whether descriptors have lacked somewhere since the start."""
    return _noted


_noted = False


class Budget:
    """How many descriptors may be kept open for files that are read again and again."""

    def __init__(self) -> None:
        self.used = 0
        self._limit: int | None = None

    def take(self) -> bool:
        """May one more be kept? If so, it counts from now on."""
        if self._limit is None:
            self._limit = min(KEPT, raise_limit() - SPARE)
        if self.used >= self._limit:
            return False
        self.used += 1
        return True

    def give(self) -> None:
        """One that was kept has been closed."""
        self.used -= 1
