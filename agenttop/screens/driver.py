"""Textual's Linux driver, made fit for slow lines and for terminals that vanish."""

from __future__ import annotations

import asyncio
import os
import select
import selectors
import sys
from codecs import getincrementaldecoder
from typing import IO, TYPE_CHECKING, Any, Final

from textual import constants
from textual._xterm_parser import XTermParser
from textual.drivers.linux_driver import LinuxDriver

from agenttop.screens.frames import FrameSaver

if TYPE_CHECKING:
    from textual.app import App


#: How long an escape may wait for the rest of a sequence (and a little more), s.
ESCAPE_S: Final = constants.ESCAPE_DELAY + 0.02


class ThriftyFile:
    """The terminal as a file that is sent differences only, and that may be gone.

    Textual writes to it from its writer thread. An error there would end that
    thread and with it, one full queue later, the whole program: a vanished
    terminal swallows what is written instead.
    """

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._saver = FrameSaver()
        self.gone = False
        #: Characters that Textual wrote and that were sent on (for tests and measurements).
        self.written = 0
        self.sent = 0

    def write(self, text: str) -> int:
        saved = self._saver.saved(text)
        self.written += len(text)
        self.sent += len(saved)
        if saved and not self.gone:
            try:
                self._file.write(saved)
            except (OSError, ValueError):
                self.gone = True
        return len(text)

    def flush(self) -> None:
        if not self.gone:
            try:
                self._file.flush()
            except (OSError, ValueError):
                self.gone = True

    def fileno(self) -> int:
        return self._file.fileno()

    def isatty(self) -> bool:
        return self._file.isatty()


class Terminal(LinuxDriver):
    """The driver of the live screen."""

    def __init__(
        self,
        app: App[Any],
        *,
        debug: bool = False,
        mouse: bool = True,
        size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(app, debug=debug, mouse=mouse, size=size)
        self._file = ThriftyFile(sys.__stderr__)  # type: ignore[arg-type,assignment]
        self._loop = asyncio.get_running_loop()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    @property
    def backlog(self) -> int:
        """Writes that the terminal has not taken yet."""
        thread = self._writer_thread
        return thread._queue.qsize() if thread is not None else 0

    @property
    def gone(self) -> bool:
        """Has the terminal hung up?"""
        file: Any = self._file
        if file.gone:
            return True
        poller = select.poll()
        poller.register(self.fileno, 0)
        return any(event & (select.POLLHUP | select.POLLNVAL) for _, event in poller.poll(0))

    def _enable_mouse_support(self) -> None:
        """Clicks and the wheel only: no move is sent over the line."""
        if self._mouse:
            self.write("\x1b[?1000h\x1b[?1006h")
            self.flush()

    def _disable_mouse_support(self) -> None:
        if self._mouse:
            self.write("\x1b[?1000l\x1b[?1006l")
            self.flush()

    def _enable_mouse_pixels(self) -> None:
        """Cells are exact enough."""

    def disable_input(self) -> None:
        os.eventfd_write(self._wake, 1)
        super().disable_input()

    def _run_input_thread(self) -> None:
        try:
            self.run_input_thread()
        except OSError:
            # The terminal is gone: end as on a hang-up, without a traceback.
            self._loop.call_soon_threadsafe(self._app.exit)

    def run_input_thread(self) -> None:
        """Wait for input without ever waking up for nothing.

        Textual's own looks ten times a second whether it should end, and spins
        once the terminal has hung up.
        """
        parser = XTermParser(self._debug)
        decode = getincrementaldecoder("utf-8")(errors="replace").decode
        with selectors.PollSelector() as selector:
            selector.register(self.fileno, selectors.EVENT_READ)
            selector.register(self._wake, selectors.EVENT_READ)
            pending = False
            while not self.exit_event.is_set():
                ready = [key.fd for key, _ in selector.select(ESCAPE_S if pending else None)]
                if self._wake in ready:
                    # Set here and looked at above: whoever wakes us sets exit_event next.
                    self.exit_event.wait(1.0)
                    os.eventfd_read(self._wake)
                    continue
                pending = bool(ready)
                if ready:
                    data = os.read(self.fileno, 4096)
                    if not data:
                        raise OSError("end of input")
                    for event in parser.feed(decode(data)):
                        self.process_message(event)
                # An escape that nothing followed was the key.
                for event in parser.tick():
                    self.process_message(event)
