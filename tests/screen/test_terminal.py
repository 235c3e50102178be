"""The screen on a real pseudo-terminal: however it ends, terminal and engine are given back."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agenttop.commands.live import fitting_theme, on_terminal
from agenttop.linux.readiness import readable
from tests.support.places import ROOT

#: Patience with a busy machine, s.
PATIENCE_S = 30.0
SYNTH = ["-m", "tests.support.synth_screen", "--history", "5"]


class Session:
    """A Python program on a terminal of its own."""

    def __init__(self, arguments: list[str], size: tuple[int, int] = (24, 80)) -> None:
        self.seen = b""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(ROOT)
            os.environ.update(TERM="xterm-256color", COLORTERM="truecolor", LC_ALL="C.UTF-8")
            os.environ.pop("NO_COLOR", None)
            os.execv(sys.executable, [sys.executable, *arguments])
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))

    def read_until(self, found: Callable[[bytes], bool]) -> bytes:
        """What the terminal got, once ``found`` holds for it or the program has ended."""
        end = time.monotonic() + PATIENCE_S
        while not found(self.seen) and time.monotonic() < end:
            if not readable(self.fd, 0.2):
                continue
            try:
                data = os.read(self.fd, 65536)
            except OSError:
                break
            if not data:
                break
            self.seen += data
        return self.seen

    def wait(self) -> int:
        """The exit code."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        raise AssertionError("the program does not end")

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0


@pytest.fixture
def start() -> Iterator[Callable[[list[str]], Session]]:
    sessions: list[Session] = []

    def make(arguments: list[str]) -> Session:
        sessions.append(Session(arguments))
        return sessions[-1]

    yield make
    for session in sessions:
        session.close()


def drawn(seen: bytes) -> bool:
    return b"coder" in seen


def restored(seen: bytes) -> bool:
    return b"\x1b[?1049l" in seen and b"\x1b[?25h" in seen


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("q", 0),
        (15, 143),
        pytest.param("\x03", 0, marks=pytest.mark.long),
        pytest.param(1, 129, marks=pytest.mark.long),
        pytest.param(2, 130, marks=pytest.mark.long),
    ],
)
def test_the_terminal_is_restored(
    start: Callable[[list[str]], Session], how: str | int, code: int
) -> None:
    session = start(SYNTH)
    before = termios.tcgetattr(session.fd)
    assert drawn(session.read_until(drawn))
    if isinstance(how, str):
        os.write(session.fd, how.encode())
    else:
        os.kill(session.pid, how)
    seen = session.read_until(restored)
    assert restored(seen)
    assert session.wait() == code
    assert b"Traceback" not in session.read_until(lambda _: False)
    assert termios.tcgetattr(session.fd) == before


def test_a_dropped_terminal_ends_it(start: Callable[[list[str]], Session]) -> None:
    session = start(SYNTH)
    assert drawn(session.read_until(drawn))
    os.close(session.fd)
    session.fd = -1
    assert session.wait() in (0, 129)


def test_a_dropped_terminal_ends_it_even_if_hangups_are_ignored(
    start: Callable[[list[str]], Session],
) -> None:
    code = (
        "import asyncio, signal, sys; from tests.support import synth_screen; "
        "loop = asyncio.SelectorEventLoop; add = loop.add_signal_handler; "
        "loop.add_signal_handler = lambda s, n, *a: n != signal.SIGHUP and add(s, n, *a); "
        "signal.signal(signal.SIGHUP, signal.SIG_IGN); sys.argv = ['x', '--history', '5']; "
        "synth_screen.main()"
    )
    session = start(["-c", code])
    assert drawn(session.read_until(drawn))
    os.close(session.fd)
    session.fd = -1
    assert session.wait() in (0, 129)


@pytest.mark.parametrize(
    "number", [signal.SIGHUP, pytest.param(signal.SIGTERM, marks=pytest.mark.long)]
)
def test_a_terminal_that_takes_nothing_does_not_hold_it(
    start: Callable[[list[str]], Session], number: int
) -> None:
    session = start(SYNTH)
    assert drawn(session.read_until(drawn))
    # Nobody reads any more, as behind ^S or a dead link.
    for _ in range(60):
        os.write(session.fd, b"t")
        time.sleep(0.03)
    os.kill(session.pid, number)
    assert session.wait() == 128 + number


def test_no_mouse_reports_of_moves(start: Callable[[list[str]], Session]) -> None:
    session = start(SYNTH)
    seen = session.read_until(drawn)
    assert b"\x1b[?1000h" in seen
    assert b"\x1b[?1003h" not in seen


def test_the_engine_runs_under_the_screen_and_ends_with_it(
    start: Callable[[list[str]], Session],
) -> None:
    session = start(["-m", "agenttop", "--no-bpf", "-p", str(os.getpid())])
    ready = b"/proc only"
    assert ready in session.read_until(lambda seen: ready in seen)
    children = _children(session.pid)
    assert children
    os.write(session.fd, b"q")
    assert restored(session.read_until(restored))
    assert session.wait() == 0
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--theme", "nope"], b"no theme 'nope'"),
        (["--sort", "nope"], b"no such key"),
        (["-n", "3"], b"say -b too"),
        (["--theme", "/nonexistent.yaml"], b"/nonexistent.yaml: No such file"),
        (["-p", "x"], b"invalid"),
    ],
)
def test_a_wrong_option_is_one_line_and_no_screen(
    start: Callable[[list[str]], Session], arguments: list[str], said: bytes
) -> None:
    session = start(["-m", "agenttop", *arguments])
    seen = session.read_until(lambda _: False)
    assert session.wait() == 2
    assert said in seen
    assert seen.startswith(b"agenttop: ")
    assert seen.count(b"\n") == 1
    assert b"\x1b[?1049h" not in seen


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


@pytest.mark.parametrize(
    ("environ", "theme"),
    [
        ({"TERM": "xterm-256color"}, "dark"),
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, "ansi16"),
        ({"TERM": "linux"}, "ansi16"),
        ({"TERM": "linux", "COLORTERM": "truecolor"}, "dark"),
        ({"TERM": "vt220"}, "ansi16"),
    ],
)
def test_the_theme_suits_the_terminal(environ: dict[str, str], theme: str) -> None:
    assert fitting_theme(environ) == theme


def test_a_dumb_terminal_gets_no_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "isatty", lambda stream: True)
    assert on_terminal({"TERM": "xterm"})
    assert not on_terminal({"TERM": "dumb"})
    assert not on_terminal({})
