"""The view's end of the engine: starts it, reads its Samples, sends it commands."""

from __future__ import annotations

import socket
import subprocess
import time
from typing import Final

import msgspec

from agenttop.errors import UserError
from agenttop.linux import isolation
from agenttop.linux.readiness import readable
from agenttop.model.options import EngineOptions
from agenttop.model.sample import Command, Failure, Message, Sample
from agenttop.stream.framing import Decoder, StreamError, encode

#: Giving the knobs back takes milliseconds; a loaded machine gets more.
CLOSE_S: Final = 5.0


class EngineClient:
    """A running engine. Closing it (or ending, however) gives every knob back."""

    def __init__(self, options: EngineOptions) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                isolation.python(
                    "-m",
                    "agenttop.engine",
                    str(theirs.fileno()),
                    msgspec.json.encode(options).decode(),
                ),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        self._socket = ours
        self._socket.setblocking(False)
        self._decoder = Decoder()

    @property
    def pid(self) -> int:
        """The engine's process."""
        return self._process.pid

    def fileno(self) -> int:
        """Readable when there is something to ``read``."""
        return self._socket.fileno()

    def read(self) -> list[Message]:
        """What has come, without waiting. Raises UserError when the engine has ended."""
        messages: list[Message] = []
        while True:
            try:
                data = self._socket.recv(1 << 18)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                if messages:
                    break  # first what it said, the end at the next call
                raise UserError(self._last_words())
            try:
                messages += self._decoder.feed(data)
            except StreamError as error:
                raise UserError(f"the engine sends what is no Sample: {error}") from None
            if len(data) < 1 << 18:
                break
        for message in messages:
            if isinstance(message, Failure):
                raise UserError(message.text)
        return messages

    def samples(self, until: float) -> list[Sample]:
        """Wait for Samples, at most until that time.monotonic(); possibly none."""
        wait = max(0.0, until - time.monotonic())
        if not readable(self._socket.fileno(), wait):
            return []
        return [message for message in self.read() if isinstance(message, Sample)]

    def send(self, command: Command) -> None:
        """Ask the engine for something. Nothing happens when it has ended."""
        try:
            self._socket.setblocking(True)
            self._socket.sendall(encode(command))
        except OSError:
            pass
        finally:
            self._socket.setblocking(False)

    def close(self) -> None:
        """Have it give everything back and end."""
        self._socket.close()
        try:
            self._process.wait(CLOSE_S)
        except subprocess.TimeoutExpired:
            # The guardian gives back what the engine no longer can.
            self._process.kill()
            self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()

    def _last_words(self) -> str:
        try:
            _, said = self._process.communicate(timeout=CLOSE_S)
        except (subprocess.TimeoutExpired, ValueError):
            said = b""
        text = said.decode(errors="replace")
        if remedy := isolation.remedy(text):
            return f"the engine cannot start: {remedy}"
        lines = [line for line in text.splitlines() if line.strip()]
        code = self._process.returncode
        why = f"signal {-code}" if code is not None and code < 0 else f"code {code}"
        return f"the engine ended ({why})" + (f": {lines[-1].strip()}" if lines else "")
