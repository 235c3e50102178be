"""Framing of the messages between engine and view: u32 length, then MessagePack.

The same bytes serve a pipe, a file and an SSH connection.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from agenttop.model.sample import Message

_HEADER: Final = struct.Struct("<I")
#: A frame larger than this is not ours (a full Sample of 256 agents has under 20 MB).
MAX_FRAME: Final = 64 << 20


class StreamError(Exception):
    """The bytes are not a stream of messages (truncated, foreign or too large)."""


def encode(message: Message) -> bytes:
    """One frame."""
    body = msgspec.msgpack.encode(message)
    return _HEADER.pack(len(body)) + body


class Decoder:
    """Takes bytes as they come and gives whole messages; larger frames are foreign bytes.

    ``check`` looks at the bytes of each frame before they are decoded, and raises StreamError.
    """

    def __init__(
        self, max_frame: int = MAX_FRAME, check: Callable[[bytes], None] | None = None
    ) -> None:
        self._max_frame = max_frame
        self._check = check
        self._buffer = bytearray()
        self._decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)

    def feed(self, data: bytes) -> Iterator[Message]:
        """Messages completed by ``data``. Raises StreamError on foreign bytes."""
        self._buffer += data
        while len(self._buffer) >= _HEADER.size:
            (length,) = _HEADER.unpack_from(self._buffer)
            if length > self._max_frame:
                raise StreamError(f"a frame of {length} bytes: not an agenttop stream")
            end = _HEADER.size + length
            if len(self._buffer) < end:
                return
            # Bytes, not a part of the buffer: a decoder that lacks memory leaves that one locked.
            with memoryview(self._buffer) as view:
                body = bytes(view[_HEADER.size : end])
            del self._buffer[:end]
            if self._check is not None:
                self._check(body)
            try:
                message = self._decoder.decode(body)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise StreamError(f"not an agenttop stream: {error}") from None
            del body  # it may be large, and whoever takes the message needs the room
            yield message

    @property
    def pending(self) -> int:
        """Bytes of a frame that has not arrived whole."""
        return len(self._buffer)
