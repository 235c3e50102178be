"""agenttop on a pseudo-terminal of its own, as a person runs it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyte

from tests.support.places import ROOT

#: Long enough for a start on a loaded machine.
PATIENCE_S = 60.0


class LivePty:
    """A command of agenttop in a session of its own; ``close`` ends whatever is left of it."""

    def __init__(
        self,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        size: tuple[int, int] = (120, 40),
    ) -> None:
        columns, rows = size
        environ = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "TERM": "xterm-256color",
            "LANG": "C.UTF-8",
            **(env or {}),
        }
        master, self._slave = pty.openpty()
        self._master: int | None = master
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        #: The terminal's settings before the start.
        self.settings = termios.tcgetattr(self._slave)
        command = [sys.executable, "-m", "agenttop", *arguments]
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.setsid()
                fcntl.ioctl(self._slave, termios.TIOCSCTTY, 0)
                for fd in (0, 1, 2):
                    os.dup2(self._slave, fd)
                os.closerange(3, 256)
                os.execve(command[0], command, environ)
            finally:
                os._exit(127)
        #: All that was drawn.
        self.output = bytearray()
        self._screen = pyte.Screen(columns, rows)
        self._emulator = pyte.ByteStream(self._screen)
        self._lock = threading.Lock()
        self._wake, self._waker = os.pipe()
        self._reader = threading.Thread(target=self._read, args=(master,), daemon=True)
        self._reader.start()
        self.status: int | None = None

    def _read(self, master: int) -> None:
        poll = select.poll()
        poll.register(master, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while True:
            if self._wake in {fd for fd, _ in poll.poll()}:
                return
            try:
                data = os.read(master, 1 << 16)
            except OSError:
                return
            if not data:
                return
            with self._lock:
                self.output += data

    # ------------------------------------------------------------------ at work

    def type(self, keys: str) -> None:
        """Press keys; nothing happens on a terminal that is gone."""
        if self._master is not None:
            with contextlib.suppress(OSError):
                os.write(self._master, keys.encode())

    def seen(self) -> str:
        """What a person sees now, lines parted by line ends."""
        with self._lock:
            data = bytes(self.output)
        self._screen.reset()
        self._emulator.feed(data)
        return "\n".join(self._screen.display)

    def until(self, text: str, seconds: float = PATIENCE_S) -> None:
        """Wait for it to be on the screen."""
        deadline = time.monotonic() + seconds
        while text not in (seen := self.seen()):
            assert time.monotonic() < deadline, f"no {text!r} on the screen:\n{seen}"
            assert self.alive(), f"ended with {self.status}:\n{self.output[-2000:]!r}"
            time.sleep(0.05)

    def engine(self) -> int:
        """The engine's process, or 0: the child of the view's."""
        return next((pid for pid in self.family() if _stat(pid, 1) == self.pid), 0)

    def family(self) -> list[int]:
        """The processes of its session that live, itself first."""
        return [pid for pid in _pids() if _session(pid) == self.pid]

    def alive(self) -> bool:
        return self.wait(0) is None

    def wait(self, seconds: float) -> int | None:
        """Its exit code, negative for a signal; None while it lives."""
        deadline = time.monotonic() + seconds
        while self.status is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                self.status = os.waitstatus_to_exitcode(status)
            elif time.monotonic() >= deadline:
                return None
            else:
                time.sleep(0.01)
        return self.status

    def settings_now(self) -> list[object]:
        return list(termios.tcgetattr(self._slave))

    # ------------------------------------------------------------------ the end

    def hang_up(self) -> None:
        """The line is dropped: the terminal vanishes."""
        self._stop_reading()
        os.close(self._slave)
        self._slave = -1

    def _stop_reading(self) -> None:
        if self._master is not None:
            os.write(self._waker, b".")
            self._reader.join()
            os.close(self._master)
            self._master = None

    def close(self) -> None:
        """SIGTERM, so that everything is given back; SIGKILL for what that does not end."""
        family = self.family()
        for number, patience in (
            (signal.SIGCONT, 0.0),
            (signal.SIGTERM, 8.0),
            (signal.SIGKILL, 5.0),
        ):
            for pid in family:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            deadline = time.monotonic() + patience
            while time.monotonic() < deadline and any(_session(pid) == self.pid for pid in family):
                self.alive()
                time.sleep(0.02)
        self.wait(5)
        self._stop_reading()
        for fd in (self._slave, self._wake, self._waker):
            if fd >= 0:
                os.close(fd)


@contextlib.contextmanager
def live(
    *arguments: str, env: Mapping[str, str] | None = None, size: tuple[int, int] = (120, 40)
) -> Iterator[LivePty]:
    """A started agenttop; ended with the block."""
    started = LivePty(*arguments, env=env, size=size)
    try:
        yield started
    finally:
        started.close()


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _stat(pid: int, field: int) -> int:
    """Of /proc/PID/stat, counted from the state: 1 is the parent, 3 the session; 0 if it ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0
    return int(stat[field]) if stat[0] not in "ZX" else 0


def _session(pid: int) -> int:
    return _stat(pid, 3)


def cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def environed(name: str, value: str) -> list[int]:
    """The processes with this in their environment: all that one start has brought forth."""
    wanted = f"{name}={value}".encode()
    found = []
    for pid in _pids():
        try:
            words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if wanted in words and _session(pid):
            found.append(pid)
    return found
