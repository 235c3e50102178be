"""Signals that ask a command to end, noted and never in the way of what it is doing."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from agenttop.linux.readiness import readable

#: Ctrl-C, kill, and a terminal that goes (which nohup has ignored: then it is none).
ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def noted() -> Iterator[Callable[[float], bool]]:
    """Until the block ends they do nothing but end a wait: ``wait(seconds)`` is whether one came.

    Handled, and not blocked and waited for: the kernel gives a signal that one thread blocks to
    another (numpy brings threads of its own), which would end the process.
    """
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        with _kept() as came:
            yield lambda seconds: bool(came) or readable(reader, seconds)
    finally:
        signal.set_wakeup_fd(wakeup)
        os.close(reader)
        os.close(writer)


@contextmanager
def put_off() -> Iterator[None]:
    """What comes in the block does its work right after it, as if it had come then."""
    with _kept() as came:
        yield
    if came:
        signal.raise_signal(came[0])


@contextmanager
def _kept() -> Iterator[list[int]]:
    """The signals that came are appended to the list, and do nothing else."""
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: came.append(number))
        for number in ENDING
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
