"""Textual's Linux driver, made fit for slow lines and for terminals that vanish."""

from __future__ import annotations

import asyncio
import os
import select
import selectors
import sys
from codecs import getincrementaldecoder
from queue import Full
from typing import TYPE_CHECKING, Any, Final

from textual import constants
from textual._xterm_parser import XTermParser
from textual.drivers.linux_driver import LinuxDriver

from agenttop.screens.frame_diff import FrameSaver

if TYPE_CHECKING:
    from textual.app import App


#: How long an escape may wait for the rest of a sequence (and a little more), s.
ESCAPE_S: Final = constants.ESCAPE_DELAY + 0.02


#: So many writes may wait; the queue of Textual's writer holds 30, and then its put blocks.
MOST_WAITING: Final = 18
#: How long to wait at the end for a terminal that takes nothing, s.
GIVE_UP_S: Final = 1.0


class ThriftyFile:
    """The terminal as a file that is sent differences only, and that may be gone.

    Textual writes to it from its writer thread. An error there would end that
    thread and with it, one full queue later, the whole program: a vanished
    terminal swallows what is written instead. It writes to the descriptor
    itself: a thread that is stuck within Python's own file would hold its lock
    when the program ends.
    """

    def __init__(self, descriptor: int, encoding: str = "utf-8") -> None:
        self._descriptor = descriptor
        self._encoding = encoding
        self._saver = FrameSaver()
        self.gone = False

    def write(self, text: str) -> int:
        data = self._saver.saved(text).encode(self._encoding, "replace")
        try:
            while data and not self.gone:
                data = data[os.write(self._descriptor, data) :]
        except OSError:
            self.gone = True
        return len(text)

    def flush(self) -> None:
        """Nothing is kept back."""

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)


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
        stderr = sys.__stderr__
        assert stderr is not None
        self._file = ThriftyFile(stderr.fileno(), stderr.encoding)  # type: ignore[assignment]
        #: Something was not drawn because the terminal takes nothing.
        self.dropped = False
        self._leaving = False
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

    def write(self, data: str) -> None:
        """Queue data; what a stuck terminal cannot take is dropped, and drawn anew later."""
        if self.backlog >= MOST_WAITING and not self._leaving:
            self.dropped = True
            return
        super().write(data)

    def start_application_mode(self) -> None:
        self._leaving = False
        super().start_application_mode()  # type: ignore[no-untyped-call]

    def stop_application_mode(self) -> None:
        self._leaving = True
        super().stop_application_mode()

    def close(self) -> None:
        """End the writer; one that is stuck is left behind (it holds nothing)."""
        thread = self._writer_thread
        if thread is not None:
            try:
                thread._queue.put_nowait(None)
            except Full:
                pass
            thread.join(GIVE_UP_S)

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
