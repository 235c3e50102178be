"""The engine's frames on their way to its reader: a slow one delays Samples, never the engine."""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
from typing import Final

from agenttop.model.sample import Message
from agenttop.stream.framing import encode

#: A Sample of a hundred agents has a third of this; it goes out in one piece.
SEND_BUFFER: Final = 1 << 20
#: include/uapi/asm-generic/socket.h
_SO_SNDBUFFORCE: Final = 32
#: SIOCOUTQ (unix(7)): for a stream socket, what the other end has not received yet.
_SIOCOUTQ: Final = termios.TIOCOUTQ


class Outbox:
    """Sends what fits and keeps the rest; knows whether the reader keeps up."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._waiting = bytearray()
        try:
            # The limit of SO_SNDBUF is the administrator's (net.core.wmem_max).
            channel.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, SEND_BUFFER)
        except OSError:
            channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)

    @property
    def flushed(self) -> bool:
        """Whether the kernel has all of it."""
        return not self._waiting

    @property
    def taken(self) -> bool:
        """Whether the reader has received all of it.

        The socket's buffer has room for minutes of small Samples: a reader that was stopped
        would find as many old ones before the newest.
        """
        return not self._waiting and not self._unread()

    def put(self, message: Message) -> None:
        """Raises OSError when nobody is there any more."""
        self._waiting += encode(message)
        self.flush()

    def flush(self) -> None:
        """Send what fits. Raises OSError when nobody is there any more."""
        while self._waiting:
            try:
                sent = self._channel.send(self._waiting)
            except BlockingIOError:
                return
            del self._waiting[:sent]

    def _unread(self) -> int:
        """Memory that unread data take in the kernel, bytes."""
        raw = fcntl.ioctl(self._channel.fileno(), _SIOCOUTQ, bytes(4))
        return int(struct.unpack("i", raw)[0])
