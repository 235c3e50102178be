"""A program under a pseudo-terminal of a given size; what it draws, counted."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import termios
import time
from collections.abc import Sequence

import pyte

from agenttop.linux.readiness import readable


class Terminal:
    """Runs a command at ``size`` (columns, rows) until ``close``."""

    def __init__(
        self, command: Sequence[str], size: tuple[int, int] = (200, 50), emulate: bool = True
    ) -> None:
        """``emulate``: work out what is seen, which takes CPU of its own."""
        self._emulate = emulate
        self.started = time.monotonic()
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.environ.update(TERM="xterm-256color", COLORTERM="truecolor", LANG="C.UTF-8")
            os.execvp(command[0], list(command))
        columns, rows = size
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.bytes = 0
        self._screen = pyte.Screen(columns, rows)
        self._emulator = pyte.ByteStream(self._screen)

    def read(self, seconds: float) -> None:
        """Take what is drawn in that time."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if not readable(self._fd, left):
                return
            try:
                data = os.read(self._fd, 1 << 16)
            except OSError:
                raise RuntimeError("the program ended") from None
            self.bytes += len(data)
            if self._emulate:
                self._emulator.feed(data)

    def drawn(self) -> str:
        """What a person sees now."""
        return "\n".join(self._screen.display)

    def close(self) -> None:
        os.write(self._fd, b"q")
        until = time.monotonic() + 10
        while time.monotonic() < until:
            try:
                self.read(0.1)
            except RuntimeError:
                break
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        os.waitpid(self.pid, 0)
        os.close(self._fd)
